"""Metrics are scikit-learn's; what is undefined is None; a replicate is the metric of the rows that were drawn."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from tests.evaluation.made import every_kind, numbers, some_classes, some_labels, two_classes
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.bootstrap import resampling
from wsimil.evaluation.metrics import auroc
from wsimil.evaluation.multiclass import MulticlassCases, OrdinalCases
from wsimil.evaluation.multilabel import MultilabelCases
from wsimil.evaluation.regression import RegressionCases

CLOSE = {"rel": 1e-9, "abs": 1e-12}


@pytest.mark.parametrize("ties", [False, True])
def test_two_classes_are_measured_as_scikit_learn_does(ties: bool) -> None:
    cases = two_classes(163, ties=ties)
    truth, p = cases.targets, cases.probabilities
    decided = p >= 0.6
    found = cases.values()
    expected = {
        "auroc": sk.roc_auc_score(truth, p),
        "auprc": sk.average_precision_score(truth, p),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, decided),
        "f1": sk.f1_score(truth, decided),
        "mcc": sk.matthews_corrcoef(truth, decided),
        "sensitivity": sk.recall_score(truth, decided),
        "specificity": sk.recall_score(truth, decided, pos_label=0),
        "ppv": sk.precision_score(truth, decided),
        "npv": sk.precision_score(truth, decided, pos_label=0),
        "accuracy": sk.accuracy_score(truth, decided),
        "brier": sk.brier_score_loss(truth, p),
        "log_loss": sk.log_loss(truth, p),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, **CLOSE)
    assert set(found) - set(expected) == {"ece_equal_width", "ece_equal_mass"}


def test_more_classes_say_how_they_are_averaged() -> None:
    cases = some_classes(90, 4, kind=OrdinalCases)
    truth, p = cases.targets, cases.probabilities
    # The median: the first class up to which there is a half of the probability.
    decided = np.array([next(k for k in range(4) if row[: k + 1].sum() >= 0.5) for row in p])
    found = cases.values()
    expected = {
        "auroc_macro_ovr": sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"),
        "auprc_macro_ovr": sk.average_precision_score(np.eye(4)[truth], p, average="macro"),
        "f1_macro": sk.f1_score(truth, decided, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, decided),
        "mcc": sk.matthews_corrcoef(truth, decided),
        "brier": sk.brier_score_loss(truth, p, scale_by_half=False),
        "log_loss": sk.log_loss(truth, p),
        "cohen_kappa_quadratic": sk.cohen_kappa_score(truth, decided, weights="quadratic"),
        "mae_rank": np.abs(truth - decided).mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, **CLOSE)


def test_kappa_counts_the_steps_over_a_class_that_does_not_occur() -> None:
    truth, decided = np.array([0, 2, 3, 0, 3]), np.array([2, 3, 3, 0, 0])
    cases = OrdinalCases(targets=truth, probabilities=np.eye(4)[decided])
    # By its definition: what is off row by row, of what is off between the truth of any row and the decision of any other.
    wanted = 1 - ((truth - decided) ** 2).mean() / ((truth[:, None] - decided) ** 2).mean()
    assert cases.values()["cohen_kappa_quadratic"] == pytest.approx(wanted, **CLOSE)
    assert cases.replicates(np.ones((1, 5)))["cohen_kappa_quadratic"] == pytest.approx([wanted], **CLOSE)


def test_an_unknown_label_is_not_counted() -> None:
    cases = some_labels(80)
    known = cases.targets[:, 1] >= 0
    assert 0 < known.sum() < 80
    found = cases.values()
    truth, p = cases.targets[known, 1], cases.probabilities[known, 1]
    assert found["auroc:pr"] == pytest.approx(sk.roc_auc_score(truth, p), **CLOSE)
    assert found["f1:pr"] == pytest.approx(sk.f1_score(truth, p >= 0.4), **CLOSE)
    assert found["auroc_macro"] == pytest.approx(np.mean([found[f"auroc:{name}"] for name in ("er", "pr", "her2")]))


def test_each_label_of_each_row_is_decided_at_its_own_threshold_and_counted_where_it_is_there() -> None:
    p = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    at = np.array([[0.4, 0.6], [0.6, 0.4], [0.4, 0.4], [0.6, 0.6]])
    cases = MultilabelCases(
        labels=("a", "b"), targets=np.array([[1, 0], [0, 1], [-1, 1], [0, -1]]), probabilities=p, thresholds=at
    )
    assert cases.of("a").decided.tolist() == [1, 0, 0]
    assert cases.of("b").decided.tolist() == [0, 1, 1]
    assert cases.take(np.array([3, 1])).of("a").decided.tolist() == [0, 0]
    assert cases.take(np.array([2, 0])).of("b").decided.tolist() == [1, 0]
    assert cases.counts == {"a": 1, "b": 2}


def test_numbers_are_measured_as_scipy_and_scikit_learn_do() -> None:
    cases = numbers(70, ties=True)
    assert cases.values() == pytest.approx(
        {
            "mae": sk.mean_absolute_error(cases.targets, cases.predictions),
            "rmse": sk.mean_squared_error(cases.targets, cases.predictions) ** 0.5,
            "r2": sk.r2_score(cases.targets, cases.predictions),
            "pearson": np.corrcoef(cases.targets, cases.predictions)[0, 1],
            "spearman": stats.spearmanr(cases.targets, cases.predictions)[0],
        },
        **CLOSE,
    )


def test_calibration_error_is_the_sum_over_its_bins() -> None:
    cases = two_classes(400)
    for name, edges in (
        ("ece_equal_width", np.linspace(0, 1, 16)),
        ("ece_equal_mass", np.quantile(cases.probabilities, np.linspace(0, 1, 16))),
    ):
        error = 0.0
        for low, high in pairwise(edges):
            inside = (cases.probabilities >= low) & (cases.probabilities < high)
            if inside.any():
                gap = cases.targets[inside].mean() - cases.probabilities[inside].mean()
                error += inside.mean() * abs(gap)
        # The quantiles of numpy lie between two values, ours on one: single rows may fall into the neighboring bin.
        assert cases.values()[name] == pytest.approx(error, abs=1e-12 if name.endswith("width") else 15 / 400)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal", "multilabel", "regression"])
@pytest.mark.parametrize("count", [8, 63])
def test_replicates_equal_a_plain_loop_over_resampled_rows(kind: str, ties: bool, count: int) -> None:
    cases: Any = every_kind(count, seed=3, ties=ties)[kind]
    plan = resampling([f"p{i // 2}" for i in range(count)], cases.strata)
    weights = np.concatenate(list(plan.weights(30, seed=1)))
    drawn = cases.replicates(weights)
    for replicate, row in enumerate(weights.astype(int)):
        again = cases.take(np.repeat(np.arange(count), row)).values()
        for name, column in drawn.items():
            got, value = column[replicate], again[name]
            assert math.isnan(got) if value is None else got == pytest.approx(value, rel=1e-9, abs=1e-9), name
    missing = set(cases.values()) - set(drawn)
    assert all(name.startswith("ece_") for name in missing)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal", "multilabel", "regression"])
def test_no_rows_leave_every_metric_undefined(kind: str) -> None:
    cases: Any = every_kind(9)[kind]
    empty = cases.take(np.zeros(0, np.int64))
    assert set(empty.values()) == set(cases.values())
    assert set(empty.values().values()) == {None}


def test_one_class_alone_leaves_ranks_undefined() -> None:
    found = BinaryCases(targets=np.array([1, 1]), probabilities=np.array([0.8, 0.4]), threshold=0.5).values()
    undefined = {"auroc", "auprc", "balanced_accuracy", "f1", "mcc", "specificity"}
    assert {name for name, value in found.items() if value is None} == undefined
    assert found["accuracy"] == found["sensitivity"] == 0.5
    assert auroc(np.array([1, 1]), np.array([0.8, 0.4])) is None
    none_chosen = BinaryCases(targets=np.array([0, 1]), probabilities=np.array([0.2, 0.4]), threshold=0.5).values()
    assert none_chosen["ppv"] is none_chosen["mcc"] is None
    same = OrdinalCases(targets=np.array([1, 1]), probabilities=np.array([[0.1, 0.9], [0.2, 0.8]])).values()
    assert same["cohen_kappa_quadratic"] is same["auroc_macro_ovr"] is same["mcc"] is None
    flat = RegressionCases(targets=np.array([1.0, 1.0]), predictions=np.array([0.0, 2.0])).values()
    assert (flat["r2"], flat["pearson"], flat["spearman"], flat["mae"]) == (None, None, None, 1.0)


def test_numbers_that_are_all_the_same_have_no_correlation_also_in_a_replicate() -> None:
    """Of ten times 0.1 rounding leaves a variance."""
    flat, rising = np.array([*[0.1] * 10, 5.0]), np.arange(11.0)
    rows = np.array([[1.0] * 10 + [0.0]])
    for truth, said in ((flat, rising), (rising, flat)):
        cases = RegressionCases(targets=truth, predictions=said)
        drawn, alone = cases.replicates(rows), cases.take(np.arange(10)).values()
        assert [alone[name] for name in ("pearson", "spearman")] == [None, None]
        assert np.isnan([drawn[name][0] for name in ("pearson", "spearman")]).all()
        assert (alone["r2"] is None) == np.isnan(drawn["r2"][0]) == (truth is flat)
        assert truth is flat or drawn["r2"][0] == pytest.approx(alone["r2"], **CLOSE)
        assert np.isfinite(
            [cases.replicates(np.ones((1, 11)))[name][0] for name in ("pearson", "spearman", "r2")]
        ).all()


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_correlations_do_not_know_the_unit(scale: float) -> None:
    cases = numbers(20)
    scaled = RegressionCases(targets=cases.targets * scale, predictions=cases.predictions * scale)
    found, wanted = scaled.values(), cases.values()
    assert [found[name] for name in ("r2", "pearson", "spearman")] == pytest.approx(
        [wanted[name] for name in ("r2", "pearson", "spearman")], **CLOSE
    )
    assert found["mae"] == pytest.approx(wanted["mae"] * scale)  # type: ignore[operator]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["binary", "multiclass", "ordinal", "regression"]))
def test_the_order_of_rows_does_not_matter(seed: int, ties: bool, kind: str) -> None:
    cases: Any = every_kind(31, seed=seed % 1000, ties=ties)[kind]
    shuffled = cases.take(np.random.default_rng(seed).permutation(31))
    assert shuffled.values() == pytest.approx(cases.values(), **CLOSE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_swapping_the_classes_mirrors_what_is_symmetric(seed: int, ties: bool) -> None:
    cases = two_classes(41, seed=seed, ties=ties)
    # The threshold lies between attainable probabilities, so that no row sits on it after the mirror.
    mirrored = BinaryCases(targets=1 - cases.targets, probabilities=1 - cases.probabilities, threshold=1 - 0.6)
    ours, theirs = cases.values(), mirrored.values()
    for name in ("auroc", "balanced_accuracy", "mcc", "accuracy", "brier", "log_loss"):
        assert ours[name] == pytest.approx(theirs[name], **CLOSE), name
    for one, other in (("sensitivity", "specificity"), ("ppv", "npv")):
        assert ours[one] == pytest.approx(theirs[other], **CLOSE)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 1000))
def test_renaming_classes_changes_no_unordered_metric(order: list[int], seed: int) -> None:
    cases = some_classes(53, 4, seed=seed)
    renamed = MulticlassCases(
        targets=np.argsort(order)[cases.targets], probabilities=cases.probabilities[:, order]
    ).values()
    assert renamed == pytest.approx(cases.values(), **CLOSE)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="are these logits"):
        BinaryCases(targets=np.array([0, 1]), probabilities=np.array([-1.0, 2.0]), threshold=0.5)
    with pytest.raises(ValueError, match=r"0\.\.1, got 0\.\.2"):
        BinaryCases(targets=np.array([0, 2]), probabilities=np.array([0.1, 0.2]), threshold=0.5)
    with pytest.raises(ValueError, match=r"row 1 sums to 0\.9"):
        MulticlassCases(targets=np.array([0, 1]), probabilities=np.array([[0.5, 0.5], [0.4, 0.5]]))
    with pytest.raises(ValueError, match="1 of 2 values are not"):
        RegressionCases(targets=np.array([0.0, np.nan]), predictions=np.array([0.0, 1.0]))
