"""One range for all slides."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from wsimil.export.cohort_range import CohortRange
from wsimil.export.scores import ScoreTable, score_table
from wsimil.export.shown import shown

NAME = "contribution:tumor"


def with_scores(table: ScoreTable, values: NDArray[np.float64]) -> ScoreTable:
    """A table of as many tiles as there are values, which is what they add to the one class, and take from the other."""
    scores = np.zeros((len(values), len(table.score_names)), np.float32)
    scores[:, table.score_names.index(NAME)] = values
    return dataclasses.replace(table, xy0=np.zeros((len(values), 2), np.int64), scores=scores)


@pytest.fixture
def table(make_prediction) -> ScoreTable:
    return score_table(make_prediction(n=9))


def test_of_small_slides_it_is_the_percentile_of_all_tiles(table: ScoreTable) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=n) * scale for n, scale in ((63, 1.0), (1, 9.0), (400, 0.1), (513, 2.0))]
    cohort = CohortRange()
    for part in parts:
        cohort.add(with_scores(table, part), NAME)
    every = np.abs(np.concatenate(parts).astype(np.float32)).astype(np.float64)
    end = float(np.quantile(every, 0.99, method="inverted_cdf"))
    assert cohort.span(NAME, "signed") == (-end, end)
    assert cohort.span(NAME, "sequential") == (0.0, end)
    assert cohort.slides(NAME) == 4


def test_of_large_slides_it_is_as_near_as_it_says(table: ScoreTable) -> None:
    rng = np.random.default_rng(1)
    parts = [rng.standard_t(3, size=n) * scale for n, scale in ((30_000, 1.0), (5000, 5.0), (12_345, 0.3))]
    cohort = CohortRange()
    for part in parts:
        cohort.add(with_scores(table, part), NAME)
    every = np.abs(np.concatenate(parts))
    low, high = np.quantile(every, [0.988, 0.992])
    assert low <= cohort.span(NAME, "signed")[1] <= high


def test_where_nearly_all_tiles_have_none_it_ends_with_the_largest(table: ScoreTable) -> None:
    cohort = CohortRange()
    cohort.add(with_scores(table, np.array([0.0] * 399 + [-3.0])), NAME)
    assert cohort.span(NAME, "signed") == (-3, 3)


def test_a_slide_of_one_tile_does_not_pale_all_others(table: ScoreTable) -> None:
    cohort = CohortRange()
    for number in range(20):
        cohort.add(with_scores(table, np.random.default_rng(number).normal(size=1000)), NAME)
    before = cohort.span(NAME, "signed")[1]
    cohort.add(with_scores(table, np.array([1000.0])), NAME)
    assert cohort.span(NAME, "signed")[1] == pytest.approx(before, rel=0.02)


def test_slides_that_show_another_class_share_the_range_of_the_kind(table: ScoreTable) -> None:
    cohort = CohortRange()
    cohort.add(table, "contribution:tumor")
    assert cohort.span("contribution:normal", "signed") == cohort.span("contribution:tumor", "signed")
    assert cohort.span("attention", "sequential") == (0.0, 1.0)
    assert cohort.slides("attention") == 0


def test_it_is_of_what_the_answers_rest_on_whichever_score_was_asked_for(make_prediction) -> None:
    table = score_table(make_prediction(n=9, classes=("normal", "tumor", "third")))
    scores = table.scores.copy()
    answered = f"contribution:{table.predicted}"
    other = next(name for name in table.score_names if name.startswith("contribution:") and name != answered)
    scores[:, table.score_names.index(answered)] = 0.5
    scores[:, table.score_names.index(other)] = 2.0
    found = dataclasses.replace(table, scores=scores)
    ends = [float(np.abs(shown(found, name).values).max()) for name in (answered, other)]
    assert ends[0] < ends[1] - 0.1
    for asked in (answered, other):
        cohort = CohortRange()
        cohort.add(found, asked)
        assert cohort.span(other, "signed") == (-ends[0], ends[0])
    with pytest.raises(KeyError, match="contribution:fourth"):
        cohort.add(found, "contribution:fourth")


def test_of_heads_all_are_counted(table: ScoreTable) -> None:
    names = ("attention:head0", "attention:head1", "contribution:tumor")
    scores = np.stack([np.full(9, 1 / 9), np.eye(9)[0], np.ones(9)], axis=1).astype(np.float32)
    cohort = CohortRange()
    cohort.add(dataclasses.replace(table, score_names=names, scores=scores), "attention:head0")
    assert cohort.span("attention:head0", "sequential")[1] == pytest.approx(
        9
    )  # of the head that looks at one tile of nine


def test_a_slide_is_counted_once_for_a_kind_however_many_scores_of_it_there_are(table: ScoreTable) -> None:
    cohort = CohortRange()
    cohort.add_each(table, table.score_names)
    assert (cohort.slides("contribution:normal"), cohort.slides("attention")) == (1, 1)


@pytest.mark.parametrize("values", [[0.0], [np.nan], [0.0] * 1000 + [3.0]])
def test_it_is_never_empty(values: list[float], table: ScoreTable) -> None:
    cohort = CohortRange()
    cohort.add(with_scores(table, np.array(values)), NAME)
    low, high = cohort.span(NAME, "signed")
    assert low == -high < 0


def test_a_slide_that_is_counted_in_after_the_range_was_asked_for_moves_its_end(table: ScoreTable) -> None:
    cohort = CohortRange()
    cohort.add(with_scores(table, np.linspace(0, 1, 101)), NAME)
    assert cohort.span(NAME, "signed")[1] == pytest.approx(0.99)
    cohort.add(with_scores(table, np.linspace(0, 10, 101)), NAME)
    assert cohort.span(NAME, "signed")[1] > 9
    assert cohort.span("attention", "sequential") == (0.0, 1.0)
