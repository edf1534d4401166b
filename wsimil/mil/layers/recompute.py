"""Trade time for memory where a bag is large."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wsimil.mil.batch import StepContext

_SMALL = 4096


def recomputed(layer: Callable[..., Tensor], x: Tensor, *rest: object, step: StepContext | None) -> Tensor:
    """`layer(x, *rest)`; in a training step on many rows only `x` is kept, and the rest computed again in the backward pass.

    What an attention layer holds is some thirty times its input: below 4096 rows that is little, and computing it twice is not.
    `layer` draws nothing.
    """
    if step is None or len(x) <= _SMALL:
        return layer(x, *rest)
    again: Tensor = checkpoint(layer, x, *rest, use_reentrant=False, preserve_rng_state=False)
    return again
