"""Scores of tiles on a raster of square cells: the mean where tiles overlap, NaN where none was scored, nothing interpolated."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from wsimil.export.scores import ScoreTable

# Rounded corners let a tile reach a sliver into its neighbor's cell; a whole tile always fills more than this of one cell.
_MIN_COVERAGE = 0.125
# A position is rounded to a whole px, and so is the one that it is measured from.
_LATTICE_ERROR_PX = 1.0
_LEAST_LATTICE_PX = 8.0
_FINEST = 8
_MOST_CELLS = 2**24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """Square cells over a part of a slide, and where the tiles of its table lie on them.

    `origin0` (x, y) is the top-left edge of the first cell and `cell0` its side, level-0 px; `shape` (h, w) counts cells. `at`
    float64 [N, 2] is the top-left corner of each tile and `side` the side of all, both in cells.
    """

    origin0: tuple[float, float]
    cell0: float
    shape: tuple[int, int]
    at: NDArray[np.float64]
    side: float

    def raster(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """`values` float32 [N] as float32 [h, w]; see `area_mean`."""
        cell = self.at.astype(np.int64)
        inside = bool((cell >= 0).all() and (cell < self.shape[::-1]).all())
        if self.side == 1 and inside and np.array_equal(cell, self.at):
            raster = np.full(self.shape, np.nan, np.float32)
            raster[cell[:, 1], cell[:, 0]] = values
            return raster
        return area_mean(self.at, (self.side, self.side), values, self.shape)


def cells_over(table: ScoreTable, frame0_px: tuple[int, int, int, int]) -> Cells:
    """Cells that begin at the top-left edge of a frame (x, y, w, h in level-0 px) and cover it; what lies to the left is cut off.

    As large as a stride where all tiles lie on one grid from that edge on: then a cell holds just what its tiles say. Else as
    large as the greatest length that divides all offsets and the side of a tile, but at least an eighth of a stride, and never
    so small that there are more than 2 ** 24: then cells on the edge of a tile are means weighted by area.
    """
    left, top, width, height = frame0_px
    offset = (table.xy0 - np.array([left, top])).astype(np.float64)
    index = _lattice(offset, table.stride0)
    if index is not None and index.min() >= 0 and width * height <= _MOST_CELLS * table.stride0**2:
        cell0, at, side = table.stride0, index, _lattice_side(table)
        width, height = np.maximum((width, height), (index.max(axis=0) + 1) * cell0)
    else:
        shared = int(np.gcd.reduce([*np.gcd.reduce(table.xy0 - np.array([left, top]), axis=0), table.size0_px]))
        cell0 = max(float(shared), table.stride0 / _FINEST, sqrt(width * height / _MOST_CELLS))
        at, side = offset / cell0, table.size0 / cell0
    shape = (max(1, ceil(height / cell0 - 1e-9)), max(1, ceil(width / cell0 - 1e-9)))
    return Cells(origin0=(float(left), float(top)), cell0=cell0, shape=shape, at=at, side=side)


def cells_of_tiles(table: ScoreTable) -> Cells:
    """Cells over the tiles alone, from the first on: a stride wide wherever a grid begins, else as `cells_over` has them."""
    low = table.xy0.min(axis=0)
    index = _lattice((table.xy0 - low).astype(np.float64), table.stride0)
    if index is None:
        size = table.xy0.max(axis=0) + table.size0_px - low
        return cells_over(table, (int(low[0]), int(low[1]), int(size[0]), int(size[1])))
    side = _lattice_side(table)
    columns, rows = (int(most + ceil(side - 1e-9)) for most in index.max(axis=0))
    return Cells(
        origin0=(float(low[0]), float(low[1])), cell0=table.stride0, shape=(rows, columns), at=index, side=side
    )


def area_mean(
    at: NDArray[np.float64], side: tuple[float, float], values: NDArray[np.float32], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Mean of the tiles on each cell, weighted by the area that each covers of it: float32 [h, w], NaN where no tile was scored.

    `at` float64 [N, 2] and `side` (x, y) are in cells, `values` float32 [N]. A cell of which less than an eighth is covered (of
    the part that one tile could cover) has no value.
    """
    least = _MIN_COVERAGE * min(1.0, side[0]) * min(1.0, side[1])
    return _mean(at, at + np.array(side), values, shape, least)


