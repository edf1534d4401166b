"""Weighted sums over the rows of each bag."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsimil.ops.varlen import CuSeqlens, split_bags

if TYPE_CHECKING:
    from jaxtyping import Float

_ROWS = 4096


def segment_sum(
    weights: Float[Tensor, "T H"], values: Float[Tensor, "T L"], cu_seqlens: CuSeqlens
) -> Float[Tensor, "B H L"]:
    """`weights[bag].T @ values[bag]` for every bag, summed in float32 or wider, rounded once to the type of `values`."""
    parts = zip(split_bags(weights, cu_seqlens), split_bags(values, cu_seqlens), strict=True)
    return torch.stack([_sum(weight, value) for weight, value in parts]).to(values.dtype)


def _sum(weights: Tensor, values: Tensor) -> Tensor:
    wide = torch.promote_types(torch.promote_types(weights.dtype, values.dtype), torch.float32)
    # A library may add 100 000 rows one after the other; sums of blocks keep the rounding error of a short sum,
    # and narrow values are widened a block at a time.
    blocks = [
        weight.to(wide).t() @ value.to(wide)
        for weight, value in zip(torch.split(weights, _ROWS), torch.split(values, _ROWS), strict=True)
    ]
    return blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(dim=0)
