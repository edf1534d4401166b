"""What a study rests on is what it was planned with, at every unit; else it stops and says so."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pytest
import torch
import yaml
from typer.testing import CliRunner

from tests.stages.study.conftest import Material
from tests.stages.study.study_of import QUICK, bytes_below, planned, work
from wsimil.cli import app
from wsimil.config import load_config
from wsimil.encoders.hub import published_weights
from wsimil.encoders.registry import card
from wsimil.errors import ConfigError, OutputError
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.progress import Quiet
from wsimil.stages.study import extracting, training
from wsimil.stages.study.config import StudyConfig
from wsimil.stages.study.extracting import ExtractRunner
from wsimil.stages.study.looking import retry
from wsimil.stages.study.planning import open_study, plan_study, refuse_other_plan
from wsimil.stages.study.predicting import PredictRunner
from wsimil.stages.study.training import TrainRunner
from wsimil.stages.train import train
from wsimil.store import Backend, open_store
from wsimil.worklist import Ledger, WorkPlan
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.status import plan_state
from wsimil.worklist.worker import Left, Outcome

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
Make = Callable[..., Path]
RUN = "abmil/0/seed-0"


def set_aside(plan: WorkPlan, unit_id: str, reason: str) -> None:
    """Let two workers fail at a unit."""
    for name in ("gone", "gone too"):
        ledger = Ledger(plan, worker=name, host=name)
        attempt = ledger.claim(plan.units[unit_id], ledger.look(unit_id))
        assert attempt is not None
        ledger.close(attempt, "err", reason)


def troubles(plan: WorkPlan) -> list[str]:
    """Why units were set aside."""
    state = plan_state(plan, Ledger(plan, worker="looker", host="h"))
    return [str(one.reasons[-1]["reason"]) for stage in state.stages for one in stage.troubles if one.is_bad]


def swap_labels(cohort: Path) -> None:
    """The same slides and patients, each of the other class."""
    text = cohort.read_text("utf-8")
    cohort.write_text(text.replace(",n,", ",?,").replace(",t,", ",n,").replace(",?,", ",t,"), encoding="utf-8")


def slide_study(folder: Path, make_slide: Make, **given: object) -> tuple[WorkPlan, Path]:
    """A study of sixteen small slides, two of each patient, and the folder that they lie in."""
    slides = folder / "slides"
    rows = ["slide_id,patient_id,label"]
    for index in range(16):
        make_slide(slides / f"s{index:02}.tiff", seed=index, size_px=(512, 400))
        rows.append(f"s{index:02},p{index // 2},{'nt'[index // 2 % 2]}")
    cohort, splits = folder / "cohort.csv", folder / "splits.json"
    cohort.write_text("\n".join([*rows, ""]), encoding="utf-8")
    made = CliRunner().invoke(app, ["splits", "make", str(cohort), "-o", str(splits), "--folds", "2"])
    assert made.exit_code == 0, made.output
    settings = {"slides": str(slides), "cohort": str(cohort), "splits": str(splits), "extract": {"device": "cpu"}}
    return planned(folder / "study", **{**settings, **given}), slides


@pytest.mark.parametrize("stage", ["predict", "report"])
def test_labels_that_changed_after_training_are_refused(material: Material, tmp_path: Path, stage: str) -> None:
    plan = planned(
        tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], predict={"heatmaps": False}
    )
    assert work(plan, stages=["train"] if stage == "predict" else ["train", "predict"]) is Left.FINISHED
    swap_labels(material.cohort)
    with pytest.raises(ConfigError, match=r"cohort .* is not what the study was planned with"):
        work(plan, stages=[stage])


def test_labels_that_change_while_a_worker_trains_are_refused(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, report=False)

    def then_changed(*given: object, **named: object) -> object:
        done = train(*given, **named)  # type: ignore[arg-type]
        swap_labels(material.cohort)
        return done

    monkeypatch.setattr(training, "train", then_changed)
    assert work(plan, name="one") is Left.RENEW
    scanned = Ledger(plan, worker="looker", host="h").scan()
    assert not any(one.done for one in scanned.values())
    assert not list((tmp_path / "study").glob("runs/*/*/*/model.safetensors"))


def test_a_slide_that_was_taken_from_the_features_is_missed(material: Material, tmp_path: Path) -> None:
    plan = planned(
        tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], predict={"slides": "all"}
    )
    (material.features / "s5.h5").rename(tmp_path / "s5.h5")
    for stage in ("train", "predict"):
        with pytest.raises(ConfigError, match=r"had 36 slides .* and has 35"):
            work(plan, stages=[stage])


def test_a_slide_that_was_added_to_the_features_is_no_part_of_the_study(material: Material, tmp_path: Path) -> None:
    (material.features / "s5.h5").rename(tmp_path / "s5.h5")
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"])
    shutil.copy(tmp_path / "s5.h5", material.features / "s5.h5")
    with pytest.raises(ConfigError, match=r"had 35 slides .* and has 36"):
        work(plan)


def replace_features(folder: Path, slide_id: str, *, backend: Backend = "hdf5") -> None:
    """Put other features of the same kind in the place of a slide's."""
    store = open_store(folder, mode="w", backend=backend)
    bag = store.read(slide_id)
    store.write(dataclasses.replace(bag, features=bag.features * 2))


