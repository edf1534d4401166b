"""Two processes never train into one folder; one that died holds nobody up."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.made_runs import answers, write_cohort, write_run
from wsimil.config import load_config
from wsimil.errors import OutputError
from wsimil.stages.compare import compare
from wsimil.stages.evaluate import EvaluateOptions, evaluate
from wsimil.stages.explain_check import ExplainOptions, explain_check
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


def test_who_may_be_gone_soon_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    out = tmp_path / "notes"
    first = occupied(out)
    first.__enter__()
    gone = threading.Timer(0.3, first.__exit__, (None, None, None))
    gone.start()
    # The first one takes the folder away with it.
    with occupied(out, wait_s=60):
        assert (out / LOCK).exists()
        with pytest.raises(OutputError, match="is in use by"), occupied(out, wait_s=0.1):
            pass
    gone.join()


def test_the_lock_of_another_user_who_was_killed_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LOCK).touch()
    opened = os.open

    def refuse(path: Path, how: int, mode: int = 0o777) -> int:
        if Path(path).name == LOCK and how & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, how, mode)

    monkeypatch.setattr(os, "open", refuse)
    with occupied(tmp_path), pytest.raises(OutputError, match="is in use by"), occupied(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("there", "filled"), [(False, False), (False, True), (True, False)])
def test_a_folder_that_was_made_and_into_which_nothing_came_is_taken_away(
    there: bool, filled: bool, tmp_path: Path
) -> None:
    out = tmp_path / "study" / "runs" / "first"
    if there:
        out.mkdir(parents=True)
    with occupied(out):
        if filled:
            (out / "model.json").touch()
    assert out.exists() == (tmp_path / "study").exists() == (there or filled)
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


def test_a_folder_in_which_another_process_judges_maps_is_left_as_it_is(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    features, cohort = feature_study()
    run, out = tmp_path / "run", tmp_path / "maps"
    train(load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1}), features, cohort, run)
    out.mkdir()
    (out / "explain.html").write_text("of the other one")
    with occupied(out), pytest.raises(OutputError, match="in use by process"):
        explain_check([run], features, out, options=ExplainOptions(device="cpu", scores=("contribution",)))
    assert (out / "explain.html").read_text() == "of the other one"
