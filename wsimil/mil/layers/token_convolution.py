"""A convolution along tokens with a kernel of its own for each head."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def convolved(x: Float[Tensor, "S heads n"], kernel: Float[Tensor, "heads 1 K"]) -> Float[Tensor, "S heads n"]:
    """Each of S sequences with zeros about it, for an odd K; in the type of `x`.

    Float16 goes through float32 on a CPU: on one that computes in half precision itself torch 2.15 does not return.
    """
    narrow = x.dtype == torch.float16 and x.device.type == "cpu"
    rows, taps = (x.float(), kernel.float()) if narrow else (x, kernel)
    return F.conv1d(rows, taps, padding=kernel.shape[2] // 2, groups=len(kernel)).to(x.dtype)
