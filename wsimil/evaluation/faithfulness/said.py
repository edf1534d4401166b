"""What a model said of a bag, and how strongly it would say the same of another: what flipping of tiles is measured by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsimil.evaluation.cases import Floats
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival, Task
from wsimil.targets.base import log_odds


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer: `output` is the logit that it rests on (`Task.main_output`), `sign` 1 where a high one speaks for it, else -1.

    `measure` is "probability" of what was said, or "value" in the task's own unit, turned so that more is more of the same.
    """

    output: int
    name: str
    sign: Literal[1, -1]
    measure: Literal["probability", "value"]

    def strength(self, task: Task, values: Floats) -> Floats:
        """How strongly answers `values` [n, V] of the task say the same, [n]: higher is more."""
        if isinstance(task, Ordinal):
            high = values[:, self.output + 1 :].sum(axis=1)
        elif isinstance(task, Survival):
            high = values[:, 0]
        else:
            high = values[:, self.output]
        if self.sign < 0:
            high = 1 - high if self.measure == "probability" else -high
        return np.asarray(high, np.float64)

    def logit(self, task: Task, logits: Floats) -> Floats:
        """The logit [n] of logits [n, C], turned so that higher is more of the same; of a class its log-odds."""
        if isinstance(task, Classification):
            return log_odds(logits, self.output)
        return np.asarray(self.sign * logits[:, self.output], np.float64)


READINGS = {"": "strength", "_uncalibrated": "uncalibrated", "_logit": "logit"}
"""What stands behind the name of a number of curves: which of the `Answers` it is of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """How strongly a model says the same, [...], as `Said` turns it: as it is shown, before calibration, and by its logit.

    The logit of a class is that of its probability, its log-odds, before calibration.
    """

    strength: Floats
    uncalibrated: Floats
    logit: Floats

    def each(self, reading: Callable[[Floats], Floats]) -> Answers:
        """What `reading` makes of all three."""
        return Answers(
            strength=reading(self.strength), uncalibrated=reading(self.uncalibrated), logit=reading(self.logit)
        )

    def read(self) -> Iterator[tuple[str, Floats]]:
        """Each, with what stands behind the names of its numbers."""
        return ((tail, getattr(self, name)) for tail, name in READINGS.items())


def said_of(task: Task, values: Floats, logits: Floats) -> Said:
    """What `values` [V] and `logits` [C] say.

    Classification: the decided class, by its probability. Multilabel: the most probable label, or, below its threshold, that it
    is not there. Ordinal: that the slide is at or above the decided level; of the lowest, that it is not above it. Regression:
    the first column, above or below the mean of the training targets. Cox: risk above or below that of the training set. Hazards:
    the hazard of the first interval, always as more risk, since hazards have no middle; the value is the risk over all intervals.

    Raises TypeError for a task that has no rule.
    """
    name = task.main_output(values)
    output = task.outputs.index(name)
    sign: Literal[1, -1] = 1
    measure: Literal["probability", "value"] = "probability"
    if isinstance(task, MultiLabel):
        sign = 1 if values[output] >= task.decides_at[output] else -1
    elif isinstance(task, Ordinal):
        sign = 1 if values[output + 1 :].sum() > 0.5 else -1
    elif isinstance(task, Regression | Survival):
        measure = "value"
        middled = isinstance(task, Regression) or task.model == "cox"
        sign = 1 if not middled or logits[output] >= 0 else -1
    elif not isinstance(task, Classification):
        raise TypeError(f"{type(task).__name__} has no rule of what an answer rests on")
    return Said(output=output, name=name, sign=sign, measure=measure)
