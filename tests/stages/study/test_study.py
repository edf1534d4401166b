"""What workers make of a study is what the single commands make, to the byte; what fails is set aside and told."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.stages.study.conftest import Material
from tests.stages.study.study_of import QUICK, bytes_below, planned, work
from wsimil.cli import app
from wsimil.config import load_config
from wsimil.errors import ConfigError
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.sources import list_sources
from wsimil.splits import read_plan as read_splits
from wsimil.stages.crossval import crossval
from wsimil.stages.evaluate import EvaluateOptions, evaluate
from wsimil.stages.extract import extract
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.progress import Quiet
from wsimil.stages.study import training
from wsimil.stages.study.looking import retry
from wsimil.stages.study.planning import open_study
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.stages.work_items import work_items
from wsimil.store import open_store
from wsimil.worklist import Ledger
from wsimil.worklist.status import plan_state
from wsimil.worklist.worker import Left

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

Make = Callable[..., Path]

# They hold times of day, or paths of the folder that they lie in.
OF_THE_MOMENT = ("tensorboard", "checkpoint", "metrics.jsonl", "study.json", "done.json", "extract.jsonl")


def test_features_are_those_of_extract_to_the_byte(tmp_path: Path, make_slide: Make) -> None:
    slides = tmp_path / "slides"
    for index in range(3):
        make_slide(slides / f"s{index}.tiff", seed=index, size_px=(1024, 600 + 100 * index))
    (slides / "torn.tiff").write_bytes((slides / "s0.tiff").read_bytes()[:700])
    # Slides share batches in the order in which they are taken, which is another one here.
    settings = {"device": "cpu", "batch_size": 1}
    config = load_config(ExtractConfig, given=settings)
    extract(config, list_sources(slides), tmp_path / "alone")
    plan = planned(tmp_path / "study", slides=str(slides), extract=settings, max_bad=0.5)
    assert work(plan, name="one", patience_s=0) is Left.RENEW
    assert work(plan, name="two") is Left.FINISHED
    ours, alone = (
        bytes_below(folder, without=OF_THE_MOMENT) for folder in (tmp_path / "study/features", tmp_path / "alone")
    )
    assert {"s0.h5", "failures.csv"} <= set(ours)
    assert ours == alone
    lines = [json.loads(line) for line in (tmp_path / "study/features/extract.jsonl").read_text("utf-8").splitlines()]
    assert {line["slide_id"]: line["status"] for line in lines} == {
        "s0": "done",
        "s1": "done",
        "s2": "done",
        "torn": "failed",
    }
    assert not list((plan.work / "scratch").iterdir())


@pytest.mark.parametrize("bag", ["slide", "patient"])
def test_models_and_answers_are_those_of_crossval_and_predict_to_the_byte(
    material: Material, tmp_path: Path, bag: str
) -> None:
    settings = {**QUICK, "bag": bag}
    store = open_store(material.features, mode="w")
    seen = store.read(read_splits(material.splits).round("1").train[0])
    slide = replace(seen.grid.slide, slide_id="twin")
    store.write(replace(seen, grid=replace(seen.grid, slide=slide)))
    if bag == "patient":  # without labels it is in no split, and known to be somebody's
        material.cohort.write_text(material.cohort.read_text("utf-8") + "twin,px,,\n", encoding="utf-8")
    plan = planned(
        tmp_path / "study",
        **material.settings(),
        train={"abmil": settings},
        predict={"slides": "all"},
        rounds=["1"],
        seeds=[3],
    )
    assert work(plan) is Left.FINISHED
    config = load_config(TrainConfig, given=settings)  # type: ignore[arg-type]
    runs = tmp_path / "runs"
    items = work_items(
        {"abmil": config}, material.features, material.cohort, runs, splits=material.splits, rounds=("1",), seeds=(3,)
    )
    assert not crossval(items, runs).failures
    assert bytes_below(tmp_path / "study/runs", without=OF_THE_MOMENT) == bytes_below(runs, without=OF_THE_MOMENT)
    for item in items:
        alone = tmp_path / "answers" / item.name
        predict(item.out, material.features, alone, options=PredictOptions(), cohort_csv=material.cohort)
        ours = bytes_below(tmp_path / "study/predictions" / item.name)
        assert sum(name.startswith("overlays/") for name in ours) == 37
        assert ours == bytes_below(alone)
        told = json.loads(ours["predictions.json"])
        assert told["learned_from"]["twins"] == {"twin": "train"}
        assert len(told["alike"]) == 1
    report = tmp_path / "report"
    options = EvaluateOptions(features=material.features, split="test")
    evaluate([tmp_path / "study/runs" / item.name for item in items], material.cohort, report, options=options)
    assert bytes_below(tmp_path / "study/report/abmil") == bytes_below(report)
    assert not list((plan.work / "scratch").iterdir())


def test_a_model_is_asked_about_its_own_test_split_unless_all_are_wanted(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, predict={"heatmaps": False})
    assert work(plan) is Left.FINISHED
    for one in read_splits(material.splits).rounds:
        with (tmp_path / f"study/predictions/abmil/{one.name}/seed-0/predictions.csv").open(encoding="utf-8") as file:
            assert [row["slide_id"] for row in csv.DictReader(file)] == sorted(one.test)


def test_a_run_that_is_taken_over_goes_on_from_its_checkpoint(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**QUICK, "fit": {"epochs": 4, "lr": 3e-3}}
    whole = planned(tmp_path / "whole", **material.settings(), train={"abmil": settings}, rounds=["0"], report=False)
    assert work(whole) is Left.FINISHED
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": settings}, rounds=["0"], report=False)
    unit = plan.stage("train").units[0]
    left = Ledger(plan, worker="gone", host="h").claim(unit)
    assert left is not None
    item = open_study(plan).items()[unit.name]
    with pytest.raises(KeyboardInterrupt):
        train(item.config, item.features, item.cohort, left.scratch / "runs" / unit.name, reporter=_Stops(2))
    Ledger(plan, worker="gone", host="h").close(left, "back", "asked to make room")
    seen: list[int] = []
    monkeypatch.setattr(training, "train", _counting(seen))
    assert work(plan) is Left.FINISHED
    assert seen == [3, 4]
    name = f"runs/{unit.name}/model.safetensors"
    assert (tmp_path / "study" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    history = (tmp_path / "study/runs" / unit.name / "metrics.jsonl").read_text("utf-8").splitlines()
    assert len(history) == 4


def test_nothing_is_built_on_a_stage_of_which_too_much_failed(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK}, predict={"heatmaps": False})
    (material.features / "s3.h5").write_bytes(b"no feature file")
    assert work(plan, name="one") is Left.RENEW
    assert work(plan, name="two") is Left.REFUSED
    state = plan_state(plan, Ledger(plan, worker="looker", host="h"))
    train, answers, *_ = state.stages
    assert (train.bad, train.refused, answers.todo) == (3, True, answers.units)
    assert "s3" in str(train.troubles[0].reasons[0]["reason"])
    assert not (tmp_path / "study/predictions").exists()


def test_a_cohort_that_changed_after_planning_is_refused(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK})
    material.cohort.write_text(material.cohort.read_text("utf-8").replace("s0,p0,n", "s0,p0,t"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cohort .* is not what the study was planned with"):
        work(plan)


def test_features_of_another_kind_than_planned_are_refused(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"abmil": QUICK})
    store = open_store(material.features, mode="w")
    for slide_id in store.ids():
        bag = store.read(slide_id)
        encoder = {**bag.provenance.encoder, "weights": "others"}
        store.write(replace(bag, provenance=replace(bag.provenance, encoder=encoder)))
    with pytest.raises(ConfigError, match="of another kind than when the study was planned"):
        work(plan)


def test_a_worker_that_would_make_other_features_than_the_first_is_refused(tmp_path: Path, make_slide: Make) -> None:
    make_slide(tmp_path / "slides/s0.tiff", size_px=(512, 400))
    plan = planned(tmp_path / "study", slides=str(tmp_path / "slides"), extract={"device": "cpu"})
    pinned = plan.work / "features.json"
    assert work(plan) is Left.FINISHED
    made = json.loads(pinned.read_text("utf-8"))
    assert made["precision"] == "fp32"
    other = planned(tmp_path / "other", slides=str(tmp_path / "slides"), extract={"device": "cpu"})
    (other.work / "features.json").write_text(json.dumps({**made, "precision": "bf16"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"precision: fp32 here, bf16 there"):
        work(other)


def test_what_was_set_aside_cannot_come_back_once_tables_were_made_without_it(
    material: Material, tmp_path: Path
) -> None:
    plan = planned(
        tmp_path / "study", **material.settings(), train={"abmil": QUICK}, predict={"heatmaps": False}, max_bad=0.5, rounds=["0"]
    )  # fmt: skip
    unit = plan.stage("predict").units[0]
    for name in ("a", "b"):
        ledger = Ledger(plan, worker=name, host=name)
        attempt = ledger.claim(unit, ledger.look(unit.id))
        assert attempt is not None
        ledger.close(attempt, "err", "it was so")
    assert work(plan, name="c") is Left.FINISHED
    table = (tmp_path / "study/predictions/abmil/0/seed-0/failures.csv").read_text("utf-8")
    assert "it was so" in table
    with pytest.raises(ConfigError, match=r"p000000 of predict cannot be tried again: its tables \(p-end-0000\)"):
        retry(plan, stages=(), units=())


def test_slides_that_were_set_aside_leave_the_rest_to_go_on(tmp_path: Path, make_slide: Make) -> None:
    slides = tmp_path / "slides"
    rows = ["slide_id,patient_id,label"]
    for index in range(16):
        make_slide(slides / f"s{index}.tiff", seed=index, size_px=(512, 400))
        rows.append(f"s{index},p{index},{'nt'[index % 2]}")
    (tmp_path / "cohort.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    (slides / "s0.tiff").write_bytes(b"no slide")
    splits = tmp_path / "splits.json"
    made = CliRunner().invoke(app, ["splits", "make", str(tmp_path / "cohort.csv"), "-o", str(splits), "--folds", "2"])
    assert made.exit_code == 0, made.output
    plan = planned(
        tmp_path / "study", slides=str(slides), cohort=str(tmp_path / "cohort.csv"), splits=str(splits),
        extract={"device": "cpu"}, train={"abmil": QUICK}, predict={"slides": "all", "range": "slide"}, max_bad=0.2,
    )  # fmt: skip
    assert work(plan, name="one") is Left.RENEW
    left = work(plan, name="two")
    state = plan_state(plan, Ledger(plan, worker="looker", host="h"))
    assert left is Left.FINISHED, [stage.troubles for stage in state.stages]
    with (tmp_path / "study/predictions/abmil/0/seed-0/predictions.csv").open(encoding="utf-8") as file:
        status = {row["slide_id"]: row["status"] for row in csv.DictReader(file)}
    assert status.pop("s0").startswith("failed: ")
    assert set(status.values()) == {"ok"}
    assert "s0" in (tmp_path / "study/features/failures.csv").read_text("utf-8")
    assert "extraction failed" in (tmp_path / "study/report/abmil/metrics.json").read_text("utf-8")


class _Stops(Quiet):
    """Somebody who presses Ctrl-C at the end of an epoch."""

    def __init__(self, epochs: int) -> None:
        self._left = epochs

    def finish_item(self, line: str) -> None:
        """Count."""
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


def _counting(seen: list[int]) -> Callable[..., object]:
    """`train`, which notes the epochs that it is told of."""

    class Notes(Quiet):
        def finish_item(self, line: str) -> None:
            seen.append(int(line.split(":")[0].removeprefix("epoch ")))

    return lambda *given, **named: train(*given, **{**named, "reporter": Notes()})
