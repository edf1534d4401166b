"""A depthwise convolution over tokens that lie in a square, added to them, on a CPU: tokens stay as they lie in memory."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float


def square_convolution(
    x: Float[Tensor, "S L"], kernel: Float[Tensor, "L 1 K K"], bias: Float[Tensor, " L"], side: int
) -> Float[Tensor, "S L"]:
    """`x + conv(x)` for `side` * `side` tokens, row by row, each column with a kernel of its own.

    In the type of `x` also under autocast, as a CPU takes longer for the kernels' gradient in bfloat16. Differentiable once.
    """
    with torch.autocast(x.device.type, enabled=False):
        found: Tensor = _Convolved.apply(x, kernel.to(x.dtype), bias.to(x.dtype), side)
    return found


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor, side: int) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, kernel)
        ctx.side = side
        return _convolution(x, kernel, bias, side)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        side, padding = ctx.side, kernel.shape[2] // 2
        gradient = gradient.contiguous()
        of_kernel = None
        if ctx.needs_input_grad[1]:
            of_kernel = torch.ops.aten.convolution_backward(
                _image(gradient, side), _image(x, side), kernel, None, [1, 1], [padding, padding], [1, 1], False,
                [0, 0], len(kernel), [False, True, False],
            )[1]  # fmt: skip
        of_x = _convolution(gradient, kernel.flip(2, 3), None, side)
        return of_x, of_kernel, gradient.sum(dim=0) if ctx.needs_input_grad[2] else None, None


def _image(x: Float[Tensor, "S L"], side: int) -> Float[Tensor, "1 L side side"]:
    return x.view(1, side, side, -1).permute(0, 3, 1, 2)


def _convolution(x: Tensor, kernel: Tensor, bias: Tensor | None, side: int) -> Tensor:
    found = F.conv2d(_image(x, side), kernel, bias, padding=kernel.shape[2] // 2, groups=len(kernel))
    return found.permute(0, 2, 3, 1).reshape(x.shape).add_(x)
