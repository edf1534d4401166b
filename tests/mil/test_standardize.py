"""Standardization: fitted in a stream, safe on flat features, part of the state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsimil.errors import FeatureError, ModelError
from wsimil.mil.layers.standardize import Standardize


def make_features(*lengths, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    return [100 + number + scales * torch.randn(n, dim, generator=generator) for number, n in enumerate(lengths)]


def test_it_is_the_identity_until_fitted():
    x = make_features(63)[0]
    assert torch.equal(Standardize(5)(x), x)


def test_instances_fitted_in_a_stream_give_mean_0_and_deviation_1():
    bags = make_features(1, 63, 1000, 0)
    layer = Standardize(5)
    layer.fit(iter(bags), weigh="instances")
    joined = torch.cat(bags).double()
    assert torch.allclose(layer.mean.double(), joined.mean(0), rtol=1e-7)
    assert torch.allclose(layer.scale.double(), joined.std(0, unbiased=False), rtol=1e-6)
    z = layer(torch.cat(bags)).double()
    # x has 24 bits and x / scale reaches 1000: rounding is 1000 / 2**24 at most.
    assert z.mean(0).abs().max() < 1e-4
    assert (z.std(0, unbiased=False) - 1).abs().max() < 1e-4


def test_each_bag_counts_the_same_where_bags_are_weighed():
    bags = make_features(1, 63, 1000)
    layer, repeated = Standardize(5), Standardize(5)
    layer.fit(bags, weigh="bags")
    repeated.fit([bags[0], bags[1].repeat(7, 1), bags[2]], weigh="bags")
    means = torch.stack([bag.double().mean(0) for bag in bags])
    squares = torch.stack([bag.double().square().mean(0) for bag in bags])
    assert torch.allclose(layer.mean.double(), means.mean(0), rtol=1e-7)
    wanted = (squares.mean(0) - means.mean(0).square()).sqrt()
    assert torch.allclose(layer.scale.double(), wanted, rtol=1e-6)
    assert torch.allclose(layer.scale, repeated.scale, rtol=1e-6)


def test_float16_arrays_of_a_store_are_fitted_without_overflow():
    x = np.full((1000, 5), 60000, np.float16)
    x[::2] = 50016
    x.setflags(write=False)
    layer = Standardize(5)
    layer.fit([x])
    assert torch.equal(layer.mean, torch.full((5,), 55008.0))
    assert layer(torch.from_numpy(x.copy())).abs().max() <= 1.001


def test_features_that_hardly_vary_are_not_blown_up():
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(1000, 5, generator=generator)
    x[:, 0] = 7
    x[:, 1] = 1000 + 0.3 * torch.randn(1000, generator=generator)
    x[:, 2] = 1e-6 * torch.randn(1000, generator=generator)
    layer = Standardize(5)
    layer.fit([x])
    typical = layer.scale[0]
    assert 1 < typical < 2
    assert torch.equal(layer.scale[:3], typical.expand(3))
    assert layer(x + 0.1).abs().max() < 10


def test_constant_bags_are_fitted_to_scale_1():
    layer = Standardize(5)
    layer.fit([torch.full((3, 5), 4.0)])
    assert torch.equal(layer.scale, torch.ones(5))
    assert torch.equal(layer(torch.full((2, 5), 4.5)), torch.full((2, 5), 0.5))


def test_a_loaded_state_is_applied_and_an_identity_is_seen():
    fitted, loaded = Standardize(5), Standardize(5)
    fitted.fit(make_features(63))
    loaded.load_state_dict(fitted.state_dict())
    x = make_features(37)[0]
    assert torch.equal(loaded(x), fitted(x))
    loaded.load_state_dict(Standardize(5).state_dict())
    assert torch.equal(loaded(x), x)


@pytest.mark.parametrize(
    ("bags", "message"),
    [
        ([], "no instances"),
        ([torch.zeros(0, 5)], "no instances"),
        ([torch.zeros(2, 6)], "bag 0"),
        ([torch.full((2, 5), float("nan"))], "NaN"),
    ],
)
def test_features_that_cannot_be_fitted_are_refused(bags, message):
    with pytest.raises(FeatureError, match=message):
        Standardize(5).fit(bags)


def test_features_of_another_width_are_refused():
    with pytest.raises(ModelError, match="made for 5 features an instance, got 6"):
        Standardize(5)(torch.zeros(2, 6))
