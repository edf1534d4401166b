"""Each task is measured by its own metrics, and what is undefined is None."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from wsimil.evaluation.task_metrics import c_index, estimates_of, metrics_of, watched
from wsimil.targets import MultiLabel, Ordinal, Regression, Survival


def test_concordance_is_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(0)
    times, events = rng.integers(1, 12, 80).astype(float), rng.random(80) > 0.4
    risks = np.round(rng.normal(size=80), 1)
    pairs = right = 0.0
    for i in range(80):
        for j in range(80):
            if events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j])):
                pairs += 1
                right += 1.0 if risks[i] > risks[j] else 0.5 * (risks[i] == risks[j])
    assert c_index(times, events, risks) == pytest.approx(right / pairs, rel=1e-12)
    apart = np.arange(80.0)
    assert (c_index(apart, events, -apart), c_index(apart, events, apart)) == (1.0, 0.0)
    assert c_index(times, np.zeros(80, bool), risks) is None


def test_labels_are_measured_where_they_are_known() -> None:
    task = MultiLabel(columns=("a", "b", "c"))
    targets = np.array([[1, -1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    values = np.random.default_rng(1).random((4, 3))
    found = metrics_of(task, targets, values)
    assert found["auroc:a"] == sk.roc_auc_score(targets[:, 0], values[:, 0])
    assert found["auroc:b"] == sk.roc_auc_score(targets[1:, 1], values[1:, 1])
    assert found["auroc:c"] is None
    assert found["auroc_macro"] is None
    assert watched(task, targets, values) == {"auroc": None}


def test_levels_are_measured_by_what_is_decided() -> None:
    task = Ordinal(levels=("1", "2", "3"))
    values = np.array([[0.8, 0.1, 0.1], [0.4, 0.25, 0.35], [0.1, 0.2, 0.7]])
    found = metrics_of(task, np.array([0, 2, 2]), values)
    assert found["mae"] == pytest.approx(1 / 3)
    assert found["kappa_quadratic"] == pytest.approx(sk.cohen_kappa_score([0, 2, 2], [0, 1, 2], weights="quadratic"))
    assert watched(task, np.array([0, 2, 2]), values).keys() == {"kappa", "mae"}
    assert metrics_of(task, np.array([2]), values[2:])["kappa_quadratic"] is None


def test_numbers_are_measured_in_their_unit_and_several_each() -> None:
    found = metrics_of(Regression(columns=("x",)), np.array([[1.0], [3.0]]), np.array([[2.0], [5.0]]))
    assert (found["mae"], found["rmse"], found["spearman"]) == (1.5, pytest.approx(2.5**0.5), pytest.approx(1.0))
    two = Regression(columns=("x", "y"))
    targets, values = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0], [5.0, 6.0]])
    found = metrics_of(two, targets, values)
    assert (found["mae:x"], found["mae:y"], found["r2:y"], found["spearman:y"]) == (1.5, 0.5, None, None)
    assert watched(two, targets, values) == {"mae": 1.0, "spearman": None}


def test_a_task_without_intervals_says_so_by_their_absence() -> None:
    found = estimates_of(Survival(), np.array([[1.0, 1], [2.0, 0]]), np.array([[0.3], [0.1]]), ["a", "b"])
    assert found["c_index"].value == 1.0
    assert found["c_index"].low is None
