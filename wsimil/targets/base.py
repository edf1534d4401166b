"""What is asked of a bag: how a row of the cohort table becomes a target, and how a model's numbers become an answer."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.provenance import Json, sha256_json

TaskKind: TypeAlias = Literal["classification", "multilabel", "ordinal", "regression", "survival"]
Targets: TypeAlias = NDArray[np.int64] | NDArray[np.float64]

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "?"})
_LEAST_PATIENTS = 4
_UNSEEN = {"Cc", "Cf"}
"""Categories of Unicode: control and format."""
_UNICODE = "how Unicode writes them"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerColumn:
    """One number of an answer: its column in tables, how a person reads it, its unit, and whether it is a probability."""

    name: str
    title: str
    unit: str = ""
    probability: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(ABC):
    """One of the tasks. What it is to learn stands in `columns` of the cohort table.

    A target travels as text, the `label` of a slide: `read` makes it of the cells of a row, `encode` numbers of it. A task has
    facts that the whole cohort decides, such as the names of classes (`named`), and facts that are fitted on training targets
    alone (`fitted`); only then `outputs` and `answers` are known.
    """

    kind: ClassVar[TaskKind]
    decides: ClassVar[bool] = True
    """Whether an answer is one of several; else it is a number."""

    raises: ClassVar[tuple[str, str]] = ("against", "for")
    """What a tile does to an output whose logit it lowers, and to one whose logit it raises."""

    rather: ClassVar[str] = ""
    """What to write where a word of `MISSING` is meant as it stands; empty where it cannot be, as of a number."""

    columns: tuple[str, ...] = ("label",)

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of the C logits, in their order. Raises ValueError before they are known."""

    @property
    @abstractmethod
    def answers(self) -> tuple[AnswerColumn, ...]:
        """The V numbers of an answer, in their order. Raises ValueError before they are known."""

    @abstractmethod
    def read(self, cells: Sequence[str]) -> str | None:
        """The label that one row's cells of `columns` say, None where it is missing. Raises ValueError: what was wanted."""

    @abstractmethod
    def encode(self, labels: Sequence[str]) -> Targets:
        """Targets as numbers, one row each: what a criterion and metrics take. Raises ValueError for an unknown label."""

    @abstractmethod
    def values(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Answers [n, V] that logits [n, C] give."""

    @abstractmethod
    def decided(self, values: NDArray[np.float64]) -> str:
        """One answer [V] in words."""

    @abstractmethod
    def groups(self, label: str) -> tuple[str, ...]:
        """The groups that a slide counts to in tables of a cohort; `group_names` are all of them."""

    @property
    @abstractmethod
    def group_names(self) -> tuple[str, ...]:
        """All groups, in order."""

    def cells(self, label: str) -> tuple[str, ...]:
        """The inverse of `read`."""
        return (label,)

    def named(self, labels: Sequence[str]) -> Task:
        """The task with all names that the labels of a whole cohort decide. Raises ValueError for names too alike."""
        return self

    def refuse(self, labels: Sequence[str]) -> None:
        """Raises ValueError where the labels of a cohort do not fit the task."""
        self.encode(labels)

    @abstractmethod
    def fitted(self, labels: Sequence[str]) -> Task:
        """The task with what training targets decide. Raises ValueError where nothing can be learned from them."""

    @property
    def decides_at(self) -> tuple[float, ...]:
        """The probability from which on the second of two classes, or each of several labels, is said; empty for others."""
        return ()

    @property
    def positive(self) -> str:
        """Of two classes that which sensitivity, specificity, predictive values and a threshold are of; empty for others."""
        return ""

    def confidence(self, values: NDArray[np.float64]) -> float | None:
        """The probability of what `decided` says, None where there is none."""
        return None

    def main_output(self, values: NDArray[np.float64]) -> str:
        """The output that a heatmap shows by default: the one that the answer rests on."""
        return self.outputs[0]

    def strata(self, patients: Sequence[Sequence[str]]) -> list[str]:
        """For each patient, given by the labels of its slides, the stratum that splits keep even.

        A stratum of fewer than four patients joins the others that are too small, or the largest.
        """
        found = self._strata(patients)
        small = {name for name, count in Counter(found).items() if count < _LEAST_PATIENTS}
        joined = ["other" if name in small else name for name in found]
        counts = Counter(joined)
        if len(counts) > 1 and 0 < counts["other"] < _LEAST_PATIENTS:
            largest = min((name for name in counts if name != "other"), key=lambda name: (-counts[name], name))
            joined = [largest if name == "other" else name for name in joined]
        return joined

    @abstractmethod
    def _strata(self, patients: Sequence[Sequence[str]]) -> list[str]:
        """For each patient its stratum, however small."""

    def to_json(self) -> dict[str, Json]:
        """Everything as plain JSON; `wsimil.targets.from_json` is the inverse."""
        facts: dict[str, Json] = {"kind": self.kind}
        for one in fields(self):
            value = getattr(self, one.name)
            facts[one.name] = list(value) if isinstance(value, tuple) else value
        return facts

    @property
    def digest(self) -> str:
        """SHA-256 over `to_json`, 64 hex digits."""
        return sha256_json(self.to_json())

    def _one_column(self) -> None:
        if len(self.columns) != 1:
            raise ValueError(f"{self.kind} takes one column, got {', '.join(self.columns)}")


def rarest(patients: Sequence[Sequence[str]]) -> list[str]:
    """For each patient the one of its labels that the fewest patients have."""
    frequency = Counter(label for labels in patients for label in set(labels))
    return [min(set(labels), key=lambda label: (frequency[label], label)) for labels in patients]


def number(text: str) -> float | None:
    """A finite number, None where the cell is missing. Raises ValueError."""
    if text.lower() in MISSING:
        return None
    try:
        # float skips underscores, as in Python code: 47_461 would be 47461.
        value = float(text.replace("_", "no digit"))
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if not np.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value


def plain(value: float) -> str:
    """A number as text that reads back exactly."""
    return repr(float(value)).removesuffix(".0")


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """`1 / (1 + exp(-x))` without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)), np.float64)


