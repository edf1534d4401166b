"""The learning rate over a run."""

from __future__ import annotations

import math


def lr_factor(progress: float, *, warmup: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1]: linear up to `warmup`, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