REPLACED = r"replaced since .* slide 's5' \(got [0-9a-f]{16}, wanted [0-9a-f]{16}\)"


def test_features_that_were_replaced_after_planning_are_refused(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], report=False)
    kept = shutil.copy(material.features / "s5.h5", tmp_path / "s5.h5")
    replace_features(material.features, "s5")
    with pytest.raises(ConfigError, match=REPLACED):
        work(plan)
    shutil.copy(kept, material.features / "s5.h5")  # whose time is another
    assert work(plan) is Left.FINISHED


def test_features_that_are_replaced_while_a_worker_trains_are_refused(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], report=False)

    def then_replaced(*given: object, **named: object) -> object:
        done = train(*given, **named)  # type: ignore[arg-type]
        replace_features(material.features, "s5")
        return done

    monkeypatch.setattr(training, "train", then_replaced)
    assert work(plan, name="one") is Left.RENEW
    [reason] = [one["reason"] for one in Ledger(plan, worker="looker", host="h").reasons("t000000")]
    assert re.search(REPLACED, str(reason))
    assert not list((tmp_path / "study").glob("runs/*/*/*/model.safetensors"))


def test_a_slide_whose_features_were_replaced_after_training_has_no_answer(material: Material, tmp_path: Path) -> None:
    plan = planned(
        tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], report=False,
        predict={"slides": "all", "heatmaps": False}, max_bad=1.0,
    )  # fmt: skip
    assert work(plan, stages=["train"]) is Left.FINISHED
    replace_features(material.features, "s5")
    assert work(plan, name="one", stages=["predict"]) is Left.RENEW
    state = plan_state(plan, Ledger(plan, worker="looker", host="h"))
    [trouble] = [one for stage in state.stages for one in stage.troubles]
    assert trouble.name.endswith(": s5")
    assert re.search(REPLACED, str(trouble.reasons[0]["reason"]))


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
def test_features_that_the_study_made_and_somebody_replaced_are_refused(
    tmp_path: Path, make_slide: Make, backend: Backend
) -> None:
    extract = {"device": "cpu", "store": backend}
    plan, _ = slide_study(tmp_path, make_slide, train={"abmil": QUICK}, report=False, extract=extract)
    assert work(plan, stages=["extract"]) is Left.FINISHED
    TrainRunner(open_study(plan), Ledger(plan, worker="one", host="h"), Quiet())
    replace_features(tmp_path / "study/features", "s05", backend=backend)
    with pytest.raises(ConfigError, match=REPLACED.replace("s5", "s05")):
        work(plan, stages=["train"])


def test_features_that_were_replaced_before_their_tables_are_refused(tmp_path: Path, make_slide: Make) -> None:
    plan, _ = slide_study(tmp_path, make_slide, train={"abmil": QUICK}, report=False, max_bad=1.0)
    end = extracting.ExtractRunner._end

    def replaced_before(runner: extracting.ExtractRunner, attempt: Attempt) -> Outcome:
        replace_features(tmp_path / "study/features", "s05")
        return end(runner, attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extracting.ExtractRunner, "_end", replaced_before)
        assert [work(plan, name=name, stages=["extract"]) for name in ("a", "b")] == [Left.RENEW, Left.FINISHED]
    assert all(re.search(REPLACED.replace("s5", "s05"), reason) for reason in troubles(plan))
    assert len(troubles(plan)) == 1
    with pytest.raises(ConfigError, match=REPLACED.replace("s5", "s05")):
        work(plan, stages=["train"])


