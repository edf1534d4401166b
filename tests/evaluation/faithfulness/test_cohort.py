"""Means over slides, and what a map may be called."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from wsimil.evaluation.bootstrap import Estimate
from wsimil.evaluation.faithfulness.cohort import FEW_PATIENTS, mean_curve, means, rank_correlation, verdict


def test_a_mean_is_over_the_slides_that_have_the_number() -> None:
    rows = [{"a": 1.0, "b": float("nan")}, {"a": 3.0, "b": 5.0}, {"a": 2.0}]
    found = means(rows, ["p", "q", "r"], replicates=100)
    assert found["a"].value == 2
    assert found["b"].value == 5
    assert means([{"c": float("nan")}], ["p"], replicates=100)["c"].value is None


def test_slides_of_one_patient_are_drawn_together() -> None:
    values = np.random.default_rng(0).normal(size=40)
    rows = [{"a": value} for value in np.repeat(values, 4)]
    wide = means(rows, [f"p{i // 4}" for i in range(160)], replicates=1000)["a"]
    narrow = means(rows, [f"p{i}" for i in range(160)], replicates=1000)["a"]
    # Four times as many rows, were they independent, would halve the interval.
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.15)


def test_a_curve_has_the_intervals_of_its_steps() -> None:
    curves = np.random.default_rng(0).normal(size=(20, 3))
    patients = [f"p{i}" for i in range(20)]
    found = mean_curve(curves, patients, replicates=300)
    alone = means([{"x": value} for value in curves[:, 1]], patients, replicates=300)["x"]
    assert (found.mean[1], found.low[1], found.high[1]) == pytest.approx((alone.value, alone.low, alone.high))


def test_only_an_interval_above_zero_makes_an_explanation() -> None:
    def margin(low: float | None, high: float | None) -> Estimate:
        return Estimate(value=0.2, low=low, high=high, replicates=100)

    ends = [(0.1, 0.3), (0.0, 0.4), (None, None)]
    good, touching, unknown = (verdict(margin(low, high), patients=FEW_PATIENTS) for low, high in ends)
    assert good.beats_random is True
    assert "explanation" in good.words
    assert touching.beats_random is False
    assert "does not beat random order" in touching.words
    assert unknown.beats_random is None
    assert "cannot be told" in unknown.words
    assert "explanation" not in touching.words + unknown.words
    few = verdict(margin(0.1, 0.3), patients=FEW_PATIENTS - 1)
    assert few == unknown
    looked = verdict(margin(0.1, 0.3), patients=FEW_PATIENTS, evidence=False)
    assert looked.beats_random is True
    assert "explanation" not in looked.words


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(5, size=50).astype(float), rng.normal(size=50)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation(first, np.ones(50)))
