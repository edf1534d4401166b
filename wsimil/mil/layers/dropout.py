"""Dropout whose mask is drawn from the step."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from wsimil.mil.batch import StepContext


def dropout(x: Float[Tensor, "*shape"], drop: float, step: StepContext | None) -> Float[Tensor, "*shape"]:
    """`x * keep / (1 - drop)` in a training step, `x` at inference; `drop` lies in [0, 1)."""
    if step is None or drop == 0:
        return x
    return (x * step.keep_mask(x.shape, drop=drop, device=x.device)).mul_(1 / (1 - drop))
