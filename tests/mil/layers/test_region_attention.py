"""Regions of a square, and attention in them, beside the plain definition with its table of logits."""

from __future__ import annotations

import pytest
import torch

from wsimil.errors import ConfigError
from wsimil.mil import registry
from wsimil.mil.layers.region_attention import CrossRegionLayer, Regions, SelfAttention


@pytest.mark.parametrize(
    ("count", "side", "width"), [(1, 1, 1), (1, 8, 1), (64, 8, 1), (65, 8, 2), (37, 2, 4), (50, 3, 3)]
)
def test_regions_are_squares_of_the_square_and_come_back_as_they_were(count, side, width):
    regions = Regions(count, side)
    x = torch.arange(1.0, count + 1)[:, None].expand(-1, 3)
    cut = regions.cut(x)
    assert cut.shape == (side * side, width * width, 3)
    assert torch.equal(regions.join(cut), x)
    square = torch.zeros((side * width) ** 2)
    square[:count] = x[:, 0]
    square = square.view(side * width, side * width)
    assert torch.equal(cut[0, :, 0], square[:width, :width].flatten())
    assert torch.equal(cut[-1, :, 0], square[-width:, -width:].flatten())


@pytest.mark.parametrize("kernel", [None, 1, 5, 21])
def test_convolved_queries_give_what_convolved_logits_give(kernel):
    torch.manual_seed(0)
    attention = SelfAttention(12, heads=3, kernel=kernel, drop=0.1).double()
    x = torch.randn(4, 9, 12, dtype=torch.float64)
    q, k, v = attention.qkv(x).view(4, 9, 3, 3, 4).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(2, 3) * 4**-0.5  # [W, heads, query, key]
    if kernel is not None:
        weight, bias = attention.epeg.weight[..., None], attention.epeg.bias
        logits = logits + torch.nn.functional.conv2d(logits, weight, bias, padding=(kernel // 2, 0), groups=3)
    wanted = attention.proj((logits.softmax(dim=3) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, None), wanted, rtol=1e-12, atol=1e-12)


def test_a_region_of_one_token_takes_nothing_from_others():
    torch.manual_seed(0)
    layer = CrossRegionLayer(8, heads=2, representatives=2, mlp=False, drop=0.0)
    x = torch.randn(60, 8)
    assert torch.equal(layer(x, Regions(60, 8), None), x)
    assert not torch.equal(layer(x, Regions(60, 4), None), x)


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"epeg_kernel": 4}, "epeg_kernel is odd"), ({"hidden_dim": 20}, "no multiple of heads 8")],
)
def test_what_does_not_fit_is_refused(config, reason):
    with pytest.raises(ConfigError, match=reason):
        registry.build("rrt", config, in_dim=4, num_classes=2)
