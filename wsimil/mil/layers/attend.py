"""From scores to weights: softmax over the instances of a bag, without those that a training step keeps from it."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wsimil.mil.batch import BagBatch, ScoreMasking, StepContext
from wsimil.ops.segment_softmax import segment_softmax

MASKED_SCORE = -1e9
"""What stands for the score of a masked instance; where all of a bag are masked, softmax spreads evenly over them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attention:
    """`weights` sum to 1 over each bag and head. `masked` is True where a step kept an instance from a head, None if nowhere."""

    weights: Float[Tensor, "T H"]
    masked: Bool[Tensor, "T H"] | None


def attend(
    scores: Float[Tensor, "T H"], bags: BagBatch, step: StepContext | None, own: ScoreMasking | None = None
) -> Attention:
    """Softmax of raw scores; in a training step less what `own`, the masking of the method, or else `step.masking` takes out."""
    masking = None if step is None else own or step.masking
    if step is None or masking is None:
        return Attention(weights=segment_softmax(scores, bags.cu_seqlens), masked=None)
    masked = masking(scores.detach(), bags, step)
    left = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(masked, MASKED_SCORE)
    return Attention(weights=segment_softmax(left, bags.cu_seqlens), masked=masked)
