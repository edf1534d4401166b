"""The layer that learns on a CPU against torch's own gradients of the formula, and what it holds."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from wsimil.ops.landmark_attention import LandmarkWeights
from wsimil.ops.landmark_gradient import landmark_layer

DIM, HEADS, SIZE, MARKS, TAPS = 24, 3, 8, 5, 7
NAMES = ("norm", "norm_bias", "qkv", "out", "out_bias", "conv")


def made(
    count: int, dtype: torch.dtype = torch.float64, taps: int = TAPS
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(count)
    shapes = [(count, DIM), (DIM,), (DIM,), (3 * HEADS * SIZE, DIM), (DIM, HEADS * SIZE), (DIM,), (HEADS, 1, taps)]
    tokens, *parts = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    parts[2] *= DIM**-0.5
    parts[3] *= DIM**-0.5
    return tokens.to(dtype).requires_grad_(), {
        name: part.to(dtype).requires_grad_() for name, part in zip(NAMES, parts, strict=True)
    }


def weights_of(parts: dict[str, torch.Tensor]) -> LandmarkWeights:
    return LandmarkWeights(**parts, eps=1e-5, heads=HEADS, landmarks=MARKS, iterations=6)


def by_formula(tokens: torch.Tensor, parts: dict[str, torch.Tensor], begin: int, keep: torch.Tensor) -> torch.Tensor:
    """Every softmax held, products from the left, for all tokens."""
    x = F.layer_norm(tokens, tokens.shape[1:], parts["norm"], parts["norm_bias"])
    padded = F.pad(x, (0, 0, -len(x) % MARKS, 0))
    q, k, v = ((padded @ part.t()).view(len(padded), HEADS, SIZE).transpose(0, 1) for part in parts["qkv"].chunk(3))
    q = q / SIZE**0.5
    ql, kl = (part.reshape(HEADS, MARKS, -1, SIZE).mean(dim=2) for part in (q, k))
    a1, a2, a3 = ((a @ b.transpose(1, 2)).softmax(dim=2) for a, b in ((q, kl), (ql, kl), (ql, k)))
    z = a2.transpose(1, 2) / (a2.sum(dim=2).max() * a2.sum(dim=1).max())
    one = torch.eye(MARKS, dtype=x.dtype)
    for _ in range(6):
        z = z @ (13 * one - a2 @ z @ (15 * one - a2 @ z @ (7 * one - a2 @ z))) / 4
    conv = F.conv1d(v.permute(2, 0, 1), parts["conv"], padding=parts["conv"].shape[2] // 2, groups=HEADS)
    mixed = a1 @ z @ a3 @ v + conv.permute(1, 2, 0)
    out = mixed.transpose(0, 1).flatten(1) @ parts["out"].t() + parts["out_bias"]
    return tokens + (out * keep / 0.7)[begin : begin + len(tokens)]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5, 37, 200])
def test_it_is_the_formula_and_so_are_its_gradients(count: int, alone: bool, shifted: bool) -> None:
    tokens, parts = made(count)
    padding = -count % MARKS
    keep = torch.rand(count + padding, DIM, generator=torch.Generator().manual_seed(1)) < 0.7
    asked = 1 if alone else count
    got = landmark_layer(tokens, weights_of(parts), count=asked, shifted=shifted, keep=keep, drop=0.3)
    wanted = by_formula(tokens, parts, 0 if shifted else padding, keep)[:asked]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    leaves = [tokens, *parts.values()]
    cotangent = torch.randn(got.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(found, leaves, cotangent) for found in (got, wanted))
    for name, one, other in zip(("tokens", *NAMES), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_a_graph_that_is_retained_gives_the_same_gradients_again() -> None:
    tokens, parts = made(37)
    got = landmark_layer(tokens, weights_of(parts), count=37)
    leaves = [tokens, *parts.values()]
    once, again = (torch.autograd.grad(got.sum(), leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("count", [1, 37])
@pytest.mark.parametrize("alone", [False, True])
def test_where_no_weight_is_asked_for_tokens_get_the_same_gradient_and_no_product_is_for_weights(
    count: int, alone: bool
) -> None:
    tokens, parts = made(count)
    work, found = [], []
    for learned in (True, False):
        given = {name: part.detach().requires_grad_(learned) for name, part in parts.items()}
        got = landmark_layer(tokens, weights_of(given), count=1 if alone else count)
        with FlopCounterMode(display=False) as counted:
            got.sum().backward()
        work.append(counted.get_total_flops())
        found.append(tokens.grad)
        tokens.grad = None
    assert torch.equal(*found)
    asked = 1 if alone else count
    of_weights = 2 * DIM * HEADS * SIZE * (asked + 2 * count + asked)  # of queries, keys, values and what projects out
    assert work[0] - work[1] >= of_weights


def test_without_dropout_nothing_is_scaled() -> None:
    tokens, parts = made(37)
    got = landmark_layer(tokens, weights_of(parts), count=37, drop=0.3)
    everything = torch.full((40, DIM), 0.7, dtype=torch.float64)
    torch.testing.assert_close(got, by_formula(tokens, parts, 3, everything), rtol=1e-9, atol=1e-9)


def test_under_autocast_products_are_of_bfloat16_and_gradients_of_the_type_of_the_weights() -> None:
    tokens, parts = made(200, torch.float32)
    exact = by_formula(tokens, parts, 0, torch.full((200, DIM), 0.7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = landmark_layer(tokens, weights_of(parts), count=200)
    assert got.dtype == torch.float32
    assert 0 < (got - exact).norm() < 0.02 * exact.norm()
    leaves = [tokens, *parts.values()]
    cotangent = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = (torch.autograd.grad(found, leaves, cotangent) for found in (got, exact))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.05 * other.norm()


def test_of_one_token_it_holds_neither_queries_nor_outputs() -> None:
    count = 2000
    tokens, parts = made(count)
    held: dict[int, int] = {}

    def hold(x: torch.Tensor) -> torch.Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
        landmark_layer(tokens, weights_of(parts), count=1)
    rows = sum(held.values()) / (count * DIM * 8)
    assert 3 <= rows < 3.5  # tokens, keys and values


def test_a_convolution_without_a_middle_is_refused() -> None:
    tokens, parts = made(10, taps=6)
    with pytest.raises(ValueError, match="conv: got a kernel of 6, wanted an odd number"):
        landmark_layer(tokens, weights_of(parts), count=10)


@pytest.mark.timeout(60, method="thread")  # within a kernel no signal is heard
@pytest.mark.parametrize("count", [1, 40])
def test_narrow_columns_under_autocast_come_to_an_end(count: int) -> None:
    tokens, parts = made(40, torch.float32, taps=33)
    narrow = {**parts, "qkv": parts["qkv"][:48], "out": parts["out"][:, :16], "conv": parts["conv"][:2]}
    weights = LandmarkWeights(**narrow, eps=1e-5, heads=2, landmarks=MARKS, iterations=6)
    exact = landmark_layer(tokens, weights, count=count)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = landmark_layer(tokens, weights, count=count)
        ours = torch.autograd.grad(got.sum(), [tokens, *parts.values()])
    theirs = torch.autograd.grad(exact.sum(), [tokens, *parts.values()])
    assert (got - exact).norm() < 0.02 * exact.norm()
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() < 0.1 * other.norm()