def test_features_that_came_after_their_tables_are_no_part_of_the_study(tmp_path: Path, make_slide: Make) -> None:
    plan, _ = slide_study(tmp_path, make_slide, train={"abmil": QUICK}, max_bad=0.2)
    set_aside(plan, "e000003", "it was so")
    assert work(plan, stages=["extract"]) is Left.FINISHED
    features = tmp_path / "study/features"
    assert not (features / "s03.h5").exists()
    shutil.copy(features / "s04.h5", features / "s03.h5")
    with pytest.raises(ConfigError, match=r"s03.* set aside before"):
        work(plan, stages=["train"])


def test_a_worker_that_does_not_see_features_which_are_done_blames_itself(tmp_path: Path, make_slide: Make) -> None:
    plan, _ = slide_study(tmp_path, make_slide, train={"abmil": QUICK})
    assert work(plan, stages=["extract"]) is Left.FINISHED
    (tmp_path / "study/features/s03.h5").unlink()
    study, ledger = open_study(plan), Ledger(plan, worker="one", host="h")
    with pytest.raises(OutputError, match=r"features of 1 slides are done .* not there: 's03'"):
        TrainRunner(study, ledger, Quiet())
    assert work(plan, name="two") is Left.FAULTY


def test_a_feature_file_that_broke_costs_its_own_answer_alone(material: Material, tmp_path: Path) -> None:
    plan = planned(
        tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], report=False,
        predict={"slides": "all", "heatmaps": False},
    )  # fmt: skip
    assert work(plan, stages=["train"]) is Left.FINISHED
    (material.features / "s0.h5").write_bytes(b"no feature file")
    assert work(plan, name="one") is Left.RENEW
    assert work(plan, name="two") is Left.FINISHED
    with (tmp_path / "study/predictions" / RUN / "predictions.csv").open(encoding="utf-8") as file:
        status = {row["slide_id"]: row["status"] for row in csv.DictReader(file)}
    assert status.pop("s0").startswith("failed: ")
    assert list(status.values()) == ["ok"] * 35


@pytest.mark.parametrize("bag", ["slide", "patient"])
def test_who_cannot_be_answered_for_as_extraction_failed_is_in_the_tables_as_with_predict(
    tmp_path: Path, make_slide: Make, bag: str
) -> None:
    plan, slides = slide_study(
        tmp_path, make_slide, train={"abmil": {**QUICK, "bag": bag}}, rounds=["0"], max_bad=0.2,
        predict={"slides": "all", "heatmaps": False}, report=False,
    )  # fmt: skip
    (slides / "s04.tiff").write_bytes(b"no slide")  # of the test split: training lacks no class
    assert work(plan, name="one") is Left.RENEW
    assert work(plan, name="two") is Left.FINISHED, troubles(plan)
    alone, ours = tmp_path / "alone", tmp_path / "study/predictions" / RUN
    options = PredictOptions(heatmaps=False, device="cpu")
    predict(tmp_path / "study/runs" / RUN, slides, alone, options=options, cohort_csv=tmp_path / "cohort.csv")
    who = "p2" if bag == "patient" else "s04"
    with (ours / "predictions.csv").open(encoding="utf-8") as file:
        status = {row[f"{bag}_id"]: row["status"] for row in csv.DictReader(file)}
    assert status.pop(who).startswith("failed: ")
    assert set(status.values()) == {"ok"}
    assert len(status) == (7 if bag == "patient" else 15)
    for name in ("predictions.csv", "metrics.json", "failures.csv"):
        assert (ours / name).read_text("utf-8") == (alone / name).read_text("utf-8"), name


def test_a_worker_that_does_not_see_the_masks_makes_no_features_without_them(tmp_path: Path, make_slide: Make) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    plan, _ = slide_study(tmp_path, make_slide, extract={"device": "cpu", "masks": str(masks)})
    masks.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"masks: .* is not a folder"):
        work(plan)
    assert not list((tmp_path / "study/features").glob("*.h5"))