def point_mean(
    at: NDArray[np.float64], side: tuple[float, float], values: NDArray[np.float32], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """As `area_mean`, but of the tiles on the middle of each cell: nearest neighbor, so that no value is mixed at edges."""
    return _mean(np.ceil(at - 0.5), np.ceil(at + np.array(side) - 0.5), values, shape, 0.5)


def halved(raster: NDArray[np.float32], weight: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A raster [h, w] with even sides at half its size, each value the mean of the up to four that are not NaN.

    `weight` [h, w] is how much scored area each stands for; so a mean stays that of its area however often it is halved.
    """
    height, width = raster.shape
    scored = np.where(np.isnan(raster), 0.0, weight)
    total = (np.nan_to_num(raster) * scored).reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))
    scored = scored.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))
    mean = np.full(scored.shape, np.nan, np.float32)
    np.divide(total, scored, out=mean, where=scored > 0, casting="same_kind")
    return mean, scored


def _lattice_side(table: ScoreTable) -> float:
    side = table.size0 / table.stride0
    return float(round(side)) if abs(side - round(side)) < 1e-6 else side


def _lattice(offset: NDArray[np.float64], stride0: float) -> NDArray[np.float64] | None:
    """Column and row of each tile, float64 [N, 2] of whole numbers, if all lie on one grid of this stride, one on a cell."""
    index = np.rint(offset / stride0)
    if stride0 < _LEAST_LATTICE_PX or float(np.abs(offset - index * stride0).max()) > _LATTICE_ERROR_PX:
        return None
    return index if len(np.unique(index, axis=0)) == len(index) else None


@dataclass(frozen=True, slots=True)
class _Edges:
    """The derivative along cells of how much of each cell a tile covers: four entries for each tile."""

    index: NDArray[np.int64]
    step: NDArray[np.float64]


def _edges(begin: NDArray[np.float64], end: NDArray[np.float64], length: int) -> _Edges:
    begin, end = np.clip(begin, 0, length), np.clip(end, 0, length)
    low, high = np.floor(begin), np.floor(end)
    index = np.stack([low, low + 1, high, high + 1]).astype(np.int64)
    return _Edges(index, np.stack([1 - (begin - low), begin - low, (end - high) - 1, high - end]))


def _mean(
    begin: NDArray[np.float64],
    end: NDArray[np.float64],
    values: NDArray[np.float32],
    shape: tuple[int, int],
    least: float,
) -> NDArray[np.float32]:
    scored = ~np.isnan(values)
    columns = _edges(begin[scored, 0], end[scored, 0], shape[1])
    rows = _edges(begin[scored, 1], end[scored, 1], shape[0])
    known = values[scored].astype(np.float64)
    # A common offset keeps what cumulative sums lose below float32, however far from 0 the scores lie.
    middle = float(known.mean()) if len(known) else 0.0
    covered = _integrate(rows, columns, np.ones(len(known)), shape)
    total = _integrate(rows, columns, known - middle, shape)
    enough = covered > least
    raster = np.full(shape, np.nan, np.float32)
    raster[enough] = total[enough] / covered[enough] + middle
    return raster


def _integrate(
    rows: _Edges, columns: _Edges, values: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Sum over tiles of value times covered share, for each cell; the cost does not depend on the size of a tile."""
    height, width = shape[0] + 2, shape[1] + 2
    index = rows.index[:, None] * width + columns.index[None]
    steps = rows.step[:, None] * columns.step[None] * values
    flat: NDArray[np.float64] = np.bincount(index.ravel(), steps.ravel(), minlength=height * width).astype(np.float64)
    summed: NDArray[np.float64] = np.cumsum(np.cumsum(flat.reshape(height, width), axis=0), axis=1)
    return summed[: shape[0], : shape[1]]
