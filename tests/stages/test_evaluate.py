"""Answers judged: who counts, where the numbers come from, and that a page says what metrics.json says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.stages.made_runs import KINDS, LEARNED, answers, read_csv, write_cohort, write_csv, write_run
from wsimil.config import load_config
from wsimil.errors import CohortError, ConfigError, StoreError
from wsimil.evaluation.bootstrap import differences, estimates
from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.delong import delong_auroc, delong_difference
from wsimil.evaluation.groups import by_group
from wsimil.evaluation.runs import over_runs
from wsimil.evaluation.task_metrics import cases_of
from wsimil.export.report.numbers import plain
from wsimil.stages.compare import compare
from wsimil.stages.evaluate import EvaluateOptions, EvaluateSummary, evaluate
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.text_evaluation import show_comparison
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store
from wsimil.targets import MultiLabel
from wsimil.testing.store_laws import make_bag

QUICK = EvaluateOptions(replicates=200)


def tree_of(out: Path) -> dict[str, object]:
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def judged(root: Path, kind: str = "two", *, options: EvaluateOptions = QUICK, count: int = 60) -> EvaluateSummary:
    task, labels, values = answers(kind, count)
    write_run(root / "run", task, labels, values)
    cohort = write_cohort(root / "cohort.csv", task, labels)
    return evaluate([root / "run"], cohort, root / "out", options=options)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_that_the_cases_give(kind: str, tmp_path: Path) -> None:
    judged(tmp_path, kind)
    task, labels, values = answers(kind)
    cases = cases_of(task, task.encode(labels), np.stack(values))
    own = [f"p{i}" for i in range(len(labels))]
    tree = tree_of(tmp_path / "out")
    assert tree["metrics"] == plain({n: asdict(e) for n, e in estimates(cases, own, replicates=200).items()})
    sites = [("north", "south")[i % 2] for i in range(len(labels))]
    rows = by_group(cases, sites, own, replicates=200)
    assert [row["estimates"] for row in tree["groups"]["site"]] == [
        plain({n: asdict(e) for n, e in row.estimates.items()}) for row in rows
    ]
    assert list(tree["groups"]) == ["site", "scanner", "age"]
    ages = [40 + i % 37 for i in range(len(labels))]
    low, high = np.quantile([*ages, *[50] * LEARNED], [1 / 3, 2 / 3])
    assert [row["group"] for row in tree["groups"]["age"]] == [
        f"1: up to {low:.4g}", f"2: to {high:.4g}", f"3: above {high:.4g}"
    ]  # fmt: skip
    assert [row["rows"] for row in tree["groups"]["age"]] == np.bincount(np.searchsorted([low, high], ages)).tolist()
    assert tree["counted"]["slides"] == len(labels)


def test_slides_that_a_model_learned_from_never_count_and_are_counted(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    ids = [f"s{i}" for i in range(60)]
    splits = ["test" if i >= 10 else "val" for i in range(60)]
    write_run(tmp_path / "run", task, labels, values, splits=splits)
    # Another slide of a patient that the model learned from.
    ids.append("new")
    cohort = write_cohort(
        tmp_path / "c.csv", task, [*labels, labels[0]], ids=ids, patients=[*(f"p{i}" for i in range(60)), "q1"]
    )
    summary = evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    assert summary.judgement.rows == 50
    lost = {one.reason: one.units for step in summary.flow for one in step.lost}
    train_split = sum(i % 3 > 0 for i in range(LEARNED))
    assert lost == {
        "no label": 1,
        "the model learned from them (train)": train_split + 1,
        "the model was chosen on them (val)": LEARNED - train_split + 10,
    }
    assert [step.units for step in summary.flow] == [74, 73, 50, 50]
    told = {row["slide_id"]: row["counted"] for row in read_csv(tmp_path / "out/predictions.csv")}
    assert told["new"] == "no: the model learned from them (train)"
    assert told["s3"] == "no: the model was chosen on them (val)"
    assert sum(one == "yes" for one in told.values()) == 50


def test_a_cohort_that_the_model_has_seen_is_refused_with_the_reasons(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    write_run(tmp_path / "run", task, labels, values, splits=["val"] * 60)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    with pytest.raises(CohortError, match=r"no slide of .* is left to be judged: .* 64 the model was chosen on them"):
        evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)


def test_ids_that_are_written_otherwise_are_named_where_nobody_is_left(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    write_run(tmp_path / "run", task, labels, values)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    text = re.sub(r"^s(\d+),", r"s\1.svs,", cohort.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cohort.write_text(text, encoding="utf-8")
    says = r"60 not predicted; 60 slides with an answer are not in that file: 's0', .*; write ids there as they were predicted"
    with pytest.raises(CohortError, match=says):
        evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)


@pytest.mark.parametrize("verb", ["evaluate", "compare"])
def test_an_interrupt_leaves_no_files_of_two_judgements(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, labels, values = answers("two")
    runs = [write_run(tmp_path / name, task, labels, values, digest=name * 64) for name in "ab"]
    cohort, out = write_cohort(tmp_path / "c.csv", task, labels), tmp_path / "out"

    def report() -> None:
        if verb == "evaluate":
            evaluate(runs[:1], cohort, out, options=QUICK)
        else:
            compare(*runs, cohort, out, options=QUICK)

    report()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write_run(tmp_path / "a", task, labels, values[::-1], digest="a" * 64)
    whole = Path.write_text

    def interrupted(path: Path, *given: str, **named: str) -> int:
        if "MODEL_CARD" in path.name:
            raise KeyboardInterrupt
        return whole(path, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            report()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    report()
    assert {path.name: path.read_bytes() != before[path.name] for path in out.iterdir()} == dict.fromkeys(before, True)


def test_answers_of_an_earlier_version_do_not_say_whose_they_are_and_are_judged(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    run, cohort = write_run(tmp_path / "run", task, labels, values), write_cohort(tmp_path / "c.csv", task, labels)
    table = pq.read_table(run / "predictions.parquet")
    assert table.schema.metadata
    pq.write_table(table.replace_schema_metadata(None), run / "predictions.parquet")
    assert evaluate([run], cohort, tmp_path / "out", options=QUICK).judgement.rows == len(labels)


def test_answers_that_were_copied_beside_another_model_are_not_judged_as_its_own(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    runs = [write_run(tmp_path / name, task, labels, values, digest=name * 64) for name in "ab"]
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    shutil.copy(runs[0] / "predictions.parquet", runs[1])
    with pytest.raises(
        StoreError, match=r"b.predictions\.parquet holds answers of another model than the one beside it"
    ):
        evaluate(runs[1:], cohort, tmp_path / "out", options=QUICK)
    warm = Calibration(kind="temperature", classes=2, fitted_on="val", rows=9, temperature=2.0)
    write_run(tmp_path / "b", task, labels, values, digest="a" * 64, training={"calibration": warm.to_json()})
    shutil.copy(runs[0] / "predictions.parquet", runs[1])
    with pytest.raises(StoreError, match="or of the same one calibrated otherwise"):
        evaluate(runs[1:], cohort, tmp_path / "out", options=QUICK)


def test_answers_that_were_changed_in_the_csv_are_told_not_to_count(tmp_path: Path) -> None:
    assert not [note for note in judged(tmp_path).notes if "predictions.csv" in note]
    path = tmp_path / "run/predictions.csv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    summary = evaluate([tmp_path / "run"], tmp_path / "cohort.csv", tmp_path / "out", options=QUICK)
    assert summary.judgement.rows == 60
    assert "predictions.csv of 'run' was changed since it was written, and is not read" in summary.notes[0]


def test_answers_of_one_model_are_no_two_seeds(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    for name in ("run", "copy"):
        write_run(tmp_path / name, task, labels, values)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    with pytest.raises(ConfigError, match=r"run and .*copy hold answers of one model, and both answer 's0'"):
        evaluate([tmp_path / "run", tmp_path / "copy"], cohort, tmp_path / "out", options=QUICK)


def test_reasons_of_an_extraction_are_in_the_flow(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    values[4] = None
    write_run(tmp_path / "run", task, labels, values)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    store = open_store(tmp_path / "features", mode="w")
    for i in range(60):
        if i not in (2, 3):
            store.write(make_bag(f"s{i}", n=1, dim=2))
    for i in range(LEARNED):
        store.write(make_bag(f"l{i}", n=1, dim=2))
    write_csv(
        tmp_path / "features/failures.csv",
        ["slide_id", "path", "step", "reason"],
        [["s2", "x", "open", "no mpp"], ["s4", "x", "read", "damaged"], ["s5", "x", "read", "damaged"]],
    )
    options = EvaluateOptions(replicates=100, features=tmp_path / "features")
    summary = evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=options)
    lost = {one.reason: one.examples for step in summary.flow for one in step.lost}
    assert lost["extraction failed: no mpp"] == ("s2",)
    assert lost["no features"] == ("s3",)
    assert lost["no tissue tile"] == ("s4",)
    assert summary.flow[-1].units == 57
    # Of s4 nothing is judged.
    assert (
        "1 slides failed in the last extraction, and are used with the features of an earlier one: 's5'"
        in summary.notes
    )


def test_one_split_alone_can_be_asked_for(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    splits = ["test" if i % 2 else "external" for i in range(60)]
    write_run(tmp_path / "run", task, labels, values, splits=splits)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    options = EvaluateOptions(replicates=100, split="test")
    summary = evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=options)
    assert summary.judgement.rows == 30
    assert {one.reason: one.units for one in summary.flow[3].lost} == {"in the split external": 30}


def test_a_label_that_enough_of_a_group_have_shows_where_another_has_too_few(tmp_path: Path) -> None:
    task, labels, values = answers("labels", 80)
    er, pr = task.encode(labels).T
    few = [*np.flatnonzero((pr == 0) & (er == 1))[:6], *np.flatnonzero((pr == 0) & (er == 0))[:6]]
    sites = ["few" if i in few else "many" for i in range(80)]
    write_run(tmp_path / "run", task, labels, values)
    cohort = write_cohort(tmp_path / "cohort.csv", task, labels, sites=sites)
    evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    row = tree_of(tmp_path / "out")["groups"]["site"][0]  # type: ignore[index]
    value = row["estimates"]["auroc:er"]["value"]
    card = (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| few | 12 | 12 | label pr: 0 patients of a class, 5 are needed; AUROC: er: {value:.3f} (" in card
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "/groups/site/0/estimates/auroc:er/value" in page
    assert "/groups/site/0/estimates/auroc:pr/value" not in page


@pytest.mark.parametrize("place", ["cv/fold_{}", "cv/fold_{}/seed-0"])
def test_folds_are_judged_by_what_each_held_out(tmp_path: Path, place: str) -> None:
    task, labels, _ = answers("two")
    kept: list[tuple[int, np.ndarray]] = []
    for fold in range(3):
        values = answers("two", seed=fold)[2]
        splits = [("test", "val", "train")[(i + fold) % 3] for i in range(60)]
        write_run(tmp_path / place.format(fold), task, labels, values, splits=splits, digest=str(fold) * 64)
        kept += [(i, values[i]) for i in range(60) if splits[i] == "test"]
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    summary = evaluate([tmp_path / "cv"], cohort, tmp_path / "out", options=QUICK)
    names = [f"fold_{fold}" if place == "cv/fold_{}" else str(tmp_path / place.format(fold)) for fold in range(3)]
    assert summary.judgement.runs == tuple(names)
    assert (summary.judgement.rows, summary.judgement.slides) == (60, 60)
    order = sorted(kept, key=lambda one: one[0])
    cases = cases_of(task, task.encode(labels), np.stack([values for _, values in order]))
    runs = [names[(3 - i % 3) % 3] for i in range(60)]
    spread = over_runs(cases, runs, [f"p{i}" for i in range(60)], replicates=200)
    assert tree_of(tmp_path / "out")["over_runs"] == plain({n: asdict(s) for n, s in spread.items()})
    assert {row["run"] for row in read_csv(tmp_path / "out/predictions.csv")} == {"", *names}


def test_a_card_of_folds_tells_of_each_run(tmp_path: Path) -> None:
    """It stated one fold's weights and threshold, at which the sensitivity was another, and that this fold saw no slide."""
    task, labels, values = answers("two")
    for fold, value in enumerate((0.2, 0.5, 0.8)):
        threshold = {
            "value": value, "rule": "youden", "fitted_on": "val", "rows": 40 + fold, "positive": 20, "sensitivity": 0.9,
            "specificity": 0.7,
        }  # fmt: skip
        splits = [("test", "val", "train")[(i + fold) % 3] for i in range(60)]
        facts = {"threshold": threshold, "kept_epoch": fold}
        write_run(
            tmp_path / f"cv/fold_{fold}", task, labels, values, splits=splits, digest=str(fold) * 64, training=facts
        )
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    evaluate([tmp_path / "cv"], cohort, tmp_path / "out", options=QUICK)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    decisions = page[page.index('id="decisions"') : page.index('id="calibration"')]
    card = (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8").replace("\\", "")
    assert card.startswith("# Model card: cv, 3 runs\n")
    assert (
        "each judged by runs that neither learned from nor were chosen on that slide, cohort c.csv. Numbers pool"
        in card
    )
    assert "that the model neither" not in card
    assert card.count("| Method | abmil |") == 1
    for fold, value in enumerate(("0.200", "0.500", "0.800")):
        chosen = f"{value}; chosen by youden on {40 + fold} rows"
        for told in (f"`{str(fold) * 64}`", chosen, f"weights of epoch {fold}", "train 28 slides of 28 patients"):
            assert f"fold_{fold}: {told}" in card
        assert f"training run fold_{fold}, train" in card
        assert f'"/models/{fold}/thresholds/0">{value}</span>; chosen by youden on {40 + fold} rows' in decisions
    for fold in range(3):
        (tmp_path / f"cv/fold_{fold}/cohort.csv").unlink()
    evaluate([tmp_path / "cv"], cohort, tmp_path / "blind", options=QUICK)
    card = (tmp_path / "blind/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "; whether a run learned from some of them **is not known**" in card
    assert "neither learned from" not in card


def test_runs_that_answer_other_questions_are_refused(tmp_path: Path) -> None:
    for kind in ("two", "three"):
        write_run(tmp_path / kind, *answers(kind))
    cohort = write_cohort(tmp_path / "c.csv", *answers("two")[:2])
    with pytest.raises(ConfigError, match=r"do not answer the same question: classification .*normal, tumor.*one, two"):
        evaluate([tmp_path / "two", tmp_path / "three"], cohort, tmp_path / "out", options=QUICK)


def test_a_slide_that_changed_its_patient_is_refused(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    write_run(tmp_path / "run", task, labels, values)
    cohort = write_cohort(tmp_path / "c.csv", task, labels, patients=["q1", *(f"p{i}" for i in range(1, 60))])
    with pytest.raises(CohortError, match=r"slide 's0' belongs to patient 'q1' in .*, and to 'p0'"):
        evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)


def test_labels_of_the_cohort_file_count_and_changed_ones_are_told(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    write_run(tmp_path / "run", task, labels, values)
    changed = ["tumor" if labels[0] == "normal" else "normal", *labels[1:]]
    cohort = write_cohort(tmp_path / "c.csv", task, changed)
    summary = evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    assert any("1 slide had another label when predicted" in note and "'s0'" in note for note in summary.notes)
    assert summary.judgement.counts == {name: changed.count(name) for name in ("normal", "tumor")}


def test_a_model_whose_cohort_is_missing_says_so(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    write_run(tmp_path / "run", task, labels, values)
    (tmp_path / "run/cohort.csv").unlink()
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    summary = evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    assert any("not known" in note and "too good" in note for note in summary.notes)
    assert "too good" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    card = (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "neither learned from" not in card


def test_the_frozen_threshold_of_a_model_decides_and_is_told(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    threshold = {
        "value": 0.3, "rule": "youden", "fitted_on": "val", "rows": 40, "positive": 20, "sensitivity": 0.9,
        "specificity": 0.7,
    }  # fmt: skip
    write_run(tmp_path / "run", task, labels, values, training={"threshold": threshold})
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    tree = tree_of(tmp_path / "out")
    positive = np.stack(values)[:, 1] >= 0.3
    assert np.sum(tree["confusion"]["counts"], axis=0).tolist() == [int((~positive).sum()), int(positive.sum())]
    said = {
        row["slide_id"]: row["predicted"]
        for row in read_csv(tmp_path / "out/predictions.csv")
        if row["counted"] == "yes"
    }
    assert [said[f"s{i}"] for i in range(60)] == ["tumor" if one else "normal" for one in positive]
    assert "chosen by youden on 40 rows of the split &#39;val&#39;" in (tmp_path / "out/report.html").read_text("utf-8")


def test_what_is_of_one_class_of_two_names_it(tmp_path: Path) -> None:
    """The second of the model's classes, be it normal; a reader takes it for the disease."""
    from wsimil.targets import Classification

    task, labels, values = answers("two")
    turned = Classification(classes=("tumor", "normal"))
    assert isinstance(task, Classification)
    assert task.classes == ("normal", "tumor")
    write_run(tmp_path / "run", turned, labels, [None if v is None else v[::-1] for v in values])
    cohort = write_cohort(tmp_path / "c.csv", turned, labels)
    evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    tree, page = tree_of(tmp_path / "out"), (tmp_path / "out/report.html").read_text(encoding="utf-8")
    card = (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8")
    assert tree["positive_class"] == "normal"
    for name in ("Sensitivity", "Specificity", "Average precision"):
        assert f"{name} for normal" in page
        assert f"{name} for normal" in card
        assert f"{name} for tumor" not in page
    assert "AUROC for" not in page


def test_without_a_chosen_threshold_the_report_says_that_it_was_not_chosen(tmp_path: Path) -> None:
    judged(tmp_path)
    assert "Threshold not chosen: above 0.5" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_a_threshold_that_was_chosen_on_the_test_split_is_refused(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    threshold = {
        "value": 0.3, "rule": "youden", "fitted_on": "test", "rows": 4, "positive": 2, "sensitivity": 1.0,
        "specificity": 1.0,
    }  # fmt: skip
    write_run(tmp_path / "run", task, labels, values, training={"threshold": threshold})
    with pytest.raises(ConfigError, match="fitted on the split 'test'"):
        evaluate([tmp_path / "run"], write_cohort(tmp_path / "c.csv", task, labels), tmp_path / "out", options=QUICK)


def test_delong_is_of_patients_where_they_have_several_slides(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    patients = [f"p{i // 2}" for i in range(60)]
    labels = [labels[i // 2 * 2] for i in range(60)]
    write_run(tmp_path / "run", task, labels, values, patients=patients)
    cohort = write_cohort(tmp_path / "c.csv", task, labels, patients=patients)
    evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    found = tree_of(tmp_path / "out")["classes"]["tumor"]["delong"]
    means = np.stack(values)[:, 1].reshape(30, 2).mean(axis=1)
    truth = np.array([labels[2 * i] == "tumor" for i in range(30)]).astype(np.int64)
    wanted = delong_auroc(truth, means, [str(i) for i in range(30)])
    assert found == {"of": "patients", **asdict(wanted)}


def test_a_page_says_that_delong_is_of_means_wherever_it_is(tmp_path: Path) -> None:
    """It went by the first class, of which there is none where a patient has slides with it and without it."""
    task, labels, _ = answers("three")
    labels = [labels[i // 2 * 2] for i in range(60)]
    labels[:2] = ["one", "two"]
    patients = [f"p{i // 2}" for i in range(60)]
    for name, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / name, task, labels, answers("three", seed=seed)[2], patients=patients)
    cohort = write_cohort(tmp_path / "c.csv", task, labels, patients=patients)
    evaluate([tmp_path / "a"], cohort, tmp_path / "out", options=QUICK)
    assert [(tree_of(tmp_path / "out")["classes"][name]["delong"] or {}).get("of") for name in task.group_names] == [
        None, None, "patients"
    ]  # fmt: skip
    compare(tmp_path / "a", tmp_path / "b", cohort, tmp_path / "compared", options=QUICK)
    for folder in ("out", "compared"):
        assert "of the mean of a patient's slides" in (tmp_path / folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_cohort_of_one_slide_gives_a_report(kind: str, tmp_path: Path) -> None:
    summary = judged(tmp_path, kind, count=1)
    assert summary.judgement.rows == 1
    assert len((tmp_path / "out/report.html").read_text(encoding="utf-8")) > 1000


def test_a_cohort_of_one_class_has_no_auroc_and_a_report(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    labels = ["tumor"] * 60
    write_run(tmp_path / "run", task, labels, values)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    tree = tree_of(tmp_path / "out")
    assert tree["metrics"]["auroc"]["value"] is None
    assert tree["metrics"]["sensitivity"]["value"] is not None


def test_a_label_that_is_the_only_one_has_a_report_and_can_be_compared(tmp_path: Path) -> None:
    """Its curves looked for their numbers among those of a task of two classes."""
    task, rng = MultiLabel(labels=("er",)), np.random.default_rng(0)
    labels = ["er" if i % 3 else "-" for i in range(60)]
    for name in "ab":
        write_run(tmp_path / name, task, labels, list(rng.random((60, 1))))
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    evaluate([tmp_path / "a"], cohort, tmp_path / "out", options=QUICK)
    tree = tree_of(tmp_path / "out")
    assert tree["classes"]["er"]["metrics"]["auroc"] == tree["metrics"]["auroc:er"] == tree["metrics"]["auroc_macro"]
    compare(tmp_path / "a", tmp_path / "b", cohort, tmp_path / "compared", options=QUICK)
    wanted = pytest.approx(tree["metrics"]["auroc:er"]["value"])
    assert tree_of(tmp_path / "compared")["delong"]["er"]["first"] == wanted


def test_the_same_answers_give_the_same_bytes(tmp_path: Path) -> None:
    judged(tmp_path, "survival")
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    judged(tmp_path, "survival")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    assert set(first) == {"metrics.json", "predictions.csv", "report.html", "MODEL_CARD.md"}


def test_a_report_never_replaces_answers(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    write_run(tmp_path / "run", task, labels, values)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ConfigError, match=r"holds model.json: a report replaces"):
        evaluate([tmp_path / "run"], write_cohort(tmp_path / "c.csv", task, labels), tmp_path / "run", options=QUICK)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (EvaluateOptions(groups=("sites",)), "column 'sites' is missing; it has .* did you mean 'site'?"),
        (EvaluateOptions(split="final"), "no slide of .* 60 in the split test"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: EvaluateOptions, says: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=says):
        judged(tmp_path, options=options)


def test_a_folder_without_answers_or_without_a_model_is_refused(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    with pytest.raises(ConfigError, match=r"holds no predictions.parquet"):
        evaluate([tmp_path], cohort, tmp_path / "out", options=QUICK)
    run = write_run(tmp_path / "run", task, labels, values)
    (run / "model.json").rename(tmp_path / "model.json")
    with pytest.raises(ConfigError, match=r"does not say which model answered.*give --model RUN"):
        evaluate([run], cohort, tmp_path / "out", options=QUICK)
    (run / "predictions.parquet").write_bytes(b"PAR1 not")
    (tmp_path / "model.json").rename(run / "model.json")
    with pytest.raises(StoreError, match="cannot be read"):
        evaluate([run], cohort, tmp_path / "out", options=QUICK)


def test_another_model_than_that_which_answered_is_refused(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    run = write_run(tmp_path / "run", task, labels, values)
    other = write_run(tmp_path / "other", task, labels, values, digest="b" * 64)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    with pytest.raises(ConfigError, match=r"its weights are not those that answered"):
        evaluate([run], cohort, tmp_path / "out", options=EvaluateOptions(model=other))


def test_thumbnails_hold_pixels_alone_and_never_come_from_outside(tmp_path: Path) -> None:
    task, labels, values = answers("two", 40, noise=3.0)
    ids = ["../secret", *(f"s{i}" for i in range(1, 40))]
    write_run(tmp_path / "run", task, labels, values, ids=ids)
    cohort = write_cohort(tmp_path / "c.csv", task, labels, ids=ids)
    store = open_store(tmp_path / "features", mode="w")
    exif = Image.Exif()
    exif[0x010E] = "MRS-JANE-DOE-1957"
    (tmp_path / "features/thumbnails").mkdir()
    for i in range(1, 40):
        store.write(make_bag(f"s{i}", n=1, dim=2))
        Image.new("RGB", (900, 700), (200, 120, 180)).save(tmp_path / f"features/thumbnails/s{i}.jpg", exif=exif)
    Image.new("RGB", (90, 70), (1, 2, 3)).save(tmp_path / "features/secret.jpg")
    report = evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=EvaluateOptions(replicates=100))
    assert report.judgement.wrong
    from wsimil.stages.thumbnails import thumbnail

    assert thumbnail(tmp_path / "features", "../secret") == b""
    assert (tmp_path / "features/thumbnails/../secret.jpg").exists()
    data = thumbnail(tmp_path / "features", "s1")
    assert b"JANE" in (tmp_path / "features/thumbnails/s1.jpg").read_bytes()
    assert b"JANE" not in data
    assert data[:2] == b"\xff\xd8"


def test_two_models_are_compared_on_what_both_answered(tmp_path: Path) -> None:
    task, labels, first = answers("two", seed=0)
    second = answers("two", seed=1, noise=3.0)[2]
    first[0] = None
    write_run(tmp_path / "a", task, labels, first)
    write_run(tmp_path / "b", task, labels[:59], second[:59], digest="b" * 64)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    summary = compare(tmp_path / "a", tmp_path / "b", cohort, tmp_path / "out", options=QUICK)
    rows = slice(1, 59)
    ours, theirs = (cases_of(task, task.encode(labels[rows]), np.stack(values[rows])) for values in (first, second))
    own = [f"p{i}" for i in range(1, 59)]
    tree = tree_of(tmp_path / "out")
    assert tree["differences"] == plain(
        {n: asdict(d) for n, d in differences(ours, theirs, own, replicates=200).items()}
    )
    wanted = delong_difference(ours.targets, ours.probabilities, theirs.probabilities, own)  # type: ignore[union-attr]
    assert tree["delong"] == {"tumor": {"of": "rows", **asdict(wanted)}}
    assert [step.units for step in summary.flow][-2:] == [59, 58]
    assert summary.flow[-1].lost[0].reason == "second model: not predicted"
    assert sum(tree["right"].values()) == 58
    assert len(read_csv(tmp_path / "out/predictions.csv")) == 58


@pytest.mark.parametrize("slides", [1, 2])
def test_a_comparison_says_of_what_delong_is(slides: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its difference of AUROC stood below another one, which is of slides, without a word."""
    task, labels, first = answers("two", seed=0)
    second = answers("two", seed=1, noise=3.0)[2]
    known = sorted(zip(labels, first, second, strict=True), key=lambda one: one[0])
    labels, patients = (
        [label for label, _, _ in known],
        [f"{label}{i // slides}" for i, (label, _, _) in enumerate(known)],
    )
    for name, column in (("a", 1), ("b", 2)):
        digest = name * 64
        write_run(tmp_path / name, task, labels, [one[column] for one in known], patients=patients, digest=digest)
    cohort = write_cohort(tmp_path / "c.csv", task, labels, patients=patients)
    summary = compare(tmp_path / "a", tmp_path / "b", cohort, tmp_path / "out", options=QUICK)
    show_comparison(summary, tmp_path / "out", as_json=False)
    told = " ".join(capsys.readouterr().out.split())
    of = " of the mean of a patient's slides" if slides > 1 else ""
    assert f"DeLong, tumor: AUROC{of} differs by " in told


def test_folds_are_compared_by_the_thresholds_of_each_run(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    at = {"a": (0.3, 0.5, 0.7), "b": (0.6, 0.4, 0.2)}
    for side, thresholds in at.items():
        for fold, value in enumerate(thresholds):
            # Round and round, so that who answered for a slide in one folder is no twin of who did in the other.
            rows = [i for i in range(60) if (i + (side == "b")) % 3 == fold]
            threshold = {
                "value": value, "rule": "youden", "fitted_on": "val", "rows": 40, "positive": 20, "sensitivity": 0.8,
                "specificity": 0.8,
            }  # fmt: skip
            write_run(
                tmp_path / f"{side}/fold_{fold}", task, [labels[i] for i in rows], [values[i] for i in rows],
                ids=[f"s{i}" for i in rows], patients=[f"p{i}" for i in rows], training={"threshold": threshold},
            )  # fmt: skip
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    summary = compare(tmp_path / "a", tmp_path / "b", cohort, tmp_path / "out", options=QUICK)
    card = (tmp_path / "out/MODEL_CARD.md").read_text(encoding="utf-8")
    assert (
        "The runs of two studies on 60 slides of 60 patients, each answered once in both, by a run that did not" in card
    )
    p = np.stack([one for one in values if one is not None])[:, 1]
    said = {
        "first": p >= [at["a"][i % 3] for i in range(60)],
        "second": p >= [at["b"][(i + 1) % 3] for i in range(60)],
    }
    table = read_csv(tmp_path / "out/predictions.csv")
    for side, positive in said.items():
        assert [row[f"{side}:predicted"] == "tumor" for row in table] == positive.tolist()
    right = [positive == (np.array(labels) == "tumor") for positive in said.values()]
    assert summary.comparison.right == tuple(
        int(cell.sum())
        for cell in (right[0] & right[1], right[0] & ~right[1], ~right[0] & right[1], ~right[0] & ~right[1])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_can_be_compared_and_a_model_equals_itself(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, *answers(kind))
    cohort = write_cohort(tmp_path / "c.csv", *answers(kind)[:2])
    summary = compare(tmp_path / "a", tmp_path / "b", cohort, tmp_path / "out", options=QUICK)
    assert {one.difference for one in summary.comparison.differences.values()} <= {0.0, None}


def test_models_that_were_predicted_with_other_labels_are_not_compared(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    write_run(tmp_path / "a", task, labels, values)
    other = ["tumor" if labels[7] == "normal" else "normal" if i == 7 else label for i, label in enumerate(labels)]
    write_run(tmp_path / "b", task, other, values)
    with pytest.raises(CohortError, match=r"were predicted with one label in .*/a and another in .*/b"):
        compare(
            tmp_path / "a",
            tmp_path / "b",
            write_cohort(tmp_path / "c.csv", task, labels),
            tmp_path / "out",
            options=QUICK,
        )


def test_a_slide_that_seeds_answered_twice_is_not_compared(tmp_path: Path) -> None:
    task, labels, values = answers("two")
    for seed in (0, 1):
        write_run(tmp_path / f"a/seed_{seed}", task, labels, values)
    write_run(tmp_path / "b", task, labels, values)
    with pytest.raises(ConfigError, match="slide 's0' was answered by the runs 'seed_0' and 'seed_1'"):
        compare(
            tmp_path / "a",
            tmp_path / "b",
            write_cohort(tmp_path / "c.csv", task, labels),
            tmp_path / "out",
            options=QUICK,
        )


def test_survival_runs_with_other_horizons_share_those_that_both_tell(tmp_path: Path) -> None:
    from dataclasses import replace

    from wsimil.targets import Survival

    task, labels, values = answers("survival")
    assert isinstance(task, Survival)
    other = replace(task, horizons=(24.0, 36.0), baseline=(1.6, 2.0))
    write_run(tmp_path / "a", task, labels, values)
    moved = [np.array([v[0], v[2], v[2] * 0.9]) for v in values if v is not None]
    write_run(tmp_path / "b", other, labels, moved)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    summary = compare(tmp_path / "a", tmp_path / "b", cohort, tmp_path / "out", options=QUICK)
    assert set(summary.comparison.differences) == {"harrell_c", "uno_c", "auc_at_24", "brier_at_24"}
    assert {one.difference for one in summary.comparison.differences.values()} == {0.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of 60 slides of two classes, a cohort, a run, and its answers on all slides."""
    root = tmp_path_factory.mktemp("trained")
    store = open_store(root / "features", mode="w")
    rows = []
    for i in range(60):
        bag = make_bag(f"s{i}", n=6, dim=5, dtype="float32", seed=i)
        features = np.array(bag.features)
        features[:, 0] += 2 * (i % 2)
        from dataclasses import replace

        store.write(replace(bag, features=features, provenance=replace(bag.provenance, slide_digest=f"{i:064x}")))
        rows.append([f"s{i}", f"p{i}", ("no", "yes")[i % 2], ("train", "val", "test")[i // 2 % 3], ("x", "y")[i // 30]])
    cohort = write_csv(root / "cohort.csv", ["slide_id", "patient_id", "label", "split", "site"], rows)
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 3, "fit.lr": 5e-3})
    train(config, root / "features", cohort, root / "run")
    options = PredictOptions(device="cpu", heatmaps=False)
    predict(root / "run", root / "features", root / "predictions", options=options, cohort_csv=cohort)
    return root


def test_a_run_and_its_predictions_are_judged_alike(trained: Path, tmp_path: Path) -> None:
    found = []
    for name in ("run", "predictions"):
        summary = evaluate([trained / name], trained / "cohort.csv", tmp_path / name, options=QUICK)
        assert summary.judgement.rows == 20
        found.append(tree_of(tmp_path / name))
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["models"][0]["weights_digest"] == found[1]["models"][0]["weights_digest"]
    assert found[0]["models"][0]["cohort"]["train"] == {"rows": 20, "patients": 20}
    card = (tmp_path / "run/MODEL_CARD.md").read_text(encoding="utf-8")
    assert found[0]["models"][0]["features_digest"] in card


def test_predictions_know_their_model_without_the_run(trained: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained / "predictions", tmp_path / "predictions")
    summary = evaluate([tmp_path / "predictions"], trained / "cohort.csv", tmp_path / "out", options=QUICK)
    assert summary.judgement.rows == 20
    (tmp_path / "predictions/predictions.json").unlink()
    options = EvaluateOptions(replicates=100, model=trained / "run")
    summary = evaluate([tmp_path / "predictions"], trained / "cohort.csv", tmp_path / "again", options=options)
    assert summary.judgement.rows == 20


def test_the_commands_write_and_tell_what_they_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from wsimil.cli import app

    run: Callable[..., object] = lambda *parts: CliRunner().invoke(app, [str(part) for part in parts])  # noqa: E731
    task, labels, values = answers("two")
    for name in ("a", "b"):
        write_run(tmp_path / name, task, labels, values)
    cohort = write_cohort(tmp_path / "c.csv", task, labels)
    shared = ("--cohort", cohort, "--replicates", 100)
    told = run("evaluate", tmp_path / "a", *shared, "-o", tmp_path / "e", "--groups", "site")
    assert told.exit_code == 0, told.output
    assert "60 slides answered: these count" in told.output
    assert "AUROC" in told.output
    assert list(tree_of(tmp_path / "e")["groups"]) == ["site"]
    told = run("compare", tmp_path / "a", tmp_path / "b", *shared, "-o", tmp_path / "k", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout) == tree_of(tmp_path / "k")
    assert run("evaluate", tmp_path / "absent", *shared, "-o", tmp_path / "e").exit_code == 2


def test_judging_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    task, labels, values = answers("two")
    write_run(tmp_path / "run", task, labels, values)
    write_cohort(tmp_path / "c.csv", task, labels)
    code = (
        "import sys\nfrom pathlib import Path\nfrom wsimil.stages.evaluate import EvaluateOptions, evaluate\n"
        f"root = Path({str(tmp_path)!r})\n"
        "evaluate([root / 'run'], root / 'c.csv', root / 'out', options=EvaluateOptions(replicates=100))\n"
        "print(sorted({'torch', 'matplotlib', 'h5py', 'timm', 'zarr'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_patients_are_judged_where_a_bag_is_a_patient(tmp_path: Path) -> None:
    task, labels, values = answers("two", 30)
    patients = [f"p{i}" for i in range(30)]
    write_run(tmp_path / "run", task, labels, values, ids=patients, patients=patients, bag="patient")
    slides = [f"p{i // 2}_{i % 2}" for i in range(60)]
    cohort = write_cohort(
        tmp_path / "c.csv",
        task,
        [labels[i // 2] for i in range(60)],
        ids=slides,
        patients=[f"p{i // 2}" for i in range(60)],
        sites=["mixed"[: i % 2] or "one" if i < 4 else "two" for i in range(60)],
    )
    # A run of patients knows its cohort by patient.
    summary = evaluate([tmp_path / "run"], cohort, tmp_path / "out", options=QUICK)
    assert (summary.unit, summary.judgement.rows) == ("patient", 30)
    assert {step.what: step.units for step in summary.flow}["not learned from"] == 30
    groups = {row["group"]: row["rows"] for row in tree_of(tmp_path / "out")["groups"]["site"]}
    assert groups == {"": 2, "two": 28}
    table = read_csv(tmp_path / "out/predictions.csv")
    assert list(table[0])[:2] == ["patient_id", "site"]
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "slides" not in page.split("Who was judged</h2>")[1].split("All metrics</h2>")[0]