def test_a_try_that_died_between_features_and_pictures_leaves_nothing_out(tmp_path: Path, make_slide: Make) -> None:
    make_slide(tmp_path / "slides/s0.tiff", size_px=(512, 400))
    settings = {"slides": str(tmp_path / "slides"), "extract": {"device": "cpu"}}
    whole = planned(tmp_path / "whole", **settings)
    assert work(whole) is Left.FINISHED
    plan = planned(tmp_path / "study", **settings)
    (tmp_path / "study/features").mkdir()
    shutil.copy(tmp_path / "whole/features/s0.h5", tmp_path / "study/features/s0.h5")
    assert work(plan) is Left.FINISHED
    ours, alone = (bytes_below(tmp_path / name / "features", without=["extract.jsonl"]) for name in ("study", "whole"))
    assert "tissue/s0.geojson" in alone
    assert ours == alone
    line = json.loads((tmp_path / "study/features/extract.jsonl").read_text("utf-8"))
    assert (line["status"], line["tiles"] > 0) == ("done", True)


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
def test_features_of_another_kind_that_somebody_else_put_there_are_not_taken_for_ours(
    tmp_path: Path, make_slide: Make, backend: Backend
) -> None:
    make_slide(tmp_path / "slides/s0.tiff", size_px=(512, 400))
    settings = {"slides": str(tmp_path / "slides"), "max_bad": 1.0}
    extract = {"device": "cpu", "store": backend}
    other = planned(tmp_path / "other", **settings, extract={**extract, "tile": {"overlap": 0.5}})
    assert work(other, stages=["extract"]) is Left.FINISHED
    plan = planned(tmp_path / "study", **settings, extract=extract)
    shutil.copytree(tmp_path / "other/features", tmp_path / "study/features")
    assert work(plan, name="one") is Left.RENEW
    assert work(plan, name="two") is Left.FINISHED
    [reason] = troubles(plan)
    assert re.search(r"s0\.(h5|zarr) is there already and holds features of another kind", reason)


