"""Draws of patients, even over strata, the same whatever the order they are given in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from wsimil.errors import CohortError


def shuffled(strata: Mapping[str, str], rng: np.random.Generator) -> list[list[str]]:
    """The patients of each stratum in random order, strata by name; `strata` is patient -> stratum, in any order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(strata):
        groups[strata[patient]].append(patient)
    return [[groups[name][i] for i in rng.permutation(len(groups[name]))] for name in sorted(groups)]


def draw_fraction(
    strata: Mapping[str, str], fraction: float, rng: np.random.Generator, split: str, *, classes: bool
) -> set[str]:
    """A share of the patients of each stratum, one at least, and one at least left.

    Raises CohortError where there is but one and strata are `classes`, which both sides need; of others it is left.
    """
    drawn: set[str] = set()
    for group in shuffled(strata, rng):
        if len(group) < 2 and classes:
            raise CohortError(
                f"class {strata[group[0]]!r} has one patient left, {group[0]!r}; the {split} split would leave none for"
                " training: give splits in the cohort's split column, or add patients"
            )
        drawn.update(group[: min(len(group) - 1, max(1, round(fraction * len(group))))])
    return drawn


def refuse_few(stratum: str, patients: int, folds: int) -> None:
    """Raises CohortError for a stratum with fewer patients than there are folds, as it is called in the message."""
    if patients >= folds:
        return
    if patients > 1:
        remedy = f"ask for {patients} folds or fewer"
    else:
        remedy = "folds need two at least: add patients, or take these slides out of the cohort"
    raise CohortError(
        f"{stratum} has {patients} patient{'s' * (patients != 1)}, fewer than the {folds} folds; {remedy}"
    )


def draw_folds(strata: Mapping[str, str], folds: int, rng: np.random.Generator) -> list[set[str]]:
    """Patients dealt to folds, stratum after stratum: folds differ by one patient at most, and so do those of each stratum."""
    parts: list[set[str]] = [set() for _ in range(folds)]
    dealt = 0
    for group in shuffled(strata, rng):
        for patient in group:
            parts[dealt % folds].add(patient)
            dealt += 1
    return parts
