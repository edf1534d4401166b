"""Many slides: means with intervals over patients, mean curves, and what a map may be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsimil.evaluation.bootstrap import Estimate, intervals, resampling
from wsimil.evaluation.cases import Floats

FEW_PATIENTS = 6
"""With fewer, not even a map that wins on every patient would be told from chance by a sign test at 5 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a map beats random orders: True, False, or None where no interval could be told; `words` say it.

    The lower end of the interval of SRG less that of random orders must be above 0. Only then the words call the map an
    explanation, and attention never.
    """

    beats_random: bool | None
    words: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanCurve:
    """A mean over slides at each share, with its interval where there is one."""

    mean: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


def means(
    rows: Sequence[Mapping[str, float]], patients: Sequence[str], *, replicates: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """The mean of every number over the rows in which it is defined, with a 95 % BCa interval over patients.

    A name that a row lacks, or has NaN for, is undefined there.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float64)
    return dict(zip(names, _mean_columns(table, patients, replicates=replicates, seed=seed), strict=True))


def mean_curve(curves: Floats, patients: Sequence[str], *, replicates: int = 2000, seed: int = 0) -> MeanCurve:
    """The mean of curves [n, S] of n slides, with intervals as in `means`."""
    found = _mean_columns(curves, patients, replicates=replicates, seed=seed)
    return MeanCurve(
        mean=tuple(float("nan") if one.value is None else one.value for one in found),
        low=tuple(one.low for one in found),
        high=tuple(one.high for one in found),
    )


def verdict(margin: Estimate, *, patients: int, evidence: bool = True) -> Verdict:
    """What a map may be called, by the margin of its SRG over random orders; not `evidence` is what has no sign: attention.

    Nothing is told of fewer than `FEW_PATIENTS`.
    """
    if margin.low is None or margin.high is None or patients < FEW_PATIENTS:
        return Verdict(
            beats_random=None,
            words="Whether this map beats random order cannot be told: there are too few patients for an interval, or all"
            " are alike.",
        )
    interval = f"{margin.low:+.3f} to {margin.high:+.3f}"
    if margin.low > 0:
        meaning = (
            "it may be called an explanation of the answers"
            if evidence
            else "yet attention tells where the model looks, not what speaks for its answer"
        )
        return Verdict(
            beats_random=True,
            words=f"This map beats random order (SRG above random by {margin.value:+.3f}, 95 % interval {interval}):"
            f" {meaning}.",
        )
    return Verdict(
        beats_random=False,
        words=f"This is a map that does not beat random order (SRG above random by {margin.value:+.3f}, 95 % interval"
        f" {interval}): it does not show what the answers rest on.",
    )


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's correlation of two maps of one slide, equal scores sharing their rank; NaN where one is constant."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(first), rankdata(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = float(np.sqrt((ranks**2).sum(axis=1)).prod())
    return float((ranks[0] * ranks[1]).sum()) / size if size else float("nan")


def _mean_columns(table: Floats, patients: Sequence[str], *, replicates: int, seed: int) -> list[Estimate]:
    """The mean of each column of [n, K] over its defined rows; replicates of all columns come from the same draws."""
    names = [str(column) for column in range(table.shape[1])]
    there = np.isfinite(table)
    filled = np.where(there, table, 0.0)

    def replicated(weights: Floats) -> dict[str, Floats]:
        counts = weights @ there
        drawn = np.divide(weights @ filled, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        return dict(zip(names, drawn.T, strict=True))

    whole = replicated(np.ones((1, len(table))))
    values = {name: float(column[0]) if np.isfinite(column[0]) else None for name, column in whole.items()}
    plan = resampling(patients, np.zeros(len(table), np.int64))
    found = intervals(values, replicated, plan, replicates=replicates, seed=seed)
    return [found[name] for name in names]
