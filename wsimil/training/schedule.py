"""The learning rate over a run."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from wsimil.config import FrozenConfig


class ScheduleConfig(FrozenConfig):
    """How the learning rate moves from its peak.

    `kind`: "cosine" falls along half a cosine to the share `end` of the peak, "steps" falls to `factor` of what it was at each of
    the shares `at` of a run, "constant" stays. `by`: whether it moves with every "step" or "epoch". `warmup`: the share of a run
    in which it rises linearly to the peak first.
    """

    kind: Literal["cosine", "steps", "constant"] = "cosine"
    by: Literal["step", "epoch"] = "step"
    warmup: float = Field(0.0, ge=0, lt=1)
    end: float = Field(0.0, ge=0, le=1)
    at: tuple[float, ...] = (0.5,)
    factor: float = Field(0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _warm_by_step(self) -> Self:
        if self.warmup and self.by == "epoch":
            raise ValueError("warmup rises by step; with by: epoch the first epoch would have no learning rate at all")
        return self

    def factor_at(self, progress: float) -> float:
        """Share of the peak learning rate at `progress` in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.kind == "constant":
            return 1.0
        if self.kind == "steps":
            return self.factor ** sum(progress >= share for share in self.at)
        done = (progress - self.warmup) / (1 - self.warmup)
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * done))
