"""Curves draw what all their points would draw; net benefit is that of dcurves; reliability has honest bars."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from tests.evaluation.made import two_classes
from tests.evaluation.test_delong import SCORES, TARGETS
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.binning import bin_of
from wsimil.evaluation.bootstrap import estimate
from wsimil.evaluation.curves import confusion, decision_curve, pr_curve, roc_curve, with_band
from wsimil.evaluation.reliability import ece_if_calibrated, reliability_curve, wilson


def test_net_benefit_is_that_of_dcurves() -> None:
    """Recorded from dcurves 1.1.7, dca."""
    found = decision_curve(TARGETS, SCORES, thresholds=[0.1, 0.25, 0.4, 0.6])
    assert found.model == pytest.approx([0.42592592592592593, 0.32777777777777783, 0.15, -0.025], abs=1e-12)
    assert found.treat_all == pytest.approx(
        [0.42592592592592593, 0.3111111111111111, 0.1388888888888889, -0.29166666666666646], abs=1e-12
    )
    assert len(decision_curve(TARGETS, SCORES).thresholds) == 99
    with pytest.raises(ValueError, match="thresholds in"):
        decision_curve(TARGETS, SCORES, thresholds=[1.0])


@pytest.mark.parametrize("rarer", [0, 1])
def test_the_band_of_net_benefit_is_that_of_the_bootstrap_metric_by_metric(rarer: int) -> None:
    """Drawn replicate by replicate as any other metric is, patients with slides of both classes among those of the rarer."""
    every = two_classes(200)
    cases = every.take(
        np.sort([*np.flatnonzero(every.targets == rarer)[:60], *np.flatnonzero(every.targets != rarer)[:90]])
    )
    patients = [f"p{int(row**0.8)}" for row in range(len(cases))]  # of one to three rows
    curve = decision_curve(cases.targets, cases.probabilities, thresholds=[0.2, 0.5, 0.8])
    found = with_band(curve, cases.targets, cases.probabilities, patients, replicates=400, seed=3)

    for index, at in enumerate(curve.thresholds):

        def net_benefit(drawn: BinaryCases, at: float = at) -> float:
            return decision_curve(drawn.targets, drawn.probabilities, thresholds=[at]).model[0]

        wanted = estimate(cases, net_benefit, patients, replicates=400, seed=3, kind="percentile")
        assert (found.low[index], found.high[index]) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        assert found.low[index] < curve.model[index] < found.high[index]
    assert (found.model, found.treat_all) == (curve.model, curve.treat_all)


def test_there_is_no_band_where_a_class_has_one_patient() -> None:
    targets, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
    curve = decision_curve(targets, p)
    assert with_band(curve, targets, p, ["a", "b", "c", "c"]).low == ()
    assert with_band(curve, targets, p, ["a", "b", "c", "d"]).low
    ones = decision_curve(np.ones(2, np.int64), p[:2])
    assert with_band(ones, np.ones(2, np.int64), p[:2], ["a", "b"]).low == ()
    # Of the positive patients all but one have negative slides, too.
    targets, p = np.array([0] * 9 + [1] * 4), np.linspace(0.1, 0.9, 13)
    assert with_band(decision_curve(targets, p), targets, p, [*"abcdefghi", *"abcj"]).low


@pytest.mark.parametrize("count", [63, 20_000])
def test_a_thinned_roc_curve_has_the_same_area_and_few_points(count: int) -> None:
    cases = two_classes(count)
    curve = roc_curve(cases.targets, cases.probabilities)
    assert len(curve.x) == len(curve.y) <= 2000
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    allowance = 1e-12 if count == 63 else 1 / 500  # a column of pixels
    assert sk.auc(curve.x, curve.y) == pytest.approx(cases.values()["auroc"], abs=allowance)


def test_a_thinned_curve_draws_the_same_pixels() -> None:
    cases = two_classes(20_000)
    precision, recall, _ = sk.precision_recall_curve(cases.targets, cases.probabilities)
    curve = pr_curve(cases.targets, cases.probabilities, columns=200)
    assert len(recall) > 10_000
    assert len(curve.x) <= 800

    def span(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
        column = np.minimum((x * 200).astype(int), 199)
        return [(y[column == c].min(), y[column == c].max()) for c in range(200)]

    assert span(np.array(curve.x), np.array(curve.y)) == span(recall[::-1], precision[::-1])
    assert roc_curve(np.ones(3, np.int64), np.array([0.1, 0.2, 0.3])) is None


def test_a_confusion_matrix_counts_truth_by_decision() -> None:
    rng = np.random.default_rng(0)
    truth, decided = rng.integers(3, size=(2, 50))
    found = confusion(truth, decided, classes=("a", "b", "c", "never"))
    assert np.array_equal(found.counts, sk.confusion_matrix(truth, decided, labels=range(4)))


def test_wilson_is_that_of_scipy() -> None:
    for events, rows in ((0, 7), (3, 10), (250, 251), (5, 5)):
        theirs = stats.binomtest(events, rows).proportion_ci(method="wilson")
        assert wilson(events, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    for events, rows in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"got {events} of {rows}"):
            wilson(events, rows)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 20))
def test_every_row_is_in_one_bin_and_equal_values_in_the_same(values: list[float], bins: int) -> None:
    p = np.array(values)
    for binning in ("equal_width", "equal_mass"):
        owner = bin_of(p, binning, bins)
        assert owner.min() >= 0
        assert owner.max() < bins
        order = np.argsort(p, kind="stable")
        assert (np.diff(owner[order]) >= 0).all()
        assert (np.diff(owner[order])[np.diff(p[order]) == 0] == 0).all()


def test_bins_of_equal_mass_hold_equally_many() -> None:
    p = np.random.default_rng(0).random(1000)
    assert np.bincount(bin_of(p, "equal_mass", 10)).tolist() == [100] * 10


def test_the_reliability_curve_adds_up() -> None:
    cases = two_classes(300)
    for binning in ("equal_width", "equal_mass"):
        curve = reliability_curve(cases.targets, cases.probabilities, binning=binning)
        assert sum(one.rows for one in curve) == 300
        assert sum(one.rows * one.observed for one in curve) == pytest.approx(cases.targets.sum())
        assert all(one.low <= one.observed <= one.high for one in curve)
        assert all(a.predicted < b.predicted for a, b in pairwise(curve))


def test_calibration_error_stands_beside_that_of_a_calibrated_model() -> None:
    rng = np.random.default_rng(0)
    low = 0
    for trial in range(200):
        p = rng.beta(2, 2, size=80)
        honest = (rng.random(80) < p).astype(np.int64)
        low += ece_if_calibrated(honest, p, binning="equal_width", draws=99, seed=trial).p_value <= 0.1
    assert stats.binom.ppf(5e-5, 200, 0.1) <= low <= stats.binom.ppf(1 - 5e-5, 200, 0.1)
    sure = BinaryCases(targets=rng.integers(2, size=80), probabilities=rng.choice([0.02, 0.98], 80), threshold=0.5)
    found = ece_if_calibrated(sure.targets, sure.probabilities, binning="equal_width")
    assert found.found == pytest.approx(sure.values()["ece_equal_width"])
    assert found.found > found.quantile_95 > found.mean
    assert found.p_value == pytest.approx(1 / 2001)


def test_an_error_that_a_calibrated_model_shows_as_well_is_no_sign_against_it() -> None:
    sure = np.array([0, 1, 1, 0])
    found = ece_if_calibrated(sure, sure.astype(np.float64), binning="equal_width", draws=50)
    assert (found.found, found.mean, found.p_value) == (0.0, 0.0, 1.0)
