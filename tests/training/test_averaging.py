"""Averages of weights and changes of features are what their formulas say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.made import QUICK, run, weights
from wsimil.mil.batch import BagBatch, pack
from wsimil.training.augmentation import augmented
from wsimil.training.averaging import WeightAverage
from wsimil.training.config import AugmentationConfig


def test_the_average_follows_its_formula() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.7)
    expected = model.weight.detach().double().clone()
    for move in range(20):
        with torch.no_grad():
            model.weight.add_(torch.full_like(model.weight, 0.1 * (move % 3)))
        average.update()
        decay = min(0.7, (1 + move) / (10 + move))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.averaged["weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_model_learns_on_with_its_own_weights() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.zero_()
    average.update()
    with average.applied():
        assert not torch.equal(model.weight, torch.zeros(2, 3))
    assert torch.equal(model.weight, torch.zeros(2, 3))


def test_the_average_is_what_is_kept(tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"keep": "last"})
    run(tmp_path / "plain", config=config)
    run(tmp_path / "averaged", config=config.model_copy(update={"average": 0.99}))
    plain, averaged = weights(tmp_path / "plain"), weights(tmp_path / "averaged")
    assert not torch.equal(plain["classifier.weight"], averaged["classifier.weight"])
    assert torch.equal(plain["standardize.mean"], averaged["standardize.mean"])


def bags() -> BagBatch:
    rng = np.random.default_rng(0)
    features = [rng.normal(5 * index, 1, size=(n, 40)).astype(np.float32) for index, n in enumerate((300, 1, 500))]
    places = [np.zeros((len(rows), 2), np.int64) for rows in features]
    return pack(features, xy0=places, slide_ids=["a", "b", "c"])


def changed(**given: float) -> torch.Tensor:
    made = bags()
    mean, scale = torch.full((40,), 7.0), torch.full((40,), 2.0)
    generator = torch.Generator().manual_seed(3)
    return augmented(made, AugmentationConfig(**given), mean=mean, scale=scale, generator=generator).features


def test_noise_is_in_deviations_of_the_features() -> None:
    difference = changed(noise=0.5) - bags().features
    assert float(difference.std()) == pytest.approx(0.5 * 2.0, rel=0.02)
    assert abs(float(difference.mean())) < 0.02


def test_dropped_features_lie_at_the_mean_and_are_the_same_in_a_bag() -> None:
    dropped = changed(drop_features=0.25) == 7.0
    first, last = dropped[:300], dropped[301:]
    assert (first == first[0]).all()
    assert (last == last[0]).all()
    assert not torch.equal(first[0], last[0])
    assert 0.1 < float(torch.stack([first[0], last[0]]).float().mean()) < 0.4


def test_mixing_stays_within_a_bag_and_on_the_line_between_two_instances() -> None:
    mixed, plain = changed(mix=1.0), bags().features
    assert float(mixed[:300].mean()) == pytest.approx(0, abs=0.1)
    assert float(mixed[301:].mean()) == pytest.approx(10, abs=0.1)
    assert torch.equal(mixed[300], plain[300])  # a bag of one has nothing to mix with but itself
    assert not torch.equal(mixed[:300], plain[:300])
    towards = mixed[5] - plain[5]
    cosines = torch.nn.functional.cosine_similarity(towards[None], plain[:300] - plain[5], dim=1)
    assert float(cosines.max()) == pytest.approx(1, abs=1e-4)


def test_the_same_state_changes_the_same_features() -> None:
    assert torch.equal(changed(noise=1.0, mix=0.3), changed(noise=1.0, mix=0.3))


def test_off_means_off() -> None:
    assert not AugmentationConfig().is_on
