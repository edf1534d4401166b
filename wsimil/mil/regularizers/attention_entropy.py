"""Attention entropy maximization: attention that spreads over a bag overfits less.

AEM, Zhang et al. 2024, arXiv:2406.15303; https://github.com/dazhangyu123/AEM.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from wsimil.mil.batch import BagBatch, BagOutput
from wsimil.ops.segment_softmax import segment_softmax


def attention_entropy(output: BagOutput, bags: BagBatch) -> Float[Tensor, ""] | None:
    """Negative entropy of attention, mean over bags and heads, nats; None for a method without attention.

        a = softmax(attention_logits[bag], 0);  loss = (a * a.log()).sum(0).mean()

    In [-log n, 0]; adding it with a positive weight spreads attention.
    """
    if output.attention_logits is None:
        return None
    attention = segment_softmax(output.attention_logits, bags.cu_seqlens)
    entropy: Tensor = torch.special.entr(attention).sum() / (len(bags) * attention.shape[1])
    return -entropy
