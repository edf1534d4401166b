"""Figures of a report, as far as marks lie where their numbers say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from wsimil.evaluation.curves import decision_curve
from wsimil.evaluation.one_class import OneClass
from wsimil.export.report.figures import decisions


def one_class(targets: np.ndarray, scores: np.ndarray) -> OneClass:
    return OneClass(
        name="tumor",
        rows=len(targets),
        positive=int(targets.sum()),
        decides=True,
        threshold=0.5,
        estimates={},
        delong=None,
        delong_of="rows",
        roc=None,
        pr=None,
        reliability=(),
        ece={},
        decision=decision_curve(targets, scores),
        histogram=((0,) * 20, (0,) * 20),
    )


@pytest.mark.parametrize("positive", [1, 7, 10, 25, 40, 63, 98])
def test_every_mark_of_net_benefit_lies_on_its_axis(positive: int) -> None:
    """A mark below 0 was drawn under the axis, over its label, where so little benefit is not shown."""
    targets = (np.arange(100) < positive).astype(np.int64)
    figure = decisions([one_class(targets, np.linspace(0.9, 0.1, 100))])[-1]
    marks = {float(y): label for y, label in re.findall(r'M54 ([\d.-]+)h332".*?>([−\d.]+)</text>', figure.plot)}
    assert len(marks) >= 2
    assert all(12 <= y <= 284 for y in marks), marks
