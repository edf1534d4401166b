"""Folds and seeds have a spread, a mean with an interval, and a pooled figure."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.made import two_classes
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.bootstrap import estimates
from wsimil.evaluation.runs import over_runs


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_folds_have_a_spread_and_their_mean_an_interval() -> None:
    cases = two_classes(200)
    folds = [str(i % 5) for i in range(200)]
    found = over_runs(cases, folds, alone(200), replicates=300)["auroc"]
    each = [cases.take(np.arange(fold, 200, 5)).values()["auroc"] for fold in range(5)]
    assert (found.runs, found.mean, found.sd) == (5, pytest.approx(np.mean(each)), pytest.approx(np.std(each, ddof=1)))
    assert (found.least, found.most) == (min(each), max(each))
    assert found.averaged.value == pytest.approx(np.mean(each))
    assert found.averaged.low < found.averaged.value < found.averaged.high
    assert found.averaged.undefined == 0  # classes are drawn within folds
    assert found.pooled.value == cases.values()["auroc"]


def test_folds_that_are_pooled_are_drawn_as_the_rows_of_one_run() -> None:
    """Drawn within ten folds, with two patients of the rarer class in each, intervals of 95 % covered the truth in 83 %."""
    cases = BinaryCases(
        targets=np.repeat([1, 0], [20, 40]), probabilities=np.random.default_rng(0).random(60), threshold=0.5
    )
    found = over_runs(cases, [str(i % 10) for i in range(60)], alone(60), replicates=200)
    assert {name: one.pooled for name, one in found.items()} == estimates(cases, alone(60), replicates=200)


def test_small_folds_keep_their_classes_in_every_replicate() -> None:
    targets = np.tile([0, 1], 15)
    cases = BinaryCases(targets=targets, probabilities=np.random.default_rng(0).random(30), threshold=0.5)
    found = over_runs(cases, [str(i // 6) for i in range(30)], alone(30), replicates=200)["auroc"]
    assert (found.averaged.replicates, found.averaged.undefined) == (200, 0)


def test_the_mean_over_folds_that_are_repeated_has_an_interval() -> None:
    """Of 100 patients in five folds, three times over, most share their folds with nobody, which left no interval at all."""
    cases, rng = two_classes(100), np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(100) for _ in range(3)])
    found = over_runs(cases.take(rows), [str(i // 20) for i in range(300)], [str(row) for row in rows], replicates=200)
    for name in ("auroc", "brier"):
        mean = found[name].averaged
        assert mean.low is not None
        assert mean.low < mean.value < mean.high


def test_seeds_of_one_model_do_not_narrow_the_interval_over_patients() -> None:
    cases = two_classes(60)
    once = over_runs(cases, ["0"] * 60, alone(60))["auroc"]
    seeds = over_runs(cases.take(np.tile(np.arange(60), 4)), list(np.repeat(["0", "1", "2", "3"], 60)), alone(60) * 4)
    assert seeds["auroc"].averaged.value == pytest.approx(once.averaged.value)
    assert seeds["auroc"].averaged.low == pytest.approx(once.averaged.low)
    assert seeds["auroc"].sd == pytest.approx(0)
    assert once.sd is None


def test_a_fold_without_a_class_leaves_the_mean_over_folds_undefined() -> None:
    cases = BinaryCases(targets=np.array([0, 1] * 10 + [0] * 10), probabilities=np.linspace(0, 1, 30), threshold=0.5)
    found = over_runs(cases, ["a"] * 20 + ["b"] * 10, alone(30), replicates=100)
    assert (found["auroc"].runs, found["auroc"].averaged.value, found["auroc"].averaged.low) == (1, None, None)
    assert found["auroc"].pooled.low is not None
    assert found["accuracy"].averaged.low is not None


def test_a_rank_pooled_over_folds_of_other_scales_is_lower_than_their_mean() -> None:
    cases = two_classes(100, shift=2)
    halved = BinaryCases(
        targets=cases.targets, probabilities=cases.probabilities * np.where(np.arange(100) < 50, 0.1, 1), threshold=0.5
    )
    found = over_runs(halved, ["a"] * 50 + ["b"] * 50, alone(100), replicates=50)["auroc"]
    assert found.pooled.value < found.averaged.value - 0.1
    assert found.sd == pytest.approx((found.most - found.least) / 2**0.5)
