"""Variance of AUROC in closed form, for one model and for two on the same rows.

DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837; by midranks in O(n log n) as Sun & Xu 2014, IEEE Signal Processing
Letters 21:1389. Rows are taken as independent, so each patient may have one only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from wsimil.evaluation.cases import Floats, Ints, checked_numbers, checked_targets
from wsimil.evaluation.patients import refuse_repeated_patients


@dataclass(frozen=True, slots=True, kw_only=True)
class DeLongAuroc:
    """AUROC, its standard error, and two intervals, cut to [0, 1].

    `low`, `high`: symmetric on the logit of AUROC, which holds what it says near 1 too; None where AUROC is 0 or 1, as the
    variance is 0 there and says nothing. `low_plain`, `high_plain`: symmetric on AUROC. All None where a class is missing,
    and the error and intervals where a class has one row only.
    """

    value: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    low_plain: float | None
    high_plain: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeLongDifference:
    """AUROC of a first model less that of a second, its interval, and the two-sided test that they are equal.

    All but the AUROCs and their difference are None where its variance is 0, as for two models that rank alike.
    """

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    z: float | None
    p_value: float | None


def delong_auroc(targets: Ints, scores: Floats, patients: Sequence[str], *, level: float = 0.95) -> DeLongAuroc:
    """AUROC of `scores` [n] for `targets` [n] in {0, 1}, one row a patient. Raises ValueError for a patient of several rows."""
    aurocs, covariance = _delong(targets, [scores], patients)
    if aurocs is None:
        return DeLongAuroc(value=None, standard_error=None, low=None, high=None, low_plain=None, high_plain=None)
    value = float(aurocs[0])
    if covariance is None:
        return DeLongAuroc(value=value, standard_error=None, low=None, high=None, low_plain=None, high_plain=None)
    error = float(np.sqrt(covariance[0, 0]))
    reach = float(ndtri((1 + level) / 2)) * error
    low = high = None
    if 0 < value < 1 and error > 0:
        center, spread = np.log(value / (1 - value)), reach / (value * (1 - value))
        low, high = (float(1 / (1 + np.exp(-(center + side * spread)))) for side in (-1, 1))
    return DeLongAuroc(
        value=value,
        standard_error=error,
        low=low,
        high=high,
        low_plain=max(0.0, value - reach) if error > 0 else None,
        high_plain=min(1.0, value + reach) if error > 0 else None,
    )


def delong_difference(
    targets: Ints, first: Floats, second: Floats, patients: Sequence[str], *, level: float = 0.95
) -> DeLongDifference:
    """The AUROCs of two models' scores [n] on the same rows, one row a patient. Raises ValueError for a patient of several."""
    aurocs, covariance = _delong(targets, [first, second], patients)
    if aurocs is None:
        return DeLongDifference(first=None, second=None, difference=None, low=None, high=None, z=None, p_value=None)
    ours, theirs = aurocs.tolist()
    value = ours - theirs
    variance = 0.0 if covariance is None else float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= 1e-15:
        return DeLongDifference(first=ours, second=theirs, difference=value, low=None, high=None, z=None, p_value=None)
    error = float(np.sqrt(variance))
    reach = float(ndtri((1 + level) / 2)) * error
    return DeLongDifference(
        first=ours,
        second=theirs,
        difference=value,
        low=max(-1.0, value - reach),
        high=min(1.0, value + reach),
        z=value / error,
        p_value=float(2 * ndtr(-abs(value) / error)),
    )


def _delong(targets: Ints, models: Sequence[Floats], patients: Sequence[str]) -> tuple[Floats | None, Floats | None]:
    """AUROC of each model, [M], and their covariance, [M, M]; None where a class is missing, or has one row."""
    truth = checked_targets(targets, 2).astype(bool)
    refuse_repeated_patients(patients, len(truth), "DeLong's variance")
    scores = np.stack([checked_numbers("scores", model, truth.shape) for model in models])
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return None, None
    whole = rankdata(scores, axis=1)
    # Of each positive the share of negatives below it, of each negative the share of positives above it.
    above = (whole[:, truth] - rankdata(scores[:, truth], axis=1)) / negative
    below = 1 - (whole[:, ~truth] - rankdata(scores[:, ~truth], axis=1)) / positive
    aurocs = above.mean(axis=1)
    if positive < 2 or negative < 2:
        return aurocs, None
    covariance = np.atleast_2d(np.cov(above)) / positive + np.atleast_2d(np.cov(below)) / negative
    return aurocs, covariance
