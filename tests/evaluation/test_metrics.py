"""Metrics are scikit-learn's; intervals come from patients; what is undefined is None."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn import metrics as sk

from wsimil.evaluation.bootstrap import estimates, patient_weights, weighted_metrics
from wsimil.evaluation.metrics import auroc, evaluate


def made(count: int, classes: int, *, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[targets]
    if ties:
        logits = np.round(logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return targets, probabilities, [f"p{i // 2}" for i in range(count)]


@pytest.mark.parametrize("ties", [False, True])
def test_two_classes_are_measured_as_scikit_learn_does(ties: bool) -> None:
    targets, probabilities, _ = made(63, 2, ties=ties)
    found = evaluate(targets, probabilities)
    decided = probabilities.argmax(axis=1)
    assert found == {
        "auroc": pytest.approx(sk.roc_auc_score(targets, probabilities[:, 1])),
        "auprc": pytest.approx(sk.average_precision_score(targets, probabilities[:, 1])),
        "balanced_accuracy": pytest.approx(sk.balanced_accuracy_score(targets, decided)),
        "f1": pytest.approx(sk.f1_score(targets, decided)),
        "accuracy": pytest.approx(sk.accuracy_score(targets, decided)),
        "log_loss": pytest.approx(sk.log_loss(targets, probabilities)),
    }


def test_more_classes_say_how_they_are_averaged() -> None:
    targets, probabilities, _ = made(90, 3)
    found = evaluate(targets, probabilities)
    assert found["auroc_macro_ovr"] == pytest.approx(
        sk.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    )
    assert found["f1_macro"] == pytest.approx(sk.f1_score(targets, probabilities.argmax(axis=1), average="macro"))


def test_one_class_alone_leaves_ranks_undefined() -> None:
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    found = evaluate(np.array([1, 1]), probabilities)
    assert found["auroc"] is found["auprc"] is found["balanced_accuracy"] is found["f1"] is None
    assert found["accuracy"] == 0.5
    assert auroc(np.array([1, 1]), probabilities) is None
    assert estimates(np.array([1, 1]), probabilities, ["a", "b"], replicates=9)["auroc"].low is None


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_replicates_equal_a_plain_loop_over_resampled_slides(classes: int, ties: bool) -> None:
    targets, probabilities, patients = made(60, classes, seed=3, ties=ties)
    weights = patient_weights(targets, patients, replicates=25, seed=1)
    drawn = weighted_metrics(targets, probabilities, weights)
    for replicate, row in enumerate(weights.astype(int)):
        again = np.repeat(np.arange(len(targets)), row)
        for name, value in evaluate(targets[again], probabilities[again]).items():
            got = drawn[name][replicate]
            assert math.isnan(got) if value is None else got == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_patients_are_drawn_whole_and_within_their_class() -> None:
    targets = np.array([0, 0, 1, 1, 0, 1, 1, 1])
    patients = ["a", "a", "b", "b", "c", "d", "e", "e"]
    weights = patient_weights(targets, patients, replicates=200, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 6] == weights[:, 7]).all()
    assert (weights[:, [0, 4]].sum(axis=1) == 2).all()  # two patients of class 0 in every replicate
    assert (weights[:, [2, 5, 6]].sum(axis=1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_slides_of_one_patient_do_not_narrow_the_interval() -> None:
    targets, probabilities, _ = made(40, 2, seed=5)
    alone = estimates(targets, probabilities, [str(i) for i in range(40)])["auroc"]
    copies = estimates(np.repeat(targets, 8), np.repeat(probabilities, 8, axis=0), [str(i // 8) for i in range(320)])[
        "auroc"
    ]
    assert copies.value == pytest.approx(alone.value)
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(1.0 / 2))  # AUROC of N(0, 1) against N(1, 1)
    covered = []
    for trial in range(200):
        targets = np.repeat([0, 1], 50)
        scores = rng.normal(size=100) + targets
        probability = 1 / (1 + np.exp(-scores))
        found = estimates(
            targets,
            np.stack([1 - probability, probability], axis=1),
            [str(i) for i in range(100)],
            replicates=300,
            seed=trial,
        )
        covered.append((found["auroc"].low or 0) <= truth <= (found["auroc"].high or 0))
    assert (
        0.89 <= np.mean(covered) <= 0.99
    )  # 0.95, give or take 4 standard errors of 200 trials, a percentile interval being narrow


def test_a_thousand_patients_take_seconds_not_minutes() -> None:
    targets, probabilities, patients = made(1500, 2)
    began = time.process_time()
    found = estimates(targets, probabilities, patients)
    assert found["auroc"].replicates == 2000
    assert time.process_time() - began < 30
