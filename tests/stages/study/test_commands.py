"""plan, worker, status and retry as they are typed: what they say and how they exit, processes and signals included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.stages.study.conftest import Material
from tests.stages.study.study_of import QUICK, bytes_below
from wsimil.cli import app
from wsimil.splits import read_plan as read_splits
from wsimil.worklist import Ledger, read_plan

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

LIMIT_S = 240.0


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})
    return result.exit_code, result.output


def start(*arguments: object) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "wsimil", *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def make_plan(folder: Path, settings: Mapping[str, object]) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    code, said = run("plan", file, "-o", folder / "study")
    assert code == 0, said
    return folder / "study"


def until(path: Path, pattern: str) -> None:
    """Wait for a file, for as long as a busy machine may need."""
    end = time.monotonic() + LIMIT_S
    while not list(path.glob(pattern)):
        assert time.monotonic() < end, f"{path}/{pattern} never came"
        time.sleep(0.02)


def test_a_study_is_planned_worked_on_and_told_of(material: Material, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    settings = {**material.settings(), "train": {"abmil": QUICK}, "predict": {"heatmaps": False}}
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    study = tmp_path / "study"
    code, said = run("plan", file, "-o", study, "--dry-run")
    assert (code, study.exists()) == (0, False)
    assert "would be planned" in said
    assert run("plan", file, "-o", study)[0] == 0
    code, said = run("plan", file, "-o", study)
    assert (code, "were planned before" in said) == (0, True)
    code, said = run("plan", file, "-o", study, "--set", "seeds=[7]")
    assert (code, "holds another plan" in said) == (2, True)
    assert run("status", study, "--gate")[0] == 5
    worker = start("worker", study, "--gpus", "none", "--workers", "2")
    _, told = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == 0, told
    code, said = run("status", study, "--gate", "--json")
    state = json.loads(said)
    assert (code, state["finished"]) == (0, True)
    assert [stage["name"] for stage in state["stages"]] == ["train", "predict", "report"]
    assert all(stage["done"] == stage["units"] for stage in state["stages"])
    assert (study / "report/abmil/report.html").is_file()
    code, said = run("status", study)
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    assert run("retry", study) == (0, "no unit is bad\n")
    again = start("worker", study, "--gpus", "none")
    _, told = again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0, told


def test_a_worker_that_is_to_make_room_hands_back_and_another_goes_on(material: Material, tmp_path: Path) -> None:
    slow = {**QUICK, "fit": {"epochs": 150, "lr": 3e-3}}
    settings = {**material.settings(), "train": {"abmil": slow}, "rounds": ["0"], "report": False}
    study = make_plan(tmp_path, settings)
    first = start("worker", study, "--gpus", "none", "--quiet")
    until(study / "work/scratch", "t000000.1/runs/abmil/0/seed-0/checkpoint/*.safetensors")
    first.send_signal(signal.SIGUSR1)
    _, told = first.communicate(timeout=LIMIT_S)
    assert first.returncode == 75, told
    back = json.loads((study / "work/claims/t000000.1.back").read_text())
    assert back["place"].startswith("epoch ")
    assert 0 < back["held_s"] <= back["lived_s"]
    assert not (study / "runs/abmil").exists()
    second = start("worker", study, "--gpus", "none")
    _, told = second.communicate(timeout=LIMIT_S)
    assert second.returncode == 0, told
    (tmp_path / "whole").mkdir()
    whole = make_plan(tmp_path / "whole", settings)
    third = start("worker", whole, "--gpus", "none", "--quiet")
    _, told = third.communicate(timeout=LIMIT_S)
    assert third.returncode == 0, told
    name = "abmil/0/seed-0/model.safetensors"
    assert bytes_below(study / "runs")[name] == bytes_below(whole / "runs")[name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_worker_that_is_stopped_hands_back_and_is_not_to_be_started_again(
    material: Material, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    slow = {**QUICK, "fit": {"epochs": 100000, "lr": 3e-3}}
    study = make_plan(tmp_path, {**material.settings(), "train": {"abmil": slow}, "report": False})
    worker = start("worker", study, "--gpus", "none", "--stage", "train", "--quiet")
    until(study / "work/scratch", "t000000.1/runs/abmil/0/seed-0/checkpoint/*.safetensors")
    worker.send_signal(number)
    _, told = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == code, told
    assert (study / "work/claims/t000000.1.back").is_file()


def test_bad_units_shut_the_gate_until_they_are_mended_and_retried(material: Material, tmp_path: Path) -> None:
    settings = {**material.settings(), "train": {"abmil": QUICK}, "rounds": ["0"], "predict": {"heatmaps": False}}
    study = make_plan(tmp_path, settings)
    whole = (material.features / "s3.h5").read_bytes()
    (material.features / "s3.h5").write_bytes(b"no feature file")
    worker = start("worker", study, "--gpus", "none")
    _, told = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == 3, told
    (why,) = [line for line in told.splitlines() if "units of train" in line]
    assert why.startswith(
        f"wsimil: {study}: 1 of 2 units of train are bad, more than 5.0%: nothing is built on the rest; "
    )
    assert f"`wsimil status {study}` says what is wrong, mend it and `wsimil retry {study}`" in why
    late = start("worker", study, "--gpus", "none", "--quiet")
    assert (late.communicate(timeout=LIMIT_S)[1], late.returncode) == (f"{why}\n", 3)
    code, said = run("status", study, "--gate")
    assert code == 3
    assert "BAD t000000 abmil/0/seed-0" in said
    assert "GATE: 1 of 2 units of train are bad" in said
    code, said = run("worker", study, "--stage", "predict", "--gpus", "none")
    assert (code, "train" in said) == (2, True)
    (material.features / "s3.h5").write_bytes(whole)
    assert run("retry", study, "no such unit")[0] == 2
    assert run("retry", study, "abmil/0/seed-0") == (0, "1 units will be tried again: t000000\n")
    worker = start("worker", study, "--gpus", "none")
    _, told = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == 0, told
    assert (study / "predictions/abmil/0/seed-0/predictions.csv").is_file()


def test_a_worker_that_was_given_a_gpu_which_torch_does_not_see_refuses(material: Material, tmp_path: Path) -> None:
    study = make_plan(tmp_path, {**material.settings(), "train": {"abmil": QUICK}})
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "17"}
    command = [sys.executable, "-m", "wsimil", "worker", str(study)]
    worker = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert worker.returncode == 2
    assert "this worker was given gpu 17 and torch" in worker.stderr
    assert not list((study / "work/claims").iterdir())


@pytest.mark.parametrize("command", ["worker", "status", "retry"])
def test_a_folder_without_a_plan_is_refused(tmp_path: Path, command: str) -> None:
    code, said = run(command, tmp_path)
    assert code == 2
    assert "holds no work list; write one with `wsimil plan STUDY.yaml" in said


def test_what_a_unit_has_to_say_reaches_the_log_of_its_worker(tmp_path: Path, make_slide: Callable[..., Path]) -> None:
    make_slide(tmp_path / "slides/s0.tiff", size_px=(512, 400), mpp=0.5)
    (tmp_path / "slides.csv").write_text("path,mpp\nslides/s0.tiff,0.25\n", encoding="utf-8")
    study = make_plan(tmp_path, {"slides": str(tmp_path / "slides.csv"), "extract": {"device": "cpu"}})
    worker = start("worker", study, "--gpus", "none")
    _, told = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == 0, told
    assert "s0: taken as 0.25 µm per pixel" in told


def test_an_answer_and_its_overlay_are_both_retried_by_their_name(material: Material, tmp_path: Path) -> None:
    settings = {**material.settings(), "train": {"abmil": QUICK}, "rounds": ["0"], "predict": {}}
    plan = read_plan(make_plan(tmp_path, settings))
    unit = plan.stage("predict").units[0]
    assert unit.name == plan.stage("overlays").units[0].name
    for name in ("a", "b"):
        ledger = Ledger(plan, worker=name, host=name)
        attempt = ledger.claim(unit, ledger.look(unit.id))
        assert attempt is not None
        ledger.close(attempt, "err", "it was so")
    assert run("retry", plan.folder, unit.name) == (0, f"1 units will be tried again: {unit.id}\n")


def test_a_dry_run_refuses_what_planning_would(material: Material, tmp_path: Path) -> None:
    study = make_plan(tmp_path, {**material.settings(), "train": {"abmil": QUICK}})
    for options in ([], ["--dry-run"]):
        code, said = run("plan", tmp_path / "study.yaml", "-o", study, "--set", "seeds=[7]", *options)
        assert (code, "holds another plan" in said, "different in seeds;" in said) == (2, True, True), said
    swapped = material.cohort.read_text("utf-8").replace("site0", "site1")
    material.cohort.write_text(swapped, encoding="utf-8")
    code, said = run("plan", tmp_path / "study.yaml", "-o", study)
    assert (code, "different in content of files;" in said) == (2, True), said


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(material: Material, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**material.settings(), "train": {"abmil": QUICK}}), "utf-8")
    before = sorted(material.features.iterdir())
    for options in (["--dry-run"], []):
        code, said = run("plan", tmp_path / "study.yaml", "-o", material.features, *options)
        assert (code, "and no work list" in said) == (2, True), said
    assert sorted(material.features.iterdir()) == before


def test_slides_that_are_nobodys_are_told_of(material: Material, tmp_path: Path) -> None:
    lines = material.cohort.read_text("utf-8").splitlines()
    material.cohort.write_text("\n".join([line for line in lines if not line.startswith("s35,")]), encoding="utf-8")
    command = ["splits", "make", material.cohort, "-o", material.splits, "--folds", "3", "--overwrite"]
    assert run(*command)[0] == 0
    settings = {**material.settings(), "train": {"abmil": {**QUICK, "bag": "patient"}}, "rounds": ["0"]}
    study = make_plan(tmp_path, {**settings, "predict": {"slides": "all", "heatmaps": False}, "report": False})
    worker = start("worker", study, "--gpus", "none")
    _, told = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == 0, told
    assert "abmil/0/seed-0: 1 slides are left out, as the cohort file does not tell whose they are: s35" in told


def test_slides_that_failed_and_are_answered_for_with_earlier_features_are_told_of(
    material: Material, tmp_path: Path
) -> None:
    one = read_splits(material.splits).round("0")
    rows = "".join(f"{slide},/s.tiff,open,torn\n" for slide in (one.test[0], one.train[0], "lost"))
    (material.features / "failures.csv").write_text(f"slide_id,path,step,reason\n{rows}", encoding="utf-8")
    settings = {**material.settings(), "train": {"abmil": QUICK}, "rounds": ["0"], "report": False}
    study = make_plan(tmp_path, {**settings, "predict": {"heatmaps": False}})
    worker = start("worker", study, "--gpus", "none")
    _, told = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == 0, told
    used = "1 slides failed in the last extraction, and are used with the features of an earlier one"
    assert f"abmil/0/seed-0: {used}: {one.test[0]!r}" in told


def test_a_patient_who_lacks_a_slide_is_failed_in_the_tables(material: Material, tmp_path: Path) -> None:
    (material.features / "s1.h5").unlink()  # of p0, whose other slide is there
    settings = {**material.settings(), "train": {"abmil": {**QUICK, "bag": "patient"}}, "rounds": ["0"]}
    study = make_plan(tmp_path, {**settings, "predict": {"slides": "all"}, "report": False})
    worker = start("worker", study, "--gpus", "none")
    _, told = worker.communicate(timeout=LIMIT_S)
    assert worker.returncode == 0, told
    rows = (study / "predictions/abmil/0/seed-0/predictions.csv").read_text("utf-8").splitlines()
    failed = [row for row in rows if "failed" in row]
    assert [row.partition(",")[0] for row in failed] == ["p0"]
    assert "slide 's1': no features" in failed[0]
