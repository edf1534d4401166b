"""What is measured is what the answer rests on, in every task."""

from __future__ import annotations

import numpy as np
import pytest

from wsimil.evaluation.faithfulness.said import said_of
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival, Task

COX = Survival(model="cox")
HAZARD = Survival(edges=(6.0, 12.0, 24.0))
AGE = Regression(columns=("age",), mean=(60.0,), scale=(10.0,))


@pytest.mark.parametrize(
    ("task", "logits", "output", "sign", "strength"),
    [
        (Classification(classes=("a", "b", "c")), [0.0, 2.0, 1.0], 1, 1, np.exp(2) / (1 + np.exp(2) + np.exp(1))),
        (MultiLabel(columns=("er", "pr")), [1.0, 3.0], 1, 1, 1 / (1 + np.exp(-3))),
        (MultiLabel(columns=("er", "pr")), [-1.0, -3.0], 0, -1, 1 / (1 + np.exp(-1))),
        (MultiLabel(columns=("er", "pr"), thresholds=(0.2, 0.5)), [-1.0, -3.0], 0, 1, 1 / (1 + np.exp(1))),
        (MultiLabel(columns=("er", "pr"), thresholds=(0.5, 0.9)), [0.0, -3.0], 0, 1, 0.5),
        (Ordinal(levels=("1", "2", "3")), [0.0, -1.0], 0, -1, 0.5),
        (Ordinal(levels=("1", "2", "3")), [2.0, -1.0], 0, 1, 1 / (1 + np.exp(-2))),
        (Ordinal(levels=("1", "2", "3")), [-2.0, 4.0], 0, -1, 1 / (1 + np.exp(-2))),
        (Ordinal(levels=("1", "2", "3")), [3.0, 2.0], 1, 1, 1 / (1 + np.exp(-3)) / (1 + np.exp(-2))),
        (AGE, [-0.5], 0, -1, -55.0),
        (AGE, [0.5], 0, 1, 65.0),
        (COX, [-0.7], 0, -1, 0.7),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_it_is_turned_so_that_more_is_more_of_the_same(
    task: Task, logits: list[float], output: int, sign: int, strength: float
) -> None:
    row = np.array([logits])
    said = said_of(task, task.values(row)[0], row[0])
    assert (said.output, said.sign, said.name) == (output, sign, task.outputs[output])
    assert said.strength(task, task.values(row)) == pytest.approx([strength])
    own = logits[output] - (np.logaddexp(*np.delete(logits, output)) if task.kind == "classification" else 0)
    assert said.logit(task, row) == pytest.approx([sign * own])
    moved = row.copy()
    moved[0, output] += 0.1 * sign
    assert said.strength(task, task.values(moved))[0] > said.strength(task, task.values(row))[0]
    assert said.measure == ("value" if task.kind in ("regression", "survival") else "probability")


def test_hazards_are_asked_for_more_risk() -> None:
    row = np.array([[-2.0, 0.0, 1.0]])
    said = said_of(HAZARD, HAZARD.values(row)[0], row[0])
    assert (said.output, said.sign, said.measure) == (0, 1, "value")
    assert said.strength(HAZARD, HAZARD.values(row)) == pytest.approx(HAZARD.values(row)[:, 0])
