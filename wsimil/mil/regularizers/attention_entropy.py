"""Attention entropy maximization: attention that spreads over a bag overfits less.

AEM, Zhang et al. 2024, arXiv:2406.15303; https://github.com/dazhangyu123/AEM.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from wsimil.mil.batch import BagBatch, BagOutput
from wsimil.ops.varlen import split_bags


def attention_entropy(output: BagOutput, bags: BagBatch, *, top_k: int | None = None) -> Float[Tensor, ""] | None:
    """Negative entropy of attention, mean over bags and heads, nats; None where attention is no softmax over the bag.

        a = softmax(attention_logits[bag], 0);  loss = (a * a.log()).sum(0).mean()

    In [-log n, 0]; adding it with a positive weight spreads attention. With `top_k`, `a` is the min(k, n) largest weights over
    their sum; a weight that underflows to 0 counts 0, where the official code has NaN. The attention is that of the scores
    before any masking: what a step hides is spread too. As in the official code it is not divided by log n.
    """
    if output.attention_logits is None or output.attention is not None:
        return None
    if top_k is None and output.attention_entropy is not None:
        return -output.attention_entropy.mean()
    scores = output.attention_logits
    total = scores.new_zeros((), dtype=torch.promote_types(scores.dtype, torch.float32))
    for part in split_bags(scores.to(total.dtype), bags.cu_seqlens):
        # Softmax of the largest scores is that of all, brought to a sum of 1. By logarithms, as p log p has no gradient at 0.
        most = part if top_k is None else part.topk(min(top_k, len(part)), dim=0).values
        log_weights = most.t().log_softmax(dim=-1)
        total = total + (log_weights.exp() * log_weights).sum()
    return total / (len(bags) * scores.shape[1])
