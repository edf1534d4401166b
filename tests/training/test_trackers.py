"""Records reach who was asked for, and a tracker that is not installed is refused before any work."""

from __future__ import annotations

import builtins
import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tests.training.made import QUICK, Pause, run
from wsimil.errors import ConfigError


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_tensorboard_gets_every_epoch_of_a_resumed_run_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, pause=Pause(20))
    result = run(tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("loss/val")}
    assert shown == pytest.approx({record.epoch: record.val_loss for record in result.history})
    assert len(events.Scalars("loss/val")) == len(result.history)


@pytest.mark.filterwarnings("ignore")  # what MLflow's own database tools warn of
def test_mlflow_gets_every_epoch_of_a_resumed_run_under_one_id(tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    config = QUICK.model_copy(update={"trackers": ("mlflow",)})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config=config, pause=Pause(20))
    result = run(tmp_path, config=config)
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "wsimil"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["fit.lr"] == str(QUICK.lr)
    losses = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "loss/train")}
    assert losses == pytest.approx({record.epoch: record.train_loss for record in result.history})


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    run(tmp_path, config=QUICK.model_copy(update={"trackers": ("wandb",), "epochs": 2}))
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = importlib.import_module

    def missing(wanted: str, package: str | None = None) -> ModuleType:
        if wanted == name:
            raise builtins.ImportError(wanted)
        return real(wanted, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=rf'pip install "wsimil\[{name}\]"'):
        run(tmp_path, config=QUICK.model_copy(update={"trackers": (name,)}))
    assert not (tmp_path / "checkpoint").exists()
