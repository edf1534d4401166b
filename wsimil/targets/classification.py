"""Classes that exclude each other, and levels that have an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wsimil.targets.base import MISSING, AnswerColumn, Task, TaskKind, rarest, refuse_alike, sigmoid, softmax, unique

_ABOVE_A_HALF = float(np.nextafter(0.5, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification(Task):
    """One of two or more classes, by a softmax over as many logits; targets int64 [n]. `classes` are given or `named`.

    `threshold`: two classes are decided for the second where its probability is that or more; None decides for the higher one,
    the first of equals.
    """

    kind: ClassVar[TaskKind] = "classification"
    rather: ClassVar[str] = "where it is a class, name all of them in task.classes"
    classes: tuple[str, ...] = ()
    threshold: float | None = None

    def __post_init__(self) -> None:
        self._one_column()
        unique(self.classes, "classes")
        if self.threshold is not None and len(self.classes) != 2:
            raise ValueError(f"a decision threshold is for two classes, got {list(self.classes)}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The classes."""
        if len(self.classes) < 2:
            raise ValueError(f"classification needs two or more classes, got {list(self.classes)}")
        return self.classes

    @property
    def answers(self) -> tuple[AnswerColumn, ...]:
        """The probability of each class."""
        return tuple(AnswerColumn(name=f"prob_{name}", title=name) for name in self.outputs)

    @property
    def decides_at(self) -> tuple[float, ...]:
        """See `Task.decides_at`; without a threshold the least number above a half, so that equals are decided for the first."""
        return (_ABOVE_A_HALF if self.threshold is None else self.threshold,) if len(self.classes) == 2 else ()

    @property
    def positive(self) -> str:
        """See `Task.positive`: the second of two."""
        return self.classes[1] if len(self.classes) == 2 else ""

    @property
    def group_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    def groups(self, label: str) -> tuple[str, ...]:
        """See `Task.groups`."""
        return (label,)

    def read(self, cells: Sequence[str]) -> str | None:
        """See `Task.read`; any text is a class, until the classes are known."""
        if self.classes and cells[0] in self.classes:
            return cells[0]
        if cells[0].lower() in MISSING:
            return None
        if self.classes:
            raise ValueError(f"label {cells[0]!r} is none of the classes {', '.join(self.classes)}")
        return cells[0]

    def named(self, labels: Sequence[str]) -> Classification:
        """The labels that occur, sorted, as classes, unless these are known."""
        if self.classes:
            return self
        refuse_class_names(labels)
        return replace(self, classes=tuple(sorted(set(labels))))

    def refuse(self, labels: Sequence[str]) -> None:
        """See `Task.refuse`."""
        unknown = sorted(set(labels) - set(self.classes))
        if unknown:
            raise ValueError(f"labels {unknown} are not among the classes {list(self.classes)}")
        if len(self.classes) < 2:
            raise ValueError(
                f"a cohort needs slides of at least two classes, got {len(labels)} slides of {list(self.classes)};"
                " check the label column"
            )

    def encode(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """The number of each class, int64 [n]."""
        index = {name: i for i, name in enumerate(self.classes)}
        unknown = sorted(set(labels) - set(index))
        if unknown:
            raise ValueError(f"labels {unknown} are not among the classes {list(self.classes)}")
        return np.array([index[label] for label in labels], dtype=np.int64)

    def fitted(self, labels: Sequence[str]) -> Classification:
        """The same; every class must be there."""
        _refuse_lost(self.classes, labels, "class")
        return self

    def values(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities [n, C], a softmax."""
        return softmax(logits)

    def decided(self, values: NDArray[np.float64]) -> str:
        """The class by the threshold, or with the highest probability, the first one of equals."""
        return self.classes[self._chosen(values)]

    def confidence(self, values: NDArray[np.float64]) -> float:
        """The probability of the decided class."""
        return float(values[self._chosen(values)])

    def main_output(self, values: NDArray[np.float64]) -> str:
        """The decided class."""
        return self.decided(values)

    def _chosen(self, values: NDArray[np.float64]) -> int:
        at = self.decides_at
        return int(values[1] >= at[0]) if at else int(np.argmax(values))

    def _strata(self, patients: Sequence[Sequence[str]]) -> list[str]:
        return rarest(patients)

    def strata(self, patients: Sequence[Sequence[str]]) -> list[str]:
        """A patient's class, the rarest of its slides' classes; small classes stay by themselves."""
        return rarest(patients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordinal(Task):
    """One of two or more `levels` that rise in the order given; targets int64 [n] in 0..K-1.

    CORN: K - 1 logits, of which number k says whether a bag that is above all lower levels is above level k too, so that
    `P(above k) = prod(sigmoid(logits[:k + 1]))` never rises with k (Shi, Cao & Raschka 2023, arXiv:2111.08851). CORAL (Cao et al.
    2020, arXiv:1901.07884) would share one weight vector between these logits, and so belongs in the last layer of each method;
    CORN leaves methods alone.
    """

    kind: ClassVar[TaskKind] = "ordinal"
    raises: ClassVar[tuple[str, str]] = ("lower", "higher")
    rather: ClassVar[str] = "where it is a level, name it in task.levels"
    levels: tuple[str, ...]

    def __post_init__(self) -> None:
        self._one_column()
        unique(self.levels, "levels")
        if len(self.levels) < 2:
            raise ValueError(f"ordinal needs two or more levels, lowest first, got {list(self.levels)}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Above the first level, above the second ..."""
        return tuple(f"above {name}" for name in self.levels[:-1])

    @property
    def answers(self) -> tuple[AnswerColumn, ...]:
        """The probability of each level."""
        return tuple(AnswerColumn(name=f"prob_{name}", title=name) for name in self.levels)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The levels."""
        return self.levels

    def groups(self, label: str) -> tuple[str, ...]:
        """See `Task.groups`."""
        return (label,)

    def read(self, cells: Sequence[str]) -> str | None:
        """See `Task.read`."""
        if cells[0] in self.levels:
            return cells[0]
        if cells[0].lower() in MISSING:
            return None
        raise ValueError(f"{cells[0]!r} is none of the levels {', '.join(self.levels)} (task.levels)")

    def encode(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """The number of each level from 0, int64 [n]."""
        index = {name: i for i, name in enumerate(self.levels)}
        unknown = sorted(set(labels) - set(index))
        if unknown:
            raise ValueError(f"labels {unknown} are not among the levels {list(self.levels)}")
        return np.array([index[label] for label in labels], dtype=np.int64)

    def fitted(self, labels: Sequence[str]) -> Ordinal:
        """The same; every level must be there."""
        _refuse_lost(self.levels, labels, "level")
        return self

    def values(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities [n, K] of the levels."""
        ends = np.ones((len(logits), 1))
        above = np.concatenate([ends, np.cumprod(sigmoid(logits), axis=1)], axis=1)
        return np.asarray(above * np.concatenate([sigmoid(-logits), ends], axis=1), np.float64)

    def decided(self, values: NDArray[np.float64]) -> str:
        """CORN's rule, the median: the highest level that the slide is at or above with a probability of more than a half."""
        return self.levels[self._level(values)]

    def confidence(self, values: NDArray[np.float64]) -> float:
        """The probability of the decided level."""
        return float(values[self._level(values)])

    def main_output(self, values: NDArray[np.float64]) -> str:
        """The step that leads to the decided level, the first one for the lowest."""
        return self.outputs[max(0, self._level(values) - 1)]

    def _level(self, values: NDArray[np.float64]) -> int:
        above = 1 - np.cumsum(values[:-1])
        return int((above > 0.5).sum())

    def _strata(self, patients: Sequence[Sequence[str]]) -> list[str]:
        return rarest(patients)


def refuse_class_names(names: Sequence[str]) -> None:
    """Raises ValueError for classes, each as often as slides have it, that a reader or a table could not tell apart."""
    refuse_alike(names, "classes")
    joined = sorted({name for name in names if ";" in name})
    if joined:
        raise ValueError(
            f"class {joined[0]!r} holds a semicolon, which stands between classes in tables; write another sign, or, where a"
            " slide can be of several at once, use task.kind multilabel"
        )


def _refuse_lost(names: Sequence[str], labels: Sequence[str], what: str) -> None:
    lost = [name for name in names if name not in set(labels)]
    if lost:
        raise ValueError(f"no training slide is of {what} {', '.join(map(repr, lost))}; training needs every {what}")
