"""Cases: answers held beside the truth, one row each; what intervals, groups, folds and comparisons are made of.

One class for each kind of task (`BinaryCases`, `MulticlassCases`, `MultilabelCases`, `OrdinalCases`, `RegressionCases`,
`SurvivalCases`, `ConformalCases`) knows its metrics; everything else (`bootstrap`, `groups`, `runs`) works on any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


class Cases(Protocol):
    """n answers beside what is true of them; a row is a slide, or a patient."""

    def __len__(self) -> int: ...

    @property
    def strata(self) -> Ints:
        """What a bootstrap keeps the size of, [n]: the rank of a row's class, 0 for the rarest; all 0 without classes."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """How many rows there are of what is to be found: of each class, of positives of each label, of events."""
        ...

    @property
    def truth(self) -> Sequence[NDArray[np.generic]]:
        """What is true of the rows, one array or several of n rows; two models are compared where these are equal."""
        ...

    def take(self, rows: Ints) -> Self:
        """The cases of these rows, which may repeat."""
        ...

    def values(self) -> dict[str, float | None]:
        """Every metric by its name, None where it is undefined."""
        ...

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """The same metrics, [R] each, as if row i were there `weights[r, i]` times; NaN where undefined. `weights` [R, n] >= 0.

        A metric of which a bootstrap would say something false is left out, and has no interval.
        """
        ...


def checked_targets(targets: ArrayLike, classes: int) -> Ints:
    """`targets` as int64 [n]. Raises ValueError unless they are whole numbers in 0..classes-1."""
    array = np.asarray(targets)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biu"):
        raise ValueError(f"targets must be whole numbers [n], got {array.dtype} {list(array.shape)}")
    array = array.astype(np.int64)
    if array.size and (array.min() < 0 or array.max() >= classes):
        raise ValueError(f"targets must lie in 0..{classes - 1}, got {array.min()}..{array.max()}")
    return array


def checked_numbers(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    """`values` as finite float64 of `shape`. Raises ValueError."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; {int((~np.isfinite(array)).sum())} of {array.size} values are not")
    return array


def checked_probabilities(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    """`values` as float64 of `shape` in [0, 1]. Raises ValueError."""
    array = checked_numbers(name, values, shape)
    if array.size and (array.min() < 0 or array.max() > 1):
        raise ValueError(f"{name} must lie in [0, 1], got {array.min():g}..{array.max():g}; are these logits?")
    return array


def checked_distributions(name: str, values: ArrayLike, rows: int) -> Floats:
    """`values` as float64 [rows, C], C >= 2, of which each row sums to 1 within 1e-6. Raises ValueError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"{name} must be [n, C] with C >= 2, got {list(array.shape)}")
    array = checked_probabilities(name, array, (rows, array.shape[1]))
    off = np.abs(array.sum(axis=1) - 1)
    if array.size and off.max() > 1e-6:
        row = int(off.argmax())
        raise ValueError(f"{name} must sum to 1 in each row; row {row} sums to {array[row].sum():.6g}")
    return array


def rarity(targets: Ints, classes: int) -> Ints:
    """Of each row the rank of its class by how rare it is, 0 for the rarest, the lower class first of equals."""
    frequency = np.bincount(targets, minlength=classes)
    return np.argsort(np.argsort(frequency, kind="stable"), kind="stable")[targets]


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Their quotient, NaN where the denominator is not above 0."""
    result = np.full(len(denominator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
