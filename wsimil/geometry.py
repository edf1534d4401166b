"""Where things lie: slides, tissue masks, tilings, and every conversion between their units.

A coordinate ending in `0` is in level-0 px: pixels of the full-resolution image, x to the right, y down, counted from the
top-left edge of the slide as OpenSlide sees it. A tile covers [x0, x0 + size0) x [y0, y0 + size0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import SlideError

MppSource = Literal["metadata", "override"]
Origin: TypeAlias = Literal["bounds", "level0"]
"""From where coordinates in files count: the scanned part of a slide, as QuPath does, or its top-left edge."""

MIN_MPP, MAX_MPP = 0.05, 50.0
MAX_ANISOTROPY = 0.01
MAX_TILE_SIZE_ERROR = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideInfo:
    """What is known of a slide without reading pixels.

    `mpp` is µm per level-0 px, `mpp_detail` the property that it came from, `bounds0_px` the scanned part (x, y, w, h) that
    some vendors declare (the whole slide otherwise), `level_downsamples` are relative to level 0 and start with 1.
    """

    slide_id: str
    path: Path
    size0_px: tuple[int, int]
    mpp: float
    mpp_source: MppSource
    mpp_detail: str
    level_downsamples: tuple[float, ...]
    bounds0_px: tuple[int, int, int, int]
    vendor: str
    digest: str

    def __post_init__(self) -> None:
        if not MIN_MPP < self.mpp < MAX_MPP:
            raise SlideError(
                f"slide {self.slide_id!r}: {self.mpp:g} µm per pixel (from {self.mpp_detail}) is not plausible for a slide,"
                f" wanted a value between {MIN_MPP:g} and {MAX_MPP:g}; give the true one in the manifest's mpp column or with"
                " --mpp-override, or drop the slide"
            )
        if min(self.size0_px) < 1 or not self.level_downsamples or self.level_downsamples[0] != 1:
            raise SlideError(
                f"slide {self.slide_id!r}: no usable pyramid: size {self.size0_px}, downsamples {self.level_downsamples}"
            )

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height in µm."""
        return self.size0_px[0] * self.mpp, self.size0_px[1] * self.mpp


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueMask:
    """Where tissue is: bool [h, w], pixel (i, j) covers level-0 [j, j+1) x [i, i+1) times `mpp` / slide mpp."""

    mask: NDArray[np.bool_]
    mpp: float
    method: str

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise ValueError(f"a tissue mask is bool [h, w], got {self.mask.dtype} {self.mask.shape}")
        if not self.mpp > 0:
            raise ValueError(f"a tissue mask needs a positive mpp, got {self.mpp}")
        self.mask.setflags(write=False)

    @property
    def area_mm2(self) -> float:
        """Area of the tissue in mm²."""
        return float(self.mask.sum()) * (self.mpp / 1000) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSpec:
    """All that defines a tiling: side and stride in px as the encoder sees them, µm per such px, minimum tissue share.

    A tile is `size_px * mpp` µm wide on every slide.
    """

    size_px: int
    mpp: float
    stride_px: int
    min_tissue: float

    def __post_init__(self) -> None:
        if self.size_px < 8 or self.stride_px < 1:
            raise ValueError(f"a tile needs size_px >= 8 and stride_px >= 1, got {self.size_px} and {self.stride_px}")
        if not MIN_MPP < self.mpp < MAX_MPP:
            raise ValueError(f"the mpp of a tile lies between {MIN_MPP:g} and {MAX_MPP:g} µm/px, got {self.mpp}")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue is a share between 0 and 1, got {self.min_tissue}")

    @property
    def size_um(self) -> float:
        """Side in µm."""
        return self.size_px * self.mpp


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """The tiles of one slide: row-major (y, then x), unique, top-left corners in whole level-0 px.

    `xy0` int64 [N, 2]; `tissue` float32 [N], share of the tile's area that is tissue; `read_level`, `read_px`: the pyramid
    level and the side in px of that level that are read for one tile.
    """

    slide: SlideInfo
    spec: TileSpec
    xy0: NDArray[np.int64]
    tissue: NDArray[np.float32]
    read_level: int
    read_px: int

    def __post_init__(self) -> None:
        if self.xy0.dtype != np.int64 or self.xy0.ndim != 2 or self.xy0.shape[1] != 2:
            raise ValueError(f"xy0 is int64 [N, 2], got {self.xy0.dtype} {self.xy0.shape}")
        if self.tissue.dtype != np.float32 or self.tissue.shape != (len(self.xy0),):
            raise ValueError(f"tissue is float32 [{len(self.xy0)}], got {self.tissue.dtype} {self.tissue.shape}")
        y, x = self.xy0[:, 1], self.xy0[:, 0]
        step = np.diff(y)
        if not np.all((step > 0) | ((step == 0) & (np.diff(x) > 0))):
            raise ValueError("tiles are in row-major order (y, then x) and unique; these are not")
        if not 0 <= self.read_level < len(self.slide.level_downsamples) or self.read_px < 1:
            raise ValueError(
                f"read level {self.read_level} with {self.read_px} px does not exist on {self.slide.slide_id!r}"
            )
        if abs(self.effective_mpp / self.spec.mpp - 1) > MAX_TILE_SIZE_ERROR:
            raise SlideError(
                f"slide {self.slide.slide_id!r}: a tile would be {self.effective_mpp * self.spec.size_px:.2f} µm wide instead of"
                f" {self.spec.size_um:.2f}; wanted within {MAX_TILE_SIZE_ERROR:.1%}: use larger tiles"
            )
        self.xy0.setflags(write=False)
        self.tissue.setflags(write=False)

    def __len__(self) -> int:
        return len(self.xy0)

    @property
    def size0(self) -> float:
        """Side of a tile in level-0 px, fractional on purpose."""
        return self.spec.size_px * self.spec.mpp / self.slide.mpp

    @property
    def size0_px(self) -> int:
        """Side of a tile in whole level-0 px, as files and exports state it: `size0` rounded half up, at least 1."""
        return max(1, round_half_up(self.size0))

    @property
    def effective_mpp(self) -> float:
        """µm per px as the encoder sees it, after `read_px` was rounded to whole px of the read level."""
        return self.read_px * self.slide.level_downsamples[self.read_level] * self.slide.mpp / self.spec.size_px


