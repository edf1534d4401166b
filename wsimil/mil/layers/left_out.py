"""What the logits of a bag lose with one of its instances, where attention over the others follows from what it was.

With weights a and pooled z = sum a_j v_j a bag without instance i pools `(z - a_i v_i) / (1 - a_i)`, which is z less
`a_i / (1 - a_i) * (v_i - z)`. Weights above one half lose digits in that, and are left to whoever can compute anew: one instance
of a bag and head at most.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from wsimil.mil.batch import BagBatch, LeftOut
from wsimil.mil.layers.pooled import Pooled
from wsimil.ops.segment_softmax import segment_softmax
from wsimil.ops.varlen import split_bags

_MOST_WEIGHT = 0.5
_CHUNK_NUMBERS = 1 << 23
"""At most so many numbers of pooled vectors at a time."""


def left_out_of_sums(scores: Float[Tensor, "T K"], values: Float[Tensor, "T K C"], bags: BagBatch) -> LeftOut:
    """For logits that are softmax-weighed sums: `logits = bias + (softmax(scores)[..., None] * values).sum over rows and K`."""
    weights = segment_softmax(scores.double(), bags.cu_seqlens)
    found = []
    for a, v in zip(split_bags(weights, bags.cu_seqlens), split_bags(values, bags.cu_seqlens), strict=True):
        v = v.double()
        pooled = torch.einsum("tk,tkc->kc", a, v)
        found.append(torch.einsum("tk,tkc->tc", _odds(a), v - pooled))
    return LeftOut(values=torch.cat(found).to(values.dtype), known=(weights <= _MOST_WEIGHT).all(dim=1))


def left_out_of_vectors(
    pooled: Pooled,
    h: Float[Tensor, "T L"],
    bags: BagBatch,
    logits: Float[Tensor, "B C"],
    answer: Callable[[Float[Tensor, "n H L"]], Float[Tensor, "n C"]],
) -> LeftOut:
    """For logits that are any function `answer` of the pooled vectors, which are asked of it some at a time."""
    weights = segment_softmax(pooled.left.double(), bags.cu_seqlens)
    odds, whose = _odds(weights).to(h.dtype)[..., None], bags.bag_ids
    found = []
    for rows in torch.split(torch.arange(len(h), device=h.device), max(_CHUNK_NUMBERS // pooled.vectors[0].numel(), 1)):
        vectors = pooled.vectors[whose[rows]]
        without = vectors - odds[rows] * (h[rows][:, None] - vectors)
        found.append(logits[whose[rows]] - answer(without))
    return LeftOut(values=torch.cat(found), known=(weights <= _MOST_WEIGHT).all(dim=1))


def _odds(weights: Float[Tensor, "T K"]) -> Float[Tensor, "T K"]:
    return weights / (1 - weights.clamp(max=_MOST_WEIGHT))
