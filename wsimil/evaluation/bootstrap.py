"""Confidence intervals by a bootstrap over patients, stratified by class, and of the difference of two models.

What is resampled: patients, whole, with all their rows. Each patient belongs to one stratum, that of its rarest class
(`Cases.strata`); a replicate draws, within each stratum, as many patients as there are, with replacement. So every replicate
has the strata's numbers of patients, and none loses a class that one patient at least has to itself. All replicates of a
block are computed at once, as weights of rows.

Intervals are BCa by default: with few patients and near 1 they come nearer to what they say than percentile intervals (AUROC
0.96 of 100 patients: 96 % against 89 %; `benchmarks/coverage.py`). Differences have percentile intervals, to which their
p-value belongs.

Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapters 8, 13 (percentile) and 14 (BCa); acceleration over
strata as in Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 5.3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from scipy.special import ndtr, ndtri

from wsimil.evaluation.cases import Cases, Floats, Ints

MOST_UNDEFINED = 0.05
"""The largest share of replicates without a value at which an interval is still given."""

_BLOCK = 250
_ROUNDING = 1e-12
"""Of its own size, what a metric may be off by rounding."""

Kind: TypeAlias = Literal["percentile", "bca"]
Metric: TypeAlias = "Callable[[C], float | None]"
C = TypeVar("C", bound=Cases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A metric with its interval, None where it is undefined.

    `replicates` are those in which it was defined, `undefined` the others. There is no interval where more than 5 % of the
    replicates are undefined, where a stratum has one patient only, or where all replicates are the same (a perfect model): such
    an interval would not know how patients spread. A metric that a bootstrap says something false of (expected calibration
    error) has neither interval nor replicates.
    """

    value: float | None
    low: float | None
    high: float | None
    replicates: int
    undefined: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A metric of two models on the same rows: `difference` is first less second, with its interval as in `Estimate`.

    `p_value`, in (0, 1], is two-sided and belongs to the percentile interval: twice the smaller share of replicates, drawn
    ones and the null, that lie on one side of 0. Its least is 2 / (replicates + 1).
    """

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    replicates: int
    undefined: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resampling:
    """Who is drawn: `owner` int64 [n], the patient of each row; `stratum` int64 [P], that of each patient."""

    owner: Ints
    stratum: Ints

    @property
    def smallest(self) -> int:
        """Patients in the smallest stratum, 0 where there are none at all."""
        return int(np.unique(self.stratum, return_counts=True)[1].min(initial=len(self.stratum)))

    def weights(self, replicates: int, *, seed: int) -> Iterator[Floats]:
        """How often each row is in each replicate, in blocks [<= 250, n]; the same for the same seed, whatever the metric."""
        rng = np.random.default_rng(seed)
        members = [np.flatnonzero(self.stratum == label) for label in np.unique(self.stratum)]
        for begin in range(0, replicates, _BLOCK):
            size = min(_BLOCK, replicates - begin)
            drawn = np.zeros((size, len(self.stratum)))
            for patients in members:
                count = len(patients)
                picks = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
                drawn[:, patients] = np.bincount(picks.ravel(), minlength=size * count).reshape(size, count)
            yield drawn[:, self.owner]

    def left_out(self) -> Iterator[Floats]:
        """Weights with one patient less, for each patient in order, in blocks [<= 250, n]."""
        for begin in range(0, len(self.stratum), _BLOCK):
            patients = np.arange(begin, min(begin + _BLOCK, len(self.stratum)))
            yield (self.owner != patients[:, None]).astype(np.float64)


def resampling(patients: Sequence[str], strata: Ints) -> Resampling:
    """Patients as they are drawn, for rows of `patients` [n] in `strata` [n]; a patient goes where its lowest stratum is."""
    if len(patients) != len(strata):
        raise ValueError(f"{len(patients)} patients for {len(strata)} rows; give the patient of each row")
    names, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    stratum = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(stratum, owner, strata)
    return Resampling(owner=owner.astype(np.int64), stratum=stratum)


def resampling_of_both(first: Cases, second: Cases, patients: Sequence[str]) -> Resampling:
    """As `resampling`, for two models on the same rows. Raises ValueError where they do not hold the same truth row by row."""
    pairs = zip(first.truth, second.truth, strict=True)
    if len(first) != len(second) or not all(np.array_equal(ours, theirs) for ours, theirs in pairs):
        raise ValueError(
            f"two models are compared on the same rows, got {len(first)} and {len(second)} rows in another order or with another"
            " truth; match them by slide first"
        )
    return resampling(patients, first.strata)


def estimates(
    cases: Cases,
    patients: Sequence[str],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    kind: Kind = "bca",
) -> dict[str, Estimate]:
    """Every metric of `cases` with its interval; `patients` [n] names the patient of each row."""
    plan = resampling(patients, cases.strata)
    return intervals(cases.values(), cases.replicates, plan, replicates=replicates, level=level, seed=seed, kind=kind)


def estimate(
    cases: C,
    metric: Metric[C],
    patients: Sequence[str],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    kind: Kind = "bca",
) -> Estimate:
    """Any metric of cases with its interval, replicate by replicate; the draws are those of `estimates`."""
    plan = resampling(patients, cases.strata)
    found = intervals(
        {"": metric(cases)}, _one_by_one(cases, metric), plan, replicates=replicates, level=level, seed=seed, kind=kind
    )
    return found[""]


def differences(
    first: C,
    second: C,
    patients: Sequence[str],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    kind: Kind = "percentile",
) -> dict[str, Difference]:
    """Every metric of two models on the same rows in the same order, both drawn with the same patients in each replicate.

    Raises ValueError where they do not hold the same truth row by row; the caller matches rows by slide.
    """
    plan = resampling_of_both(first, second, patients)

    def both(weights: Floats) -> dict[str, Floats]:
        ours, theirs = first.replicates(weights), second.replicates(weights)
        return {name: ours[name] - theirs[name] for name in ours}

    return difference_intervals(
        first.values(), second.values(), both, plan, replicates=replicates, level=level, seed=seed, kind=kind
    )


def difference(
    first: C,
    second: C,
    metric: Metric[C],
    patients: Sequence[str],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    kind: Kind = "percentile",
) -> Difference:
    """Any metric of two models on the same rows, replicate by replicate."""
    plan = resampling_of_both(first, second, patients)
    ours, theirs = _one_by_one(first, metric), _one_by_one(second, metric)

    def both(weights: Floats) -> dict[str, Floats]:
        return {"": ours(weights)[""] - theirs(weights)[""]}

    return difference_intervals(
        {"": metric(first)}, {"": metric(second)}, both, plan, replicates=replicates, level=level, seed=seed, kind=kind
    )[""]


def intervals(
    values: Mapping[str, float | None],
    replicated: Callable[[Floats], Mapping[str, Floats]],
    plan: Resampling,
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    kind: Kind = "bca",
) -> dict[str, Estimate]:
    """Intervals of `values`, of which `replicated` gives the replicates for weights [R, n]; what `estimates` is made of."""
    draw = _Draw(plan=plan, replicates=replicates, level=level, seed=seed, kind=kind)
    drawn, lost = draw.of(replicated, values)
    result = {}
    for name, value in values.items():
        if name in drawn and value is not None:
            drawn[name] = _without_rounding(drawn[name], value, size=abs(value))
        kept, (low, high) = draw.interval(value, drawn.get(name), lost.get(name))
        result[name] = Estimate(
            value=value,
            low=low,
            high=high,
            replicates=len(kept),
            undefined=0 if name not in drawn else replicates - len(kept),
        )
    return result


def difference_intervals(
    first: Mapping[str, float | None],
    second: Mapping[str, float | None],
    replicated: Callable[[Floats], Mapping[str, Floats]],
    plan: Resampling,
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    kind: Kind = "percentile",
) -> dict[str, Difference]:
    """Intervals of `first` less `second`, of which `replicated` gives replicates; what `differences` is made of."""
    draw = _Draw(plan=plan, replicates=replicates, level=level, seed=seed, kind=kind)
    drawn, lost = draw.of(replicated, first)
    result = {}
    for name, ours in first.items():
        theirs = second[name]
        value = None if ours is None or theirs is None else ours - theirs
        if name in drawn and ours is not None and theirs is not None:
            for meant in (ours - theirs, 0.0):
                drawn[name] = _without_rounding(drawn[name], meant, size=max(abs(ours), abs(theirs)))
        kept, (low, high) = draw.interval(value, drawn.get(name), lost.get(name))
        result[name] = Difference(
            first=ours,
            second=theirs,
            difference=value,
            low=low,
            high=high,
            p_value=None if low is None else _p_value(kept),
            replicates=len(kept),
            undefined=0 if name not in drawn else replicates - len(kept),
        )
    return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Draw:
    plan: Resampling
    replicates: int
    level: float
    seed: int
    kind: Kind

    def __post_init__(self) -> None:
        if self.replicates < 1 or not 0 < self.level < 1:
            raise ValueError(f"got {self.replicates} replicates and level {self.level}; want >= 1 and in (0, 1)")

    def of(
        self, replicated: Callable[[Floats], Mapping[str, Floats]], names: Iterable[str]
    ) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """The replicates of every name, and for BCa its values with each patient left out."""
        if not len(self.plan.owner):
            return {name: np.full(self.replicates, np.nan) for name in names}, {}
        drawn = _gather(replicated, self.plan.weights(self.replicates, seed=self.seed), names)
        return drawn, _gather(replicated, self.plan.left_out(), names) if self.kind == "bca" else {}

    def interval(
        self, value: float | None, column: Floats | None, lost: Floats | None
    ) -> tuple[Floats, tuple[float, float] | tuple[None, None]]:
        """The defined replicates, sorted, and the interval where it can be told."""
        if column is None:
            return np.zeros(0), (None, None)
        kept = np.sort(column[np.isfinite(column)])
        if value is None or self.plan.smallest < 2 or len(kept) < (1 - MOST_UNDEFINED) * self.replicates:
            return kept, (None, None)
        if kept[0] == kept[-1]:
            return kept, (None, None)
        tails = np.array([(1 - self.level) / 2, (1 + self.level) / 2])
        if lost is not None:
            tails = _bca(tails, value, kept, lost, self.plan)
        if not np.isfinite(tails).all():
            return kept, (None, None)
        low, high = np.quantile(kept, tails).tolist()
        return kept, (low, high)


def _without_rounding(column: Floats, meant: float, *, size: float) -> Floats:
    """`column` with what differs from `meant` by the rounding of a metric of `size` alone at `meant`.

    The value and its replicates are summed in other orders: what is equal would lie below or above, as chance has it.
    """
    return np.where(np.abs(column - meant) <= _ROUNDING * size, meant, column)


def _p_value(kept: Floats) -> float:
    side = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(kept) + 1))


def _bca(tails: Floats, value: float, kept: Floats, lost: Floats, plan: Resampling) -> Floats:
    """The quantiles of replicates that bias correction and acceleration take in place of `tails`; NaN where there are none."""
    if not np.isfinite(lost).all():
        return np.full(2, np.nan)
    below = (np.searchsorted(kept, value, "left") + np.searchsorted(kept, value, "right")) / (2 * len(kept))
    bias = ndtri(below)
    cubes = squares = 0.0
    for label in np.unique(plan.stratum):
        member = lost[plan.stratum == label]
        pull = (len(member) - 1) * (member.mean() - member)
        cubes += float((pull**3).sum()) / len(member) ** 3
        squares += float((pull**2).sum()) / len(member) ** 2
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    shifted = bias + ndtri(tails)
    return np.asarray(ndtr(bias + shifted / (1 - acceleration * shifted)), dtype=np.float64)


def _one_by_one(cases: C, metric: Metric[C]) -> Callable[[Floats], dict[str, Floats]]:
    rows = np.arange(len(cases))

    def replicated(weights: Floats) -> dict[str, Floats]:
        found = (metric(cases.take(np.repeat(rows, row.astype(np.int64)))) for row in weights)
        return {"": np.array([np.nan if value is None else value for value in found], dtype=np.float64)}

    return replicated


def _gather(
    replicated: Callable[[Floats], Mapping[str, Floats]], blocks: Iterable[Floats], names: Iterable[str]
) -> dict[str, Floats]:
    parts = [replicated(block) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in names if name in parts[0]}
