"""ROC and precision-recall curves in as many points as a figure shows, confusion matrices, and decision curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from wsimil.evaluation.bootstrap import resampling
from wsimil.evaluation.cases import Floats, Ints, checked_probabilities, checked_targets, rarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points to draw a line through, from left to right; x and y in [0, 1], equally many."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """`counts[t][d]` rows of class t that were decided for class d, in the order of `classes`."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionCurve:
    """Net benefit at threshold probabilities: of the model, and of treating all; of treating none it is 0.

    In true positives a row, less false positives at the odds of the threshold: at most the prevalence, without a lower bound.
    `low` and `high` are the interval of `model` at each threshold by itself; empty where none can be told.
    """

    thresholds: tuple[float, ...]
    model: tuple[float, ...]
    treat_all: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def roc_curve(targets: Ints, scores: Floats, *, columns: int = 500) -> Curve | None:
    """Sensitivity (y) over 1 - specificity (x), from (0, 0) to (1, 1), at most 4 * `columns` points; None where a class is
    missing."""
    truth = checked_targets(targets, 2)
    if not 0 < int(truth.sum()) < len(truth):
        return None
    false, true, _ = sk.roc_curve(truth, scores, drop_intermediate=True)
    return _thinned(false, true, columns)


def pr_curve(targets: Ints, scores: Floats, *, columns: int = 500) -> Curve | None:
    """Precision (y) over recall (x), at most 4 * `columns` points; None where a class is missing.

    To be drawn in steps: between two points the precision is that of the right one (Davis & Goadrich 2006).
    """
    truth = checked_targets(targets, 2)
    if not 0 < int(truth.sum()) < len(truth):
        return None
    precision, recall, _ = sk.precision_recall_curve(truth, scores, drop_intermediate=True)
    return _thinned(recall[::-1], precision[::-1], columns)


def confusion(targets: Ints, decided: Ints, *, classes: Sequence[str]) -> Confusion:
    """How many rows of each class, `targets` [n], were `decided` [n] for which."""
    known = (checked_targets(targets, len(classes)), checked_targets(decided, len(classes)))
    table = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(table, known, 1)
    return Confusion(classes=tuple(classes), counts=tuple(tuple(row) for row in table.tolist()))


def decision_curve(targets: Ints, probabilities: Floats, *, thresholds: Sequence[float] | None = None) -> DecisionCurve:
    """Net benefit of calibrated `probabilities` [n] of class 1; thresholds in (0, 1), by default 0.01 to 0.99.

        model = (tp - fp * t / (1 - t)) / n

    Vickers & Elkin 2006, Medical Decision Making 26:565. Raises ValueError without rows.
    """
    truth, treated, odds, at = _treated(targets, probabilities, thresholds)
    model = (treated @ truth - odds * (treated @ (1 - truth))) / len(truth)
    prevalence = truth.mean()
    return DecisionCurve(
        thresholds=tuple(at.tolist()),
        model=tuple(model.tolist()),
        treat_all=tuple((prevalence - odds * (1 - prevalence)).tolist()),
    )


def with_band(
    curve: DecisionCurve,
    targets: Ints,
    probabilities: Floats,
    patients: Sequence[str],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> DecisionCurve:
    """The `decision_curve` of the same rows with percentile intervals; `patients` [n], the patient of each row, are drawn.

    Without them where a class has fewer than two patients.
    """
    truth, treated, odds, _ = _treated(targets, probabilities, curve.thresholds)
    plan = resampling(patients, rarity(truth, 2))
    if len(np.unique(truth)) < 2 or plan.smallest < 2:
        return curve
    # What a row of each class adds to the net benefit of each threshold where it is treated.
    gains = treated * np.where(truth, 1.0, -odds[:, None])
    blocks = plan.weights(replicates, seed=seed)
    drawn = np.concatenate([weights @ gains.T / weights.sum(axis=1, keepdims=True) for weights in blocks])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return replace(curve, low=tuple(low.tolist()), high=tuple(high.tolist()))


def _treated(
    targets: Ints, probabilities: Floats, thresholds: Sequence[float] | None
) -> tuple[Ints, NDArray[np.bool_], Floats, Floats]:
    """Truth [n], who is treated at each threshold [K, n], and odds and thresholds [K]."""
    truth = checked_targets(targets, 2)
    p = checked_probabilities("probabilities", probabilities, truth.shape)
    at = np.arange(1, 100) / 100 if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if not len(truth) or not len(at) or at.min() <= 0 or at.max() >= 1:
        raise ValueError(f"a decision curve needs rows and thresholds in (0, 1), got {len(truth)} rows and {at}")
    return truth, p >= at[:, None], at / (1 - at), at


def _thinned(x: Floats, y: Floats, columns: int) -> Curve:
    """First, lowest, highest and last point of each of `columns` columns of pixels, which draw the same picture.

    M4 aggregation, Jugel et al. 2014, PVLDB 7:797.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if len(x) > 4 * columns:
        column = np.minimum((x * columns).astype(np.int64), columns - 1)
        starts = np.flatnonzero(np.diff(column, prepend=-1))
        ends = np.append(starts[1:], len(x))
        kept = {0, len(x) - 1}
        for begin, end in zip(starts.tolist(), ends.tolist(), strict=True):
            part = y[begin:end]
            kept.update((begin, end - 1, begin + int(part.argmin()), begin + int(part.argmax())))
        rows = np.array(sorted(kept))
        x, y = x[rows], y[rows]
    return Curve(x=tuple(x.tolist()), y=tuple(y.tolist()))
