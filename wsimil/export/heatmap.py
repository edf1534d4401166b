"""A heatmap: one score on tiles, with what it means and the range that its colours span; and its exact raster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsimil.export.scores import ScoreTable
from wsimil.export.shown import Kind, Shown, shown

DISPLAY_PERCENTILE = 99.0
# Rounded corners let a tile reach a sliver into its neighbor's cell; a whole tile always fills more than this of one cell.
_MIN_COVERAGE = 0.125


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heatmap:
    """What a map shows: `values` float32 [N] on tiles at `xy0` int64 [N, 2] with side `size0`, level-0 px; NaN = not scored.

    `range` (low, high) are the values at the two ends of the colors, symmetric about 0 where `kind` is signed; values beyond
    look like the ends. `label` says what is shown, `reading` in which unit and what zero means, `rule` how it was made,
    `normalization` where the range comes from. No raster here.
    """

    slide_size0_px: tuple[int, int]
    mpp: float
    size0: float
    xy0: NDArray[np.int64]
    values: NDArray[np.float32]
    kind: Kind
    label: str
    range: tuple[float, float]
    normalization: str
    reading: str = ""
    rule: str = ""

    def __post_init__(self) -> None:
        if self.xy0.dtype != np.int64 or self.xy0.ndim != 2 or self.xy0.shape[1] != 2:
            raise ValueError(f"xy0 is int64 [N, 2], got {self.xy0.dtype} {self.xy0.shape}")
        if self.values.dtype != np.float32 or self.values.shape != (len(self.xy0),):
            raise ValueError(f"values are float32 [{len(self.xy0)}], got {self.values.dtype} {self.values.shape}")
        low, high = self.range
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"the range of a heatmap rises from one finite value to another, got {self.range}")
        if self.kind == "signed" and low != -high:
            raise ValueError(f"the range of a signed heatmap is symmetric about 0, got {self.range}")
        self.values.setflags(write=False)

    def __len__(self) -> int:
        return len(self.xy0)


def raw_heatmap(
    table: ScoreTable, name: str, *, cohort_range: tuple[float, float] | None = None, slides: int | None = None
) -> Heatmap:
    """What `shown` makes of the score.

    Colors span `cohort_range` where it is given, so that slides can be compared, of so many `slides`; else this slide's
    `display_range`. Raises KeyError where the table has no such score, ValueError where the range cannot be.
    """
    found = shown(table, name)
    if cohort_range is not None:
        of = "" if slides is None else f", {slides} slides"
        return _heatmap(table, name, found, cohort_range, f"fixed for the cohort{of}")
    percentile = f"{DISPLAY_PERCENTILE:g}th percentile"
    own = f"±{percentile} of |score| on this slide" if found.kind == "signed" else f"0 to {percentile} on this slide"
    return _heatmap(table, name, found, display_range(found.values, found.kind), own)


def rank_heatmap(table: ScoreTable, name: str) -> Heatmap:
    """Each tile's rank among this slide's tiles, 0 lowest, 1 highest, equal scores alike; says nothing about how much.

    A tenth of every slide is above 0.9, also where all tiles are nearly equal. Raises KeyError.
    """
    found = shown(table, name)
    scored = np.flatnonzero(~np.isnan(found.values))
    _, inverse, counts = np.unique(found.values[scored], return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    ranks = np.full(len(found.values), np.nan, np.float32)
    ranks[scored] = middle[inverse] / max(1, len(scored) - 1) if len(scored) > 1 else 0.5
    rank = Shown(values=ranks, kind="sequential", label=f"rank of {found.label}", reading="0 lowest, 1 highest here")
    return _heatmap(table, name, rank, (0.0, 1.0), "rank within this slide")


def display_range(values: NDArray[np.float32], kind: Kind) -> tuple[float, float]:
    """A range that a few extreme tiles do not decide: from 0 (or minus the end) to the 99th percentile of |score|."""
    scored = values[~np.isnan(values)].astype(np.float64)
    high = _percentile(np.abs(scored))
    return (-high, high) if kind == "signed" else (0.0, high)


def rasterize(heatmap: Heatmap, *, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The map on a raster that covers the whole level-0 frame exactly: float32 [h, w], NaN where no tile was scored.

    A cell is the mean of the tiles on it, weighted by the area that each covers of it; nothing is interpolated. A cell of
    which less than an eighth is covered (of the part that one tile could cover) has no value.
    """
    height, width = shape
    if height < 1 or width < 1:
        raise ValueError(f"a raster has at least one cell, got {shape}")
    scored = ~np.isnan(heatmap.values)
    xy0 = heatmap.xy0[scored].astype(np.float64)
    cells = np.array([width / heatmap.slide_size0_px[0], height / heatmap.slide_size0_px[1]])
    side = heatmap.size0 * cells
    columns = _edges(xy0[:, 0] * cells[0], side[0], width)
    rows = _edges(xy0[:, 1] * cells[1], side[1], height)
    values = heatmap.values[scored].astype(np.float64)
    # A common offset keeps what cumulative sums lose below float32, however far from 0 the scores lie.
    middle = float(values.mean()) if len(values) else 0.0
    covered = _integrate(rows, columns, np.ones(len(values)), shape)
    total = _integrate(rows, columns, values - middle, shape)
    enough = covered > _MIN_COVERAGE * min(1.0, side[0]) * min(1.0, side[1])
    raster = np.full(shape, np.nan, np.float32)
    raster[enough] = total[enough] / covered[enough] + middle
    return raster


def _heatmap(table: ScoreTable, name: str, what: Shown, colors: tuple[float, float], normalization: str) -> Heatmap:
    return Heatmap(
        slide_size0_px=table.slide_size0_px,
        mpp=table.mpp,
        size0=table.size0,
        xy0=table.xy0,
        values=what.values,
        kind=what.kind,
        label=what.label,
        range=colors,
        normalization=normalization,
        reading=what.reading,
        rule=table.rule(name),
    )


def _percentile(values: NDArray[np.float64]) -> float:
    """The display percentile; the maximum where that many are 0, and 1 where all are."""
    if not len(values):
        return 1.0
    return float(np.percentile(values, DISPLAY_PERCENTILE)) or float(values.max()) or 1.0


@dataclass(frozen=True, slots=True)
class _Edges:
    """The derivative along cells of how much of each cell a tile covers: four entries for each tile."""

    index: NDArray[np.int64]
    step: NDArray[np.float64]


def _edges(start: NDArray[np.float64], side: float, length: int) -> _Edges:
    begin, end = np.clip(start, 0, length), np.clip(start + side, 0, length)
    low, high = np.floor(begin), np.floor(end)
    index = np.stack([low, low + 1, high, high + 1]).astype(np.int64)
    return _Edges(index, np.stack([1 - (begin - low), begin - low, (end - high) - 1, high - end]))


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
