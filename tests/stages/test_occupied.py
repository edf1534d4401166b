"""Two processes never train into one folder; one that died holds nobody up."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.made_runs import answers, write_cohort, write_run
from wsimil.config import load_config
from wsimil.errors import OutputError
from wsimil.stages.compare import compare
from wsimil.stages.evaluate import EvaluateOptions, evaluate
from wsimil.stages.occupied import LOCK, occupied
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig


def test_whoever_comes_second_is_told_who_is_there_and_comes_in_afterwards(tmp_path: Path) -> None:
    out = tmp_path / "new/run"
    with (
        occupied(out),
        pytest.raises(OutputError, match=rf"new/run is in use by process {os.getpid()} on .+, since \d{{4}}-"),
        occupied(out),
    ):
        pass
    with occupied(out):
        assert [entry.name for entry in out.iterdir()] == [LOCK]


@pytest.mark.parametrize(("there", "filled"), [(False, False), (False, True), (True, False)])
def test_a_folder_that_was_made_and_into_which_nothing_came_is_taken_away(
    there: bool, filled: bool, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if there:
        out.mkdir()
    with occupied(out):
        if filled:
            (out / "model.json").touch()
    assert out.exists() == (there or filled)
    assert not (out / LOCK).exists()


def test_a_process_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom wsimil.stages.occupied import occupied\n"
        "with occupied(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / LOCK).exists()
    with occupied(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_where_a_file_system_has_no_locks_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with occupied(tmp_path), occupied(tmp_path):
        pass


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_which_another_process_trains_is_left_as_it_is(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path, overwrite: bool
) -> None:
    features, cohort = feature_study()
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1})
    out = tmp_path / "run"
    (out / "checkpoint").mkdir(parents=True)
    (out / "model.json").write_text("{}")
    with occupied(out), pytest.raises(OutputError, match="in use by process"):
        train(config, features, cohort, out, overwrite=overwrite)
    assert {entry.name for entry in out.iterdir()} == {"checkpoint", "model.json"}


def test_a_folder_in_which_another_process_predicts_is_left_as_it_is(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    features, cohort = feature_study()
    run, out = tmp_path / "run", tmp_path / "predictions"
    train(load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1}), features, cohort, run)
    (out / "scores").mkdir(parents=True)
    (out / "scores" / "s1.parquet").write_text("of the other one")
    with occupied(out), pytest.raises(OutputError, match="in use by process"):
        predict(run, features, out, options=PredictOptions(device="cpu"))
    assert (out / "scores" / "s1.parquet").read_text() == "of the other one"
    predict(run, features, out, options=PredictOptions(device="cpu"))
    assert not (out / LOCK).exists()


@pytest.mark.parametrize("verb", ["evaluate", "compare"])
def test_a_folder_in_which_another_process_judges_is_left_as_it_is(verb: str, tmp_path: Path) -> None:
    task, labels, values = answers("two")
    runs = [write_run(tmp_path / name, task, labels, values) for name in ("run", "other")]
    cohort, out = write_cohort(tmp_path / "cohort.csv", task, labels), tmp_path / "report"
    options = EvaluateOptions(replicates=100)

    def report() -> None:
        if verb == "evaluate":
            evaluate(runs[:1], cohort, out, options=options)
        else:
            compare(*runs, cohort, out, options=options)

    out.mkdir()
    (out / "metrics.json").write_text("of the other one")
    with occupied(out), pytest.raises(OutputError, match="in use by process"):
        report()
    assert (out / "metrics.json").read_text() == "of the other one"
    report()
    assert {entry.name for entry in out.iterdir()} == {
        "metrics.json",
        "predictions.csv",
        "report.html",
        "MODEL_CARD.md",
    }
