"""A linear layer, ReLU and dropout on packed bags as one step, which holds nothing for its gradient but what it gives.

Where the result is 0 no gradient passes, be it by ReLU or by dropout; so neither what went into them nor a mask is kept, and the
gradient of the weights is summed chunk by chunk.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.ops.packed_linear import packed_linear
from wsimil.ops.varlen import CuSeqlens, split_bags

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_CHUNK = 2048
"""Instances at a time, anew with each bag: a bag adds the same sums alone and in a pack."""


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

    Rows of a bag do not depend, on CPU, on its neighbors, as in `packed_linear`.
    """
    found: Tensor = _ReluLinear.apply(x, weight, bias, cu_seqlens, keep, 1 / (1 - drop))
    return found


class _ReluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cu_seqlens: Tensor, keep: Tensor | None, scale: float
    ) -> Tensor:
        h = F.relu_(packed_linear(x, weight, bias, cu_seqlens))
        if keep is not None:
            h.mul_(keep).mul_(scale)
        ctx.save_for_backward(x, weight, cu_seqlens, h)
        ctx.scale = 1.0 if keep is None else scale
        ctx.bias_type = None if bias is None else bias.dtype
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cu_seqlens, h = ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, torch.float32)
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        of_weight = torch.zeros_like(weight, dtype=wide)
        of_bias = weight.new_zeros(len(weight), dtype=wide)
        of_x = torch.empty_like(x) if need_x else None
        buffer = torch.empty_like(h[:_CHUNK])
        begin = 0
        for part in split_bags(x, cu_seqlens):
            for rows in torch.split(part, _CHUNK):
                here = slice(begin, begin + len(rows))
                inner = buffer[: len(rows)]
                torch.ops.aten.threshold_backward.grad_input(gradient[here], h[here], 0, grad_input=inner)
                if need_weight and inner.dtype == wide == rows.dtype:
                    of_weight.addmm_(inner.t(), rows)
                elif need_weight:
                    of_weight += inner.t() @ rows.to(inner.dtype)
                if need_bias:
                    of_bias += inner.sum(dim=0, dtype=wide)
                if of_x is not None:
                    of_x[here] = (inner @ weight.to(inner.dtype)).mul_(ctx.scale)
                begin += len(rows)
        return (
            of_x,
            of_weight.mul_(ctx.scale).to(weight.dtype) if need_weight else None,
            of_bias.mul_(ctx.scale).to(ctx.bias_type) if need_bias else None,
            None,
            None,
            None,
        )