def test_a_model_that_somebody_else_put_there_is_not_taken_for_ours(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"])
    other = {**QUICK, "fit": {"epochs": 1, "lr": 1e-5}}
    foreign = planned(tmp_path / "foreign", **material.settings(), train={"abmil": other}, rounds=["0"], report=False)
    assert work(foreign) is Left.FINISHED
    shutil.copytree(tmp_path / "foreign/runs" / RUN, tmp_path / "study/runs" / RUN)
    assert work(plan, name="one") is Left.RENEW
    assert work(plan, name="two") is Left.REFUSED
    assert "is not this run" in troubles(plan)[0]


def test_a_run_whose_worker_died_before_it_could_say_so_is_told_of_with_its_config(
    material: Material, tmp_path: Path
) -> None:
    settings = {**material.settings(), "train": {"abmil": QUICK}, "rounds": ["0"], "report": False}
    whole = planned(tmp_path / "whole", **settings)
    assert work(whole) is Left.FINISHED
    plan = planned(tmp_path / "study", **settings)
    shutil.copytree(tmp_path / "whole/runs" / RUN, tmp_path / "study/runs" / RUN)
    before = (tmp_path / "study/runs" / RUN / "model.safetensors").stat().st_mtime_ns
    assert work(plan) is Left.FINISHED
    assert (tmp_path / "study/runs" / RUN / "model.safetensors").stat().st_mtime_ns == before
    assert (tmp_path / f"study/runs/{RUN}.yaml").is_file()
    receipt = Ledger(plan, worker="looker", host="h").receipt("t000000")
    assert f"runs/{RUN}/model.json" in cast("Mapping[str, str]", receipt["products"])


def train_anew(plan: WorkPlan, *, epochs: int | None = None) -> None:
    """As somebody who gives the folder of a study's run to `wsimil train --overwrite`, with epochs of his own or the run's."""
    item = open_study(plan).items()[RUN]
    fit = item.config.fit if epochs is None else item.config.fit.model_copy(update={"epochs": epochs})
    train(item.config.model_copy(update={"fit": fit}), item.features, item.cohort, item.out, overwrite=True)


def one_run(folder: Path, material: Material) -> WorkPlan:
    """A study of one run."""
    return planned(
        folder, **material.settings(), train={"abmil": QUICK}, rounds=["0"], predict={"heatmaps": False}, max_bad=1.0
    )


ANOTHER_RUN = r"is not the run that the study trained: model\.json was replaced since"


@pytest.mark.parametrize("stage", ["predict", "report"])
def test_a_run_that_was_trained_anew_in_its_folder_neither_answers_nor_is_reported_until_it_is_restored(
    material: Material, tmp_path: Path, stage: str
) -> None:
    plan = one_run(tmp_path / "study", material)
    before = ["train"] if stage == "predict" else ["train", "predict"]
    assert work(plan, stages=before) is Left.FINISHED
    train_anew(plan, epochs=1)
    assert [work(plan, name=name, stages=[stage]) for name in ("a", "b", "c")][-1] is Left.FINISHED
    told = [reason for reason in troubles(plan) if re.search(ANOTHER_RUN, reason)]
    assert len(told) == len(plan.stage(stage).units)
    if stage == "report":
        train_anew(plan)  # to the byte what it was
        assert retry(plan, stages=[stage], units=()) == ["r000000"]
        assert work(plan, name="d", stages=[stage]) is Left.FINISHED
        assert (tmp_path / "study/report/abmil/metrics.json").is_file()


@pytest.mark.parametrize(
    ("runner", "stage", "tables"),
    [(TrainRunner, "train", "runs/summary.*"), (PredictRunner, "predict", "predictions/**/predictions.*")],
)
def test_tables_are_not_made_of_a_run_that_was_trained_anew_before_them(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    runner: type[TrainRunner | PredictRunner], stage: str, tables: str,
) -> None:  # fmt: skip
    plan = one_run(tmp_path / "study", material)
    assert stage == "train" or work(plan, name="before", stages=["train"]) is Left.FINISHED
    end = runner._end

    def trained_before(self: TrainRunner | PredictRunner, attempt: Attempt) -> Outcome:
        train_anew(plan, epochs=1)
        return end(self, attempt)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "_end", trained_before)
    assert [work(plan, name=name, stages=[stage]) for name in ("a", "b")] == [Left.RENEW, Left.FINISHED]
    [reason] = troubles(plan)
    assert re.search(ANOTHER_RUN, reason)
    assert not list((tmp_path / "study").glob(tables))


def test_a_report_leaves_out_a_run_that_was_set_aside_whatever_lies_in_its_folder(
    material: Material, tmp_path: Path
) -> None:
    plan = one_run(tmp_path / "study", material)
    train_anew(plan)
    set_aside(plan, "t000000", "it was so")
    assert work(plan, name="one") is Left.RENEW
    assert work(plan, name="two") is Left.FINISHED
    assert "none of the 1 runs of abmil is there to report on" in troubles(plan)[-1]


def test_a_model_to_start_from_that_changed_after_planning_is_refused(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned(tmp_path / "before", **material.settings(), train={"abmil": QUICK}, rounds=["0"], report=False)
    assert work(before) is Left.FINISHED
    start = tmp_path / "start"
    shutil.copytree(tmp_path / "before/runs" / RUN, start)
    monkeypatch.chdir(tmp_path)
    warm = {**QUICK, "fit": {"epochs": 1, "warm_start": "start"}}
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": warm}, rounds=["0"], report=False)
    monkeypatch.chdir("/")
    assert {item.config.fit.warm_start for item in open_study(plan).items().values()} == {start}
    with (start / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigError, match=r"fit.warm_start of abmil .* is not what the study was planned with"):
        work(plan)


def test_what_was_mended_and_retried_is_trained_from_the_start(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], report=False)
    unit = plan.stage("train").units[0]
    item = open_study(plan).items()[unit.name]
    for name in ("a", "b"):
        ledger = Ledger(plan, worker=name, host=name)
        attempt = ledger.claim(unit, ledger.look(unit.id))
        assert attempt is not None
        train(item.config, item.features, item.cohort, attempt.scratch / "runs" / unit.name)
        ledger.close(attempt, "err", "it was so")
    assert ledger.forgive(unit.id)
    seen: list[str] = []

    class Notes(Quiet):
        def finish_item(self, line: str) -> None:
            seen.append(line)

    runner = TrainRunner(open_study(plan), ledger, Notes())
    attempt = ledger.claim(unit, ledger.look(unit.id))
    assert attempt is not None
    list(runner.run(iter([attempt])))
    assert [line.split(":")[0] for line in seen] == ["epoch 1", "epoch 2"]


