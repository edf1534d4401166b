"""Weighted sums over the rows of each bag."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsimil.ops.varlen import CuSeqlens, split_bags

if TYPE_CHECKING:
    from jaxtyping import Float

_ROWS = {"cpu": 256}
_MOST_ROWS = 1 << 16


def segment_sum(
    weights: Float[Tensor, "T H"], values: Float[Tensor, "T L"], cu_seqlens: CuSeqlens
) -> Float[Tensor, "B H L"]:
    """`weights[bag].T @ values[bag]` for every bag, summed in float32 or wider, rounded once to the type of `values`."""
    parts = zip(split_bags(weights, cu_seqlens), split_bags(values, cu_seqlens), strict=True)
    return torch.stack([_sum(weight, value) for weight, value in parts]).to(values.dtype)


def _sum(weights: Tensor, values: Tensor) -> Tensor:
    wide = torch.promote_types(torch.promote_types(weights.dtype, values.dtype), torch.float32)
    # A CPU library adds 100 000 rows one after the other; sums of short blocks keep the rounding error of a short sum, at a
    # third more time. Narrow values are widened a block at a time.
    rows = _ROWS.get(values.device.type, _MOST_ROWS)
    blocks = [
        weight.to(wide).t() @ value.to(wide)
        for weight, value in zip(torch.split(weights, rows), torch.split(values, rows), strict=True)
    ]
    return blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(dim=0)
