"""A heatmap: one score on tiles, with what it means and the range that its colours span; and its exact raster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsimil.export.raster import area_mean
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import Kind, Shown, shown

DISPLAY_PERCENTILE = 99.0


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
    cells = np.array([width / heatmap.slide_size0_px[0], height / heatmap.slide_size0_px[1]])
    side = heatmap.size0 * cells
    return area_mean(heatmap.xy0 * cells, (float(side[0]), float(side[1])), heatmap.values, shape)


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
