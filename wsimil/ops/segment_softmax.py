"""Softmax over the rows of each bag."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsimil.ops.varlen import CuSeqlens, join_bags, split_bags

if TYPE_CHECKING:
    from jaxtyping import Float


def segment_softmax(scores: Float[Tensor, "T H"], cu_seqlens: CuSeqlens) -> Float[Tensor, "T H"]:
    """`softmax(scores[bag], 0)` for every bag and column, in float32 or wider whatever the scores are.

    Scores of any finite size are safe; equal scores give exactly equal weights.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # Transposed, the rows that are summed lie side by side in memory, which is the fast path of softmax.
    return join_bags([part.t().softmax(dim=-1).t() for part in split_bags(wide, cu_seqlens)])
