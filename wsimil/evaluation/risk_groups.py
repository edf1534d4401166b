"""Whether patients of higher predicted risk live shorter: survival of two halves, and of groups by predicted survival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsimil.evaluation.cases import Floats, Ints
from wsimil.evaluation.survival import KaplanMeier, LogRank, kaplan_meier, log_rank
from wsimil.evaluation.survival_cases import SurvivalCases

_PATIENTS_A_BIN = 20
_MOST_BINS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalBin:
    """Patients of like predicted survival at a time: their mean prediction, and the share without event by Kaplan-Meier."""

    patients: int
    predicted: float
    observed: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalCalibration:
    """Predicted and observed survival at `horizon`; bins by rising prediction."""

    horizon: float
    bins: tuple[SurvivalBin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskGroup:
    """Patients of one half by risk, and how many of them are still seen at `RiskGroups.at_times`."""

    name: str
    patients: int
    events: int
    curve: KaplanMeier
    at_risk: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskGroups:
    """Patients cut in two at the median of the risks of these patients themselves: it describes them, and is no rule for others.

    A patient's risk is the mean of its rows in a run, then its rank among the patients of that run, as risks of two runs have no
    common scale, and the mean of these ranks.
    """

    groups: tuple[RiskGroup, ...]
    log_rank: LogRank
    at_times: tuple[float, ...]
    calibration: tuple[SurvivalCalibration, ...]


def risk_groups(cases: SurvivalCases, patients: Sequence[str], runs: Sequence[str]) -> RiskGroups | None:
    """The halves of the patients of `cases`; None without rows, or where the rows of a patient differ in time or event."""
    if not len(cases):
        return None
    _, first, owner = np.unique(np.asarray(patients, dtype=str), return_index=True, return_inverse=True)
    times, events = cases.times[first], cases.events[first]
    if not (np.array_equal(times[owner], cases.times) and np.array_equal(events[owner], cases.events)):
        return None
    risks = _patient_risks(cases.risks, owner, runs)
    high = risks > np.median(risks)
    last = float(times.max())
    at_times = _marks(last)
    found = []
    for name, rows in (("lower risk", ~high), ("higher risk", high)):
        if rows.any():
            curve = kaplan_meier(times[rows], events[rows])
            found.append(
                RiskGroup(
                    name=name,
                    patients=int(rows.sum()),
                    events=int(events[rows].sum()),
                    curve=curve,
                    at_risk=curve.at_risk_at(at_times),
                )
            )
    calibration: tuple[SurvivalCalibration, ...] = ()
    if cases.survival is not None:
        calibration = tuple(
            one
            for horizon, column in zip(cases.horizons, cases.survival.T, strict=True)
            if (one := _calibration(horizon, _mean(column, owner), times, events)) is not None
        )
    names = np.where(high, "higher", "lower").tolist()
    return RiskGroups(
        groups=tuple(found), log_rank=log_rank(times, events, names), at_times=at_times, calibration=calibration
    )


def _patient_risks(risks: Floats, owner: Ints, runs: Sequence[str]) -> Floats:
    """Of each patient the share of patients of a run with a lower mean risk, equal ones counted half; the mean over its runs."""
    from scipy.stats import rankdata

    names = np.asarray(runs, dtype=str)
    patients, ranks = [], []
    for name in np.unique(names):
        rows = names == name
        own, own_of = np.unique(owner[rows], return_inverse=True)
        patients.append(own)
        ranks.append((rankdata(_mean(risks[rows], own_of)) - 0.5) / len(own))
    return _mean(np.concatenate(ranks), np.concatenate(patients))


def _mean(values: Floats, owner: Ints) -> Floats:
    return np.asarray(np.bincount(owner, weights=values) / np.bincount(owner), dtype=np.float64)


def _marks(last: float) -> tuple[float, ...]:
    """From 0 to `last`, at most seven round numbers."""
    if last <= 0:
        return (0.0,)
    rough = last / 6
    scale = 10 ** np.floor(np.log10(rough))
    step = float(next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough * (1 - 1e-9)))
    return tuple(float(step * k) for k in range(int(last / step + 1e-9) + 1))


def _calibration(
    horizon: float, predicted: Floats, times: Floats, events: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> SurvivalCalibration | None:
    count = min(_MOST_BINS, len(times) // _PATIENTS_A_BIN)
    if count < 2:
        return None
    bins = []
    for rows in np.array_split(np.argsort(predicted, kind="stable"), count):
        curve = kaplan_meier(times[rows], events[rows])
        step = int(np.searchsorted(curve.times, horizon, side="right")) - 1
        if horizon > curve.times[-1] and curve.survival[-1] > 0:
            continue  # nobody was seen that long
        observed, low, high = (
            (1.0, None, None) if step < 0 else (curve.survival[step], curve.low[step], curve.high[step])
        )
        mean = float(predicted[rows].mean())
        bins.append(SurvivalBin(patients=len(rows), predicted=mean, observed=observed, low=low, high=high))
    return SurvivalCalibration(horizon=horizon, bins=tuple(bins)) if bins else None
