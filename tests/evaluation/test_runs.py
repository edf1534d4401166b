"""Folds and seeds have a spread, a mean with an interval, and a pooled figure; recipes are held against each other run by run."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.made import two_classes
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.bootstrap import estimates
from wsimil.evaluation.runs import between_runs, holm, over_runs, retrained


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_folds_have_a_spread_and_their_mean_an_interval() -> None:
    cases = two_classes(200)
    folds = [str(i % 5) for i in range(200)]
    found = over_runs(cases, folds, alone(200), replicates=300)["auroc"]
    each = [cases.take(np.arange(fold, 200, 5)).values()["auroc"] for fold in range(5)]
    assert (found.runs, found.mean, found.sd) == (5, pytest.approx(np.mean(each)), pytest.approx(np.std(each, ddof=1)))
    assert (found.least, found.most) == (min(each), max(each))
    assert found.averaged.value == pytest.approx(np.mean(each))
    assert found.averaged.low < found.averaged.value < found.averaged.high
    assert found.averaged.undefined == 0  # classes are drawn within folds
    assert found.pooled.value == cases.values()["auroc"]


def test_folds_that_are_pooled_are_drawn_as_the_rows_of_one_run() -> None:
    """Drawn within ten folds, with two patients of the rarer class in each, intervals of 95 % covered the truth in 83 %."""
    cases = BinaryCases(
        targets=np.repeat([1, 0], [20, 40]), probabilities=np.random.default_rng(0).random(60), threshold=0.5
    )
    found = over_runs(cases, [str(i % 10) for i in range(60)], alone(60), replicates=200)
    assert {name: one.pooled for name, one in found.items()} == estimates(cases, alone(60), replicates=200)


def test_small_folds_keep_their_classes_in_every_replicate() -> None:
    targets = np.tile([0, 1], 15)
    cases = BinaryCases(targets=targets, probabilities=np.random.default_rng(0).random(30), threshold=0.5)
    found = over_runs(cases, [str(i // 6) for i in range(30)], alone(30), replicates=200)["auroc"]
    assert (found.averaged.replicates, found.averaged.undefined) == (200, 0)


def test_the_mean_over_folds_that_are_repeated_has_an_interval() -> None:
    """Of 100 patients in five folds, three times over, most share their folds with nobody, which left no interval at all."""
    cases, rng = two_classes(100), np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(100) for _ in range(3)])
    found = over_runs(cases.take(rows), [str(i // 20) for i in range(300)], [str(row) for row in rows], replicates=200)
    for name in ("auroc", "brier"):
        mean = found[name].averaged
        assert mean.low is not None
        assert mean.low < mean.value < mean.high


def test_seeds_of_one_model_do_not_narrow_the_interval_over_patients() -> None:
    cases = two_classes(60)
    once = over_runs(cases, ["0"] * 60, alone(60))["auroc"]
    seeds = over_runs(cases.take(np.tile(np.arange(60), 4)), list(np.repeat(["0", "1", "2", "3"], 60)), alone(60) * 4)
    assert seeds["auroc"].averaged.value == pytest.approx(once.averaged.value)
    assert seeds["auroc"].averaged.low == pytest.approx(once.averaged.low)
    assert seeds["auroc"].sd == pytest.approx(0)
    assert once.sd is None


def test_a_fold_without_a_class_leaves_the_mean_over_folds_undefined() -> None:
    cases = BinaryCases(targets=np.array([0, 1] * 10 + [0] * 10), probabilities=np.linspace(0, 1, 30), threshold=0.5)
    found = over_runs(cases, ["a"] * 20 + ["b"] * 10, alone(30), replicates=100)
    assert (found["auroc"].runs, found["auroc"].averaged.value, found["auroc"].averaged.low) == (1, None, None)
    assert found["auroc"].pooled.low is not None
    assert found["accuracy"].averaged.low is not None


def test_a_rank_pooled_over_folds_of_other_scales_is_lower_than_their_mean() -> None:
    cases = two_classes(100, shift=2)
    halved = BinaryCases(
        targets=cases.targets, probabilities=cases.probabilities * np.where(np.arange(100) < 50, 0.1, 1), threshold=0.5
    )
    found = over_runs(halved, ["a"] * 50 + ["b"] * 50, alone(100), replicates=50)["auroc"]
    assert found.pooled.value < found.averaged.value - 0.1
    assert found.sd == pytest.approx((found.most - found.least) / 2**0.5)


def two_recipes(gain: float = 1.0) -> tuple[BinaryCases, BinaryCases, list[str], list[str]]:
    """Two recipes, the first better, in three folds with two seeds of 60 patients; their cases, runs and patients."""
    rng = np.random.default_rng(0)
    rows = np.tile(np.arange(60), 2)
    targets = np.resize([0, 1], 60)[rows]
    runs = [f"{row % 3}/seed-{number // 60}" for number, row in enumerate(rows)]
    noise = rng.normal(size=120)
    made = [
        BinaryCases(targets=targets, probabilities=1 / (1 + np.exp(-(noise + shift * targets))), threshold=0.5)
        for shift in (1.0 + gain, 1.0)
    ]
    return made[0], made[1], runs, [str(row) for row in rows]


def rounds_of(runs: list[str]) -> dict[str, str]:
    return {run: run.partition("/")[0] for run in runs}


def test_two_recipes_differ_by_the_mean_over_their_runs() -> None:
    first, second, runs, patients = two_recipes()
    found = between_runs(first, second, runs, patients, rounds=rounds_of(runs), test_share=0.5, replicates=400)
    each = {
        run: [cases.take(np.flatnonzero(np.array(runs) == run)).values()["auroc"] for cases in (first, second)]
        for run in sorted(set(runs))
    }
    gains = {run: mine - other for run, (mine, other) in each.items()}
    one = found["auroc"]
    assert (one.runs, one.rounds) == (6, 3)
    assert one.difference.difference == pytest.approx(np.mean([*gains.values()]))
    assert one.difference.first == pytest.approx(np.mean([mine for mine, _ in each.values()]))
    assert 0 < one.difference.low < one.difference.difference < one.difference.high
    assert one.difference.p_value < 0.02
    by_round = [np.mean([gains[f"{fold}/seed-{seed}"] for seed in range(2)]) for fold in range(3)]
    assert one.retrained == retrained(np.array(by_round), test_share=0.5)
    assert set(found) == set(first.values())


def test_rounds_that_test_on_the_same_patients_say_nothing_of_training_anew() -> None:
    """As those of an external test do: how far they differ does not tell how others would have been answered for."""
    first, second, runs, patients = two_recipes()
    seeds = [run.rpartition("/")[2] for run in runs]
    found = between_runs(first, second, seeds, patients, rounds={seed: seed for seed in seeds}, test_share=0.5)
    assert (found["auroc"].rounds, found["auroc"].retrained) == (2, None)
    assert found["auroc"].difference.low is not None
    rows = np.arange(len(seeds) - 1)  # nor do those of which one lacks a patient
    found = between_runs(
        first.take(rows),
        second.take(rows),
        seeds[:-1],
        patients[:-1],
        rounds={seed: seed for seed in seeds},
        test_share=0.5,
    )
    assert found["auroc"].retrained is None


def test_the_same_patients_are_drawn_in_both_recipes() -> None:
    """Else the interval of a difference that is much the same for every patient would be as wide as that of each recipe."""
    first, second, runs, patients = two_recipes(gain=0.01)
    found = between_runs(first, second, runs, patients, rounds=rounds_of(runs), test_share=0.5, replicates=300)
    alone_low, alone_high = (
        getattr(over_runs(first, runs, patients)["brier"].averaged, end) for end in ("low", "high")
    )
    paired = found["brier"].difference
    assert paired.high - paired.low < 0.1 * (alone_high - alone_low)


def test_a_recipe_does_not_differ_from_itself() -> None:
    first, _, runs, patients = two_recipes()
    found = between_runs(first, first, runs, patients, rounds=rounds_of(runs), test_share=0.5, replicates=100)
    one = found["auroc"]
    assert (one.difference.difference, one.difference.low, one.difference.p_value, one.retrained) == (
        0,
        None,
        None,
        None,
    )


def test_recipes_of_another_truth_are_refused() -> None:
    first, second, runs, patients = two_recipes()
    other = BinaryCases(targets=1 - second.targets, probabilities=second.probabilities, threshold=0.5)
    with pytest.raises(ValueError, match="match them by slide"):
        between_runs(first, other, runs, patients, rounds=rounds_of(runs), test_share=0.5)


def test_a_metric_that_is_undefined_in_a_fold_has_no_difference() -> None:
    cases = BinaryCases(targets=np.array([0, 1] * 10 + [0] * 10), probabilities=np.linspace(0, 1, 30), threshold=0.5)
    runs = ["a"] * 20 + ["b"] * 10
    found = between_runs(cases, cases, runs, alone(30), rounds={"a": "a", "b": "b"}, test_share=0.5, replicates=100)
    assert (found["auroc"].difference.difference, found["auroc"].retrained) == (None, None)


def test_training_anew_counts_what_rounds_share() -> None:
    """By hand: mean 0.02, sd 0.01, n 3; t of 2 degrees of freedom at 97.5 % is 4.302653."""
    found = retrained(np.array([0.01, 0.02, 0.03]), test_share=0.5)
    error = 0.01 * (1 / 3 + 0.5) ** 0.5
    assert (found.low, found.high) == (pytest.approx(0.02 - 4.302653 * error), pytest.approx(0.02 + 4.302653 * error))
    assert retrained(np.array([0.01, 0.02, 0.03]) + 4.302653 * error - 0.02, test_share=0.5).p_value == pytest.approx(
        0.05
    )


@pytest.mark.parametrize("differences", [[0.1], [0.1, 0.1, 0.1], [0.1, 0.3 - 0.2, 0.7 - 0.6]])
def test_rounds_that_do_not_differ_say_nothing_of_training_anew(differences: list[float]) -> None:
    assert retrained(np.array(differences), test_share=0.25) is None


def test_p_values_are_corrected_as_by_holm() -> None:
    """Those of p.adjust(p, "holm") in R."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
