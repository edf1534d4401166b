"""Do events happen as often as their probabilities say: the reliability curve, and what chance alone would show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from wsimil.evaluation.binning import BINS, Binning, bin_of, calibration_error
from wsimil.evaluation.cases import Floats, Ints, checked_probabilities, checked_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """One bin: rows in it, their mean probability, the share of them that are of class 1, and its Wilson interval."""

    rows: int
    predicted: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedEce:
    """What expected calibration error a perfectly calibrated model would show on as many rows: its mean, and its 95 % quantile.

    `p_value`, in (0, 1]: how often such a model would show at least the error that was found.
    """

    found: float
    mean: float
    quantile_95: float
    p_value: float


def reliability_curve(
    targets: Ints, probabilities: Floats, *, binning: Binning = "equal_mass", bins: int = 10, level: float = 0.95
) -> tuple[ReliabilityBin, ...]:
    """Bins that hold rows, by rising probability; `targets` [n] in {0, 1}, `probabilities` [n] of class 1.

    The intervals take rows as independent: with several slides a patient they are too narrow.
    """
    truth = checked_targets(targets, 2)
    p = checked_probabilities("probabilities", probabilities, truth.shape)
    owner = bin_of(p, binning, bins)
    rows = np.bincount(owner)
    predicted, observed = np.bincount(owner, weights=p), np.bincount(owner, weights=truth)
    result = []
    for index in np.flatnonzero(rows):
        n, events = int(rows[index]), int(observed[index])
        low, high = wilson(events, n, level=level)
        result.append(
            ReliabilityBin(rows=n, predicted=float(predicted[index]) / n, observed=events / n, low=low, high=high)
        )
    return tuple(result)


def wilson(events: int, rows: int, *, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a share of independent rows, in [0, 1]. Wilson 1927, JASA 22:209. Raises ValueError without
    rows."""
    if not 0 <= events <= rows or rows < 1:
        raise ValueError(f"a share needs rows, and no more events than these, got {events} of {rows}")
    z = float(ndtri((1 + level) / 2))
    share = events / rows
    scale = 1 + z * z / rows
    center = (share + z * z / (2 * rows)) / scale
    half = z / scale * float(np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)))
    # Rounding must not take 0 of n off 0, nor n of n off 1.
    return (0.0 if events == 0 else center - half), (1.0 if events == rows else center + half)


def ece_if_calibrated(
    targets: Ints, probabilities: Floats, *, binning: Binning, bins: int = BINS, draws: int = 2000, seed: int = 0
) -> CalibratedEce | None:
    """The calibration error of P(class 1) beside that of truths drawn from the probabilities themselves; None without rows.

    Consistency resampling, Bröcker & Smith 2007, Weather and Forecasting 22:651; rows are taken as independent.
    """
    truth = checked_targets(targets, 2)
    p = checked_probabilities("probabilities", probabilities, truth.shape)
    owner = bin_of(p, binning, bins)
    found = calibration_error(owner, truth - p)
    if found is None:
        return None
    rng = np.random.default_rng(seed)
    chance = np.array([calibration_error(owner, (rng.random(len(p)) < p) - p) for _ in range(draws)], dtype=np.float64)
    return CalibratedEce(
        found=found,
        mean=float(chance.mean()),
        quantile_95=float(np.quantile(chance, 0.95)),
        p_value=(int((chance >= found).sum()) + 1) / (draws + 1),
    )
