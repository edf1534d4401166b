"""FeatureBag: what it takes and what it refuses."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from wsimil.bags import FeatureBag
from wsimil.errors import FeatureError
from wsimil.testing.store_laws import make_bag


def with_features(features: np.ndarray) -> FeatureBag:
    return replace(make_bag(n=63), features=features)


@pytest.mark.parametrize("n", [0, 1, 63, 1000])
def test_a_bag_of_any_size_knows_its_length_and_width(n: int) -> None:
    bag = make_bag(n=n, dim=7)
    assert (len(bag), bag.dim, bag.slide_id) == (n, 7, "slide-1")


@pytest.mark.parametrize(
    "features",
    [np.zeros((63, 7)), np.zeros((63, 7), np.int16), np.zeros(63, np.float16), np.zeros((63, 0), np.float16)],
    ids=["float64", "int16", "one dimension", "no columns"],
)
def test_features_of_another_type_or_shape_are_refused(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"float16 or float32 \[N, D\]"):
        with_features(features)


def test_rows_and_tiles_must_agree() -> None:
    with pytest.raises(ValueError, match="62 rows of features for 63 tiles of 'slide-1'"):
        with_features(np.zeros((62, 7), np.float16))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_value_that_is_not_finite_is_named_with_its_tile(value: float, dtype: type) -> None:
    features = np.zeros((63, 7), dtype)
    features[[17, 40], 6] = value
    x, y = make_bag(n=63).grid.xy0[17]
    with pytest.raises(FeatureError, match=rf"'slide-1': 2 of 63 feature rows .* x={x}, y={y};"):
        with_features(features)


def test_a_value_that_is_not_finite_is_found_however_far_down_it_lies() -> None:
    features = np.zeros((10_000, 3), np.float16)
    features[[4096, 9_999], 1] = np.inf
    bag = make_bag(n=10_000, dim=3)
    x, y = bag.grid.xy0[4096]
    with pytest.raises(FeatureError, match=rf"2 of 10000 feature rows .* x={x}, y={y};"):
        replace(bag, features=features)


def test_the_largest_float16_is_finite() -> None:
    assert len(with_features(np.full((63, 7), 65504, np.float16))) == 63


def test_features_cannot_be_changed_after_the_check() -> None:
    with pytest.raises(ValueError, match="read-only"):
        make_bag().features[0, 0] = np.nan


def test_it_travels_between_processes() -> None:
    bag = make_bag()
    again = pickle.loads(pickle.dumps(bag))
    assert np.array_equal(again.features, bag.features)
    assert again.provenance.digest == bag.provenance.digest
