"""The folder of a run: what lies there of an earlier one goes before another comes, as its answers would pass for the other's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from wsimil.errors import ConfigError
from wsimil.evaluation.decision import DECISION, REFERENCE
from wsimil.files import remove_stale
from wsimil.mil.facts import CHECKPOINT, CHECKPOINTS, FACTS, WEIGHTS
from wsimil.stages.learned import ORIGIN
from wsimil.stages.occupied import LOCK
from wsimil.stages.work_items import DONE, STUDY
from wsimil.store.places import is_feature_place

_TENSORBOARD = "tensorboard"
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
    CHECKPOINT,
    f"{_TENSORBOARD}/events.out.tfevents.*",
)
"""Patterns of what is written into the folder of a run."""


def refuse_taken(out: Path) -> None:
    """Raises ConfigError where a model lies, training of one was begun, or files lie that would pass for parts of this one."""
    if _is_run(out):
        raise ConfigError(
            f"{out} holds a model already, or one in training; choose another folder, or replace it with --overwrite"
        )
    if files := _files(out):
        raise ConfigError(
            f"{out} holds {files[0].relative_to(out)} and no {FACTS}, so it is of another model, and would pass for a part of"
            " this one; choose another output folder"
        )


def refuse_untrained(out: Path) -> None:
    """Raises ConfigError where a model or answers lie that no training in this folder has made, or features."""
    if not _is_run(out):
        refuse_features(out)
    made = next((name for name in (FACTS, ORIGIN) if (out / name).exists()), None)
    if made is not None and not (out / CHECKPOINT).is_file():
        raise ConfigError(
            f"{out} holds {made} and no checkpoint to go on from, so it is no run of wsimil train, or not a whole one; choose"
            f" another output folder, or, where nothing in it is needed, remove the folder {out} to train it anew"
        )


def refuse_features(out: Path) -> None:
    """Raises ConfigError where features lie, whose config.yaml and failures.csv results would replace."""
    if is_feature_place(out):
        raise ConfigError(
            f"{out} holds features, whose config.yaml and failures.csv would be replaced; choose another output folder"
        )


def refuse_failures(out: Path, *, of: Sequence[str] = (ORIGIN, STUDY)) -> None:
    """Raises ConfigError where features lie, or what these files are of, whose failures.csv other work would replace."""
    refuse_features(out)
    if name := next((name for name in of if (out / name).exists()), None):
        raise ConfigError(f"{out} holds {name}, whose failures.csv would be replaced; choose another output folder")


def refuse_results(out: Path) -> None:
    """Raises ConfigError where a model, answers or a study lie, whose config.yaml and failures.csv features would replace."""
    if name := next((name for name in (FACTS, ORIGIN, CHECKPOINT, STUDY) if (out / name).exists()), None):
        raise ConfigError(
            f"{out} holds {name}: features replace config.yaml and failures.csv, so give them a folder of their own"
        )


def clear_run(out: Path, *, needed: Path | None = None) -> None:
    """Remove an earlier run, and nothing that is not ours. Raises ConfigError where files are and no run, or where `needed`, a
    file that the next one is made of, would go."""
    there = [entry for entry in out.iterdir() if entry.name != LOCK]
    if there and not _is_run(out):
        raise ConfigError(f"--overwrite: {out} holds files but no run; choose another output folder")
    files = _files(out)
    if needed is not None and needed.resolve() in {file.resolve() for file in files}:
        raise ConfigError(f"--overwrite: {needed} is of the run in {out}, and would go; choose another output folder")
    for file in files:
        file.unlink()
    for folder in (out / CHECKPOINTS, out / _TENSORBOARD):
        remove_stale(folder)
        with suppress(OSError):  # not there, or files of others are in it
            folder.rmdir()


def _is_run(out: Path) -> bool:
    return (out / FACTS).is_file() or (out / CHECKPOINT).is_file()


def _files(out: Path) -> list[Path]:
    return [file for pattern in _FILES for file in out.glob(pattern)]
