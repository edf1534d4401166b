"""What zero means in each score, and how many tiles attention is worth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.class_odds import score_of_odds
from wsimil.export.scores import ScoreTable, score_table
from wsimil.export.shown import effective_tiles_of, shown
from wsimil.provenance import Json
from wsimil.targets import MultiLabel, Ordinal, Regression, Survival, Task


@pytest.fixture
def table(make_prediction) -> ScoreTable:
    made = score_table(make_prediction(n=63, classes=("normal", "tumor", "other")))
    logits = np.random.default_rng(1).normal(size=(63, 3)).astype(np.float32)
    names = tuple(f"single:{name}" for name in made.task.outputs)
    rules = {**made.score_rules, **dict.fromkeys(names, "bags of one tile")}
    scores = np.concatenate([made.scores, logits], axis=1)
    return dataclasses.replace(made, score_names=(*made.score_names, *names), scores=scores, score_rules=rules)


def asked(table: ScoreTable, task: Task, logit: float) -> ScoreTable:
    """The table as if of a task of one output, of which the slide as a whole has this logit."""
    (output,) = task.outputs
    return dataclasses.replace(
        table,
        task=task,
        values=task.values(np.array([[logit]]))[0],
        logits=np.array([logit]),
        bias=np.zeros(1),
        score_names=(f"single:{output}",),
        scores=table.score("single:tumor")[:, None].copy(),
    )


def test_single_of_a_class_is_zero_where_the_tile_alone_would_be_as_likely_of_it_as_not(table: ScoreTable) -> None:
    logits = np.stack([table.score(f"single:{name}") for name in ("normal", "tumor", "other")], axis=1)
    odds = np.exp(logits.astype(np.float64))
    probability = odds[:, 1] / odds.sum(axis=1)
    found = shown(table, "single:tumor")
    np.testing.assert_allclose(1 / (1 + np.exp(-found.values)), probability, rtol=1e-5)
    assert (found.kind, found.label, found.reading) == (
        "signed",
        "tumor, were the tile alone",
        "log-odds; 0 = as likely as not",
    )


@pytest.mark.parametrize(
    ("rule", "zero"),
    [
        ("from the mean tile, 32 steps, complete to 0.1%", "as the mean tile"),
        ("gradient x distance from features of zero", "as features of zero"),
        ("from the mean tile, 32 steps / from features of zero, 32 steps", "as the mean tile or as features of zero"),
        (None, "as the baseline"),
    ],
)
def test_zero_of_a_gradient_is_the_baseline_that_its_rule_names(table: ScoreTable, rule: str | None, zero: str) -> None:
    names = tuple(f"integrated_gradients:{name}" for name in table.task.outputs)
    scores = np.stack([table.score(f"single:{name}") for name in table.task.outputs], axis=1)
    rules = {} if rule is None else dict.fromkeys(names, rule)
    made = dataclasses.replace(table, score_names=names, scores=scores, score_rules=rules)
    assert shown(made, names[1]).reading == f"log-odds; 0 = {zero}"


def steps_of_three() -> Calibration:
    curve = ((0.0, 0.0), (1.0, 1.0))
    return Calibration(kind="isotonic", classes=3, fitted_on="val", rows=9, curves=(curve, curve, curve))


def as_calibrated(table: ScoreTable, calibration: Calibration, label: str | None = None) -> ScoreTable:
    """The table as if of a model with this calibration of its classes, or of one label."""
    if label is not None:
        facts, logits = {"calibrations": {label: calibration.to_json()}}, np.array([[0.0, table.logits[0]]])
        values = calibration.apply(logits)[0, 1:] if label in table.task.outputs else table.values
    else:
        facts, values = {"calibration": calibration.to_json()}, calibration.apply(table.logits[None])[0]
    return dataclasses.replace(table, model={**table.model, **facts}, values=values)


def test_single_of_a_class_has_its_zero_where_the_calibrated_answer_is_a_half(table: ScoreTable) -> None:
    logits = np.stack([table.score(f"single:{name}") for name in ("normal", "tumor", "other")], axis=1)
    made = Calibration(
        kind="bias_corrected", classes=3, fitted_on="val", rows=9, temperature=0.5, shifts=(4.0, -3.0, -1.0)
    )
    found = shown(as_calibrated(table, made), "single:tumor")
    np.testing.assert_allclose(1 / (1 + np.exp(-found.values)), made.apply(logits)[:, 1], rtol=1e-4)
    assert found.reading == "log-odds; 0 = as likely as not"
    assert (found.values > 0).mean() < 0.1 < (shown(table, "single:tumor").values > 0).mean()


def test_single_beside_a_calibration_by_steps_says_that_it_is_before_it(table: ScoreTable) -> None:
    found = shown(as_calibrated(table, steps_of_three()), "single:tumor")
    assert np.array_equal(found.values, shown(table, "single:tumor").values)
    assert found.reading == "log-odds before calibration; 0 = a half"


def test_single_of_a_label_is_calibrated_as_that_label_is(table: ScoreTable) -> None:
    made = Calibration(kind="bias_corrected", classes=2, fitted_on="val", rows=9, temperature=2.0, shifts=(-0.5, 0.5))
    labels = asked(table, MultiLabel(columns=("er",), labels=("er",)), 2.0)
    found = shown(as_calibrated(labels, made, "er"), "single:er")
    raw = table.score("single:tumor")
    wanted = made.apply(np.stack([0 * raw, raw], axis=1).astype(np.float64))[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-found.values)), wanted, rtol=1e-5)
    other = shown(as_calibrated(labels, made, "pr"), "single:er")
    assert np.array_equal(other.values, raw)


@pytest.mark.parametrize("recorded", ["none", "another"])
def test_an_answer_that_is_not_of_what_the_table_tells_is_not_said_to_be(recorded: str, table: ScoreTable) -> None:
    """As of tables that were written before they told the calibration of their model."""
    made = Calibration(
        kind="bias_corrected", classes=3, fitted_on="val", rows=9, temperature=2.0, shifts=(1.5, -1.5, 0.0)
    )
    values = made.apply(table.logits[None])[0]
    other = Calibration(kind="temperature", classes=3, fitted_on="val", rows=9, temperature=50.0)
    facts = {} if recorded == "none" else {"calibration": other.to_json()}
    untold = dataclasses.replace(table, values=values, model={**table.model, **facts})
    for kind, zero in (("single", "a half"), ("contribution", "adds nothing")):
        found, plain = shown(untold, f"{kind}:tumor"), shown(table, f"{kind}:tumor")
        assert found.reading == f"log-odds before calibration; 0 = {zero}"
        assert np.array_equal(found.values, plain.values)
        assert plain.reading.startswith("log-odds; ")


def test_single_of_a_label_is_its_logit(table: ScoreTable) -> None:
    found = shown(asked(table, MultiLabel(columns=("er",), labels=("er",)), 2.0), "single:er")
    assert np.array_equal(found.values, table.score("single:tumor"))
    assert found.reading == "log-odds; 0 = as likely as not"


@pytest.mark.parametrize("kind", ["contribution", "leave_one_out", "integrated_gradients", "gradient_x_input"])
def test_what_a_tile_does_to_a_class_is_shown_of_its_log_odds_as_calibrated(kind: str, table: ScoreTable) -> None:
    names = [f"{kind}:{name}" for name in table.task.outputs]
    raw = np.stack([table.score(f"single:{name}") for name in table.task.outputs], axis=1)
    made = dataclasses.replace(table, score_names=tuple(names), scores=raw, score_rules={})
    steps = Calibration(
        kind="bias_corrected", classes=3, fitted_on="val", rows=9, temperature=2.0, shifts=(1.0, -3.0, 2.0)
    )
    for one, calibration, unit in (
        (made, None, "log-odds"),
        (as_calibrated(made, steps), steps, "log-odds"),
        (as_calibrated(made, steps_of_three()), None, "log-odds before calibration"),
    ):
        for index, name in enumerate(names):
            found = shown(one, name)
            wanted = score_of_odds(kind, raw.astype(np.float64), made.logits, index, calibration)
            assert np.array_equal(found.values, wanted.astype(np.float32))
            assert (found.kind, found.reading.partition("; ")[0]) == ("signed", unit)


def test_of_two_classes_what_speaks_for_one_speaks_as_much_against_the_other(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    tumor, normal = (shown(table, f"contribution:{name}").values for name in ("tumor", "normal"))
    assert np.array_equal(tumor, -normal)
    total = tumor.sum(dtype=np.float64) + table.bias[1] - table.bias[0]
    assert 1 / (1 + np.exp(-total)) == pytest.approx(table.values[1], rel=1e-5)


def test_contributions_to_one_class_alone_are_shown_as_parts_of_its_logit(table: ScoreTable) -> None:
    one = dataclasses.replace(table, score_names=("contribution:tumor",), scores=table.scores[:, :1].copy())
    found = shown(one, "contribution:tumor")
    assert np.array_equal(found.values, table.scores[:, 0])
    assert found.reading == "logits; 0 = adds nothing"


def test_contributions_to_a_label_and_to_a_number_are_parts_of_its_own_logit(table: ScoreTable) -> None:
    made = Calibration(kind="bias_corrected", classes=2, fitted_on="val", rows=9, temperature=2.0, shifts=(-0.5, 0.5))
    age = Regression(columns=("age",)).fitted(["1", "2", "3"])
    for task, scale, unit in ((MultiLabel(columns=("er",), labels=("er",)), 0.5, "log-odds"), (age, 1.0, "logits")):
        one = asked(table, task, 2.0)
        (output,) = task.outputs
        one = dataclasses.replace(one, score_names=(f"contribution:{output}",))
        found = shown(as_calibrated(one, made, "er"), f"contribution:{output}")
        np.testing.assert_allclose(found.values, table.score("single:tumor") * scale, rtol=1e-6)
        assert found.reading == f"{unit}; 0 = adds nothing"


@pytest.mark.parametrize(
    "task", [Regression(columns=("age",)).fitted(["1", "2", "3"]), Survival(columns=("time", "event"), model="cox")]
)
def test_single_of_a_number_is_zero_where_the_tile_says_what_the_slide_says(task: Task, table: ScoreTable) -> None:
    (output,) = task.outputs
    found = shown(asked(table, task, 2.0), f"single:{output}")
    np.testing.assert_allclose(found.values, table.score("single:tumor") - 2)
    assert found.reading == "logits less the slide's; 0 = as the whole slide"


def test_attention_with_negative_weights_is_shown_as_it_is_and_not_as_a_share_nor_as_evidence(
    table: ScoreTable,
) -> None:
    scores = table.scores.copy()
    scores[5, 0] = -0.1
    found = shown(dataclasses.replace(table, scores=scores), "attention")
    assert np.array_equal(found.values, scores[:, 0])
    assert (found.kind, found.label) == ("sequential", "attention (not evidence)")


def test_a_slide_without_any_attention_does_not_decide_how_a_cohort_shows_it(table: ScoreTable) -> None:
    """The one that comes first would name the unit of all."""
    wanted = shown(table, "attention")
    for nothing in (0.0, np.nan):
        empty = dataclasses.replace(table, scores=np.full_like(table.scores, nothing))
        found = shown(empty, "attention")
        assert (found.kind, found.label, found.reading) == (wanted.kind, wanted.label, wanted.reading)
        np.testing.assert_array_equal(found.values, empty.score("attention"))


def test_weights_that_are_no_softmax_are_shown_alike_on_every_slide_of_a_cohort(table: ScoreTable) -> None:
    rules = {**table.score_rules, "attention": "weights of the method, no softmax over the bag"}
    slides = [dataclasses.replace(table, scores=table.scores.copy(), score_rules=rules) for _ in range(2)]
    below = slides[0].scores.copy()
    below[5, 0] = -0.1
    slides[0] = dataclasses.replace(slides[0], scores=below)
    first, second = (shown(slide, "attention") for slide in slides)
    assert (first.kind, first.label, first.reading) == (second.kind, second.label, second.reading)
    assert np.array_equal(second.values, table.score("attention"))


def test_a_methods_own_score_of_a_class_is_shown_by_its_log_odds_before_calibration(table: ScoreTable) -> None:
    logits = np.stack([table.score(f"single:{name}") for name in table.task.outputs], axis=1)
    own = dataclasses.replace(table, score_names=tuple(f"score:{name}" for name in table.task.outputs), scores=logits)
    twice = Calibration(kind="temperature", classes=3, fitted_on="val", rows=9, temperature=0.5)
    found = [shown(one, "score:tumor") for one in (own, as_calibrated(own, twice))]
    for one in found:
        assert np.array_equal(one.values, shown(table, "single:tumor").values)
    assert found[0].reading == "log-odds; 0 = a half"
    assert found[1].reading == "log-odds before calibration; 0 = a half"
    alone = dataclasses.replace(table, score_names=("score:risk",), scores=np.ones((63, 1), np.float32))
    assert (shown(alone, "score:risk").kind, shown(alone, "score:risk").values[0]) == ("signed", 1)
    assert shown(alone, "score:risk").reading == "logits; 0 = no meaning of its own"


def test_scores_of_a_level_are_log_odds_by_themselves(table: ScoreTable) -> None:
    task = Ordinal(levels=("1", "2"))
    one = asked(table, task, 2.0)
    for kind, zero in (("single", "as likely as not"), ("contribution", "adds nothing")):
        name = f"{kind}:{task.outputs[0]}"
        found = shown(dataclasses.replace(one, score_names=(name,)), name)
        assert np.array_equal(found.values, table.score("single:tumor"))
        assert found.reading == f"log-odds; 0 = {zero}"


def test_a_step_to_a_level_is_told_given_the_step_before_it(table: ScoreTable) -> None:
    """A tile that is hardly above 1 was shown to be above 2 "rather than not", as its logit is of tiles above 1 alone."""
    task = Ordinal(levels=("1", "2", "3"))
    names = tuple(f"single:{name}" for name in task.outputs)
    logits = np.stack([table.score("single:tumor") - 3, table.score("single:other")], axis=1)
    three = dataclasses.replace(
        table,
        task=task,
        values=task.values(np.array([[0.5, 1.0]]))[0],
        logits=np.array([0.5, 1.0]),
        bias=np.zeros(2),
        score_names=names,
        scores=logits,
    )
    above = np.cumsum(task.values(logits.astype(np.float64))[:, ::-1], axis=1)  # the third, the second or third ...
    found = [shown(three, name) for name in names]
    assert [one.label for one in found] == [
        "above 1, were the tile alone",
        "above 2 given above 1, were the tile alone",
    ]
    for one, share in zip(found, (above[:, 1], above[:, 0] / above[:, 1]), strict=True):
        np.testing.assert_allclose(1 / (1 + np.exp(-one.values)), share, rtol=1e-5)
    assert (found[1].values[above[:, 0] < 0.5] > 0).any()


def test_effective_tiles_are_of_softmax_attention_alone(table: ScoreTable) -> None:
    attention = table.score("attention").astype(np.float64)
    assert effective_tiles_of(table) == pytest.approx(1 / np.square(attention / attention.sum()).sum(), rel=1e-5)
    other = {"attention": "weights of the method, no softmax over the bag"}
    assert effective_tiles_of(dataclasses.replace(table, score_rules=other)) is None
    assert effective_tiles_of(dataclasses.replace(table, score_names=("a", *table.score_names[1:]))) is None


def of_patient(table: ScoreTable, attention: float, **more: Json) -> ScoreTable:
    """The table as if of a slide of a patient, each of whose tiles has this attention."""
    scores = table.scores.copy()
    scores[:, 0] = attention
    return dataclasses.replace(table, scores=scores, model={**table.model, "patient": "p", **more})


def test_effective_tiles_of_a_patient_count_all_its_slides_and_are_told_of_no_slide_alone(table: ScoreTable) -> None:
    half = of_patient(table, 1 / 126, patient_tiles=126)
    assert effective_tiles_of(half, half) == pytest.approx(126)
    assert effective_tiles_of(half) is None
    ignored, all_of_it = (of_patient(table, value, patient_tiles=126) for value in (0, 1 / 63))
    assert effective_tiles_of(ignored, all_of_it) == pytest.approx(63)
    alone = of_patient(table, 1 / 63, patient_tiles=63)
    assert effective_tiles_of(alone) == pytest.approx(63)


def test_attention_on_a_slide_is_shown_as_a_multiple_of_what_is_uniform_over_its_patient(table: ScoreTable) -> None:
    """Each slide had a mean of 1, so that one which the model had ignored looked like the one that it had looked at."""
    for attention, wanted in ((0.0, 0), (1e-9 / 63, 126 * 1e-9 / 63), (1 / 126, 1), (1 / 63, 2)):
        found = shown(of_patient(table, attention, patient_tiles=126), "attention")
        np.testing.assert_allclose(found.values, np.full(63, wanted, np.float32), rtol=1e-6)
        assert found.label == "attention (not evidence), uniform = 1"
        assert found.reading == "share of the patient's attention x its tiles"


def test_attention_on_a_slide_of_a_patient_of_unknown_size_is_shown_as_it_is(table: ScoreTable) -> None:
    for more in ({}, {"patient_tiles": 62}, {"patient_tiles": "126"}):
        table_of_earlier = of_patient(table, 0.25 / 63, **more)
        found = shown(table_of_earlier, "attention")
        assert np.array_equal(found.values, table_of_earlier.score("attention"))
        assert (found.label, found.reading) == ("attention (not evidence)", "weights as they are")
        assert effective_tiles_of(table_of_earlier) is None


def test_several_heads_count_by_their_mean(table: ScoreTable) -> None:
    scores = np.zeros((63, 2), np.float32)
    scores[0, 0] = scores[1, 1] = 1
    heads = dataclasses.replace(
        table,
        score_names=("attention:1", "attention:2"),
        scores=scores,
        score_rules={"attention:1": "softmax over the bag", "attention:2": "softmax over the bag"},
    )
    assert effective_tiles_of(heads) == pytest.approx(2)
