"""Sites with too few patients say so."""

from __future__ import annotations

import numpy as np

from tests.evaluation.made import numbers, two_classes
from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.bootstrap import estimates
from wsimil.evaluation.groups import by_group
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
