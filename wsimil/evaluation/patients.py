"""From slides to patients: methods that take rows as independent need one row a patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsimil.evaluation.cases import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatientMeans:
    """One row a patient, in the order of first appearance: `patients` [P], `targets` int64 [P], `outputs` float64 [P, ...]."""

    patients: tuple[str, ...]
    targets: Ints
    outputs: Floats


def patient_means(outputs: Floats, targets: Ints, patients: Sequence[str]) -> PatientMeans:
    """The mean of a patient's outputs, probabilities for example; `outputs` [n] or [n, C], `targets` [n], `patients` [n].

    Raises ValueError where the slides of a patient have different targets: such a question is one about slides.
    """
    names, first, owner = np.unique(np.asarray(patients, dtype=str), return_index=True, return_inverse=True)
    mixed = np.flatnonzero(np.bincount(owner, weights=targets != targets[first][owner]))
    if len(mixed):
        raise ValueError(
            f"{len(mixed)} patients have slides of different targets, e.g. {str(names[mixed[0]])!r}; their slides cannot be taken"
            " together, use the bootstrap over patients instead"
        )
    order = np.argsort(first)
    sums = np.zeros((len(names), *outputs.shape[1:]))
    np.add.at(sums, owner, outputs)
    slides = np.bincount(owner, minlength=len(names)).reshape(-1, *[1] * (outputs.ndim - 1))
    return PatientMeans(
        patients=tuple(str(name) for name in names[order]),
        targets=targets[first][order],
        outputs=(sums / np.maximum(slides, 1))[order],
    )


def refuse_repeated_patients(patients: Sequence[str], rows: int, what: str) -> None:
    """Raises ValueError unless `patients` names another patient for each of the rows."""
    if len(patients) != rows:
        raise ValueError(f"{len(patients)} patients for {rows} rows; give the patient of each row")
    names, counts = np.unique(np.asarray(patients, dtype=str), return_counts=True)
    if len(names) != rows:
        worst = int(counts.argmax())
        raise ValueError(
            f"{what} takes rows as independent, but {int((counts > 1).sum())} patients have several, e.g. {str(names[worst])!r}"
            f" {int(counts[worst])}; take the mean of a patient's slides first (patients.patient_means), or use the bootstrap"
            " over patients"
        )