def round_half_up(value: float) -> int:
    """The one rounding rule for positions and sizes: to the nearest integer, halves up."""
    return int(np.floor(value + 0.5))


def level_position(position0: int, downsample: float) -> int:
    """Level-0 px to px of a pyramid level: divided by the level's downsample, then `round_half_up`."""
    return round_half_up(position0 / downsample)


def grid_positions(extent0: float, stride0: float) -> NDArray[np.int64]:
    """Top-left positions 0, stride, 2 * stride ... below `extent0`, each rounded half up by itself, so that nothing drifts.

    Level-0 px, int64 [n].
    """
    count = max(0, int(np.ceil(extent0 / stride0)))
    positions = np.floor(np.arange(count, dtype=np.float64) * stride0 + 0.5).astype(np.int64)
    return positions[positions < extent0]


def box_means(
    mask: NDArray[np.bool_], x: NDArray[np.float64], y: NDArray[np.float64], side: float
) -> NDArray[np.float32]:
    """Exact mean of a mask over squares [x, x + side) x [y, y + side), in (fractional) mask px; outside the mask is False.

    `x` [n], `y` [m]; returns float32 [m, n]. Area is cut at fractional edges, not sampled.
    """
    rows = _box_weights(y, side, mask.shape[0])
    columns = _box_weights(x, side, mask.shape[1])
    return np.asarray(rows(columns(mask.T.astype(np.float64)).T) / (side * side), dtype=np.float32)


def _box_weights(
    start: NDArray[np.float64], side: float, length: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Integrate an array's first axis over [start, start + side), with linear interpolation of its cumulative sum."""

    def integrate(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])

        def at(position: NDArray[np.float64]) -> NDArray[np.float64]:
            clipped = np.clip(position, 0, length)
            low = np.minimum(np.floor(clipped).astype(np.int64), length - 1)
            share = (clipped - low)[:, None]
            return np.asarray(total[low] * (1 - share) + total[low + 1] * share)

        return at(start + side) - at(start)

    return integrate
