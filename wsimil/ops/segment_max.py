"""Maxima over the rows of each bag, and the share of each row in them."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsimil.ops.varlen import CuSeqlens, split_bags

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Maxima:
    """The largest value of each bag and column, and the row of the pack that holds it, on CPU the first that does."""

    values: Float[Tensor, "B L"]
    rows: Int64[Tensor, "B L"]


def segment_max(values: Float[Tensor, "T L"], cu_seqlens: CuSeqlens) -> Maxima:
    """`values[bag].max(0)` for every bag; the gradient goes to `rows` alone."""
    parts = [part.max(dim=0) for part in split_bags(values, cu_seqlens)]
    rows = torch.stack([part.indices for part in parts]) + cu_seqlens[:-1, None]
    return Maxima(values=torch.stack([part.values for part in parts]), rows=rows)


def shares_of_max(values: Float[Tensor, "T L"], cu_seqlens: CuSeqlens) -> Float[Tensor, "T L"]:
    """The Shapley value of each row in `values[bag].max(0)`, where a bag of no rows has a maximum of 0.

    What a row adds to the maximum of those before it, the mean over all orders of a bag's rows: what a value adds to the next
    smaller one is shared by all rows that reach it. Shares of a bag add up to its maximum, equal rows have equal ones.
    Littlechild & Owen 1973, Management Science 20(3).
    """
    parts = []
    wide = torch.promote_types(values.dtype, torch.float32)  # half counts no more than 2,048 rows
    for part in split_bags(values, cu_seqlens):
        ordered = part.t().to(wide).contiguous().sort(dim=1)  # columns that lie in one piece are sorted twice as fast
        zero = torch.zeros_like(ordered.values[:, :1])
        reached_by = torch.arange(len(part), 0, -1, dtype=wide, device=part.device)
        shares = (ordered.values.diff(dim=1, prepend=zero) / reached_by).cumsum(dim=1)
        parts.append(torch.empty_like(shares).scatter_(1, ordered.indices, shares).t())
    return torch.cat(parts).to(values.dtype)
