"""One step of linear layer, ReLU and dropout against torch's three, and what it holds."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from wsimil.ops.relu_linear import relu_linear
from wsimil.ops.varlen import cu_seqlens_of

LENGTHS = [3, 2100, 17]


def made(
    dtype: torch.dtype = torch.float64, *, bias: bool = True, dim: int = 13
) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(sum(LENGTHS), dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, dim, generator=generator, dtype=torch.float64)
    parts = [x, weight] + ([torch.randn(6, generator=generator, dtype=torch.float64)] if bias else [])
    keep = torch.rand(len(x), 6, generator=generator) > 0.25
    return [part.to(dtype).requires_grad_() for part in parts], keep


def gradients(h: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return list(torch.autograd.grad((h.double() * weights).sum(), leaves))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("drops", [False, True])
def test_it_is_torchs_three_operations_and_so_are_its_gradients(drops: bool, bias: bool) -> None:
    leaves, keep = made(bias=bias)
    ends = cu_seqlens_of(LENGTHS)
    offset = leaves[2] if bias else None
    wanted = F.relu(F.linear(leaves[0], leaves[1], offset)) * (keep.double() / 0.75 if drops else 1)
    got = relu_linear(leaves[0], leaves[1], offset, ends, keep=keep if drops else None, drop=0.25 if drops else 0.0)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_bag_adds_the_same_bits_to_gradients_alone_and_in_a_pack() -> None:
    leaves, keep = made(torch.float32)
    x, weight, bias = leaves
    begin = LENGTHS[0]
    chosen = slice(begin, begin + LENGTHS[1])
    h = relu_linear(x, weight, bias, cu_seqlens_of(LENGTHS), keep=keep, drop=0.25)
    cotangent = torch.zeros_like(h)
    cotangent[chosen] = torch.randn(LENGTHS[1], 6, generator=torch.Generator().manual_seed(5))
    packed = torch.autograd.grad(h, leaves, cotangent)
    alone = x.detach()[chosen].clone().requires_grad_()
    one = relu_linear(alone, weight, bias, cu_seqlens_of(LENGTHS[1:2]), keep=keep[chosen], drop=0.25)
    assert torch.equal(one, h[chosen])
    single = torch.autograd.grad(one, [alone, weight, bias], cotangent[chosen])
    assert torch.equal(packed[0][chosen], single[0])
    assert torch.equal(packed[1], single[1])
    assert torch.equal(packed[2], single[2])


def test_under_autocast_products_are_of_bfloat16_and_gradients_of_the_type_of_the_weights() -> None:
    leaves, keep = made(torch.float32)
    ends = cu_seqlens_of(LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = relu_linear(*leaves, ends, keep=keep, drop=0.25)
        wanted = F.relu(F.linear(*leaves)) * (keep / 0.75)
    assert got.dtype == torch.bfloat16
    ours, theirs = gradients(got, leaves), gradients(wanted, leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_what_does_not_fit_is_refused_and_autocast_leaves_float64_alone() -> None:
    (x, weight, bias), keep = made(torch.float32)
    ends = cu_seqlens_of(LENGTHS)
    for other in (x.double(), x.bfloat16(), x.int()):
        with pytest.raises(ValueError, match=f"got torch.float32 beside x of {other.dtype}"):
            relu_linear(other, weight, bias, ends)
    for wrong in (keep[:1], keep[:, :1], torch.cat([keep, keep])):
        with pytest.raises(ValueError, match=r"keep: got shape .*, wanted \[2120, 6\]"):
            relu_linear(x, weight, bias, ends, keep=wrong, drop=0.25)
    leaves, _ = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relu_linear(*leaves, ends).dtype == F.linear(*leaves).dtype == torch.float64
        with pytest.raises(ValueError, match="beside x of torch"):
            relu_linear(x.double(), weight, bias, ends)
        assert torch.equal(relu_linear(x.bfloat16(), weight, bias, ends), relu_linear(x, weight, bias, ends))


def test_it_holds_its_input_its_weight_and_its_result_alone() -> None:
    (x, weight, bias), keep = made()
    held: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
        h = relu_linear(x, weight, bias, cu_seqlens_of(LENGTHS), keep=keep, drop=0.25)
    assert sum(held) == x.numel() + weight.numel() + len(LENGTHS) + 1 + h.numel()
