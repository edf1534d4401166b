"""Answers of each task held beside the truth, and what training watches of them on the validation split."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation import metrics
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.cases import Cases
from wsimil.evaluation.multiclass import MulticlassCases, OrdinalCases
from wsimil.evaluation.multilabel import MultilabelCases
from wsimil.evaluation.regression import RegressionCases, SeveralNumbersCases
from wsimil.evaluation.survival import censoring_curve
from wsimil.evaluation.survival_cases import SurvivalCases
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival, Targets, Task

_WATCHED = {
    "multilabel": {"auroc": "auroc_macro"},
    "ordinal": {"kappa": "cohen_kappa_quadratic", "mae": "mae_rank"},
    "regression": {"mae": "mae", "spearman": "spearman"},
    "survival": {"c_index": "harrell_c"},
}


def cases_of(task: Task, targets: Targets, values: NDArray[np.float64]) -> Cases:
    """Answers `values` [n, V] beside `targets` as the task encodes them.

    Two classes, and each of several labels, are decided as by the task, at its `decides_at`.
    Survival weighs by how long these slides' patients were followed.
    """
    if isinstance(task, Classification | Ordinal | MultiLabel):
        classes = np.asarray(targets, np.int64)
        if isinstance(task, MultiLabel):
            at = np.array(task.decides_at)
            return MultilabelCases(labels=task.labels, targets=classes, probabilities=values, thresholds=at)
        if isinstance(task, Ordinal):
            return OrdinalCases(targets=classes, probabilities=values)
        if len(task.classes) == 2:
            return BinaryCases(
                targets=classes,
                probabilities=values[:, 1],
                threshold=task.decides_at[0],
            )
        return MulticlassCases(targets=classes, probabilities=values)
    numbers = np.asarray(targets, np.float64)
    if isinstance(task, Regression):
        each = [RegressionCases(targets=t, predictions=p) for t, p in zip(numbers.T, values.T, strict=True)]
        return each[0] if len(each) == 1 else SeveralNumbersCases(names=task.columns, numbers=tuple(each))
    times, events = numbers[:, 0], numbers[:, 1] == 1
    horizons = cast("Survival", task).answered_horizons
    return SurvivalCases(
        times=times,
        events=events,
        risks=values[:, 0],
        censoring=censoring_curve(times, events),
        horizons=horizons,
        survival=values[:, 1:] if horizons else None,
    )


def watched(task: Task, targets: Targets, values: NDArray[np.float64]) -> dict[str, float | None]:
    """What training can watch, by the names of `fit.monitor`; of several labels or numbers the mean."""
    if isinstance(task, Classification):
        return {"auroc": metrics.auroc(np.asarray(targets, np.int64), values)}
    found = cases_of(task, targets, values).values()
    return {name: found[metric] for name, metric in _WATCHED[task.kind].items()}
