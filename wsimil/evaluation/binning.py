"""Bins of probabilities for calibration: of equal width, or of equal mass."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from wsimil.evaluation.cases import Floats, Ints

Binning: TypeAlias = Literal["equal_width", "equal_mass"]

NAMES_CALIBRATION = ("ece_equal_width", "ece_equal_mass")

BINS = 15
"""As in Guo et al. 2017."""


def bin_of(probabilities: Floats, binning: Binning, bins: int = BINS) -> Ints:
    """The bin of each probability, int64 [n] in 0..bins-1.

    "equal_width": [k/bins, (k+1)/bins), the last one closed. "equal_mass": cut at the k/bins quantiles of `probabilities`;
    equal values fall into one bin, so that bins may be empty.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if binning == "equal_width":
        return np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    if not len(probabilities):
        return np.zeros(0, np.int64)
    cuts = np.quantile(probabilities, np.arange(1, bins) / bins, method="inverted_cdf")
    return np.searchsorted(cuts, probabilities, side="left").astype(np.int64)


def calibration_error(bins_of: Ints, residuals: Floats) -> float | None:
    """Expected calibration error, in [0, 1]: over bins, the mean of |mean residual|, each bin weighted by its rows; None
    without rows.

    `residuals` [n] are what happened (0 or 1) less the probability of it. Naeini et al. 2015, AAAI; Guo et al. 2017,
    arXiv:1706.04599.

    It is biased upward, the more the fewer rows there are in a bin, and once more in a bootstrap: of 95 % percentile
    intervals 0 to 71 % covered the truth in simulation (`benchmarks/coverage.py`). So it has no interval here;
    `reliability.ece_if_calibrated` says what a perfectly calibrated model would show on as many rows.
    """
    if not len(residuals):
        return None
    return float(np.abs(np.bincount(bins_of, weights=residuals)).sum() / len(residuals))
