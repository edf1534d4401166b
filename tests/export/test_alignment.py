"""The law of alignment: every export of a checkerboard's own grey lies exactly on the checkerboard.

Tile scores are the mean grey of the tile; what an exporter puts at a place must correlate perfectly with the slide there, and
less at any other shift. It catches half-tile shifts, swapped axes, rounding, and a forgotten bounds offset.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from wsimil.evaluation.prediction import Prediction
from wsimil.export.geojson import write_geojson
from wsimil.export.heatmap import rasterize, raw_heatmap
from wsimil.export.png import render_png
from wsimil.export.scores import ScoreTable, read_scores, write_scores

CASES = {
    "plain": {"size0_px": (1008, 819), "size_px": 63},
    "bounds": {"size0_px": (1100, 1200), "size_px": 63, "bounds0_px": (43, 277, 1008, 819)},
    "odd mpp": {"size0_px": (1501, 1203), "size_px": 63, "mpp": 0.2527},
    "overlap": {"size0_px": (1000, 800), "size_px": 64, "stride_px": 32},
    "all at once": {
        "size0_px": (1700, 1400),
        "size_px": 64,
        "stride_px": 32,
        "mpp": 0.2527,
        "bounds0_px": (143, 177, 1501, 1203),
    },
}


def _checkerboard(prediction: Prediction) -> NDArray[np.float64]:
    """Level-0 px: squares of random grey as large as a stride, black where nothing was scanned."""
    slide, spec = prediction.grid.slide, prediction.grid.spec
    rng = np.random.default_rng(1)
    grey = rng.uniform(0.1, 1, (80, 80))
    left, top, width, height = slide.bounds0_px
    stride0 = spec.stride_px * spec.mpp / slide.mpp
    rows, columns = ((np.arange(n) / stride0).astype(int) for n in (height, width))
    board = np.zeros(slide.size0_px[::-1])
    board[top : top + height, left : left + width] = grey[np.ix_(rows, columns)]
    return board


def _mean_grey(board: NDArray[np.float64], prediction: Prediction) -> NDArray[np.float32]:
    side = prediction.grid.size0_px
    return np.array([board[y : y + side, x : x + side].mean() for x, y in prediction.grid.xy0], np.float32)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, make_prediction, tmp_path: Path) -> tuple[NDArray[np.float64], ScoreTable]:
    """The board, and the table of its mean greys as it was written to parquet and read again."""
    empty = make_prediction(**request.param)
    board = _checkerboard(empty)
    prediction = make_prediction(**request.param, tumor=_mean_grey(board, empty))
    write_scores(tmp_path / "scores.parquet", prediction)
    return board, read_scores(tmp_path / "scores.parquet")


def _correlations(
    picture: NDArray[np.float64], expected: NDArray[np.float64], step: int
) -> dict[tuple[int, int], float]:
    """Correlation of a picture with what should be there, for shifts by `step` px; NaN is left out."""
    found = {}
    for dy in (-step, 0, step):
        for dx in (-step, 0, step):
            moved = np.roll(picture, (dy, dx), axis=(0, 1))
            both = np.isfinite(moved) & np.isfinite(expected)
            found[dy, dx] = float(np.corrcoef(moved[both], expected[both])[0, 1])
    return found


def _expected(board: NDArray[np.float64], table: ScoreTable) -> NDArray[np.float64]:
    """Mean over the tiles on a level-0 px of their mean grey: painted tile by tile from the board alone, NaN elsewhere."""
    side = table.size0_px
    total, count = np.zeros(board.shape), np.zeros(board.shape)
    for x, y in table.xy0:
        total[y : y + side, x : x + side] += board[y : y + side, x : x + side].mean()
        count[y : y + side, x : x + side] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _shrink(values: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Nearest px at the middle of each cell."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, values.shape, strict=True))
    return values[np.ix_(rows, columns)]


def _is_aligned(picture: NDArray[np.float64], expected: NDArray[np.float64], *, step: int, least: float) -> None:
    found = _correlations(picture, expected, step)
    assert max(found, key=lambda shift: found[shift]) == (0, 0)
    assert found[0, 0] > least


def test_the_raster_lies_on_the_slide(case) -> None:
    board, table = case
    raster = rasterize(raw_heatmap(table, "contribution:tumor"), shape=board.shape)
    _is_aligned(raster.astype(np.float64), _expected(board, table), step=1, least=0.999)


def test_geojson_lies_on_the_slide(case, tmp_path: Path) -> None:
    board, table = case
    write_geojson(tmp_path / "a.geojson", table, origin="bounds")
    left, top = table.bounds0_px[:2]
    scanned = board[top:, left:]
    tree = json.loads((tmp_path / "a.geojson").read_text())
    tiles = [f for f in tree["features"] if f["properties"]["objectType"] == "tile"]

    def correlation(dx: int, dy: int) -> float:
        shown, there = [], []
        for tile in tiles:
            ring = np.array(tile["geometry"]["coordinates"][0]) + np.array([dx, dy])
            (x0, y0), (x1, y1) = ring.min(axis=0), ring.max(axis=0)
            if x0 >= 0 and y0 >= 0 and scanned[y0:y1, x0:x1].size:
                shown.append(tile["properties"]["measurements"]["wsimil: contribution tumor (relative to max)"])
                there.append(scanned[y0:y1, x0:x1].mean())
        return float(np.corrcoef(shown, there)[0, 1])

    exact = correlation(0, 0)
    # Numbers are written with five digits.
    assert exact > 1 - 1e-8
    assert all(correlation(dx, dy) < exact for dx, dy in ((-5, 0), (5, 0), (0, -5), (0, 5), (5, 5)))


def test_the_picture_lies_on_the_slide(case) -> None:
    board, table = case
    heatmap = raw_heatmap(table, "contribution:tumor", cohort_range=(-1.0, 1.0))
    white = np.full((90, 110, 3), 255, np.uint8)
    image = Image.open(io.BytesIO(render_png(table, heatmap, thumbnail=white)))
    x, y, width, height = json.loads(image.text["wsimil"])["frame_px"]  # type: ignore[attr-defined]  # of PNG images
    frame = np.asarray(image, np.float64)[y : y + height, x : x + width]
    # Orange over white: blue falls in proportion to the score.
    shown = np.where(np.ptp(frame, axis=2) > 0, 255 - frame[..., 2], np.nan)
    _is_aligned(shown, _shrink(_expected(board, table), (height, width)), step=1, least=0.99)


def test_the_thumbnail_lies_where_the_tiles_do(case) -> None:
    board, table = case
    heatmap = raw_heatmap(table, "contribution:tumor", cohort_range=(-1e6, 1e6))
    grey = np.round(_shrink(board, (700, 900)) * 200 + 50).astype(np.uint8)
    image = Image.open(io.BytesIO(render_png(table, heatmap, thumbnail=grey[..., None].repeat(3, axis=2))))
    x, y, width, height = json.loads(image.text["wsimil"])["frame_px"]  # type: ignore[attr-defined]  # of PNG images
    frame = np.asarray(image, np.float64)[y : y + height, x : x + width, 1]
    expected = _expected(board, table)
    inside = np.where(np.isfinite(expected), board, np.nan)
    _is_aligned(frame, _shrink(inside, (height, width)), step=1, least=0.95)
