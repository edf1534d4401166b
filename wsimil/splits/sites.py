"""Folds of whole sites, so that no site is learned from and tested on, with every class as even over the folds as can be found.

Howard et al. 2021, Nature Communications 12:4423: models recognize the site of a slide. They solve a quadratic program with a
commercial solver; here moves and swaps of sites are tried from many starts, which finds the optimum where it can be checked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import CohortError

_STARTS = 32


def site_folds(
    sites: Mapping[str, Sequence[str]], strata: Mapping[str, str], folds: int, rng: np.random.Generator
) -> list[set[str]]:
    """Patients of each fold; `sites` are those of each patient, and sites that share a patient stay together.

    Raises CohortError for a patient without a site, or fewer groups of sites than folds.
    """
    groups = _joined(sites)
    if len(groups) < folds:
        raise CohortError(
            f"{len(groups)} sites (or groups of sites that share patients) do not fill {folds} folds; ask for {len(groups)} or"
            " fewer, or draw folds without preserving sites"
        )
    names = sorted(set(strata.values()))
    counts = np.array([[sum(strata[p] == name for p in group) for name in names] for group in groups], dtype=np.int64)
    dealt = even_folds(counts, folds, rng)
    parts: list[set[str]] = [set() for _ in range(folds)]
    for group, fold in zip(groups, dealt, strict=True):
        parts[fold].update(group)
    return parts


def even_folds(counts: NDArray[np.int64], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each group, so that `unevenness` is small and no fold is empty; `counts` [G, S] are of strata, G >= folds."""
    found = [_improved(_dealt(counts, folds, rng), counts, folds) for _ in range(_STARTS)]
    return min(found, key=lambda dealt: round(unevenness(dealt, counts, folds), 12))


def unevenness(dealt: NDArray[np.int64], counts: NDArray[np.int64], folds: int) -> float:
    """Sum over folds and strata of the squared difference from an equal share, as shares of the stratum."""
    return float((np.square(_sums(dealt, counts, folds) - 1 / folds)).sum())


def _sums(dealt: NDArray[np.int64], counts: NDArray[np.int64], folds: int) -> NDArray[np.float64]:
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    sums = np.zeros((folds, counts.shape[1]))
    np.add.at(sums, dealt, shares)
    return sums


def _dealt(counts: NDArray[np.int64], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Groups in a random order that puts large ones first, each to the fold that is best for it."""
    size = counts.sum(axis=1) * rng.uniform(0.5, 1.5, len(counts))
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    dealt = np.full(len(counts), -1, dtype=np.int64)
    sums, held = np.zeros((folds, counts.shape[1])), np.zeros(folds, dtype=np.int64)
    for left, group in zip(range(len(counts), 0, -1), np.argsort(-size, kind="stable"), strict=True):
        added = np.square(sums + shares[group] - 1 / folds).sum(axis=1) - np.square(sums - 1 / folds).sum(axis=1)
        if left <= int((held == 0).sum()):
            added[held > 0] = np.inf
        fold = int(added.argmin())
        dealt[group], sums[fold], held[fold] = fold, sums[fold] + shares[group], held[fold] + 1
    return dealt


def _improved(dealt: NDArray[np.int64], counts: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Moves of a group and swaps of two, the best one each time, until none helps."""
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    dealt = dealt.copy()
    pairs = np.array([(a, b) for a in range(len(dealt)) for b in range(a)], dtype=np.int64).reshape(-1, 2)
    while True:
        off = _sums(dealt, counts, folds) - 1 / folds
        own = off[dealt]
        # |off + d|^2 - |off|^2 = 2 off.d + |d|^2, for what a fold loses and another gains.
        square = np.square(shares).sum(axis=1)
        lose = -2 * (own * shares).sum(axis=1) + square
        gain = 2 * shares @ off.T + square[:, None]
        move = lose[:, None] + gain
        move[np.arange(len(dealt)), dealt] = np.inf
        move[np.bincount(dealt, minlength=folds)[dealt] == 1] = np.inf
        swap = np.full(len(pairs), np.inf)
        if len(pairs):
            first, second = pairs.T
            change = shares[second] - shares[first]
            swap = 2 * ((own[first] - own[second]) * change).sum(axis=1) + 2 * np.square(change).sum(axis=1)
            swap[dealt[first] == dealt[second]] = np.inf
        if min(move.min(), swap.min(initial=np.inf)) >= -1e-12:
            return dealt
        if move.min() <= swap.min(initial=np.inf):
            group, fold = np.unravel_index(int(move.argmin()), move.shape)
            dealt[group] = fold
        else:
            first_one, second_one = pairs[int(swap.argmin())]
            dealt[[first_one, second_one]] = dealt[[second_one, first_one]]


def _joined(sites: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Patients by groups of sites that share none, in the order of names."""
    without = sorted(patient for patient, names in sites.items() if not all(names) or not names)
    if without:
        raise CohortError(
            f"{len(without)} patients have a slide without a site: {', '.join(map(repr, without[:5]))}; fill the cohort's site"
            " column, or draw folds without preserving sites"
        )
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for names in sites.values():
        for name in names[1:]:
            first, other = sorted((find(names[0]), find(name)))
            root[other] = first
    groups: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(sites):
        groups[find(sites[patient][0])].append(patient)
    return [groups[name] for name in sorted(groups)]
