"""A linear layer on packed bags whose result for a bag does not depend, on CPU, on its neighbors."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.ops.varlen import CuSeqlens, join_bags, split_bags

if TYPE_CHECKING:
    from jaxtyping import Float


def packed_linear(
    x: Float[Tensor, "T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    cu_seqlens: CuSeqlens,
) -> Float[Tensor, "T O"]:
    """`x @ weight.T + bias`.

    CPU libraries choose their kernel, and with it the order of sums, by the number of rows: there each bag is multiplied by
    itself, and gets the same bits alone and in a pack. On other devices it is one product, and rows agree to rounding.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    return join_bags([F.linear(part, weight, bias) for part in split_bags(x, cu_seqlens)])


def row_linear(
    x: Float[Tensor, "B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "B O"]:
    """`packed_linear` where each row is a bag of its own, such as the classifier on embeddings."""
    return packed_linear(x, weight, bias, torch.arange(len(x) + 1, dtype=torch.int32, device=x.device))
