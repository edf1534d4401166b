"""Slides of random grey squares, whose tiles are scored with their own mean grey."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.prediction import Prediction
from wsimil.export.scores import ScoreTable

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


def checkerboard(prediction: Prediction) -> NDArray[np.float64]:
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


def mean_grey(board: NDArray[np.float64], prediction: Prediction) -> NDArray[np.float32]:
    """The score of each tile."""
    side = prediction.grid.size0_px
    return np.array([board[y : y + side, x : x + side].mean() for x, y in prediction.grid.xy0], np.float32)


def expected(board: NDArray[np.float64], table: ScoreTable) -> NDArray[np.float64]:
    """Mean over the tiles on a level-0 px of their mean grey: painted tile by tile from the board alone, NaN elsewhere."""
    side = table.size0_px
    total, count = np.zeros(board.shape), np.zeros(board.shape)
    for x, y in table.xy0:
        total[y : y + side, x : x + side] += board[y : y + side, x : x + side].mean()
        count[y : y + side, x : x + side] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def shrink(values: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Nearest px at the middle of each cell."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, values.shape, strict=True))
    return values[np.ix_(rows, columns)]


def correlation(shown: NDArray[np.float64], there: NDArray[np.float64]) -> float:
    """Over what is in both; NaN is left out."""
    both = np.isfinite(shown) & np.isfinite(there)
    return float(np.corrcoef(shown[both], there[both])[0, 1])


def shifted(picture: NDArray[np.float64], there: NDArray[np.float64], step: int) -> dict[tuple[int, int], float]:
    """Correlation of a picture with what should be there, for shifts by `step` px to all four sides, and for none."""
    moves = ((0, 0), (step, 0), (-step, 0), (0, step), (0, -step))
    return {move: correlation(np.roll(picture, move, axis=(0, 1)), there) for move in moves}


def is_aligned(picture: NDArray[np.float64], there: NDArray[np.float64], *, step: int, least: float) -> None:
    """Best where it lies, and at least so good there."""
    found = shifted(picture, there, step)
    assert max(found, key=lambda shift: found[shift]) == (0, 0)
    assert found[0, 0] > least


def points_are_aligned(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    values: NDArray[np.float64],
    there: NDArray[np.float64],
    cell0: float,
) -> None:
    """Values at middles of cells, level-0 px: those of all px of the cell, not of px one cell away; NaN outside."""

    def at(dx: float, dy: float) -> NDArray[np.float64]:
        column, row = np.floor(x + dx).astype(int), np.floor(y + dy).astype(int)
        inside = (column >= 0) & (row >= 0) & (column < there.shape[1]) & (row < there.shape[0])
        found = np.full(x.shape, np.nan)
        found[inside] = there[row[inside], column[inside]]
        return found

    on_slide = (x < there.shape[1]) & (y < there.shape[0])
    assert np.array_equal(np.isnan(values[on_slide]), np.isnan(at(0, 0)[on_slide]))
    # float32 carries seven digits.
    within = 0.4 * cell0
    for dx, dy in ((0, 0), (within, 0), (-within, 0), (0, within), (0, -within)):
        assert correlation(values, at(dx, dy)) > 1 - 1e-9
    steps = (-cell0, 0, cell0)
    assert all(correlation(values, at(dx, dy)) < 0.9 for dx in steps for dy in steps if (dx, dy) != (0, 0))
