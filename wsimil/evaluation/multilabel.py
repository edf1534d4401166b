"""Several labels that do not exclude each other: each as a task of two classes, and the mean over labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.binary import NAMES, BinaryCases
from wsimil.evaluation.binning import NAMES_CALIBRATION
from wsimil.evaluation.cases import Floats, Ints, checked_probabilities


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MultilabelCases:
    """`targets` int64 [n, L]: 1 has it, 0 has not, -1 unknown and not counted; `probabilities` float64 [n, L]; `thresholds`
    float64 [L], or [n, L] where rows were decided by several models.

    Metrics: "<metric>:<label>" for each metric of `BinaryCases` and each label, and "<metric>_macro", the mean over labels,
    None where it is undefined for one of them. A bootstrap draws patients without strata, as one patient is in many; count
    the undefined replicates.
    """

    labels: tuple[str, ...]
    targets: Ints
    probabilities: Floats
    thresholds: Floats

    def __post_init__(self) -> None:
        targets = np.asarray(self.targets)
        if targets.ndim != 2 or targets.shape[1] != len(self.labels) or not np.isin(targets, (-1, 0, 1)).all():
            raise ValueError(f"targets must be [n, {len(self.labels)}] of 1, 0 and -1, got {list(targets.shape)}")
        at = np.asarray(self.thresholds, np.float64)
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"want unique labels, got {self.labels}")
        if at.shape not in ((len(self.labels),), targets.shape) or not np.isfinite(at).all():
            raise ValueError(
                f"want a finite threshold for each of {list(self.labels)}, of all rows or each, got {list(at.shape)}"
            )
        object.__setattr__(self, "thresholds", at)
        object.__setattr__(self, "targets", targets.astype(np.int64))
        known = checked_probabilities("probabilities", self.probabilities, targets.shape)
        object.__setattr__(self, "probabilities", known)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def strata(self) -> Ints:
        """All rows in one."""
        return np.zeros(len(self), np.int64)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows that have each label."""
        return {name: int((self.targets[:, i] == 1).sum()) for i, name in enumerate(self.labels)}

    @property
    def truth(self) -> Sequence[NDArray[np.generic]]:
        """What is true of the rows."""
        return (self.targets,)

    def take(self, rows: Ints) -> Self:
        """The cases of these rows."""
        return type(self)(
            labels=self.labels,
            targets=self.targets[rows],
            probabilities=self.probabilities[rows],
            thresholds=self.thresholds if self.thresholds.ndim == 1 else self.thresholds[rows],
        )

    def of(self, label: str) -> BinaryCases:
        """One label's cases, of the rows where it is known. Raises ValueError for a label that is not there."""
        index = self.labels.index(label)
        known = self.targets[:, index] >= 0
        one_for_all = self.thresholds.ndim == 1
        return BinaryCases(
            targets=self.targets[known, index],
            probabilities=self.probabilities[known, index],
            threshold=float(self.thresholds[index]) if one_for_all else self.thresholds[known, index],
        )

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        found = {label: self.of(label).values() for label in self.labels}
        result: dict[str, float | None] = {}
        for name in (*NAMES, *NAMES_CALIBRATION):
            column = [found[label][name] for label in self.labels]
            known = [value for value in column if value is not None]
            result[f"{name}_macro"] = float(np.mean(known)) if len(known) == len(column) else None
        return result | {f"{name}:{label}": found[label][name] for label in self.labels for name in found[label]}

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for each row of `weights` [R, n]."""
        found = {
            label: self.of(label).replicates(weights[:, self.targets[:, index] >= 0])
            for index, label in enumerate(self.labels)
        }
        result = {f"{name}_macro": np.mean([found[label][name] for label in self.labels], axis=0) for name in NAMES}
        return result | {f"{name}:{label}": found[label][name] for label in self.labels for name in NAMES}
