"""From scores to pooled bags: softmax over the instances of a bag, without those that a training step keeps from it."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from wsimil.mil.batch import BagBatch, ScoreMasking, StepContext
from wsimil.ops.segment_softmax import segment_softmax
from wsimil.ops.segment_sum import segment_sum
from wsimil.ops.topk import segment_topk
from wsimil.ops.varlen import CuSeqlens

_MASKED_SCORE = -1e9
"""What stands for a masked score; where all of a bag are masked, softmax spreads evenly over them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pooled:
    """Bags pooled by H heads. `scores` are raw, attention is the softmax of `left`, where what is `masked` is low enough for 0.

    `masked` is None where nothing may be. `entropy` of attention, nats, where it is known and nothing masked. `gram`: inner
    products of the heads' attention, where asked for.
    """

    vectors: Float[Tensor, "B H L"]
    scores: Float[Tensor, "T H"]
    left: Float[Tensor, "T H"]
    masked: Bool[Tensor, "T H"] | None
    cu_seqlens: CuSeqlens
    entropy: Float[Tensor, "B H"] | None = None
    gram: Float[Tensor, "B H H"] | None = None

    @property
    def weights(self) -> Float[Tensor, "T H"]:
        """Attention: sums to 1 over each bag and head, 0 where masked."""
        return segment_softmax(self.left, self.cu_seqlens)

    def over(self, values: Float[Tensor, "T L"]) -> Pooled:
        """The same attention over other values."""
        return replace(self, vectors=segment_sum(self.weights, values, self.cu_seqlens))

    def ends(self, k: int, *, largest: bool) -> Int32[Tensor, "B H k"]:
        """Places in the bag of the k highest or lowest raw scores, of equal ones the first, -1 where the bag has fewer."""
        return segment_topk(self.scores.detach(), self.cu_seqlens, k, largest=largest)


def pool_by_scores(
    scores: Float[Tensor, "T H"],
    values: Float[Tensor, "T L"],
    bags: BagBatch,
    step: StepContext | None,
    *,
    own: ScoreMasking | None = None,
    gram: bool = False,
) -> Pooled:
    """Pool `values` by softmax of raw scores; in a training step less what `own`, or else `step.masking`, takes out."""
    masking = None if step is None else own or step.masking
    masked = None if step is None or masking is None else masking(scores.detach(), bags, step)
    left = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if masked is not None:
        left = left.masked_fill(masked, _MASKED_SCORE)
    weights = segment_softmax(left, bags.cu_seqlens)
    return Pooled(
        vectors=segment_sum(weights, values, bags.cu_seqlens),
        scores=scores,
        left=left,
        masked=masked,
        cu_seqlens=bags.cu_seqlens,
        gram=segment_sum(weights, weights, bags.cu_seqlens) if gram else None,
    )
