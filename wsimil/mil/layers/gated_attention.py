"""The score of an instance by a small network, plain or gated.

Ilse, Tomczak & Welling 2018, ICML, arXiv:1802.04712; https://github.com/AMLab-Amsterdam/AttentionDeepMIL.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from wsimil.mil.batch import StepContext
from wsimil.mil.layers.dropout import dropout
from wsimil.ops.packed_linear import packed_linear
from wsimil.ops.varlen import CuSeqlens

ScoreActivation: TypeAlias = Literal["tanh", "relu", "gelu"]

_ACTIVATIONS = {"tanh": torch.tanh_, "relu": F.relu_, "gelu": F.gelu}


class GatedAttention(nn.Module):
    """`a = score(activation(value(h)) * sigmoid(gate(h)))`, or without the second factor where it is not gated.

    Heads share value and gate. State: `value.*` (V of the paper), `gate.*` (U), `score.*` (w).
    """

    def __init__(
        self,
        in_dim: int,
        attention_dim: int,
        *,
        gated: bool,
        activation: ScoreActivation,
        bias: bool,
        drop: float,
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.value = nn.Linear(in_dim, attention_dim, bias=bias)
        self.gate = nn.Linear(in_dim, attention_dim, bias=bias) if gated else None
        self.score = nn.Linear(attention_dim, heads, bias=bias)
        self.activation = activation
        self.drop = drop

    def forward(
        self, h: Float[Tensor, "T L"], cu_seqlens: CuSeqlens, step: StepContext | None
    ) -> Float[Tensor, "T heads"]:
        """Raw scores of embedded instances, [T, heads]; dropout falls on each factor."""
        hidden = _ACTIVATIONS[self.activation](packed_linear(h, self.value.weight, self.value.bias, cu_seqlens))
        hidden = dropout(hidden, self.drop, step)
        if self.gate is not None:
            gate = torch.sigmoid_(packed_linear(h, self.gate.weight, self.gate.bias, cu_seqlens))
            hidden = hidden * dropout(gate, self.drop, step)
        return packed_linear(hidden, self.score.weight, self.score.bias, cu_seqlens)
