"""Metrics site by site, scanner by scanner: never a bare number where there are too few patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.bootstrap import Estimate, estimates
from wsimil.evaluation.cases import Cases, Ints
from wsimil.evaluation.multilabel import MultilabelCases

FEWEST_PATIENTS = 5
"""The fewest patients of a stratum (a class, or all where there are none) of which a group shows numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One group: its rows and patients, how many of each class or event (`Cases.counts`), and its metrics with intervals.

    Where a class has fewer than 5 patients, `too_few` says what is missing, else it is None, and `estimates` is empty; of
    several labels, each counted for itself, it lacks those with too few and the means over labels alone.
    """

    group: str
    rows: int
    patients: int
    counts: Mapping[str, int]
    estimates: Mapping[str, Estimate]
    too_few: str | None


def by_group(
    cases: Cases,
    groups: Sequence[str],
    patients: Sequence[str],
    *,
    fewest: int = FEWEST_PATIENTS,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[GroupRow, ...]:
    """Every metric within each group, in the groups' order by name; `groups` [n] names that of each row, "" where it is not
    known."""
    if len(groups) != len(cases) or len(patients) != len(cases):
        raise ValueError(
            f"{len(groups)} groups and {len(patients)} patients for {len(cases)} rows; give those of each row"
        )
    names = np.asarray(groups, dtype=str)
    owners = np.asarray(patients, dtype=str)
    kinds = np.unique(cases.strata)
    result = []
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        part, own = cases.take(rows), owners[rows]
        too_few = _missing(cases.strata[rows], own, kinds, fewest)
        found: Mapping[str, Estimate] = {}
        if too_few is None:
            found = estimates(part, own.tolist(), replicates=replicates, level=level, seed=seed)
            short = _short_labels(part, own, fewest) if isinstance(part, MultilabelCases) else {}
            if short:
                too_few = "; ".join(f"label {label}: {missing}" for label, missing in short.items())
                parts = {metric: metric.partition(":") for metric in found}
                found = {metric: found[metric] for metric, (_, colon, of) in parts.items() if colon and of not in short}
        result.append(
            GroupRow(
                group=str(name),
                rows=len(rows),
                patients=len(np.unique(own)),
                counts=part.counts,
                estimates=found,
                too_few=too_few,
            )
        )
    return tuple(result)


def _short_labels(cases: MultilabelCases, patients: NDArray[np.str_], fewest: int) -> dict[str, str]:
    """What is missing of each label that too few patients are known to have, or not to have."""
    kinds = np.array([0, 1])
    found = {label: _missing(cases.targets[:, i], patients, kinds, fewest) for i, label in enumerate(cases.labels)}
    return {label: missing for label, missing in found.items() if missing is not None}


def _missing(strata: Ints, patients: NDArray[np.str_], kinds: Ints, fewest: int) -> str | None:
    counts = [len(np.unique(patients[strata == kind])) for kind in kinds]
    if min(counts, default=0) >= fewest:
        return None
    what = "patients" if len(kinds) == 1 else "patients of a class"
    return f"{min(counts, default=0)} {what}, {fewest} are needed"
