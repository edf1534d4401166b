"""Maxima over the rows of each bag."""
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
