"""Each task is measured by its own metrics, and training watches those of `fit.monitor`."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from wsimil.evaluation.bootstrap import estimates
from wsimil.evaluation.judgement import Judged
from wsimil.evaluation.multiclass import OrdinalCases
from wsimil.evaluation.task_metrics import cases_of, watched
from wsimil.evaluation.wrong import said_of
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival


def test_two_classes_and_more_are_measured_by_their_own_names() -> None:
    values = np.array([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    two = cases_of(Classification(classes=("a", "b")), np.array([0, 1, 1]), values).values()
    assert (two["auroc"], two["sensitivity"]) == (1.0, 0.5)
    wide = np.concatenate([values * 0.9, np.full((3, 1), 0.1)], axis=1)
    more = cases_of(Classification(classes=("a", "b", "c")), np.array([0, 1, 1]), wide).values()
    assert more["accuracy"] == pytest.approx(2 / 3)
    assert more["auroc_macro_ovr"] is None


@pytest.mark.parametrize("threshold", [None, 0.3, 0.5])
def test_two_classes_are_judged_by_what_the_task_decides(threshold: float | None) -> None:
    """An exact tie, of which isotonic calibration makes many, was told as the first class and judged as the second."""
    task = Classification(classes=("a", "b"), threshold=threshold)
    second = np.array([0.2, 0.3, np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1), 0.8])
    values = np.stack([1 - second, second], axis=1)
    decided = [task.decided(row) for row in values]
    assert decided[3] == ("a" if threshold is None else "b")
    for thresholds in (None, task.decides_at, {"run": task.decides_at}):
        judged = Judged(
            task=task, slide_ids=("s",) * 6, patients=("p",) * 6, runs=("run",) * 6, labels=("a",) * 6, values=values
        )  # fmt: skip
        assert said_of(task, judged.cases(thresholds), values) == decided


def test_labels_are_measured_where_they_are_known() -> None:
    task = MultiLabel(columns=("a", "b", "c"))
    targets = np.array([[1, -1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    values = np.random.default_rng(1).random((4, 3))
    found = cases_of(task, targets, values).values()
    assert found["auroc:a"] == sk.roc_auc_score(targets[:, 0], values[:, 0])
    assert found["auroc:b"] == sk.roc_auc_score(targets[1:, 1], values[1:, 1])
    assert found["auroc:c"] is None
    assert found["auroc_macro"] is None
    assert watched(task, targets, values) == {"auroc": None}


def test_levels_are_measured_by_what_is_decided() -> None:
    task = Ordinal(levels=("1", "2", "3"))
    values = np.array([[0.8, 0.1, 0.1], [0.4, 0.25, 0.35], [0.1, 0.2, 0.7]])
    cases = cases_of(task, np.array([0, 2, 2]), values)
    assert [task.levels[level] for level in cases.decided] == [task.decided(row) for row in values]  # type: ignore[attr-defined]
    halves = np.array([[0.5, 0.25, 0.25], [0.5, 0.0, 0.5], [0.25, 0.25, 0.5]])
    assert OrdinalCases(targets=np.zeros(3, np.int64), probabilities=halves).decided.tolist() == [0, 0, 1]
    assert [task.decided(row) for row in halves] == ["1", "1", "2"], "of equals the lower"
    found = cases.values()
    assert found["mae_rank"] == pytest.approx(1 / 3)
    wanted = sk.cohen_kappa_score([0, 2, 2], [0, 1, 2], weights="quadratic")
    assert found["cohen_kappa_quadratic"] == pytest.approx(wanted)
    assert watched(task, np.array([0, 2, 2]), values) == {
        "kappa": found["cohen_kappa_quadratic"],
        "mae": found["mae_rank"],
    }
    assert cases_of(task, np.array([2]), values[2:]).values()["cohen_kappa_quadratic"] is None


def test_numbers_are_measured_in_their_unit_and_several_each() -> None:
    one = cases_of(Regression(columns=("x",)), np.array([[1.0], [3.0]]), np.array([[2.0], [5.0]])).values()
    assert (one["mae"], one["rmse"], one["spearman"]) == (1.5, pytest.approx(2.5**0.5), pytest.approx(1.0))
    two = Regression(columns=("x", "y"))
    targets, values = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0], [5.0, 6.0]])
    found = cases_of(two, targets, values).values()
    assert (found["mae:x"], found["mae:y"], found["r2:y"], found["spearman:y"]) == (1.5, 0.5, None, None)
    assert watched(two, targets, values) == {"mae": 1.0, "spearman": None}


def test_every_task_has_intervals_and_replicates_of_one_each_are_the_values() -> None:
    rng = np.random.default_rng(0)
    n = 40
    levels = rng.integers(0, 3, n)
    near = np.eye(3)[levels] + rng.random((n, 3))
    times = np.stack([rng.exponential(10, n), (rng.random(n) < 0.7).astype(float)], axis=1)
    numbers = rng.normal(size=(n, 2))
    for task, targets, values in (
        (MultiLabel(columns=("a", "b")), rng.integers(0, 2, (n, 2)), rng.random((n, 2))),
        (Ordinal(levels=("1", "2", "3")), levels, near / near.sum(axis=1, keepdims=True)),
        (Regression(columns=("x", "y")), numbers, numbers + rng.normal(size=(n, 2))),
        (Survival(model="cox"), times, -times[:, :1] + rng.normal(size=(n, 1))),
    ):
        cases = cases_of(task, targets, values)
        assert len(cases) == len(cases.take(np.arange(n))) == n
        once, told = cases.replicates(np.ones((1, n))), cases.values()
        assert {name: column[0] for name, column in once.items()} == pytest.approx(
            {name: told[name] for name in once}, rel=1e-9
        )
        found = estimates(cases, [f"p{row}" for row in range(n)], replicates=200)
        assert set(found) == set(told)
        bounds = [(one.low, one.value, one.high) for one in found.values() if one.low is not None]
        assert len(bounds) >= 2 or isinstance(task, Survival)
        assert bounds
        assert all(low <= high for low, _, high in bounds)  # type: ignore[operator]
