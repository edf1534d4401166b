"""Time to an event where some were not followed to the end: survival curves, their comparison, and the weights of censoring.

In all of it `times` float64 [n] > 0 in one unit, `events` bool [n] false where a patient was censored: alive when last seen.
One row is a patient. The formulas are a dozen lines, and the libraries of them would bring an older pandas (lifelines) or
the GPL (scikit-survival).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import chi2

from wsimil.evaluation.cases import Floats, checked_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class KaplanMeier:
    """Survival after each distinct time, rising; Kaplan & Meier 1958, JASA 53:457.

    `at_risk` are seen until `times[i]` or longer, `events` happen then, `censored` leave then. `survival` in [0, 1] holds from
    `times[i]` on. `low`, `high`: interval by Greenwood's variance on log(-log), None while survival is 1 and where it is 0.
    """

    times: tuple[float, ...]
    at_risk: tuple[int, ...]
    events: tuple[int, ...]
    censored: tuple[int, ...]
    survival: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]

    @property
    def median(self) -> float | None:
        """The first time at which survival is one half or less; None where it stays above."""
        return next((t for t, s in zip(self.times, self.survival, strict=True) if s <= 0.5 + 1e-12), None)

    def at_risk_at(self, times: Sequence[float]) -> tuple[int, ...]:
        """How many are seen until each of `times` or longer, for the table under a figure."""
        index = np.searchsorted(self.times, times, side="left")
        return tuple((*self.at_risk, 0)[i] for i in index)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRank:
    """Whether groups survive alike: `statistic` is chi-squared with `groups` - 1 degrees of freedom where they do.

    Both None where there is nothing to compare: fewer than two groups, or no event while two of them are at risk.
    """

    groups: int
    statistic: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CensoringCurve:
    """The probability to be still followed after each of `times`, by Kaplan-Meier of censoring; events at a time precede it."""

    times: Floats
    followed: Floats

    def at(self, times: Floats) -> Floats:
        """The probability to be followed beyond `times`, in [0, 1]; of the last time for what lies beyond it."""
        return self._after(np.searchsorted(self.times, times, side="right"))

    def before(self, times: Floats) -> Floats:
        """The limit of `at` from the left, the probability to be followed until `times` or longer: that of an event then."""
        return self._after(np.searchsorted(self.times, times, side="left"))

    def _after(self, steps: NDArray[np.int64]) -> Floats:
        return np.asarray(np.concatenate([[1.0], self.followed])[steps], dtype=np.float64)


def kaplan_meier(times: Floats, events: NDArray[np.bool_], *, level: float = 0.95) -> KaplanMeier:
    """The survival curve of all rows. Raises ValueError for times below 0, and without rows."""
    time, event = checked_survival(times, events)
    if not len(time):
        raise ValueError("a survival curve needs rows, got none")
    steps, at_risk, died = _table(time, event)
    left = np.bincount(np.searchsorted(steps, time), minlength=len(steps)) - died
    survival = np.cumprod(1 - died / at_risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(died / (at_risk * (at_risk - died)))
        reach = float(ndtri((1 + level) / 2)) * np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-reach), survival ** np.exp(reach)
    told = (survival > 0) & (survival < 1)
    return KaplanMeier(
        times=tuple(steps.tolist()),
        at_risk=tuple(at_risk.tolist()),
        events=tuple(died.tolist()),
        censored=tuple(left.tolist()),
        survival=tuple(survival.tolist()),
        low=tuple(float(x) if ok else None for x, ok in zip(low, told, strict=True)),
        high=tuple(float(x) if ok else None for x, ok in zip(high, told, strict=True)),
    )


def log_rank(times: Floats, events: NDArray[np.bool_], groups: Sequence[str]) -> LogRank:
    """Observed less expected events of each group, over their covariance; `groups` [n] names that of each row.

    Mantel 1966; for k groups Peto & Peto 1972, JRSS A 135:185.
    """
    time, event = checked_survival(times, events)
    names, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(group) != len(time):
        raise ValueError(f"{len(group)} groups for {len(time)} rows; give the group of each row")
    if len(names) < 2:
        return LogRank(groups=len(names), statistic=None, p_value=None)
    steps = np.unique(time[event])
    own = np.eye(len(names))[group]
    at_risk = (time >= steps[:, None]) @ own
    died = ((time == steps[:, None]) & event) @ own
    n, d = at_risk.sum(axis=1), died.sum(axis=1)
    share = at_risk / n[:, None]
    excess = (died - d[:, None] * share).sum(axis=0)[:-1]
    scale = np.where(n > 1, d * (n - d) / np.maximum(n - 1, 1), 0.0)
    # Each step by itself: where all who are at risk are of one group it adds 0, which a difference of sums may miss.
    spread = share[:, :, None] * (np.eye(len(names)) - share[:, None, :])
    covariance = np.einsum("t,tab->ab", scale, spread)[:-1, :-1]
    if np.linalg.matrix_rank(covariance) < len(covariance):
        return LogRank(groups=len(names), statistic=None, p_value=None)
    statistic = float(excess @ np.linalg.solve(covariance, excess))
    return LogRank(groups=len(names), statistic=statistic, p_value=float(chi2.sf(statistic, len(names) - 1)))


def censoring_curve(times: Floats, events: NDArray[np.bool_]) -> CensoringCurve:
    """How long patients are followed, of the training slides or of those that are judged. Raises ValueError without rows."""
    time, event = checked_survival(times, events)
    if not len(time):
        raise ValueError("a curve of censoring needs rows, got none")
    steps, at_risk, died = _table(time, event)
    left = np.bincount(np.searchsorted(steps, time), minlength=len(steps)) - died
    remaining = at_risk - died
    share = np.divide(left, remaining, out=np.zeros(len(steps)), where=remaining > 0)
    return CensoringCurve(times=steps, followed=np.cumprod(1 - share))


def checked_survival(times: Floats, events: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """Times as float64 [n] of 0 or more, events as bool [n]. Raises ValueError."""
    time = checked_numbers("times", times, (len(times),))
    event = np.asarray(events)
    if event.shape != time.shape or event.dtype != np.bool_:
        raise ValueError(f"events must be bool [{len(time)}], got {event.dtype} {list(event.shape)}")
    if len(time) and time.min() < 0:
        raise ValueError(f"times must be 0 or more, got {time.min():g} among {len(time)}")
    return time, event


def _table(time: Floats, event: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    steps, index = np.unique(time, return_inverse=True)
    rows = np.bincount(index, minlength=len(steps))
    died = np.bincount(index, weights=event, minlength=len(steps)).astype(np.int64)
    return steps, rows[::-1].cumsum()[::-1].astype(np.int64), died
