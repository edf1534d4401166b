"""Sites with too few patients say so; folds and seeds have a spread, a mean with an interval, and a pooled figure."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.made import numbers, two_classes
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.bootstrap import estimates
from wsimil.evaluation.groups import by_group, over_runs
from wsimil.evaluation.multilabel import MultilabelCases


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_each_site_has_what_its_rows_alone_have() -> None:
    cases = two_classes(100)
    sites = ["north" if i % 3 else "south" for i in range(100)]
    found = by_group(cases, sites, alone(100), replicates=200)
    assert [row.group for row in found] == ["north", "south"]
    rows = np.array([i for i in range(100) if i % 3])
    assert found[0].estimates == estimates(cases.take(rows), [str(i) for i in rows], replicates=200)
    assert found[0].counts == cases.take(rows).counts
    assert [row.rows for row in found] == [66, 34]
    assert {row.too_few for row in found} == {None}


def test_a_site_with_too_few_patients_of_a_class_shows_no_numbers() -> None:
    targets = np.array([0] * 20 + [1] * 20 + [0] * 10 + [1] * 8)
    cases = BinaryCases(targets=targets, probabilities=np.linspace(0, 1, 58), threshold=0.5)
    patients = alone(50) + ["same"] * 8
    sites = ["large"] * 40 + [""] * 18
    unknown, large = by_group(cases, sites, patients, replicates=50)
    assert large.too_few is None
    assert (unknown.group, unknown.rows, unknown.patients) == ("", 18, 11)
    assert unknown.estimates == {}
    assert unknown.too_few == "1 patients of a class, 5 are needed"
    healthy = by_group(cases, ["healthy"] * 20 + ["large"] * 38, patients, replicates=50)[0]
    assert (healthy.estimates, healthy.too_few) == ({}, "0 patients of a class, 5 are needed")
    alone_of_numbers = by_group(numbers(4), ["x"] * 4, alone(4), replicates=50)
    assert alone_of_numbers[0].too_few == "4 patients, 5 are needed"


def test_a_label_that_too_few_patients_of_a_site_have_shows_no_numbers_there() -> None:
    """A site of six, of whom one had it, showed its AUROC of 1, and the mean over labels with it."""
    targets = np.stack([np.tile([0, 1], 20), np.repeat([0, 1], 20)], axis=1)
    targets[:10, 0] = [1, 0, 0, 0, 0, 0, 0, -1, -1, -1]
    targets[:10, 1] = [0, 1] * 5
    cases = MultilabelCases(
        labels=("er", "a:pr"), targets=targets, probabilities=np.random.default_rng(0).random((40, 2)), thresholds=(0.5, 0.5)
    )  # fmt: skip
    small, large = by_group(cases, ["a"] * 10 + ["b"] * 30, alone(40), replicates=100)
    assert large.too_few is None
    assert {"auroc_macro", "auroc:er", "auroc:a:pr"} <= set(large.estimates)
    assert small.too_few == "label er: 1 patients of a class, 5 are needed"
    whole = estimates(cases.take(np.arange(10)), alone(10), replicates=100)
    assert small.estimates == {name: one for name, one in whole.items() if name.endswith(":a:pr")}
    assert small.estimates["auroc:a:pr"].value is not None
    tiny = by_group(cases.take(np.arange(8)), ["a"] * 8, alone(8), replicates=100)[0]
    assert (tiny.estimates, tiny.too_few) == (
        {},
        "label er: 1 patients of a class, 5 are needed; label a:pr: 4 patients of a class, 5 are needed",
    )


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
