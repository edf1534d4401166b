"""What a cohort is asked: the tasks, each of which turns rows of a table into targets and logits into answers."""

from __future__ import annotations

from collections.abc import Mapping

from wsimil.provenance import Json
from wsimil.targets.base import MISSING, AnswerColumn, Targets, Task, TaskKind, number, refuse_alike, respelled
from wsimil.targets.classification import Classification, Ordinal
from wsimil.targets.multilabel import MultiLabel
from wsimil.targets.regression import Regression
from wsimil.targets.survival import Survival

__all__ = [
    "MISSING",
    "AnswerColumn",
    "Classification",
    "MultiLabel",
    "Ordinal",
    "Regression",
    "Survival",
    "Targets",
    "Task",
    "TaskKind",
    "from_json",
    "number",
    "refuse_alike",
    "respelled",
]

_KINDS: Mapping[str, type[Task]] = {
    cls.kind: cls for cls in (Classification, MultiLabel, Ordinal, Regression, Survival)
}


def from_json(facts: Mapping[str, Json]) -> Task:
    """The inverse of `Task.to_json`. Raises ValueError or TypeError for what is no task."""
    rest = dict(facts)
    kind = rest.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"task kind {kind!r}, known are {', '.join(_KINDS)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
    return _KINDS[str(kind)](**values)  # type: ignore[arg-type]  # a wrong shape is an error of the constructor
