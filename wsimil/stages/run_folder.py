"""The folder of a run: what lies there of an earlier one goes before another comes, as its answers would pass for the other's."""

from __future__ import annotations

import shutil
from pathlib import Path

from wsimil.errors import ConfigError
from wsimil.evaluation.decision import DECISION, REFERENCE
from wsimil.mil.facts import FACTS, WEIGHTS
from wsimil.stages.learned import ORIGIN
from wsimil.stages.occupied import LOCK
from wsimil.stages.work_items import DONE
from wsimil.training.checkpoint import FOLDER as CHECKPOINT

_FILES = (
    "config.yaml",
    "cohort.csv",
    "cohort.txt",
    "metrics.jsonl",
    "metrics.json",
    "predictions.csv",
    "predictions.parquet",
    ORIGIN,
    DECISION,
    REFERENCE,
    DONE,
    FACTS,
    WEIGHTS,
)


def refuse_taken(out: Path) -> None:
    """Raises ConfigError where a model lies, training of one was begun, or files lie that would pass for parts of this one."""
    if _is_run(out):
        raise ConfigError(
            f"{out} holds a model already, or one in training; choose another folder, or replace it with --overwrite"
        )
    other = next((name for name in _FILES if (out / name).exists()), None)
    if other is not None:
        raise ConfigError(
            f"{out} holds {other} and no {FACTS}, so it is of another model, and would pass for a part of this one; choose another"
            " output folder"
        )


def refuse_untrained(out: Path) -> None:
    """Raises ConfigError where a model or answers lie that no training in this folder has made."""
    made = next((name for name in (FACTS, ORIGIN) if (out / name).exists()), None)
    if made is not None and not (out / CHECKPOINT).is_dir():
        raise ConfigError(
            f"{out} holds {made} and no checkpoint to go on from, so it is no run of wsimil train, or not a whole one; choose"
            " another output folder, or replace a model with --overwrite"
        )


def clear_run(out: Path) -> None:
    """Remove an earlier run, and nothing that is not ours. Raises ConfigError where files are and no run."""
    there = [entry for entry in out.iterdir() if entry.name != LOCK]
    if there and not _is_run(out):
        raise ConfigError(f"--overwrite: {out} holds files but no run; choose another output folder")
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    for folder in (CHECKPOINT, "tensorboard"):
        shutil.rmtree(out / folder, ignore_errors=True)


def _is_run(out: Path) -> bool:
    return (out / FACTS).is_file() or (out / CHECKPOINT).is_dir()
