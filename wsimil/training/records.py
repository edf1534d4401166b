"""What a run says of itself while it learns, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wsimil.provenance import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One line of metrics.jsonl. `terms` are the named terms of the training loss, means over the steps of the epoch.

    `val` is what the task can watch on the validation split, by the names of `fit.monitor`. `waited_s` is the part of `seconds`
    in which nothing was computed because a bag was still being read.
    """

    epoch: int
    lr: float
    train_loss: float
    terms: Mapping[str, float]
    val_loss: float
    val: Mapping[str, float | None]
    seconds: float
    waited_s: float = 0.0

    @property
    def val_auroc(self) -> float | None:
        """AUROC on the validation split, None where it is undefined or the task has none."""
        return self.val.get("auroc")

    def to_json(self) -> dict[str, Json]:
        """One flat mapping; what is watched is `val_<name>`."""
        watched = {f"val_{name}": value for name, value in self.val.items()}
        facts: dict[str, Json] = {
            "epoch": self.epoch,
            "lr": self.lr,
            "train_loss": self.train_loss,
            "terms": dict(self.terms),
        }
        return {**facts, "val_loss": self.val_loss, **watched, "seconds": self.seconds, "waited_s": self.waited_s}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> EpochRecord:
        """The inverse of `to_json`."""
        own = {name: facts[name] for name in ("epoch", "lr", "train_loss", "terms", "val_loss", "seconds")}
        val = {k.removeprefix("val_"): v for k, v in facts.items() if k.startswith("val_") and k != "val_loss"}
        return cls(**own, val=val, waited_s=facts.get("waited_s", 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """How a run ended: all epochs, and the one (from 1) whose weights were kept."""

    history: tuple[EpochRecord, ...]
    kept_epoch: int
    stopped_early: bool
