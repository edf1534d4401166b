"""Exact physical tiling: which tiles of a slide are worth reading, where they lie and from which pyramid level they come."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import SlideError
from wsimil.geometry import (
    MAX_TILE_SIZE_ERROR,
    SlideInfo,
    TileGrid,
    TileSpec,
    TissueMask,
    box_means,
    grid_positions,
    round_half_up,
)

_LEVEL_SIZE_ERROR = 0.0025
_MAX_ENLARGEMENT = 1.10
_BLOCK_MASK_PX = 4_000_000
_TISSUE_DECIMALS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """From which pyramid level a tile is read, and its side in px of that level."""

    read_level: int
    read_px: int


def plan_read(info: SlideInfo, spec: TileSpec) -> ReadPlan:
    """The coarsest level that a tile can be read from without enlarging it and with its side right within 0.25 %.

    Where no level qualifies, level 0, whose side must be right within 0.5 %. Raises SlideError where it is not, and where the
    slide is coarser than the request by more than 10 %. Widths are by the mean mpp of both axes: where these differ, by 1 % at
    most, an axis is off by up to half of that more.
    """
    coarse = info.mpp / _MAX_ENLARGEMENT
    if coarse > spec.mpp:
        raise SlideError(
            f"slide {info.slide_id!r}: it has {info.mpp:g} µm per pixel (from {info.mpp_detail}), coarser than the"
            f" {spec.mpp:g} µm per pixel asked for, and enlarging would invent detail; use a larger"
            f" --mpp (at least {math.ceil(coarse * 1000) / 1000:g})"
            f" or --tile-um (at least {math.ceil(coarse * spec.size_px)} for tiles of {spec.size_px} px), or drop the slide"
        )
    sides = [_side(info, spec, level) for level in range(len(info.level_downsamples))]
    fit = [level for level, (px, error) in enumerate(sides) if px >= spec.size_px and error <= _LEVEL_SIZE_ERROR]
    level = max(fit, key=lambda i: info.level_downsamples[i], default=0)
    read_px, error = sides[level]
    if error > MAX_TILE_SIZE_ERROR:
        raise SlideError(
            f"slide {info.slide_id!r}: a tile of {spec.size_um:g} µm is {spec.size_um / info.mpp:.2f} px wide at"
            f" {info.mpp:g} µm per pixel, and {read_px} whole px are off by {error:.1%}, wanted within {MAX_TILE_SIZE_ERROR:.1%};"
            " use larger tiles"
        )
    return ReadPlan(read_level=level, read_px=read_px)


def tile(info: SlideInfo, mask: TissueMask, spec: TileSpec) -> TileGrid:
    """All tiles of the grid that hold tissue, at least `spec.min_tissue` of their area; none is a valid answer.

    The grid starts at the top-left of `info.bounds0_px` and ends with it, so that area which was never scanned costs nothing;
    for most vendors that is the whole slide. Tiles that cross the right or bottom edge are kept like others; what they
    have outside the slide counts as area without tissue. A tile's tissue is exact by area, to 6 decimals. Raises SlideError.
    """
    plan = plan_read(info, spec)
    left, top, width, height = info.bounds0_px
    stride0 = spec.stride_px * spec.mpp / info.mpp
    x0 = left + grid_positions(width, stride0)
    y0 = top + grid_positions(height, stride0)
    rows, columns, tissue = _tissue(info, mask, spec, x0, y0)
    return TileGrid(
        slide=info,
        spec=spec,
        xy0=np.stack([x0[columns], y0[rows]], axis=1),
        tissue=tissue,
        read_level=plan.read_level,
        read_px=plan.read_px,
    )


def _side(info: SlideInfo, spec: TileSpec, level: int) -> tuple[int, float]:
    """Side of a tile in whole px of a level, and by how much that is off, as a share."""
    exact = spec.size_um / (info.mpp * info.level_downsamples[level])
    px = max(1, round_half_up(exact))
    return px, abs(px / exact - 1)


def _tissue(
    info: SlideInfo, mask: TissueMask, spec: TileSpec, x0: NDArray[np.int64], y0: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Row, column and tissue share of the tiles to keep, in row-major order.

    Works on blocks of tile rows and on the strip of the mask below them, so that memory does not grow with the slide.
    """
    mask_px = info.mpp / mask.mpp
    x: NDArray[np.float64] = x0.astype(np.float64) * mask_px
    y: NDArray[np.float64] = y0.astype(np.float64) * mask_px
    side = spec.size_um / mask.mpp
    height, width = mask.mask.shape
    step = max(1.0, spec.stride_px * spec.mpp / mask.mpp)
    block = max(1, int(_BLOCK_MASK_PX / max(1, width) / step))
    kept: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    for first in range(0, len(y), block):
        part = y[first : first + block]
        begin = min(math.floor(float(part[0])), height)
        strip = mask.mask[begin : max(begin, math.ceil(float(part[-1]) + side) + 1)]
        if not strip.any():
            continue
        # Rounding takes away what cumulative sums leave: 1e-16 is no tissue, and 0.9999999 is all of it.
        share = np.round(box_means(strip, x, part - begin, side), _TISSUE_DECIMALS)
        keep = (share > 0) & (share >= spec.min_tissue)
        rows, columns = np.nonzero(keep)
        kept.append((rows.astype(np.int64) + first, columns.astype(np.int64), share[keep]))
    if not kept:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    rows_of, columns_of, share_of = zip(*kept, strict=True)
    return np.concatenate(rows_of), np.concatenate(columns_of), np.concatenate(share_of)
