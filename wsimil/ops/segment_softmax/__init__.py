"""Softmax over the rows of each bag."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsimil.ops.dispatch import backend_of
from wsimil.ops.varlen import CuSeqlens, join_bags, split_bags

if TYPE_CHECKING:
    from jaxtyping import Float


def segment_softmax(scores: Float[Tensor, "T H"], cu_seqlens: CuSeqlens) -> Float[Tensor, "T H"]:
    """`softmax(scores[bag], 0)` for every bag and column, in float32 or wider whatever the scores are.

    Scores of any finite size are safe; equal scores give exactly equal weights. A bag gets the same bits alone and in a pack.
    On a GPU nothing waits for it.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if backend_of(wide.device, wide.dtype) == "triton":
        # At its first call an operation imports torch's compiler, which takes more than a second.
        run = _softmax if torch.compiler.is_compiling() else _Softmax.apply
        result: Tensor = run(wide.contiguous(), cu_seqlens)
        return result
    # Transposed, the rows that are summed lie side by side in memory, which is the fast path of softmax.
    return join_bags([part.t().softmax(dim=-1).t() for part in split_bags(wide, cu_seqlens)])


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, cu_seqlens: Tensor) -> Tensor:
        # Imported where it runs: without triton everything else works.
        from wsimil.ops.segment_softmax.kernels import forward

        return forward(scores, cu_seqlens)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _backward(gradient, *ctx.saved_tensors), None


def _backward(gradient: Tensor, weights: Tensor, cu_seqlens: Tensor) -> Tensor:
    from wsimil.ops.segment_softmax.kernels import backward

    return backward(gradient.contiguous(), weights, cu_seqlens)


@torch.library.custom_op(
    "wsimil::segment_softmax", mutates_args=(), schema="(Tensor scores, Tensor cu_seqlens) -> Tensor"
)
def _softmax(scores: Tensor, cu_seqlens: Tensor) -> Tensor:
    return _Softmax.forward(scores, cu_seqlens)


@torch.library.custom_op(
    "wsimil::segment_softmax_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor weights, Tensor cu_seqlens) -> Tensor",
)
def _softmax_backward(gradient: Tensor, weights: Tensor, cu_seqlens: Tensor) -> Tensor:
    return _backward(gradient, weights, cu_seqlens)


@_softmax.register_fake
def _(scores: Tensor, _: Tensor) -> Tensor:
    return torch.empty_like(scores)


@_softmax_backward.register_fake
def _(gradient: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    weights, cu_seqlens = ctx.saved_tensors
    return _softmax_backward(gradient, weights, cu_seqlens), None


_softmax.register_autograd(_differentiate, setup_context=_Softmax.setup_context)
