"""A linear layer, ReLU and dropout on packed bags as one step, which holds nothing for its gradient but what it gives.

Where the result is 0 no gradient passes, be it by ReLU or by dropout; so neither what went into them nor a mask is kept, and the
gradient of the weights is summed chunk by chunk.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsimil.ops.varlen import CuSeqlens, split_bags

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_CHUNK = 2048
"""Instances at a time, anew with each bag: a bag adds the same sums alone and in a pack."""
_CACHE_LINE = 64


def relu_linear(
    x: Float[Tensor, "T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    cu_seqlens: CuSeqlens,
    *,
    keep: Bool[Tensor, "T O"] | None = None,
    drop: float = 0.0,
) -> Float[Tensor, "T O"]:
    """`relu(x @ weight.T + bias) * keep / (1 - drop)`; without `keep` nothing is dropped.

    Rows of a bag do not depend, on CPU, on its neighbors, as in `packed_linear`. Under autocast x and the weights are taken in
    its type, but float64, as torch has it. Raises ValueError for other types that differ, and for `keep` of another shape.
    """
    if x.dtype != weight.dtype and (torch.float64 in (x.dtype, weight.dtype) or not _narrows(x)):
        raise ValueError(f"weight: got {weight.dtype} beside x of {x.dtype}; convert one of them")
    if keep is not None and keep.shape != (len(x), len(weight)):
        raise ValueError(f"keep: got shape {list(keep.shape)}, wanted [{len(x)}, {len(weight)}]")
    found: Tensor = _ReluLinear.apply(x, weight, bias, cu_seqlens, keep, 1 / (1 - drop))
    return found


class _ReluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, keep: Tensor | None, scale: float
    ) -> Tensor:
        narrow = torch.get_autocast_dtype(x.device.type) if _narrows(x) else x.dtype
        scale, input_type, x = 1.0 if keep is None else scale, x.dtype, x.to(narrow)
        outer = weight.to(narrow)
        offset = (weight.new_zeros(len(weight)) if bias is None else bias).to(narrow)
        h = x.new_empty(len(x), len(weight), dtype=narrow)
        with torch.autocast(x.device.type, enabled=False):
            for here, rows in _chunks(x, cu_seqlens):
                place = h[here]
                _product(offset, rows, outer, scale=scale, out=place)
                place.relu_()
                if keep is not None:
                    # While the chunk is in a cache; torch turns bytes into floats in half the time that it takes for bools.
                    place.mul_(keep[here].view(torch.int8))
        ctx.save_for_backward(x, weight, cu_seqlens, h)
        ctx.scale, ctx.input_type = scale, input_type
        ctx.bias_type = None if bias is None else bias.dtype
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cu_seqlens, h = ctx.saved_tensors
        # Of a loss that looks at some instances alone, the gradient may have these alone.
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        wide = torch.promote_types(gradient.dtype, torch.float32)
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        of_weight = torch.zeros_like(weight, dtype=wide)
        of_bias = weight.new_zeros(len(weight), dtype=wide)
        of_x = torch.empty_like(x, dtype=ctx.input_type) if need_x else None
        buffer = torch.empty_like(h[:_CHUNK])
        for here, rows in _chunks(x, cu_seqlens):
            inner = buffer[: len(rows)]
            torch.ops.aten.threshold_backward.grad_input(gradient[here], h[here], 0, grad_input=inner)
            if need_weight and inner.dtype == wide == rows.dtype:
                of_weight.addmm_(inner.t(), rows)
            elif need_weight:
                of_weight += inner.t() @ rows
            if need_bias:
                of_bias += inner.sum(dim=0, dtype=wide)
            if of_x is not None:
                of_x[here] = (inner @ weight.to(inner.dtype)).mul_(ctx.scale)
        return (
            of_x,
            of_weight.mul_(ctx.scale).to(weight.dtype) if need_weight else None,
            of_bias.mul_(ctx.scale).to(ctx.bias_type) if need_bias else None,
            None,
            None,
            None,
        )


def _narrows(x: Tensor) -> bool:
    """Whether autocast says of which type products are."""
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def _chunks(x: Tensor, cu_seqlens: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Where some rows of one bag lie, and these rows."""
    begin = 0
    for part in split_bags(x, cu_seqlens):
        for rows in torch.split(part, _CHUNK):
            yield slice(begin, begin + len(rows)), rows
            begin += len(rows)


def _product(offset: Tensor, rows: Tensor, outer: Tensor, *, scale: float, out: Tensor) -> None:
    """`scale * (rows @ outer.T + offset)` in `out`, which may begin between two cache lines; the bits do not depend on that."""
    if out.data_ptr() % _CACHE_LINE == 0:
        torch.addmm(offset, rows, outer.t(), beta=scale, alpha=scale, out=out)
    else:
        out.copy_(torch.addmm(offset, rows, outer.t(), beta=scale, alpha=scale))
