"""Slides and patients that a model saw are told also under another name, and are not among those it is judged by."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from wsimil.config import load_config
from wsimil.errors import CohortError
from wsimil.stages.ensemble import ensemble
from wsimil.stages.evaluate import EvaluateOptions, evaluate
from wsimil.stages.learned import Learned, learned_from, read_origin
from wsimil.stages.predict import PredictSummary, predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store

Study = Callable[..., tuple[Path, Path]]
QUICK = EvaluateOptions(replicates=100)


def learn(features: Path, cohort: Path, run: Path, bag: str, fold: int = 0) -> Path:
    given = {"device": "cpu", "fit.epochs": 1, "bag": bag, "split.folds": 3, "split.fold": fold}
    train(load_config(TrainConfig, given=given), features, cohort, run)
    return run


def ask(run: Path, features: Path, out: Path, cohort: Path | None, pseudonyms: Path | None = None) -> PredictSummary:
    options = PredictOptions(device="cpu", heatmaps=False, pseudonyms=pseudonyms)
    return predict(run, features, out, options=options, cohort_csv=cohort)


def copied(features: Path, cohort: Path, root: Path, *, prefix: str = "x") -> tuple[Path, Path]:
    """The same slides and patients under other names."""
    source, target = open_store(features, mode="r"), open_store(root / "features", mode="w")
    for slide_id in source.ids():
        bag = source.read(slide_id)
        slide = replace(bag.grid.slide, slide_id=prefix + slide_id)
        target.write(replace(bag, grid=replace(bag.grid, slide=slide)))
    head, *rows = cohort.read_text(encoding="utf-8").splitlines()
    renamed = [",".join([prefix + cell for cell in row.split(",")[:2]] + row.split(",")[2:]) for row in rows]
    table = root / f"{prefix}.csv"
    table.write_text("\n".join([head, *renamed]) + "\n", encoding="utf-8")
    return root / "features", table


@pytest.mark.parametrize("bag", ["slide", "patient"])
@pytest.mark.parametrize("named", [False, True])
def test_slides_that_were_learned_from_under_another_name_do_not_count(
    feature_study: Study, tmp_path: Path, bag: str, named: bool
) -> None:
    features, cohort = feature_study()
    run = learn(features, cohort, tmp_path / "run", bag)
    other, table = copied(features, cohort, tmp_path / "other")
    pseudonyms = tmp_path / "names.json" if named else None
    summary = ask(run, other, tmp_path / "out", table, pseudonyms)
    known = pd.read_csv(run / "cohort.csv")
    tested = known[known["split"] == "test"]
    count = len(tested) if bag == "slide" else tested["patient_id"].nunique()
    assert len(summary.answers) - len(summary.seen) == count
    assert any("under other names, slides that the model learned from" in note for note in summary.notes)
    judged = tmp_path / "out/cohort.csv" if named else table
    for options in (QUICK, replace(QUICK, model=run)):
        assert evaluate([tmp_path / "out"], judged, tmp_path / "report", options=options).judgement.rows == count
    told = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))["learned_from"]
    digests = learned_from(run, "slide").contents
    assert len(digests) == sum(known["split"] != "test")
    assert not [digest for digest in digests if digest in json.dumps(told)]


def test_another_slide_of_a_patient_seen_under_another_name_does_not_count(
    feature_study: Study, tmp_path: Path
) -> None:
    features, cohort = feature_study()
    run = learn(features, cohort, tmp_path / "run", "slide")
    known = pd.read_csv(run / "cohort.csv")
    seen, tested = (known[known["split"] == split].iloc[0] for split in ("train", "test"))
    other, table = copied(features, cohort, tmp_path / "other")
    rows = [f"x{one.slide_id},new,{one.label}" for one in (seen, tested)]
    rest = known[(known["split"] == "test") & (known["patient_id"] != tested.patient_id)]
    rows += [f"x{one.slide_id},x{one.patient_id},{one.label}" for one in rest.itertuples()]
    table.write_text("\n".join(["slide_id,patient_id,label", *rows]) + "\n", encoding="utf-8")
    ask(run, other, tmp_path / "with", table)
    ask(run, other, tmp_path / "without", None)
    for name in ("with", "without"):
        assert evaluate([tmp_path / name], table, tmp_path / f"e_{name}", options=QUICK).judgement.rows == len(rest)


def test_an_ensemble_knows_the_slides_of_its_members_under_other_names(feature_study: Study, tmp_path: Path) -> None:
    features, cohort = feature_study()
    runs = [learn(features, cohort, tmp_path / f"run{fold}", "slide", fold) for fold in range(2)]
    ensemble(runs, tmp_path / "both")
    members = [set(learned_from(run, "slide").contents) for run in runs]
    assert set(learned_from(tmp_path / "both", "slide").contents) == members[0] | members[1]


def test_a_run_without_digests_knows_slides_by_their_names(feature_study: Study, tmp_path: Path) -> None:
    features, cohort = feature_study()
    run = learn(features, cohort, tmp_path / "run", "slide")
    pd.read_csv(run / "cohort.csv").drop(columns="slide_digest").to_csv(run / "cohort.csv", index=False)
    assert learned_from(run, "slide").contents == {}
    summary = ask(run, features, tmp_path / "out", cohort)
    assert len(summary.seen) == sum(split in ("train", "val") for split in learned_from(run, "slide").splits.values())
    origin = tmp_path / "out/predictions.json"
    tree = json.loads(origin.read_text(encoding="utf-8"))
    del tree["alike"], tree["learned_from"]["twins"]
    origin.write_text(json.dumps(tree), encoding="utf-8")
    assert read_origin(tmp_path / "out").learned.known


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("bag", ["slide", "patient"])
def test_slides_without_digests_that_were_learned_from_as_those_of_another_patient_do_not_count(
    feature_study: Study, tmp_path: Path, bag: str, named: bool
) -> None:
    features, cohort = feature_study()
    run = learn(features, cohort, tmp_path / "run", bag)
    known = pd.read_csv(run / "cohort.csv")
    known.drop(columns="slide_digest").to_csv(run / "cohort.csv", index=False)
    tested = known[known["split"] == "test"]
    count = len(tested) if bag == "slide" else tested["patient_id"].nunique()
    table = tmp_path / "other.csv"
    pd.read_csv(cohort).assign(patient_id=lambda rows: "x" + rows["patient_id"]).to_csv(table, index=False)
    ask(run, features, tmp_path / "out", table, tmp_path / "names.json" if named else None)
    judged = tmp_path / "out/cohort.csv" if named else table
    assert evaluate([tmp_path / "out"], judged, tmp_path / "report", options=QUICK).judgement.rows == count


@pytest.mark.parametrize("bag", ["slide", "patient"])
def test_a_patient_who_was_given_a_slide_of_another_is_judged_by_no_old_answer(
    feature_study: Study, tmp_path: Path, bag: str
) -> None:
    features, cohort = feature_study()
    run = learn(features, cohort, tmp_path / "run", bag)
    rows, table = pd.read_csv(run / "cohort.csv"), pd.read_csv(cohort)
    tested = rows[(rows["split"] == "test") & (rows["label"] == "t")]
    patient = tested["patient_id"].iloc[-1]
    before = evaluate([run], cohort, tmp_path / "before", options=QUICK).judgement.patients

    def moved(slide_id: str) -> Path:
        path = tmp_path / "moved.csv"
        table.assign(patient_id=table["patient_id"].where(table["slide_id"] != slide_id, patient)).to_csv(
            path, index=False
        )
        return path

    seen = rows[(rows["split"] == "train") & (rows["label"] == "t")]["slide_id"].iloc[0]
    found = evaluate([run], moved(seen), tmp_path / "report", options=QUICK).judgement
    assert found.patients == before - 1
    other = tested[tested["patient_id"] != patient]["slide_id"].iloc[0]
    with pytest.raises(CohortError, match=f"slide '{other}' belongs to patient '{patient}' in .*moved.csv, and to"):
        evaluate([run], moved(other), tmp_path / "report", options=QUICK)


@pytest.mark.parametrize("bag", ["slide", "patient"])
def test_one_image_of_two_patients_is_not_judged(feature_study: Study, tmp_path: Path, bag: str) -> None:
    features, cohort = feature_study()
    run = learn(features, cohort, tmp_path / "run", bag)
    known = pd.read_csv(run / "cohort.csv")
    tested = set(known[known["split"] == "test"]["slide_id"])
    other, first = copied(features, cohort, tmp_path / "other", prefix="x")
    _, second = copied(features, cohort, tmp_path / "other", prefix="y")
    head, *rows = [*first.read_text("utf-8").splitlines(), *second.read_text("utf-8").splitlines()[1:]]
    table = tmp_path / "c.csv"
    table.write_text("\n".join([head, *(row for row in rows if row.split(",")[0][1:] in tested)]) + "\n", "utf-8")
    summary = ask(run, other, tmp_path / "out", table)
    assert summary.metrics == {}
    assert any("share one image with another of another patient or label" in note for note in summary.notes)
    words = "patients 'x.* and 'y.* share" if bag == "patient" else "slides 'x.* and 'y.* are"
    with pytest.raises(CohortError, match=f"{words} one and the same image"):
        evaluate([tmp_path / "out"], table, tmp_path / "report", options=QUICK)


def test_a_patient_whose_id_differs_in_case_alone_from_one_that_was_seen_is_refused(
    feature_study: Study, tmp_path: Path
) -> None:
    features, cohort = feature_study()
    run = learn(features, cohort, tmp_path / "run", "slide")
    ask(run, features, tmp_path / "before", None)
    shouted = tmp_path / "shouted.csv"
    shouted.write_text(
        cohort.read_text(encoding="utf-8").replace(",p", ",P").replace(",Patient_id", ",patient_id"), encoding="utf-8"
    )
    words = r"patient 'P\d+' of .*shouted.csv and 'p\d+', whom the model learned from or was chosen on, differ in case,"
    with pytest.raises(CohortError, match=words):
        ask(run, features, tmp_path / "out", shouted, tmp_path / "names.json")
    assert not (tmp_path / "out/predictions.csv").exists()
    with pytest.raises(CohortError, match=words):
        evaluate([tmp_path / "before"], shouted, tmp_path / "report", options=QUICK)


def test_a_patient_whose_number_a_spreadsheet_wrote_anew_is_refused() -> None:
    learned = Learned(known=True, splits={}, patients={"7": "train"}, counts={"train": 1})
    learned.refuse_other_spellings(["7", "8.0", "7.5"], Path("cohort.csv"))
    with pytest.raises(CohortError, match=r"patient '7\.0' of cohort\.csv and '7', .* a final \.0, zeros"):
        learned.refuse_other_spellings(["8", "7.0"], Path("cohort.csv"))
    with pytest.raises(CohortError, match=r"patient '007' of cohort\.csv and '7', .* zeros before a number or how"):
        learned.refuse_other_spellings(["70", "-7", "7a", "007"], Path("cohort.csv"))


def test_a_slide_whose_extraction_failed_stands_as_failed_without_its_reason_under_a_pseudonym(
    feature_study: Study, tmp_path: Path
) -> None:
    features, cohort = feature_study()
    run = learn(features, cohort, tmp_path / "run", "slide")
    fewer = shutil.copytree(features, tmp_path / "fewer")
    for name in ("s0", "s1"):
        (fewer / f"{name}.h5").unlink()
    reasons = "slide_id,step,reason\ns0,open,/scans/Doe.svs is damaged\ns2,open,it is there with earlier features\n"
    (fewer / "failures.csv").write_text(reasons, encoding="utf-8")
    plain = ask(run, fewer, tmp_path / "plain", cohort)
    assert plain.failures == {"s0": "/scans/Doe.svs is damaged"}
    assert any(note.startswith("1 of 36 slides in the cohort file have no features here") for note in plain.notes)
    used = "1 slides failed in the last extraction, and are used with the features of an earlier one: "
    assert f"{used}'s2'" in plain.notes
    named = ask(run, fewer, tmp_path / "named", cohort, tmp_path / "names.json")
    (told,) = (note for note in named.notes if note.startswith(used))
    assert re.search(r"\bs2\b", told) is None  # a pseudonym may hold the two letters
    assert [*named.failures.values()] == ["extraction failed"]
    assert "Doe" not in (tmp_path / "named/predictions.csv").read_text(encoding="utf-8")
