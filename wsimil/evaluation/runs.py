"""Metrics over runs: folds and seeds of one recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from wsimil.evaluation.bootstrap import (
    Difference,
    Estimate,
    Resampling,
    difference_intervals,
    intervals,
    resampling,
    resampling_of_both,
)
from wsimil.evaluation.cases import Cases, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpread:
    """A metric over runs (folds, seeds): how it differs between them, and two figures for all of them.

    `mean`, `sd` (n - 1; None for one run), `least`, `most` are over the `runs` in which it is defined; the sd
    is no standard error, as folds share training slides. `averaged` is the mean over runs with an interval over patients,
    each replicate drawing the same patients in all runs; None where it is undefined in one of them. Of folds that hold two
    patients of a class its interval is somewhat too narrow (90 % where 95 % is stated). `pooled` takes the rows of all runs as
    one: for ranks (AUROC) it compares scores across models, which makes it lower where folds differ in scale (Forman & Scholz
    2010, SIGKDD Explorations).
    """

    runs: int
    mean: float | None
    sd: float | None
    least: float | None
    most: float | None
    averaged: Estimate
    pooled: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """What a difference would be if both were trained anew, on other slides and from other seeds: its interval, and a two-sided
    p-value.

    Student's t over rounds of splits, each the mean over its seeds, with a variance that counts what rounds share: 1 / n + test /
    train in place of 1 / n. Nadeau & Bengio 2003, "Inference for the generalization error", Machine Learning 52:239.
    """

    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRuns:
    """A metric of two recipes over the `runs` that both have, of `rounds` of splits.

    `difference`: of the means over runs, first less second, with an interval over patients, each replicate drawing the same
    patients in all runs of both: what these very models would differ by on other patients. `retrained`: what the recipes would
    differ by, about the mean over rounds, each of them the mean over its seeds; None of one round, where more than half of the
    patients are tested on in all rounds, and where the difference is undefined or the same in all rounds.
    """

    runs: int
    rounds: int
    difference: Difference
    retrained: Retrained | None


def over_runs(
    cases: Cases,
    runs: Sequence[str],
    patients: Sequence[str],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, RunSpread]:
    """Every metric over runs: `runs` [n] names the fold or seed that each row was answered in; a slide has a row for each of
    its runs.

    Pooled rows draw patients within their class, as rows of one run do. For the mean over runs they are drawn within their set of
    runs too, so that a replicate leaves no fold without the classes it has; but not where one of a class is alone in its set, as
    most are where folds are repeated. What too many replicates then leave undefined in a fold has no interval.
    """
    plan = resampling(patients, cases.strata)
    parts = _Parts.of(cases, runs)
    pooled = intervals(cases.values(), cases.replicates, plan, replicates=replicates, level=level, seed=seed)
    averaged = intervals(
        parts.means(pooled),
        parts.mean_replicates,
        parts.drawn_within(plan),
        replicates=replicates,
        level=level,
        seed=seed,
    )
    return {
        name: _spread([values[name] for values in parts.values], averaged=averaged[name], pooled=pooled[name])
        for name in pooled
    }


def between_runs(
    first: Cases,
    second: Cases,
    runs: Sequence[str],
    patients: Sequence[str],
    *,
    rounds: Mapping[str, str],
    test_share: float,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedRuns]:
    """Every metric of two recipes on the same rows in the same order; `runs` [n] names the run that each row was answered in, the
    same for both.

    `rounds` names the round of splits of each run, and `test_share` is how many times as many units a round tests on as it learns
    from. Raises ValueError where the two do not hold the same truth row by row.
    """
    plan = resampling_of_both(first, second, patients)
    ours, theirs = _Parts.of(first, runs), _Parts.of(second, runs)

    def both(weights: Floats) -> dict[str, Floats]:
        mine, others = ours.mean_replicates(weights), theirs.mean_replicates(weights)
        return {name: mine[name] - others[name] for name in mine}

    tested: dict[str, set[str]] = {}
    for run, patient in zip(runs, patients, strict=True):
        tested.setdefault(rounds[run], set()).add(patient)
    sets = [*tested.values()]
    alike = bool(sets) and 2 * len(set.intersection(*sets)) > len(set.union(*sets))
    metrics = first.values()
    found = difference_intervals(
        ours.means(metrics), theirs.means(metrics), both, ours.drawn_within(plan),
        replicates=replicates, level=level, seed=seed,
    )  # fmt: skip
    result = {}
    for name, one in found.items():
        by_round: dict[str, list[float]] = {}
        for run, mine, other in zip(ours.names, ours.values, theirs.values, strict=True):
            if (value := mine[name]) is not None and (less := other[name]) is not None:
                by_round.setdefault(rounds[run], []).append(value - less)
        each = np.array([np.mean(values) for values in by_round.values()])
        result[name] = PairedRuns(
            runs=len(ours.names),
            rounds=len(tested),
            difference=one,
            retrained=None if alike or one.difference is None else retrained(each, test_share=test_share, level=level),
        )
    return result


def retrained(differences: Floats, *, test_share: float, level: float = 0.95) -> Retrained | None:
    """Of `differences` [rounds]; `test_share` as in `between_runs`.

    None of fewer than two rounds, and where all differ by the same, but for rounding: their spread says nothing then.
    """
    count = len(differences)
    if count < 2 or np.allclose(differences, differences[0], rtol=1e-9, atol=1e-12):
        return None
    middle = float(differences.mean())
    error = float(differences.std(ddof=1)) * (1 / count + test_share) ** 0.5
    reach = float(t.ppf((1 + level) / 2, count - 1)) * error
    p_value = float(2 * t.sf(abs(middle) / error, count - 1))
    return Retrained(low=middle - reach, high=middle + reach, p_value=p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p-values corrected for how many they are: the chance of one false finding among them stays as stated.

    Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    count, highest = len(p_values), 0.0
    corrected = [0.0] * count
    for place, index in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (count - place) * p_values[index]))
        corrected[index] = highest
    return corrected


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """Cases run by run: their `names` in order, `rows` of each among all, the cases and their metrics; `run_of` [n] by row."""

    names: tuple[str, ...]
    run_of: Ints
    rows: tuple[Ints, ...]
    cases: tuple[Cases, ...]
    values: tuple[Mapping[str, float | None], ...]

    @classmethod
    def of(cls, cases: Cases, runs: Sequence[str]) -> _Parts:
        if len(runs) != len(cases):
            raise ValueError(f"{len(runs)} runs for {len(cases)} rows; give the run of each row")
        names, run_of = np.unique(np.asarray(runs, dtype=str), return_inverse=True)
        rows = tuple(np.flatnonzero(run_of == index) for index in range(len(names)))
        parts = tuple(cases.take(own) for own in rows)
        return cls(
            names=tuple(names.tolist()),
            run_of=run_of.astype(np.int64),
            rows=rows,
            cases=parts,
            values=tuple(part.values() for part in parts),
        )

    def means(self, metrics: Iterable[str]) -> dict[str, float | None]:
        """Metrics as means over runs, None where one is undefined in one of them."""
        result: dict[str, float | None] = {}
        for name in metrics:
            known = [value for one in self.values if (value := one[name]) is not None]
            result[name] = float(np.mean(known)) if known and len(known) == len(self.values) else None
        return result

    def mean_replicates(self, weights: Floats) -> dict[str, Floats]:
        """The same for each replicate; `weights` [R, n] are those of all rows."""
        found = [part.replicates(weights[:, rows]) for part, rows in zip(self.cases, self.rows, strict=True)]
        return {name: np.mean([one[name] for one in found], axis=0) for name in (found[0] if found else {})}

    def drawn_within(self, plan: Resampling) -> Resampling:
        """The plan by which patients are drawn within their set of runs, where that can be."""
        within = _within_runs(plan, self.run_of)
        return plan if within.smallest < 2 else within


def _spread(values: Sequence[float | None], *, averaged: Estimate, pooled: Estimate) -> RunSpread:
    known = [value for value in values if value is not None]
    return RunSpread(
        runs=len(known),
        mean=float(np.mean(known)) if known else None,
        sd=float(np.std(known, ddof=1)) if len(known) > 1 else None,
        least=min(known, default=None),
        most=max(known, default=None),
        averaged=averaged,
        pooled=pooled,
    )


def _within_runs(plan: Resampling, run_of: Ints) -> Resampling:
    """The same patients, in strata that know the set of runs of a patient too."""
    member = np.zeros((len(plan.stratum), int(run_of.max(initial=-1)) + 1), dtype=np.int64)
    member[plan.owner, run_of] = 1
    keys = np.column_stack([plan.stratum, member])
    _, stratum = np.unique(keys, axis=0, return_inverse=True)
    return Resampling(owner=plan.owner, stratum=stratum.reshape(-1).astype(np.int64))
