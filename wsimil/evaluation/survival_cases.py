"""Predicted risks beside the time to an event: concordance, AUC by a time, and the Brier score over time, with censoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.cases import Floats, Ints, checked_numbers, checked_probabilities, rarity, ratio
from wsimil.evaluation.ranking import weighted_ranking
from wsimil.evaluation.survival import CensoringCurve, checked_survival

_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SurvivalCases:
    """`times` float64 [n] >= 0, `events` bool [n], `risks` float64 [n], of which a higher one means an earlier event.

    `horizons` [H] rise, in the unit of `times`; `survival` float64 [n, H] in [0, 1] is the predicted probability to be free
    of the event at each, None for a model that gives risks only. `censoring` weighs by the inverse probability to be
    followed: fitted to the training slides, or to these; it is held fixed in replicates, as is usual, so that its own error
    is not in an interval.

    Metrics, each None where it is undefined (no pair that can be compared, no probability to be followed):

    - harrell_c: share of comparable pairs (the earlier time is an event) of which the earlier has the higher risk; ties in
      risk count half. Harrell et al. 1996. It depends on how long patients were followed.
    - uno_c: the same with pairs weighed by 1 / censoring^2, of events before the last horizon. Uno et al. 2011, Stat. Med.
      30:1105.
    - auc_at_<h>: events until h against those free of it after h. Cumulative / dynamic; Uno et al. 2007; Hung & Chiang 2010.
    - brier_at_<h>, integrated_brier (over the span of two or more horizons, trapezoid), in the weighting of Graf et al.
      1999, Stat. Med. 18:2529; only with `survival`. Where no row is followed beyond a horizon the first is undefined, and the
      second ends before it: nobody is left to stand for who was censored, and the events alone would look like a perfect answer.

    An event at T weighs 1 / censoring.before(T), as it precedes who is censored at T. scikit-survival takes `at` there, and
    differs where the two are tied, as in whole months.
    """

    times: Floats
    events: NDArray[np.bool_]
    risks: Floats
    censoring: CensoringCurve
    horizons: tuple[float, ...] = ()
    survival: Floats | None = None

    def __post_init__(self) -> None:
        times, events = checked_survival(self.times, self.events)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "events", events)
        object.__setattr__(self, "risks", checked_numbers("risks", self.risks, times.shape))
        if any(later <= earlier for earlier, later in zip((0.0, *self.horizons), self.horizons, strict=False)):
            raise ValueError(f"horizons must rise from above 0, got {self.horizons}")
        if self.survival is not None:
            shape = (len(times), len(self.horizons))
            object.__setattr__(self, "survival", checked_probabilities("survival", self.survival, shape))

    def __len__(self) -> int:
        return len(self.times)

    @property
    def strata(self) -> Ints:
        """Events and censored rows apart, 0 for the fewer."""
        return rarity(self.events.astype(np.int64), 2)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows with an event, and without."""
        events = int(self.events.sum())
        return {"censored": len(self) - events, "events": events}

    @property
    def truth(self) -> Sequence[NDArray[np.generic]]:
        """What is true of the rows."""
        return (self.times, self.events)

    def take(self, rows: Ints) -> Self:
        """The cases of these rows."""
        return type(self)(
            times=self.times[rows],
            events=self.events[rows],
            risks=self.risks[rows],
            censoring=self.censoring,
            horizons=self.horizons,
            survival=None if self.survival is None else self.survival[rows],
        )

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        once = self.replicates(np.ones((1, len(self))))
        return {name: float(column[0]) if np.isfinite(column[0]) else None for name, column in once.items()}

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for each row of `weights` [R, n]."""
        followed = self.censoring.before(self.times)
        inverse = np.divide(1.0, followed, out=np.full(len(self), np.nan), where=followed > 0)
        early = self.events & (self.times < (self.horizons[-1] if self.horizons else np.inf))
        result = {
            "harrell_c": self._concordance(weights, self.events, np.ones(len(self))),
            "uno_c": self._concordance(weights, early, inverse**2),
        }
        for horizon in self.horizons:
            result[f"auc_at_{horizon:g}"] = self._auc(weights, inverse, horizon)
        if self.survival is None:
            return result
        predicted = zip(self.horizons, self.survival.T, strict=True)
        briers = [self._brier(weights, inverse, horizon, free) for horizon, free in predicted]
        result |= {f"brier_at_{h:g}": column for h, column in zip(self.horizons, briers, strict=True)}
        if len(self.horizons) > 1:
            result["integrated_brier"] = self._integrated(weights, briers)
        return result

    def _concordance(self, weights: Floats, earlier: NDArray[np.bool_], importance: Floats) -> Floats:
        """Weighted share of the pairs whose first is in `earlier` and whose second outlives it, in the right order of risk."""
        right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        rows = np.flatnonzero(earlier)
        for begin in range(0, len(rows), _BLOCK):
            first = rows[begin : begin + _BLOCK, None]
            outlives = (self.times > self.times[first]) | ((self.times == self.times[first]) & ~self.events)
            wins = outlives * (np.sign(self.risks[first] - self.risks) + 1) / 2
            own = weights[:, first[:, 0]] * importance[first[:, 0]]
            right += np.einsum("rn,rn->r", own, weights @ wins.T)
            pairs += np.einsum("rn,rn->r", own, weights @ outlives.T.astype(np.float64))
        return ratio(right, pairs)

    def _auc(self, weights: Floats, inverse: Floats, horizon: float) -> Floats:
        event = self.events & (self.times <= horizon)
        seen = event | (self.times > horizon)
        if not seen.any() or np.isnan(inverse[event]).any():
            return np.full(len(weights), np.nan)
        own = weights[:, seen]
        return weighted_ranking(event[seen], self.risks[seen], own * np.nan_to_num(inverse[seen]), own)[0]

    def _brier(self, weights: Floats, inverse: Floats, horizon: float, predicted: Floats) -> Floats:
        followed = float(self.censoring.at(np.array([horizon]))[0])
        event, free = self.events & (self.times <= horizon), self.times > horizon
        if np.isnan(inverse[event]).any() or followed <= 0:
            return np.full(len(weights), np.nan)
        loss = np.where(event, predicted**2 * np.nan_to_num(inverse), 0.0)
        loss += np.where(free, (1 - predicted) ** 2 / followed, 0.0)
        return np.where(self._followed(weights, horizon), ratio(weights @ loss, weights.sum(axis=1)), np.nan)

    def _integrated(self, weights: Floats, briers: Sequence[Floats]) -> Floats:
        """Over the horizons beyond which a row of the replicate is followed."""
        reached = np.sum([self._followed(weights, horizon) for horizon in self.horizons], axis=0)
        result = np.full(len(weights), np.nan)
        for count in range(2, len(self.horizons) + 1):
            rows, horizons = reached == count, self.horizons[:count]
            area = np.trapezoid(np.stack(briers[:count], axis=1)[rows], horizons, axis=1)
            result[rows] = area / (horizons[-1] - horizons[0])
        return result

    def _followed(self, weights: Floats, horizon: float) -> NDArray[np.bool_]:
        """In which replicates a row is followed beyond a horizon, [R]."""
        return np.asarray(weights @ (self.times > horizon) > 0)