def log_odds(logits: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """Of logits [n, C] the log-odds [n] of one class against all others, as a softmax has them; NaN where a logit is NaN."""
    with np.errstate(invalid="ignore"):
        others = np.logaddexp.reduce(np.delete(logits, index, axis=1), axis=1)
    return np.asarray(logits[:, index] - others, np.float64)


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows [n, C] that are in [0, 1] and sum to 1, without overflow."""
    odds = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float64)


def refuse_alike(names: Iterable[str], what: str) -> None:
    """Raises ValueError where names, each as often as slides have it, are one but for what `respelled` passes over."""
    counts = Counter(names)
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        spellings[respelled(name)].append(name)
    alike = [own for own in spellings.values() if len(own) > 1]
    if alike:
        where = next(words for words, plain in _SPELLINGS.items() if len({plain(name) for name in alike[0]}) == 1)
        shown = ascii if where == _UNICODE else repr  # on paper they are the same
        first = " and ".join(f"{shown(name)} ({counts[name]} slides)" for name in alike[0])
        more = f", and so do {len(alike) - 1} more" if len(alike) > 1 else ""
        raise ValueError(
            f"{what} {first} differ in {where} alone{more}; where they are one, spell it one way, else name them apart"
        )


def respelled(name: str) -> str:
    """What a name has in common with those that differ from it in case, in how Unicode writes it or, as whole numbers do after a
    spreadsheet had them, in a final .0 or zeros before them."""
    return re.sub(r"^([+-]?)0+([0-9]+)$", r"\1\2", _whole(name))


def _whole(name: str) -> str:
    return re.sub(r"^([+-]?[0-9]+)\.0+$", r"\1", _written(name))


def _written(name: str) -> str:
    """A name in one of the ways in which Unicode writes it: an umlaut may be one sign or two, and some signs cannot be seen."""
    seen = "".join(sign for sign in name if unicodedata.category(sign) not in _UNSEEN)
    return unicodedata.normalize("NFKC", seen).casefold()


_SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "case": str.casefold,
    _UNICODE: _written,
    "a final .0": _whole,
    "zeros before a number": respelled,
}


def unique(names: Sequence[str], what: str) -> None:
    """Raises ValueError for a name that is empty or occurs twice."""
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"{what} are named and unique, got {', '.join(map(repr, names))}")
