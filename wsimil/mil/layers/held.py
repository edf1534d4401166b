"""Layers with what is not linear in them held as it is at another input: see `MILModel.linearized`."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def held_norm(
    norm: nn.LayerNorm, x: Float[Tensor, "*rows L"], *, at: Float[Tensor, "*rows L"]
) -> Float[Tensor, "*rows L"]:
    """`(x - x.mean(-1)) / std(at) * weight + bias`; at `x = at` it is `norm(x)`."""
    with torch.no_grad():
        factor = torch.rsqrt(at.var(dim=-1, unbiased=False, keepdim=True) + norm.eps)
    return (x - x.mean(dim=-1, keepdim=True)) * factor * norm.weight + norm.bias
