"""Metrics over runs: folds and seeds of one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsimil.evaluation.bootstrap import Estimate, Resampling, intervals, resampling
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
    if len(runs) != len(cases) or len(patients) != len(cases):
        raise ValueError(f"{len(runs)} runs and {len(patients)} patients for {len(cases)} rows; give those of each row")
    run_names, run_of = np.unique(np.asarray(runs, dtype=str), return_inverse=True)
    rows_of = [np.flatnonzero(run_of == index) for index in range(len(run_names))]
    parts = [cases.take(rows) for rows in rows_of]
    each = [part.values() for part in parts]
    plan = resampling(patients, cases.strata)

    def averages(weights: Floats) -> dict[str, Floats]:
        found = [part.replicates(weights[:, rows]) for part, rows in zip(parts, rows_of, strict=True)]
        return {name: np.mean([one[name] for one in found], axis=0) for name in (found[0] if found else {})}

    pooled = intervals(cases.values(), cases.replicates, plan, replicates=replicates, level=level, seed=seed)
    means: dict[str, float | None] = {}
    for name in pooled:
        column = [values[name] for values in each]
        known = [value for value in column if value is not None]
        means[name] = float(np.mean(known)) if known and len(known) == len(column) else None
    within = _within_runs(plan, run_of.astype(np.int64))
    kept = plan if within.smallest < 2 else within
    averaged = intervals(means, averages, kept, replicates=replicates, level=level, seed=seed)
    return {
        name: _spread([values[name] for values in each], averaged=averaged[name], pooled=pooled[name])
        for name in pooled
    }


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
