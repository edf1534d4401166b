"""The metrics of each task, and what training watches of them on the validation split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from wsimil.evaluation import metrics
from wsimil.evaluation.bootstrap import Estimate, estimates
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Targets, Task


def estimates_of(
    task: Task, targets: Targets, values: NDArray[np.float64], patients: Sequence[str]
) -> dict[str, Estimate]:
    """Every metric of the task for answers `values` [n, V]; with an interval over patients for classification."""
    if isinstance(task, Classification):
        return estimates(np.asarray(targets, np.int64), values, patients)
    found = metrics_of(task, targets, values)
    return {name: Estimate(value=value, low=None, high=None, replicates=0) for name, value in found.items()}


def metrics_of(task: Task, targets: Targets, values: NDArray[np.float64]) -> dict[str, float | None]:
    """Every metric of the task by name, None where it is undefined, for `targets` as the task encodes them.

    Multilabel: of each label and the mean over labels (macro), of the slides for which the label is known.
    """
    if isinstance(task, Classification):
        return metrics.evaluate(np.asarray(targets, np.int64), values)
    if isinstance(task, MultiLabel):
        return _of_labels(task.labels, np.asarray(targets, np.int64), values)
    if isinstance(task, Ordinal):
        decided = task.encode([task.decided(row) for row in values])
        return _of_levels(np.asarray(targets, np.int64), decided, len(task.levels))
    if isinstance(task, Regression):
        return _of_numbers(task.columns, np.asarray(targets, np.float64), values)
    times, events = np.asarray(targets, np.float64).T
    return {"c_index": c_index(times, events == 1, values[:, 0])}


def watched(task: Task, targets: Targets, values: NDArray[np.float64]) -> dict[str, float | None]:
    """What training can watch, by the names of `fit.monitor`; of several labels or numbers the mean."""
    if isinstance(task, Classification):
        return {"auroc": metrics.auroc(np.asarray(targets, np.int64), values)}
    found = metrics_of(task, targets, values)
    if isinstance(task, MultiLabel):
        return {"auroc": found["auroc_macro"]}
    if isinstance(task, Regression) and len(task.columns) > 1:
        return {name: _mean([found[f"{name}:{column}"] for column in task.columns]) for name in ("mae", "spearman")}
    names = {"ordinal": ("kappa_quadratic", "mae"), "regression": ("mae", "spearman"), "survival": ("c_index",)}
    return {name.removesuffix("_quadratic"): found[name] for name in names[task.kind]}


def c_index(times: NDArray[np.float64], events: NDArray[np.bool_], risks: NDArray[np.float64]) -> float | None:
    """Harrell's concordance: of pairs whose earlier time is an event, the share in which that one has the higher risk.

    Of two equal times one event and one not are a pair, two events are none; equal risks count a half. None without a pair.
    """
    pairs = right = 0.0
    for time, risk in zip(times[events], risks[events], strict=True):
        later = (times > time) | ((times == time) & ~events)
        pairs += later.sum()
        right += (risk > risks[later]).sum() + (risk == risks[later]).sum() / 2
    return float(right / pairs) if pairs else None


def _of_labels(
    labels: Sequence[str], targets: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> dict[str, float | None]:
    found: dict[str, list[float | None]] = {"auroc": [], "auprc": [], "f1": []}
    for column, p in zip(targets.T, probabilities.T, strict=True):
        known = column >= 0
        both = len(set(column[known].tolist())) == 2
        found["auroc"].append(metrics.auroc(column[known], p[known]) if both else None)
        found["auprc"].append(metrics.auprc(column[known], p[known]) if both else None)
        found["f1"].append(float(sk.f1_score(column[known], p[known] >= 0.5, zero_division=0.0)) if both else None)
    each = {f"{name}:{label}": v for name, row in found.items() for label, v in zip(labels, row, strict=True)}
    return {f"{name}_macro": _mean(row) for name, row in found.items()} | each


def _of_levels(targets: NDArray[np.int64], decided: NDArray[np.int64], count: int) -> dict[str, float | None]:
    varied = len(set(targets.tolist()) | set(decided.tolist())) > 1
    kappa = sk.cohen_kappa_score(targets, decided, weights="quadratic", labels=list(range(count))) if varied else None
    return {
        "kappa_quadratic": None if kappa is None else float(kappa),
        "mae": float(np.abs(targets - decided).mean()),
        "accuracy": float((targets == decided).mean()),
    }


def _of_numbers(
    names: Sequence[str], targets: NDArray[np.float64], values: NDArray[np.float64]
) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for name, wanted, got in zip(names, targets.T, values.T, strict=True):
        tail = f":{name}" if len(names) > 1 else ""
        varied = np.ptp(wanted) > 0 and np.ptp(got) > 0
        result[f"mae{tail}"] = float(np.abs(wanted - got).mean())
        result[f"rmse{tail}"] = float(np.sqrt(np.square(wanted - got).mean()))
        result[f"r2{tail}"] = float(sk.r2_score(wanted, got)) if np.ptp(wanted) > 0 else None
        result[f"spearman{tail}"] = float(stats.spearmanr(wanted, got).statistic) if varied else None
    return result


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
