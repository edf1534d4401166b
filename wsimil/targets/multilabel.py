"""Labels that do not exclude each other, each of which may be unknown for a slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wsimil.targets.base import MISSING, AnswerColumn, Task, TaskKind, number, refuse_alike, sigmoid, unique

NONE = "-"
_UNKNOWN = "=?"


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabel(Task):
    """Any of `labels`, by a sigmoid of its logit each; targets int64 [n, L]: 1 has it, 0 has not, -1 unknown.

    Two or more `columns` hold 0 or 1 each, empty where it is not known, and are the labels. One column holds the labels that a
    slide has, with semicolons, or "-" for none; `labels` are then those that occur, and none is unknown. A slide of which
    nothing is known is left out. `thresholds`: a label is said where its probability is its threshold or more; none are halves.
    """

    kind: ClassVar[TaskKind] = "multilabel"
    rather: ClassVar[str] = f"where it means that a slide has none of the labels, write {NONE!r}, or 0 in each column"
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        unique(self.columns, "columns")
        if len(self.columns) > 1 and not self.labels:
            object.__setattr__(self, "labels", self.columns)
        unique(self.labels, "labels")
        odd = [name for name in self.labels if ";" in name or name.endswith(_UNKNOWN) or name == NONE]
        if odd:
            raise ValueError(
                f"a label's name has no semicolon, does not end with {_UNKNOWN} and is not {NONE}, got {odd[0]!r}"
            )
        if len(self.columns) > 1 and self.labels != self.columns:
            raise ValueError(f"several columns are the labels, got {self.columns} and {self.labels}")
        if self.thresholds and len(self.thresholds) != len(self.labels):
            raise ValueError(f"each label has a threshold or none has, got {self.thresholds} for {self.labels}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The labels."""
        if not self.labels:
            raise ValueError("multilabel: the labels are not known yet")
        return self.labels

    @property
    def answers(self) -> tuple[AnswerColumn, ...]:
        """The probability of each label."""
        return tuple(AnswerColumn(name=f"prob_{name}", title=name) for name in self.outputs)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The labels, and none of them."""
        return (*self.labels, "none of them")

    def groups(self, label: str) -> tuple[str, ...]:
        """See `Task.groups`."""
        return tuple(name for name in _parts(label) if not name.endswith(_UNKNOWN)) or ("none of them",)

    def read(self, cells: Sequence[str]) -> str | None:
        """See `Task.read`."""
        return self._read_joined(cells[0]) if len(self.columns) == 1 else self._read_columns(cells)

    def cells(self, label: str) -> tuple[str, ...]:
        """See `Task.cells`."""
        if len(self.columns) == 1:
            return (label,)
        row = self.encode([label])[0]
        return tuple({1: "1", 0: "0", -1: ""}[int(value)] for value in row)

    def named(self, labels: Sequence[str]) -> MultiLabel:
        """The labels that occur, sorted, unless they are known."""
        if self.labels:
            return self
        names = [name for label in labels for name in _parts(label)]
        refuse_alike(names, "labels")
        return replace(self, labels=tuple(sorted(set(names))))

    def encode(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """See `Task.encode`."""
        index = {name: i for i, name in enumerate(self.labels)}
        rows = np.zeros((len(labels), len(self.labels)), np.int64)
        for row, label in zip(rows, labels, strict=True):
            for name in _parts(label):
                known = name.removesuffix(_UNKNOWN)
                if known not in index:
                    raise ValueError(f"label {known!r} is not among {list(self.labels)}")
                row[index[known]] = -1 if name != known else 1
        return rows

    def fitted(self, labels: Sequence[str]) -> MultiLabel:
        """The same; of each label there must be slides that have it and slides that have not."""
        targets = self.encode(labels)
        for index, name in enumerate(self.outputs):
            has, lacks = (int((targets[:, index] == value).sum()) for value in (1, 0))
            if not has or not lacks:
                raise ValueError(
                    f"label {name!r}: {has} training slides have it and {lacks} have not; leave it out, or change the splits"
                )
        return self

    def values(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities [n, L]."""
        return sigmoid(logits)

    @property
    def decides_at(self) -> tuple[float, ...]:
        """See `Task.decides_at`."""
        return self.thresholds or (0.5,) * len(self.labels)

    def decided(self, values: NDArray[np.float64]) -> str:
        """The labels whose probability is at or above their threshold, with semicolons."""
        each = zip(self.labels, values, self.decides_at, strict=True)
        return ";".join(name for name, p, least in each if p >= least) or NONE

    def main_output(self, values: NDArray[np.float64]) -> str:
        """The most probable label."""
        return self.labels[int(np.argmax(values))]

    def _strata(self, patients: Sequence[Sequence[str]]) -> list[str]:
        """The rarest label that a patient has."""
        owned = [{name for label in labels for name in self.groups(label)} for labels in patients]
        frequency = {name: sum(name in names for names in owned) for name in self.group_names}
        return [min(names, key=lambda name: (frequency[name], name)) for names in owned]

    def _read_joined(self, cell: str) -> str | None:
        if cell.lower() in MISSING:
            return None
        if cell == NONE:
            return NONE
        names = [part.strip() for part in cell.split(";") if part.strip()]
        for name in names:
            if self.labels and name not in self.labels:
                raise ValueError(f"label {name!r} is unknown, known are {', '.join(self.labels)}")
            if name.endswith(_UNKNOWN) or name == NONE:
                raise ValueError(f"{name!r} is no name of a label")
            if name.lower() in MISSING and name not in self.labels:
                raise ValueError(
                    f"{cell!r} names {name!r}, which is read as missing, among labels; write the labels alone, {NONE!r} where a"
                    " slide has none of them, or nothing where they are not known; a label of that name needs another one"
                )
        return ";".join(sorted(set(names))) or None

    def _read_columns(self, cells: Sequence[str]) -> str | None:
        parts, known = [], 0
        for name, cell in zip(self.columns, cells, strict=True):
            value = number(cell)
            if value not in (None, 0.0, 1.0):
                raise ValueError(f"{name} {cell!r}, wanted 0, 1 or nothing where it is not known")
            known += value is not None
            if value != 0.0:
                parts.append(name if value else f"{name}{_UNKNOWN}")
        return (";".join(parts) or NONE) if known else None


def _parts(label: str) -> list[str]:
    return [] if label == NONE else label.split(";")