def test_overlays_without_the_range_of_their_model_are_told_as_failed(material: Material, tmp_path: Path) -> None:
    plan = planned(
        tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], predict={}, max_bad=0.2
    )
    assert work(plan, stages=["train"]) is Left.FINISHED
    set_aside(plan, "p-end-0000", "it was so")
    assert work(plan, name="one", stages=["predict"]) is Left.FINISHED
    assert work(plan, name="two", stages=["overlays"]) in (Left.RENEW, Left.REFUSED)
    assert work(plan, name="three", stages=["overlays"]) is Left.REFUSED
    assert "p-end-0000" in troubles(plan)[-1]


def test_a_report_on_no_run_at_all_says_so(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"], max_bad=1)
    set_aside(plan, "t000000", "it was so")
    assert work(plan, name="one") is Left.RENEW
    assert work(plan, name="two") is Left.FINISHED
    assert "none of the 1 runs of abmil is there to report on" in troubles(plan)[-1]


def other_weights(given: Path, to: Path) -> Path:
    """The same encoder with one tensor changed."""
    state = torch.load(given, map_location="cpu", weights_only=True)
    next(tensor for tensor in state.values() if tensor.is_floating_point()).add_(1)
    torch.save(state, to)
    return to


def test_weights_are_those_of_planning_or_a_copy_of_them(tmp_path: Path, make_slide: Make) -> None:
    published = published_weights(card("efficientnet_lite0"))
    weights = Path(shutil.copy(published, tmp_path / "weights.pth"))
    plan, _ = slide_study(tmp_path, make_slide, extract={"device": "cpu", "encoder_weights": str(weights)})

    # A copy of other content is refused, though the file that it stands for is there.
    other = other_weights(published, tmp_path / "other.pth")
    study, ledger = open_study(plan, weights=other), Ledger(plan, worker="one", host="h")
    with pytest.raises(ConfigError, match=r"other.pth are not those that the study was planned with"):
        ExtractRunner(study, ledger, Quiet())

    # So is the planned file itself, once it holds something else; a copy of what it held is not.
    copy = shutil.copy(weights, tmp_path / "copy.pth")
    shutil.copy(other, weights)
    with pytest.raises(ConfigError, match=r"weights.pth are not those that the study was planned with"):
        work(plan)
    words = ["worker", str(plan.folder), "--workers", "1", "--gpus", "none", "--encoder-weights", str(copy)]
    done = subprocess.run([sys.executable, "-m", "wsimil", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # What is written names the planned file, wherever it was read.
    assert yaml.safe_load((plan.folder / "features/config.yaml").read_text())["encoder_weights"] == str(weights)
    assert len(list((plan.folder / "features").glob("*.h5"))) == 16


def test_a_copy_of_weights_that_were_not_planned_with_is_refused(tmp_path: Path, make_slide: Make) -> None:
    plan, _ = slide_study(tmp_path, make_slide)
    with pytest.raises(ConfigError, match=r"planned with the published weights of efficientnet_lite0"):
        open_study(plan, weights=tmp_path / "weights.pth")


def test_a_copy_of_weights_for_features_that_are_there_is_refused(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, rounds=["0"])
    with pytest.raises(ConfigError, match=r"is of features that are there"):
        open_study(plan, weights=tmp_path / "weights.pth")


def test_another_plan_differs_in_the_content_of_weights(tmp_path: Path, make_slide: Make) -> None:
    published = published_weights(card("efficientnet_lite0"))
    weights = Path(shutil.copy(published, tmp_path / "weights.pth"))
    settings = {"extract": {"device": "cpu", "encoder_weights": str(weights)}}
    slide_study(tmp_path, make_slide, **settings)
    other_weights(published, weights)
    study = load_config(StudyConfig, tmp_path / "study.yaml")
    with pytest.raises(ConfigError, match=r"different in content of encoder_weights"):
        refuse_other_plan(plan_study(study, tmp_path / "study"))
