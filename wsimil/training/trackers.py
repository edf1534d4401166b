"""Where the records of a run go beside metrics.jsonl: TensorBoard, and where asked for MLflow or Weights & Biases."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from wsimil.errors import ConfigError
from wsimil.provenance import Json
from wsimil.training.records import EpochRecord

TrackerName: TypeAlias = Literal["tensorboard", "mlflow", "wandb"]


class Tracker(Protocol):
    """Somebody who shows records."""

    def add(self, record: EpochRecord) -> None:
        """One more epoch."""
        ...


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raises ConfigError where one is asked for that is not installed."""
    for name in names:
        if name != "tensorboard":
            _library(name)


@contextmanager
def tracking(
    names: Sequence[TrackerName], run: Path, *, recipe: Mapping[str, Json], first: int
) -> Iterator[Sequence[Tracker]]:
    """The trackers of a run that goes on after `first` epochs.

    MLflow and W&B write below `run` unless their own environment variables (MLFLOW_TRACKING_URI, WANDB_MODE) say otherwise; a
    resumed run goes on under the same id. Raises ConfigError where one is not installed.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_OPEN[name](run, recipe, first)) for name in names]


def scalars(record: EpochRecord) -> dict[str, float]:
    """The numbers of a record by name; what is undefined is left out."""
    values = {"loss/train": record.train_loss, "loss/val": record.val_loss, "lr": record.lr}
    values |= {f"terms/{name}": value for name, value in record.terms.items()}
    return values | {f"{name}/val": value for name, value in record.val.items() if value is not None}


class _Board:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, record: EpochRecord) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()


@contextmanager
def _tensorboard(run: Path, _: Mapping[str, Json], first: int) -> Iterator[Tracker]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"), purge_step=first + 1)
    try:
        yield _Board(writer)
    finally:
        writer.close()


class _MlFlow:
    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def add(self, record: EpochRecord) -> None:
        for name, value in scalars(record).items():
            self._client.log_metric(self._run_id, name, value, step=record.epoch)


@contextmanager
def _mlflow(run: Path, recipe: Mapping[str, Json], first: int) -> Iterator[Tracker]:
    _library("mlflow")
    tracking_module: Any = importlib.import_module("mlflow.tracking")
    where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(run / 'mlflow.db').resolve()}"
    client = tracking_module.MlflowClient(tracking_uri=where)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "wsimil")
    known = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if known is None else known.experiment_id
    kept = run / "mlflow.run"
    if first and kept.is_file():
        run_id = kept.read_text(encoding="utf-8").strip()
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(experiment, run_name=run.name).info.run_id
        kept.write_text(f"{run_id}\n", encoding="utf-8")
        for key, value in _flat(recipe).items():
            client.log_param(run_id, key, value)
    try:
        yield _MlFlow(client, run_id)
    except BaseException:
        client.set_terminated(run_id, status="KILLED")
        raise
    client.set_terminated(run_id)


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def add(self, record: EpochRecord) -> None:
        self._run.log(scalars(record), step=record.epoch)


@contextmanager
def _wandb(run: Path, recipe: Mapping[str, Json], first: int) -> Iterator[Tracker]:
    wandb: Any = _library("wandb")
    kept = run / "wandb.run"
    resumed = kept.read_text(encoding="utf-8").strip() if first and kept.is_file() else None
    mode = os.environ.get("WANDB_MODE") or "offline"
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "wsimil"),
        dir=str(run),
        name=run.name,
        id=resumed,
        resume="allow" if resumed and mode == "online" else None,
        mode=mode,
        config=_flat(recipe),
    )
    kept.write_text(f"{opened.id}\n", encoding="utf-8")
    try:
        yield _Wandb(opened)
    except BaseException:
        opened.finish(exit_code=1)
        raise
    opened.finish()


_OPEN = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f'fit.trackers: {name} is not installed; pip install "wsimil[{name}]", or leave it out'
        ) from None


def _flat(facts: Mapping[str, Json], prefix: str = "") -> dict[str, str | int | float | bool | None]:
    found: dict[str, str | int | float | bool | None] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
