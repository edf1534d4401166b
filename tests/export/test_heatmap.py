"""Heatmaps, their ranges and their raster."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from wsimil.export.heatmap import Heatmap, display_range, rank_heatmap, rasterize, raw_heatmap
from wsimil.export.scores import score_table
from wsimil.export.shown import effective_tiles


def _map(xy0: list[tuple[int, int]], values: list[float], *, side: float, size: tuple[int, int]) -> Heatmap:
    return Heatmap(
        slide_size0_px=size,
        mpp=0.5,
        size0=side,
        xy0=np.array(xy0, np.int64).reshape(-1, 2),
        values=np.array(values, np.float32),
        kind="signed",
        label="test",
        range=(-1.0, 1.0),
        normalization="test",
    )


def _by_area(heatmap: Heatmap, shape: tuple[int, int]) -> NDArray[np.float64]:
    """The definition, tile by tile and cell by cell."""
    total, covered = np.zeros(shape), np.zeros(shape)
    width, height = (heatmap.slide_size0_px[0] / shape[1], heatmap.slide_size0_px[1] / shape[0])
    for (x, y), value in zip(heatmap.xy0, heatmap.values, strict=True):
        for i in range(shape[0]):
            for j in range(shape[1]):
                across = min(x + heatmap.size0, (j + 1) * width) - max(x, j * width)
                down = min(y + heatmap.size0, (i + 1) * height) - max(y, i * height)
                area = max(across, 0.0) * max(down, 0.0) / (width * height)
                covered[i, j] += area
                total[i, j] += area * float(value)
    largest = min(1.0, heatmap.size0 / width) * min(1.0, heatmap.size0 / height)
    return np.where(covered > largest / 8, total / np.where(covered > 0, covered, 1), np.nan)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (30, 41), (63, 1)])
@pytest.mark.parametrize("side", [3.7, 20.0, 31.25])
def test_a_cell_is_the_mean_of_its_tiles_weighted_by_area(shape: tuple[int, int], side: float) -> None:
    rng = np.random.default_rng(0)
    xy0 = sorted({(int(y), int(x)) for y, x in rng.integers(-5, 95, (40, 2))})
    heatmap = _map([(x, y) for y, x in xy0], rng.normal(size=len(xy0)).tolist(), side=side, size=(100, 90))
    np.testing.assert_allclose(rasterize(heatmap, shape=shape), _by_area(heatmap, shape), rtol=0, atol=1e-6)


def test_unscored_differs_from_low() -> None:
    raster = rasterize(_map([(0, 0), (20, 0)], [0.0, np.nan], side=10, size=(40, 10)), shape=(1, 4))
    assert raster[0, 0] == 0
    assert np.isnan(raster[0, 1:]).all()


def test_no_tile_vanishes_in_a_coarse_raster() -> None:
    for x in range(0, 1000, 7):
        raster = rasterize(_map([(x, x)], [1.0], side=13, size=(1013, 1013)), shape=(10, 10))
        assert np.nanmax(raster) == 1


def test_rounded_corners_do_not_spread_a_tile_over_its_neighbors_cell() -> None:
    raster = rasterize(_map([(63, 0)], [1.0], side=63.25, size=(253, 64)), shape=(1, 4))
    assert np.isfinite(raster).tolist() == [[False, True, False, False]]


def test_a_constant_far_from_zero_stays_constant() -> None:
    xy0 = [(x, y) for y in range(0, 1000, 10) for x in range(0, 1000, 10)]
    raster = rasterize(_map(xy0, [1e4 + 0.5] * len(xy0), side=13.3, size=(1000, 1000)), shape=(77, 113))
    assert np.all(raster == np.float32(1e4 + 0.5))


def test_a_map_without_one_scored_tile_is_all_nan() -> None:
    assert np.isnan(rasterize(_map([(0, 0)], [np.nan], side=5, size=(9, 9)), shape=(3, 3))).all()
    with pytest.raises(ValueError, match="at least one cell"):
        rasterize(_map([(0, 0)], [1.0], side=5, size=(9, 9)), shape=(0, 3))


@pytest.mark.parametrize("n", [1, 63, 1000])
def test_effective_tiles_are_all_for_uniform_and_one_for_peaked_attention(n: int) -> None:
    assert effective_tiles(np.full(n, 0.1, np.float32)) == pytest.approx(n)
    peaked = np.zeros(n, np.float32)
    peaked[n // 2] = 7.0
    assert effective_tiles(peaked) == 1


@pytest.mark.parametrize("bad", [[0.0, 0.0], [0.5, -0.1], [np.nan, np.nan]])
def test_attention_that_is_none_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        effective_tiles(np.array(bad, np.float32))


def test_attention_is_shown_as_a_multiple_of_uniform_and_called_no_evidence(make_prediction) -> None:
    heatmap = raw_heatmap(score_table(make_prediction(n=63)), "attention")
    assert heatmap.values.mean() == pytest.approx(1)
    assert heatmap.kind == "sequential"
    assert "not evidence" in heatmap.label


def test_contributions_are_shown_as_those_to_log_odds_signed_and_symmetric(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    heatmap = raw_heatmap(table, "contribution:tumor")
    for_tumor = table.score("contribution:tumor").astype(np.float64) - table.score("contribution:normal")
    assert np.array_equal(heatmap.values, for_tumor.astype(np.float32))
    assert heatmap.kind == "signed"
    assert heatmap.range[1] == -heatmap.range[0] == np.percentile(np.abs(heatmap.values.astype(np.float64)), 99)
    assert "this slide" in heatmap.normalization
    assert (heatmap.rule, heatmap.reading) == ("exact", "log-odds; 0 = adds nothing")


def test_a_range_fixed_for_the_cohort_is_kept_and_named(make_prediction) -> None:
    heatmap = raw_heatmap(score_table(make_prediction(n=63)), "contribution:tumor", cohort_range=(-0.5, 0.5))
    assert heatmap.range == (-0.5, 0.5)
    assert "cohort" in heatmap.normalization


@pytest.mark.parametrize("bad", [(0.0, 1.0), (1.0, -1.0), (0.0, 0.0), (-np.inf, np.inf)])
def test_a_signed_range_that_is_not_symmetric_is_refused(bad: tuple[float, float], make_prediction) -> None:
    with pytest.raises(ValueError, match="range"):
        raw_heatmap(score_table(make_prediction(n=63)), "contribution:tumor", cohort_range=bad)


@pytest.mark.parametrize(
    ("values", "end"),
    [([], 1.0), ([0.0], 1.0), ([np.nan], 1.0), ([0.0] * 1000 + [3.0], 3.0), ([5.0] * 63, 5.0), ([0.25], 0.25)],
)
def test_a_range_is_never_empty_and_of_constant_scores_ends_with_them(values: list[float], end: float) -> None:
    assert display_range(np.array(values, np.float32), "sequential") == (0.0, end)
    assert display_range(np.array(values, np.float32), "signed") == (-end, end)


def test_ranks_span_zero_to_one_and_equal_scores_share_one(make_prediction) -> None:
    table = score_table(make_prediction(n=5))
    scores = table.scores.copy()
    scores[:, 1], scores[:, 2] = 0, [3.0, -1.0, 3.0, np.nan, 9.0]
    ranks = rank_heatmap(dataclasses.replace(table, scores=scores), "contribution:tumor")
    np.testing.assert_allclose(ranks.values, [0.5, 0.0, 0.5, np.nan, 1.0])
    assert (ranks.range, ranks.kind) == ((0.0, 1.0), "sequential")


def test_the_rank_of_a_single_tile_is_the_middle(make_prediction) -> None:
    assert rank_heatmap(score_table(make_prediction(n=1)), "attention").values.tolist() == [0.5]
