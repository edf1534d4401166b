"""A number for each slide: how far predictions are from it, and how well they follow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from wsimil.evaluation.cases import Floats, Ints, checked_numbers, ratio

NAMES = ("mae", "rmse", "r2", "pearson", "spearman")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegressionCases:
    """`targets` and `predictions`, float64 [n].

    Metrics: mae, rmse in the unit of the targets, None without rows; r2 (coefficient of determination, at most 1), None
    where targets are all the same; pearson, spearman (equal values share their rank), in [-1, 1], None where targets or
    predictions are all the same.
    """

    targets: Floats
    predictions: Floats

    def __post_init__(self) -> None:
        shape = (len(self.targets),)
        for name in ("targets", "predictions"):
            object.__setattr__(self, name, checked_numbers(name, getattr(self, name), shape))

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def strata(self) -> Ints:
        """All rows in one."""
        return np.zeros(len(self), np.int64)

    @property
    def counts(self) -> Mapping[str, int]:
        """Nothing is counted."""
        return {}

    @property
    def truth(self) -> Sequence[NDArray[np.generic]]:
        """What is true of the rows."""
        return (self.targets,)

    def take(self, rows: Ints) -> Self:
        """The cases of these rows."""
        return type(self)(targets=self.targets[rows], predictions=self.predictions[rows])

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        if not len(self):
            return dict.fromkeys(NAMES)
        truth, found = self.targets, self.predictions
        spread = np.ptp(truth) > 0
        both = bool(spread and np.ptp(found) > 0)
        return {
            "mae": float(sk.mean_absolute_error(truth, found)),
            "rmse": float(sk.root_mean_squared_error(truth, found)),
            "r2": float(sk.r2_score(truth, found)) if spread else None,
            "pearson": float(stats.pearsonr(truth, found).statistic) if both else None,
            "spearman": float(stats.spearmanr(truth, found).statistic) if both else None,
        }

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for each row of `weights` [R, n]."""
        total = weights.sum(axis=1)
        off = self.predictions - self.targets
        squares = ratio(weights @ off**2, total)
        spread = _covariance(self.targets, self.targets, weights)
        return {
            "mae": ratio(weights @ np.abs(off), total),
            "rmse": np.sqrt(squares),
            "r2": np.where(_varied(self.targets, weights), 1 - ratio(squares, spread), np.nan),
            "pearson": self._correlation(self.targets, self.predictions, weights),
            "spearman": self._correlation(
                _weighted_ranks(self.targets, weights), _weighted_ranks(self.predictions, weights), weights
            ),
        }

    def _correlation(self, first: Floats, second: Floats, weights: Floats) -> Floats:
        varied = _varied(self.targets, weights) & _varied(self.predictions, weights)
        norm = np.sqrt(_covariance(first, first, weights) * _covariance(second, second, weights))
        return np.where(varied, np.clip(ratio(_covariance(first, second, weights), norm), -1, 1), np.nan)


def _covariance(first: Floats, second: Floats, weights: Floats) -> Floats:
    """Weighted covariance, [R], of numbers [n] or [R, n]."""
    shares = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    one = first - (shares * first).sum(axis=1, keepdims=True)
    other = second - (shares * second).sum(axis=1, keepdims=True)
    return np.asarray((shares * one * other).sum(axis=1))


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """The rank that each value has in each replicate, [R, n]; equal values share theirs."""
    levels, level_of = np.unique(values, return_inverse=True)
    order = np.argsort(level_of, kind="stable")
    starts = np.searchsorted(level_of[order], np.arange(len(levels)))
    mass = np.add.reduceat(weights[:, order], starts, axis=1)
    return (mass.cumsum(axis=1) - (mass - 1) / 2)[:, level_of]


def _varied(values: Floats, weights: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    there = weights > 0
    high = np.where(there, values, -np.inf).max(axis=1, initial=-np.inf)
    return np.asarray(high > np.where(there, values, np.inf).min(axis=1, initial=np.inf))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeveralNumbersCases:
    """Several numbers a slide: "<metric>:<name>" for each metric of `RegressionCases`, and "<metric>", the mean over names."""

    names: tuple[str, ...]
    numbers: tuple[RegressionCases, ...]

    def __post_init__(self) -> None:
        rows = {len(one) for one in self.numbers}
        if len(self.names) != len(self.numbers) or len(set(self.names)) != len(self.names) or len(rows) != 1:
            raise ValueError(
                f"want a unique name for each number, all of as many rows, got {self.names} and {rows} rows"
            )

    def __len__(self) -> int:
        return len(self.numbers[0])

    @property
    def strata(self) -> Ints:
        """All rows in one."""
        return self.numbers[0].strata

    @property
    def counts(self) -> Mapping[str, int]:
        """Nothing is counted."""
        return {}

    @property
    def truth(self) -> Sequence[NDArray[np.generic]]:
        """What is true of the rows."""
        return tuple(one.targets for one in self.numbers)

    def take(self, rows: Ints) -> Self:
        """The cases of these rows."""
        return type(self)(names=self.names, numbers=tuple(one.take(rows) for one in self.numbers))

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        each = [one.values() for one in self.numbers]
        found = {
            f"{metric}:{name}": row[metric] for metric in NAMES for name, row in zip(self.names, each, strict=True)
        }
        means: dict[str, float | None] = {}
        for metric in NAMES:
            known = [value for row in each if (value := row[metric]) is not None]
            means[metric] = float(np.mean(known)) if len(known) == len(each) else None
        return means | found

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for each row of `weights` [R, n]."""
        each = [one.replicates(weights) for one in self.numbers]
        found = {
            f"{metric}:{name}": row[metric] for metric in NAMES for name, row in zip(self.names, each, strict=True)
        }
        return {metric: np.mean([row[metric] for row in each], axis=0) for metric in NAMES} | found
