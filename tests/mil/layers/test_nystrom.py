"""Nyström attention against its formula, and the square convolution against its three."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wsimil.mil.layers.nystrom import PPEG, NystromAttention
from wsimil.mil.layers.raster import raster_order
from wsimil.ops import landmark_attention


def made(seed=0, **rest):
    torch.manual_seed(seed)
    options = {"heads": 3, "head_dim": 8, "landmarks": 5, "iterations": 6, "kernel": 7, "drop": 0.0}
    return NystromAttention(24, **{**options, **rest}).double()


def by_formula(layer, x):
    """Every softmax held, products from the left, in the words of section 2 of the paper's official layer."""
    count, heads, marks = len(x), layer.heads, layer.landmarks
    padded = torch.cat([x.new_zeros(-count % marks, x.shape[1]), x])
    q, k, v = (part.view(len(padded), heads, -1).transpose(0, 1) for part in layer.to_qkv(padded).chunk(3, dim=1))
    q = q / q.shape[2] ** 0.5
    ql, kl = (part.reshape(heads, marks, -1, part.shape[2]).mean(dim=2) for part in (q, k))
    a1, a2, a3 = ((a @ b.transpose(1, 2)).softmax(dim=2) for a, b in ((q, kl), (ql, kl), (ql, k)))
    z = a2.transpose(1, 2) / (a2.abs().sum(dim=2).max() * a2.abs().sum(dim=1).max())
    one = torch.eye(marks, dtype=x.dtype)
    for _ in range(layer.iterations):
        z = z @ (13 * one - a2 @ z @ (15 * one - a2 @ z @ (7 * one - a2 @ z))) / 4
    whole = a1 @ z @ a3
    conv = F.conv2d(v[None], layer.conv.weight[..., None], padding=(3, 0), groups=heads)[0]
    out = layer.to_out((whole @ v + conv).transpose(0, 1).flatten(1))
    return out, whole, len(padded) - count


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 37, 200])
def test_streamed_attention_is_the_attention_of_the_formula(count, chunk, monkeypatch):
    monkeypatch.setattr(landmark_attention, "_NUMBERS", {"cpu": chunk * 3 * 5})
    layer, shifted = made(), made(shifted=True)
    norm = torch.nn.LayerNorm(24).double()
    torch.nn.init.normal_(norm.bias)
    tokens = torch.randn(count, 24, dtype=torch.float64)
    out, whole, padding = by_formula(layer, norm(tokens))
    keep = torch.rand(count + padding, 24) < 0.7
    for attention, begin in ((layer, padding), (shifted, 0)):
        attention.drop = 0.3
        wanted = out[begin : begin + count]
        torch.testing.assert_close(attention(norm(tokens), None), wanted)
        streamed = attention.streamed(tokens, norm)
        torch.testing.assert_close(streamed.row(0), whole[:, padding, padding:])
        torch.testing.assert_close(attention.add(streamed, None, count=count), tokens + wanted)
        torch.testing.assert_close(attention.add(streamed, None, count=1), (tokens + wanted)[:1])
        dropped = wanted * keep[begin : begin + count] / 0.7
        torch.testing.assert_close(attention.add(streamed, keep, count=count), tokens + dropped)


def test_streams_hold_nothing_of_the_size_of_the_tokens_but_what_comes_out(monkeypatch):
    monkeypatch.setattr(landmark_attention, "_NUMBERS", {"cpu": 1000 * 3 * 5})
    layer, norm = made(), torch.nn.LayerNorm(24).double()
    tokens = torch.randn(20_000, 24, dtype=torch.float64)
    made_bytes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            found = [
                each for each in (out if isinstance(out, tuple | list) else (out,)) if isinstance(each, torch.Tensor)
            ]
            stores = [each.untyped_storage() for each in found]
            made_bytes.extend((store.data_ptr(), store.nbytes()) for store in stores)
            return out

    own = tokens.untyped_storage().data_ptr()
    with torch.no_grad(), Watch():
        streamed = layer.streamed(tokens, norm)
        layer.add(streamed, None, count=1)
    assert max(size for place, size in made_bytes if place != own) < tokens.nbytes / 4
    with torch.no_grad(), Watch():
        whole = layer.add(streamed, None, count=len(tokens))
        streamed.row(0)
    mine = {own, whole.untyped_storage().data_ptr()}
    assert max(size for place, size in made_bytes if place not in mine) < tokens.nbytes / 4


def test_gradients_in_float32_are_those_of_float64_also_where_most_rows_are_padding():
    for count in (1, 2, 37):
        x = torch.randn(count, 64, generator=torch.Generator().manual_seed(count))
        gradients = []
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(0)
            layer = NystromAttention(64, heads=8, head_dim=8, landmarks=256, iterations=6, kernel=33, drop=0.0).to(
                dtype
            )
            layer(x.to(dtype), None).square().sum().backward()
            gradients.append([parameter.grad.double() for parameter in layer.parameters()])
        for got, wanted in zip(*gradients, strict=True):
            assert (got - wanted).norm() <= 1e-5 * wanted.norm()


def test_one_convolution_does_the_work_of_three_and_the_identity():
    torch.manual_seed(0)
    layer, x = PPEG(6).double(), torch.randn(49, 6, dtype=torch.float64)
    image = x.t().reshape(1, 6, 7, 7)
    wanted = image + layer.conv7(image) + layer.conv5(image) + layer.conv3(image)
    torch.testing.assert_close(layer(x, 7), wanted[0].flatten(1).t())


def test_raster_order_is_by_y_then_x_and_keeps_equal_places():
    xy0 = torch.tensor([[5, 1], [0, 1], [9, 0], [0, 1], [0, 0]])
    assert raster_order(xy0).tolist() == [4, 2, 1, 3, 0]
    assert raster_order(xy0[[4, 2, 1, 3, 0]]) is None
    assert raster_order(xy0[:1]) is None
