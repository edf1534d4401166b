"""From logits to an answer, once for Python and once as facts by which the page computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.calibration import Calibration, frozen_calibrations
from wsimil.export.scores import ScoreTable
from wsimil.provenance import Json
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival, Task

_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRule:
    """How a model answers: its task, and the calibration that was fitted with it, of classes or of `labels` by name."""

    task: Task
    calibration: Calibration | None = None
    labels: Mapping[str, Calibration] = field(default_factory=dict)

    @classmethod
    def frozen(cls, task: Task, facts: Mapping[str, Json]) -> Self:
        """By the facts of a model. Raises as `frozen_calibrations` does where they are broken."""
        calibration, labels = frozen_calibrations(facts)
        return cls(task=task, calibration=calibration, labels=labels)

    def values(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """The answer [V] for logits [C]."""
        rows = logits[None]
        found = (self.task.values(rows) if self.calibration is None else self.calibration.apply(rows))[0]
        for index, name in enumerate(self.task.outputs):
            if name in self.labels:  # a label is the second of two classes, whose first has the logit 0
                found[index] = self.labels[name].apply(np.array([[0.0, logits[index]]]))[0, 1]
        return np.asarray(found, np.float64)

    def explains(self, table: ScoreTable) -> bool:
        """Whether this is how the answer of `table` came from its logits."""
        found = self.values(table.logits)
        allowed = _TOLERANCE * (1 + np.abs(table.values))
        return found.shape == table.values.shape and bool(np.all(np.abs(found - table.values) <= allowed))

    def link(self) -> dict[str, Json]:
        """The same as plain facts: a kind, and what it takes."""
        task, calibration = self.task, self.calibration
        if self.labels:
            return {"kind": "labels", "each": [_calibrated(self.labels.get(name)) for name in task.outputs]}
        if calibration is not None:
            return _calibrated(calibration)
        if isinstance(task, Survival):
            return _survival(task)
        facts: Mapping[type[Task], dict[str, Json]] = {
            Classification: _calibrated(None),
            MultiLabel: {"kind": "sigmoid"},
            Ordinal: {"kind": "corn"},
        }
        if isinstance(task, Regression):
            return {"kind": "linear", "mean": list(task.mean), "scale": list(task.scale)}
        return facts[type(task)]


def _calibrated(calibration: Calibration | None) -> dict[str, Json]:
    if calibration is None:
        return {"kind": "softmax", "temperature": 1.0, "shifts": []}
    if calibration.temperature is not None:
        return {"kind": "softmax", "temperature": calibration.temperature, "shifts": list(calibration.shifts)}
    return {"kind": "isotonic", "curves": [[list(knot) for knot in curve] for curve in calibration.curves]}


def _survival(task: Survival) -> dict[str, Json]:
    if task.model == "cox":
        return {"kind": "cox", "baseline": list(task.baseline)}
    return {"kind": "hazard", "edges": list(task.edges), "horizons": list(task.answered_horizons)}
