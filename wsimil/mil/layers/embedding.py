"""The layer that brings features to the width that a method works in."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from wsimil.mil.batch import BagBatch, StepContext
from wsimil.mil.layers.dropout import dropout
from wsimil.ops.packed_linear import packed_linear
from wsimil.ops.relu_linear import relu_linear

Activation: TypeAlias = Literal["relu", "gelu"]


class InstanceEmbedding(nn.Module):
    """`h = dropout(activation(linear(x)))`; without `hidden_dim` there is no layer and h is x with dropout. State: `linear.*`."""

    def __init__(self, in_dim: int, hidden_dim: int | None, *, bias: bool, activation: Activation, drop: float) -> None:
        super().__init__()
        self.linear = None if hidden_dim is None else nn.Linear(in_dim, hidden_dim, bias=bias)
        self.out_dim = in_dim if hidden_dim is None else hidden_dim
        self.activation = activation
        self.drop = drop

    def forward(self, x: Float[Tensor, "T D"], bags: BagBatch, step: StepContext | None) -> Float[Tensor, "T L"]:
        """The embedded instances of `bags`, whose standardized features are `x`."""
        if self.linear is not None and self.activation == "relu" and step is not None and x.device.type == "cpu":
            keep = None
            if self.drop:
                keep = step.keep_mask((len(x), self.out_dim), drop=self.drop, device=x.device)
            return relu_linear(x, self.linear.weight, self.linear.bias, bags.cu_seqlens, keep=keep, drop=self.drop)
        if self.linear is not None:
            x = packed_linear(x, self.linear.weight, self.linear.bias, bags.cu_seqlens)
            x = F.relu_(x) if self.activation == "relu" else F.gelu(x)
        return dropout(x, self.drop, step)
