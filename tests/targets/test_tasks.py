"""Each task reads its rows, refuses what it cannot mean, and makes answers of logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from wsimil.cohort import Cohort, read_cohort
from wsimil.config import parse_config
from wsimil.errors import CohortError, ConfigError
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival, Task, from_json
from wsimil.targets.config import TaskConfig

ORDINAL = Ordinal(levels=("low", "mid", "high"))


def read(folder: Path, task: Task, columns: str, rows: list[str]) -> Cohort:
    path = folder / "cohort.csv"
    lines = [f"s{number},p{number},{row}" for number, row in enumerate(rows)]
    path.write_text("\n".join([f"slide_id,patient_id,{columns}", *lines]) + "\n", encoding="utf-8")
    return read_cohort(path, task=task)


CASES = [
    (Classification(), "label", ["b", "a", "", "b"], [1, 0, 1]),
    (ORDINAL, "label", ["high", "low", "", "mid"], [2, 0, 1]),
    (MultiLabel(columns=("er", "pr")), "er,pr", ["1,0", "0,", ",", "0,0"], [[1, 0], [0, -1], [0, 0]]),
    (MultiLabel(), "label", ["er;pr", "-", "", "pr ; er"], [[1, 1], [0, 0], [1, 1]]),
    (Regression(columns=("age",), unit="years"), "age", ["60", "1e-3", "", "-2.5"], [[60], [0.001], [-2.5]]),
    (Regression(columns=("x", "y")), "x,y", ["1,2", "3,4", "5,", "6,7"], [[1, 2], [3, 4], [6, 7]]),
    (Survival(), "time,event", ["12.5,1", "0,0", "3,", "3,1.0"], [[12.5, 1], [0, 0], [3, 1]]),
]


@pytest.mark.parametrize(("task", "columns", "rows", "wanted"), CASES, ids=lambda value: str(value)[:20])
def test_rows_become_targets_and_a_row_without_one_is_counted(
    tmp_path: Path, task: Task, columns: str, rows: list[str], wanted: list[object]
) -> None:
    cohort = read(tmp_path, task, columns, rows)
    np.testing.assert_array_equal(cohort.targets(cohort.slides), wanted)
    assert [str(finding) for finding in cohort.findings] == ["1 slides have no label and are left out: 's2'"]
    (tmp_path / "cohort.csv").write_text(cohort.to_csv(), encoding="utf-8")
    again = read_cohort(tmp_path / "cohort.csv", task=task)
    np.testing.assert_array_equal(again.targets(again.slides), wanted)


@pytest.mark.parametrize(
    ("task", "columns", "rows", "says"),
    [
        (
            Classification(),
            "label",
            ["a", "b", "None"],
            "'None', read as missing, and are left out; where it is a class",
        ),
        (
            ORDINAL,
            "label",
            ["high", "low", "NA"],
            "'NA', read as missing, and are left out; where it is a level, name it in",
        ),
        (
            MultiLabel(),
            "label",
            ["er", "-", "none"],
            "'none', read as missing, and are left out; where it means that a slide",
        ),
        (
            MultiLabel(columns=("er", "pr")),
            "er,pr",
            ["1,0", "0,1", "?,?"],
            "'?', read as missing, and are left out; where",
        ),
        (
            Regression(columns=("x", "y")),
            "x,y",
            ["1,2", "3,4", "NA,nan"],
            "'NA' and 'nan', read as missing, and are left out",
        ),
        (Survival(), "time,event", ["12.5,1", "0,0", "3,n/a"], "'n/a', read as missing, and are left out: 's2'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_word_that_was_read_as_missing_is_told_with_what_to_write(
    tmp_path: Path, task: Task, columns: str, rows: list[str], says: str
) -> None:
    (finding,) = read(tmp_path, task, columns, rows).findings
    assert str(finding).startswith(f"1 slides say {says}")


def test_a_word_for_missing_that_is_a_level_or_a_known_class_is_one(tmp_path: Path) -> None:
    for task in (Ordinal(levels=("none", "mild")), Classification(classes=("mild", "none"))):
        cohort = read(tmp_path, task, "label", ["none", "mild"])
        assert [slide.label for slide in cohort.slides] == ["none", "mild"]
        assert cohort.findings == ()


@pytest.mark.parametrize(("task", "columns", "rows", "wanted"), CASES, ids=lambda value: str(value)[:20])
def test_a_task_is_the_same_after_json(
    tmp_path: Path, task: Task, columns: str, rows: list[str], wanted: list[object]
) -> None:
    cohort = read(tmp_path, task, columns, rows)
    fitted = cohort.task if isinstance(task, MultiLabel) else cohort.task.fitted([s.label for s in cohort.slides])
    again = from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    assert again.digest == fitted.digest
    assert again.outputs == fitted.outputs


@pytest.mark.parametrize(
    ("task", "columns", "row", "says"),
    [
        (ORDINAL, "label", "huge", "line 3: slide 's1': 'huge' is none of the levels low, mid, high"),
        (MultiLabel(columns=("er", "pr")), "er,pr", "2,0", "er '2', wanted 0, 1 or nothing"),
        (MultiLabel(labels=("er",)), "label", "pr", "label 'pr' is unknown"),
        (
            MultiLabel(),
            "label",
            "er;none",
            "line 3: slide 's1': 'er;none' names 'none', which is read as missing, among",
        ),
        (MultiLabel(), "label", "er;ER", "labels 'ER' (1 slides) and 'er' (1 slides) differ in case alone"),
        (Regression(columns=("age",)), "age", "old", "age: 'old' is no number"),
        (Regression(columns=("age",)), "age", "inf", "age: 'inf' is not finite"),
        (Regression(columns=("age",)), "age", "47_461", "age: '47_461' is no number"),
        (Survival(), "time,event", "-1,1", "time '-1', wanted a time of 0 or more"),
        (Survival(), "time,event", "inf,1", "time: 'inf' is not finite"),
        (Survival(), "time,event", "1,2", "event '2', wanted 1 for an event or 0"),
    ],
)
def test_a_cell_that_cannot_be_meant_is_refused_with_its_line(
    tmp_path: Path, task: Task, columns: str, row: str, says: str
) -> None:
    good = {"label": "-" if isinstance(task, MultiLabel) else "low", "er,pr": "1,0", "age": "1", "time,event": "1,1"}
    with pytest.raises(CohortError) as caught:
        read(tmp_path, task, columns, [good[columns], row])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("task", "labels", "says"),
    [
        (Classification(classes=("a", "b")), ["a", "a"], "no training slide is of class 'b'"),
        (ORDINAL, ["low", "high"], "no training slide is of level 'mid'"),
        (MultiLabel(labels=("er",)), ["er", "er"], "label 'er': 2 training slides have it and 0 have not"),
        (Regression(columns=("x",)), ["3", "3"], "x is 3 for all training slides"),
        (Regression(columns=("x", "y")), ["1;0.1", "2;0.1", "3;0.1"], r"y is 0\.1 for all training slides"),
        (Survival(), ["3 censored", "4 censored"], "none of 2 training slides has an event"),
        (Survival(), ["3 event", "3 event"], "do not tell two intervals apart"),
        (Survival(horizons=(9.0,)), ["3 event", "4 event"], "horizon 9 lies beyond the longest training time 4"),
        (
            Survival(),
            ["20150101 event", "20150115 event", "20191231 event"],
            "edges name columns and metrics by six digits and must differ",
        ),
        (Survival(model="cox"), ["3 censored"], "none of 1 training slides has an event"),
    ],
)
def test_training_targets_that_teach_nothing_are_refused(task: Task, labels: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        task.fitted(labels)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "ordinal"}, "two or more levels"),
        ({"levels": ["a", "b"]}, "task.levels means nothing for task.kind classification, it is for ordinal"),
        ({"kind": "regression", "bins": 7}, "task.bins means nothing for task.kind regression"),
        ({"kind": "survival", "model": "cox", "bins": 7}, "task.bins means nothing for task.model cox"),
        ({"kind": "survival", "columns": ["time"]}, "two columns, time and event"),
        ({"kind": "survival", "horizons": [3, 2]}, "horizons rise"),
        ({"kind": "survival", "model": "cox", "horizons": [20150101, 20150115]}, "horizons name columns"),
        ({"columns": ["a", "b"]}, "classification takes one column"),
        ({"classes": ["tumor"]}, "task.classes are two or more, got 'tumor' alone"),
        ({"classes": ["Tumor", "tumor"]}, "differ in case alone"),
        ({"classes": ["a;b", "c"]}, "holds a semicolon"),
        ({"classes": [False, True]}, "valid string"),
        (
            {"kind": "ordinal", "levels": ["a", "b"], "classes": ["a", "b"]},
            "task.classes means nothing for task.kind ordinal",
        ),
        ({"kind": "multilabel", "columns": ["a;b", "c"]}, "has no semicolon"),
    ],
)
def test_an_option_that_means_nothing_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(TaskConfig, given, source="test")  # type: ignore[arg-type]


def test_levels_that_yaml_reads_as_numbers_are_text() -> None:
    assert TaskConfig.model_validate({"kind": "ordinal", "levels": [1, 2]}).levels == ("1", "2")
    assert TaskConfig.model_validate({"classes": [0, 1]}).classes == ("0", "1")


def test_given_classes_keep_their_order_and_the_second_of_two_is_what_is_found() -> None:
    """Sorted, a model of cancer and normal measures how well normal slides are found."""
    task = parse_config(TaskConfig, {"classes": ["normal", "cancer"]}, source="test").build()
    assert isinstance(task, Classification)
    named = task.named(["cancer", "normal"])
    assert (named.outputs, named.positive) == (("normal", "cancer"), "cancer")
    assert Classification().named(["cancer", "normal"]).positive == "normal"
    assert Classification().named(["a", "b", "c"]).positive == ""
    with pytest.raises(ValueError, match="'benign' is none of the classes normal, cancer"):
        task.read(["benign"])


def test_a_given_class_may_be_called_what_else_means_that_there_is_none() -> None:
    assert Classification().read(["none"]) is None
    assert Classification(classes=("none", "mild")).read(["none"]) == "none"


def test_probabilities_of_levels_follow_from_steps_and_the_median_is_decided() -> None:
    logits = np.array([[2.0, -1.0], [-3.0, 5.0]])
    up = 1 / (1 + np.exp(-logits))
    wanted = np.stack([1 - up[:, 0], up[:, 0] * (1 - up[:, 1]), up[:, 0] * up[:, 1]], axis=1)
    got = ORDINAL.values(logits)
    np.testing.assert_allclose(got, wanted, rtol=1e-13)
    assert [ORDINAL.decided(row) for row in got] == ["mid", "low"]
    assert ORDINAL.confidence(got[0]) == got[0, 1]
    # The most probable level is an end, the median lies between.
    assert ORDINAL.decided(np.array([0.4, 0.25, 0.35])) == "mid"


def test_values_come_back_in_their_unit() -> None:
    task = Regression(columns=("age",), unit="years").fitted(["50", "70"])
    np.testing.assert_allclose(task.values(np.array([[0.0], [1.0], [-1.5]])), [[60], [70], [45]])
    assert task.answers[0].name == "value_age_years"
    assert task.decided(np.array([63.0])) == "63 years"


def test_several_values_are_told_each_by_its_name() -> None:
    assert Regression(columns=("x", "y"), unit="mm").decided(np.array([12.345, 0.5])) == "x 12.35 mm, y 0.5 mm"


def test_a_map_shows_the_output_that_the_answer_rests_on() -> None:
    of_levels = {"low": "above low", "mid": "above low", "high": "above mid"}
    for row, level in (([0.6, 0.3, 0.1], "low"), ([0.4, 0.2, 0.4], "mid"), ([0.1, 0.2, 0.7], "high")):
        assert (ORDINAL.decided(np.array(row)), ORDINAL.main_output(np.array(row))) == (level, of_levels[level])
    assert MultiLabel(labels=("a", "b", "c")).main_output(np.array([0.2, 0.9, 0.4])) == "b"
    held = Classification(classes=("a", "b"), threshold=0.2)
    assert held.main_output(np.array([0.7, 0.3])) == "b"


def test_confidence_is_the_probability_of_what_is_decided_and_not_the_highest() -> None:
    assert ORDINAL.confidence(np.array([0.4, 0.2, 0.4])) == 0.2
    assert Classification(classes=("a", "b"), threshold=0.2).confidence(np.array([0.7, 0.3])) == 0.3
    assert MultiLabel(labels=("a",)).confidence(np.array([0.7])) is None


def test_a_label_is_said_from_its_threshold_on() -> None:
    task = MultiLabel(labels=("a", "b", "c"), thresholds=(0.3, 0.5, 0.7))
    assert task.decided(np.array([0.3, 0.5, 0.7])) == "a;b;c"
    assert task.decided(np.array([0.29, 0.49, 0.69])) == "-"


def test_survival_falls_by_the_hazard_of_each_interval() -> None:
    labels = [f"{t} event" for t in range(1, 9)]
    task = Survival(bins=4, unit="months").fitted(labels)
    assert task.edges == (2.75, 4.5, 6.25, 8.0)
    hazards = np.array([0.1, 0.5, 0.2, 0.9])
    (got,) = task.values(np.log(hazards / (1 - hazards))[None])
    survival = np.cumprod(1 - hazards)
    np.testing.assert_allclose(got, [-survival.sum(), *survival], rtol=1e-12)
    assert [column.name for column in task.answers][:2] == ["risk", "survival_2.75_months"]
    between = Survival(bins=4, horizons=(2.75 / 2, 8.0)).fitted(labels)
    (got,) = between.values(np.log(hazards / (1 - hazards))[None])
    np.testing.assert_allclose(got[1:], [math.sqrt(0.9), survival[-1]], rtol=1e-12)


def test_extreme_hazards_give_finite_answers() -> None:
    task = Survival(bins=2).fitted(["1 event", "2 event", "5 censored"])
    values = task.values(np.array([[800.0, 800.0], [-800.0, -800.0]]))
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values[1], [-2, 1, 1])


def test_the_baseline_of_cox_is_breslows() -> None:
    rng = np.random.default_rng(3)
    times, events, logits = rng.integers(1, 9, 30), rng.integers(0, 2, 30), rng.normal(size=30)
    labels = [f"{t} {'event' if e else 'censored'}" for t, e in zip(times, events, strict=True)]
    task = Survival(model="cox", horizons=(2.0, 5.0)).fitted(labels).with_baseline(labels, logits[:, None])
    for horizon, found in zip(task.horizons, task.baseline, strict=True):
        wanted = 0.0
        for time, event in zip(times, events, strict=True):
            if event and time <= horizon:
                wanted += 1 / np.exp(logits[times >= time]).sum()
        assert found == pytest.approx(wanted, rel=1e-12)
    risk, early, late = task.values(np.array([[0.7]]))[0]
    assert risk == 0.7
    assert early == pytest.approx(math.exp(-task.baseline[0] * math.exp(0.7)))
    assert late < early
    assert len(Survival(model="cox").fitted(labels).answers) == 1


@pytest.mark.parametrize(("count", "most"), [(60, 6), (9, 2)])
def test_splits_of_survival_keep_events_and_times_even(count: int, most: int) -> None:
    rng = np.random.default_rng(0)
    labels = [[f"{rng.integers(1, 50)} {'event' if i % 3 else 'censored'}"] for i in range(count)]
    strata = Survival().strata(labels)
    assert 1 <= len(set(strata)) <= most
    assert all(strata.count(name) >= 4 for name in set(strata))


def test_strata_of_few_patients_are_one_or_join_the_largest() -> None:
    few = [["low"]] * 9 + [["mid"]] * 6 + [["high"]] * 3
    assert ORDINAL.strata(few) == ["low"] * 9 + ["mid"] * 6 + ["low"] * 3
    several = [["mid"]] * 9 + [["low"]] * 2 + [["high"]] * 2
    assert ORDINAL.strata(several) == ["mid"] * 9 + ["other"] * 4


def test_a_patient_stands_with_the_rarest_of_its_labels_and_the_mean_of_its_numbers() -> None:
    classes = [["a"]] * 6 + [["a", "b"]] * 2 + [["b"]] * 2
    assert Classification(classes=("a", "b")).strata(classes) == ["a"] * 6 + ["b"] * 4
    assert ORDINAL.strata([["low"]] * 6 + [["low", "high"]] * 4) == ["low"] * 6 + ["high"] * 4
    several = [["x"]] * 6 + [["x;y"]] * 2 + [["x", "y=?;x"]] * 4 + [["x", "y"]] * 2 + [["-"]] * 4
    assert MultiLabel(labels=("x", "y")).strata(several) == (
        ["x"] * 6 + ["y"] * 2 + ["x"] * 4 + ["y"] * 2 + ["none of them"] * 4
    )
    # Sixteen patients are halves: the second of two slides alone would put the first eight above.
    numbers = [[str(i), str(i + 1)] for i in range(7)] + [["0", "40"]] + [[str(30 + i)] for i in range(8)]
    strata = Regression(columns=("x",)).strata(numbers)
    assert strata == ["quantile 1"] * 8 + ["quantile 2"] * 8
    on_it = Regression(columns=("x",)).strata([["1"]] * 8 + [["2"]] * 9)
    assert on_it == ["quantile 1"] * 8 + ["quantile 2"] * 9


@pytest.mark.parametrize("kind", ["multilabel", "regression", "survival", "ordinal"])
def test_every_task_can_be_split_by_patient(tmp_path: Path, kind: str) -> None:
    tasks = {
        "multilabel": (MultiLabel(columns=("a", "b")), "a,b", lambda i: f"{i % 2},{i % 5 // 4}"),
        "regression": (Regression(columns=("x",)), "x", lambda i: str(i)),
        "survival": (Survival(), "time,event", lambda i: f"{i % 7},{i % 2}"),
        "ordinal": (ORDINAL, "label", lambda i: ORDINAL.levels[i % 3]),
    }
    task, columns, row = tasks[kind]
    whole = read(tmp_path, task, columns, [row(i) for i in range(40)])
    got = whole.with_splits(seed=0)
    assert {slide.split for slide in got.slides} == {"train", "val", "test"}
    assert sum(slides for split, _, slides, _ in got.counts() if split) >= 40
    assert sum(len(whole.with_splits(seed=0, folds=4, fold=k).of("test")) for k in range(4)) == 40


def test_intervals_that_are_alike_in_four_digits_have_names_of_their_own():
    """Tiles have a score for each, under its name."""
    assert Survival(edges=(365.0, 1825.4, 1830.0)).outputs == ("hazard 0-365", "hazard 365-1825", "hazard 1825-1830")
    days = Survival(edges=(20151.0, 20153.0, 20154.0))
    assert days.outputs == ("hazard 0-20151", "hazard 20151-20153", "hazard 20153-20154")
    dates = Survival(edges=(20150101.0, 20150105.0, 20150109.0), horizons=(1000.0,))
    assert dates.outputs == ("hazard 0-20150101", "hazard 20150101-20150105", "hazard 20150105-20150109")
