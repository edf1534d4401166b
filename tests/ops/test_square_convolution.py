"""The convolution over a square of tokens against torch's own over an image."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from wsimil.ops.square_convolution import square_convolution


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("side", "dim", "size"), [(1, 3, 7), (7, 5, 7), (10, 17, 3), (40, 64, 7)])
def test_it_is_torchs_convolution_and_so_are_its_gradients(side: int, dim: int, size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(side)
    shapes = [(side * side, dim), (dim, 1, size, size), (dim,)]
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    image = leaves[0].t().reshape(1, dim, side, side)
    wanted = (image + F.conv2d(image, leaves[1], leaves[2], padding=size // 2, groups=dim))[0].flatten(1).t()
    own = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = square_convolution(*own, side)
    assert got.dtype == dtype
    cotangent = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    found = [got, *torch.autograd.grad(got, own, cotangent.to(dtype))]
    for one, other in zip(found, [wanted, *torch.autograd.grad(wanted, leaves, cotangent)], strict=True):
        assert (one.double() - other).norm() <= (1e-12 if dtype == torch.float64 else 1e-5) * other.norm()


def test_where_no_kernel_is_asked_for_its_gradient_is_not_computed() -> None:
    generator = torch.Generator().manual_seed(0)
    x, kernel, bias = (torch.randn(shape, generator=generator) for shape in [(49, 5), (5, 1, 7, 7), (5,)])
    found = []
    for learned in (True, False):
        own = [x.clone().requires_grad_(), kernel.clone().requires_grad_(learned), bias.clone().requires_grad_(learned)]
        y = square_convolution(*own, 7)
        # torch 2.11 warns where it is not told whether to keep events.
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
            y.sum().backward()
        names = {event.key for event in seen.key_averages()}
        assert ("aten::convolution_backward" in names) is learned
        assert [leaf.grad is None for leaf in own] == [False, not learned, not learned]
        found.append(own[0].grad)
    assert torch.equal(*found)
