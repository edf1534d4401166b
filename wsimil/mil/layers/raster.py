"""The order of instances in which methods that know an order see them."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def raster_order(xy0: Int64[Tensor, "N 2"]) -> Int64[Tensor, " N"] | None:
    """Rows of one bag by (y, x) of their corners, in level-0 px; equal places keep their order. None if they lie so already."""
    x, y = xy0[:, 0], xy0[:, 1]
    later = (y[1:] > y[:-1]) | ((y[1:] == y[:-1]) & (x[1:] >= x[:-1]))
    if bool(later.all()):
        return None
    by_x = torch.argsort(x, stable=True)
    return by_x[torch.argsort(y[by_x], stable=True)]
