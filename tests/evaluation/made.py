"""Answers that are made up, for the tests of how answers are judged."""

from __future__ import annotations

import numpy as np

from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.multiclass import MulticlassCases, OrdinalCases
from wsimil.evaluation.multilabel import MultilabelCases
from wsimil.evaluation.regression import RegressionCases


def two_classes(count: int, *, seed: int = 0, ties: bool = False, shift: float = 1.0) -> BinaryCases:
    rng = np.random.default_rng(seed)
    targets = rng.integers(2, size=count)
    logits = rng.normal(size=count) + shift * targets
    logits = np.round(logits) if ties else logits
    return BinaryCases(targets=targets, probabilities=1 / (1 + np.exp(-logits)), threshold=0.6)


def some_classes(
    count: int, classes: int, *, seed: int = 0, ties: bool = False, kind: type[MulticlassCases] = MulticlassCases
) -> MulticlassCases:
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[targets]
    logits = np.round(logits) if ties else logits
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return kind(targets=targets, probabilities=probabilities)


def some_labels(count: int, *, seed: int = 0, ties: bool = False) -> MultilabelCases:
    rng = np.random.default_rng(seed)
    probabilities = rng.random((count, 3))
    return MultilabelCases(
        labels=("er", "pr", "her2"),
        targets=np.where(rng.random((count, 3)) < 0.1, -1, rng.random((count, 3)) < probabilities).astype(np.int64),
        probabilities=probabilities.round(1) if ties else probabilities,
        thresholds=(0.5, 0.4, 0.6),
    )


def numbers(count: int, *, seed: int = 0, ties: bool = False) -> RegressionCases:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=count)
    predictions = targets + rng.normal(size=count)
    return RegressionCases(
        targets=targets.round() if ties else targets, predictions=predictions.round() if ties else predictions
    )


def every_kind(
    count: int, *, seed: int = 0, ties: bool = False
) -> dict[str, BinaryCases | MulticlassCases | MultilabelCases | RegressionCases]:
    return {
        "binary": two_classes(count, seed=seed, ties=ties),
        "multiclass": some_classes(count, 3, seed=seed, ties=ties),
        "ordinal": some_classes(count, 4, seed=seed, ties=ties, kind=OrdinalCases),
        "multilabel": some_labels(count, seed=seed, ties=ties),
        "regression": numbers(count, seed=seed, ties=ties),
    }
