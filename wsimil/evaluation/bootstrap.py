"""Confidence intervals by a bootstrap over patients, stratified by class: slides of a patient are drawn together.

Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapters 8 and 13 (percentile interval). A replicate draws, within
each class, as many patients as there are, with replacement; a patient of several classes counts to its rarest. So no replicate
loses a class that one patient at least has to itself. All replicates are computed at once, as weights of slides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.metrics import NAMES_BINARY, NAMES_MULTICLASS, evaluate

_LOG_FLOOR = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A metric with its interval; None where it is undefined. `replicates` are those in which it was defined."""

    value: float | None
    low: float | None
    high: float | None
    replicates: int


def estimates(
    targets: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    patients: Sequence[str],
    *,
    replicates: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every metric of `metrics.evaluate` with its percentile interval; `targets` [n], `probabilities` [n, C], `patients` [n]."""
    values = evaluate(targets, probabilities)
    weights = patient_weights(targets, patients, replicates=replicates, seed=seed)
    drawn = weighted_metrics(targets, probabilities, weights)
    tails = [(1 - level) / 2, (1 + level) / 2]
    result = {}
    for name, value in values.items():
        defined = drawn[name][np.isfinite(drawn[name])]
        if value is None or not len(defined):
            result[name] = Estimate(value=value, low=None, high=None, replicates=len(defined))
        else:
            low, high = np.quantile(defined, tails)
            result[name] = Estimate(value=value, low=float(low), high=float(high), replicates=len(defined))
    return result


def patient_weights(
    targets: NDArray[np.int64], patients: Sequence[str], *, replicates: int, seed: int
) -> NDArray[np.float64]:
    """How often each slide is in each replicate, float64 [replicates, n]."""
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    frequency = np.bincount(targets)
    rarity = np.argsort(np.argsort(frequency, kind="stable"), kind="stable")  # class -> 0 for the rarest
    stratum = np.full(len(names), len(frequency))
    np.minimum.at(stratum, owner, rarity[targets])
    rng = np.random.default_rng(seed)
    counts = np.zeros((replicates, len(names)))
    for label in np.unique(stratum):
        members = np.flatnonzero(stratum == label)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=replicates)
    return counts[:, owner]


def weighted_metrics(
    targets: NDArray[np.int64], probabilities: NDArray[np.float64], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Every metric for every row of `weights` [R, n], float64 [R]; NaN where it is undefined."""
    classes = probabilities.shape[1]
    decided = probabilities.argmax(axis=1)
    total = weights.sum(axis=1)
    hits = np.stack([weights[:, (targets == c) & (decided == c)].sum(axis=1) for c in range(classes)], axis=1)
    actual = np.stack([weights[:, targets == c].sum(axis=1) for c in range(classes)], axis=1)
    chosen = np.stack([weights[:, decided == c].sum(axis=1) for c in range(classes)], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = hits / actual
        f1 = np.where(actual + chosen > 0, 2 * hits / (actual + chosen), 0.0)
        accuracy = hits.sum(axis=1) / total
        cost = -np.log(np.clip(probabilities[np.arange(len(targets)), targets], _LOG_FLOOR, 1.0))
        log_loss = weights @ cost / total
    whole = (actual > 0).all(axis=1)
    over = [1] if classes == 2 else list(range(classes))
    ranked = [_ranking(targets == c, probabilities[:, c], weights) for c in over]
    columns = (
        np.mean([auroc for auroc, _ in ranked], axis=0),
        np.mean([auprc for _, auprc in ranked], axis=0),
        recall.mean(axis=1),
        f1[:, 1] if classes == 2 else f1.mean(axis=1),
        accuracy,
        log_loss,
    )
    names = NAMES_BINARY if classes == 2 else NAMES_MULTICLASS
    always = {"accuracy", "log_loss"}
    return {
        name: column if name in always else np.where(whole, column, np.nan)
        for name, column in zip(names, columns, strict=True)
    }


def _ranking(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted AUROC and average precision for every row of `weights`; equal scores share their rank."""
    levels, level_of = np.unique(-scores, return_inverse=True)  # descending
    true = np.zeros((len(weights), len(levels)))
    false = np.zeros_like(true)
    order = np.argsort(level_of, kind="stable")
    starts = np.flatnonzero(np.diff(level_of[order], prepend=-1))
    true[:] = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    false[:] = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    above_true, above_false = true.cumsum(axis=1), false.cumsum(axis=1)
    all_true, all_false = above_true[:, -1], above_false[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        wins = (false * (above_true - true / 2)).sum(axis=1)
        auroc = wins / (all_true * all_false)
        precision = np.where(above_true + above_false > 0, above_true / (above_true + above_false), 0.0)
        auprc = (true * precision).sum(axis=1) / all_true
    return auroc, auprc
