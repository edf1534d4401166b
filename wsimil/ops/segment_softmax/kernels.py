"""Triton kernels of softmax over bags: one program streams one column of one bag, block by block, in order."""
# ruff: noqa: N803  # constants of compilation are written in capitals, as in all Triton code

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

BLOCK = 4096
"""Rows at a time. Not chosen by the size of a bag: the order of sums hangs on it."""


def forward(scores: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Weights [T, H] of contiguous float32 scores."""
    return _launch(_softmax_kernel, scores, cu_seqlens, scores)


def backward(gradient: Tensor, weights: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Gradient of the scores, from that of the weights."""
    return _launch(_gradient_kernel, weights, cu_seqlens, gradient, weights)


def _launch(kernel: Any, like: Tensor, cu_seqlens: Tensor, *inputs: Tensor) -> Tensor:
    result = torch.empty_like(like)
    bags, heads = len(cu_seqlens) - 1, like.shape[1]
    with torch.cuda.device_of(like):
        kernel[(bags, heads)](*inputs, result, cu_seqlens, heads, BLOCK=BLOCK, num_warps=8)
    return result


@triton.jit(do_not_specialize=["heads"])
def _softmax_kernel(
    scores: tl.tensor, weights: tl.tensor, ends: tl.tensor, heads: tl.tensor, BLOCK: tl.constexpr
) -> None:
    begin, end = tl.load(ends + tl.program_id(0)), tl.load(ends + tl.program_id(0) + 1)
    head = tl.program_id(1)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(begin, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        score = tl.load(scores + row.to(tl.int64) * heads + head, mask=row < end, other=float("-inf"))
        highest = tl.maximum(highest, score)
    most = tl.max(highest, 0)  # passes over NaN, which the sum does not
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        score = tl.load(scores + row.to(tl.int64) * heads + head, mask=row < end, other=float("-inf"))
        total += tl.where(row < end, tl.exp(score - most), 0.0)
    whole = tl.sum(total, 0)
    for first in range(begin, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        place = row.to(tl.int64) * heads + head
        score = tl.load(scores + place, mask=row < end, other=float("-inf"))
        tl.store(weights + place, tl.exp(score - most) / whole, mask=row < end)


@triton.jit(do_not_specialize=["heads"])
def _gradient_kernel(
    gradient: tl.tensor, weights: tl.tensor, result: tl.tensor, ends: tl.tensor, heads: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """a (g - sum a g)."""
    begin, end = tl.load(ends + tl.program_id(0)), tl.load(ends + tl.program_id(0) + 1)
    head = tl.program_id(1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        place = row.to(tl.int64) * heads + head
        total += tl.load(gradient + place, mask=row < end, other=0) * tl.load(weights + place, mask=row < end, other=0)
    mean = tl.sum(total, 0)
    for first in range(begin, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        place = row.to(tl.int64) * heads + head
        weight = tl.load(weights + place, mask=row < end, other=0)
        tl.store(result + place, weight * (tl.load(gradient + place, mask=row < end, other=0) - mean), mask=row < end)
