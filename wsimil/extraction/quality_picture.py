"""A picture of a slide with its tiles: kept ones outlined, dropped ones filled by the first limit that they were beyond."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsimil.geometry import TileGrid

_KEPT = (0, 110, 60)
_COLOURS = {
    "min_sharpness": (40, 90, 200),
    "max_pen": (200, 0, 140),
    "max_dark": (210, 90, 0),
    "max_background": (110, 110, 110),
}
_WORDS = {"min_sharpness": "blurred", "max_pen": "pen", "max_dark": "dark", "max_background": "background"}
_LEGEND_PX, _FONT_PX = 24, 13
_LEAST_OUTLINED_PX = 4
_OPACITY = 0.45


def draw_tiles(
    thumbnail: NDArray[np.uint8], grid: TileGrid, beyond: Mapping[str, NDArray[np.bool_]]
) -> NDArray[np.uint8]:
    """The thumbnail of a whole slide, RGB [h, w, 3], with the N tiles of `grid` and, below it, what the colours mean.

    `beyond` says which tiles were dropped, bool [N] by the name of the limit.
    """
    height, width = thumbnail.shape[:2]
    left, top, right, bottom = _boxes(grid, width, height)
    reason = np.full(len(grid), -1)
    for number, tiles in reversed(list(enumerate(beyond.values()))):
        reason[tiles] = number
    canvas = np.full((height + _LEGEND_PX, max(width, 1), 3), 255, dtype=np.uint8)
    canvas[:height] = thumbnail
    names = list(beyond)
    for tile in np.flatnonzero(reason >= 0):
        area = canvas[top[tile] : bottom[tile], left[tile] : right[tile]]
        colour = np.array(_COLOURS[names[reason[tile]]])
        area[...] = (area * (1 - _OPACITY) + colour * _OPACITY + 0.5).astype(np.uint8)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for tile in np.flatnonzero(reason < 0):
        box = (left[tile], top[tile], right[tile] - 1, bottom[tile] - 1)
        small = min(right[tile] - left[tile], bottom[tile] - top[tile]) < _LEAST_OUTLINED_PX
        draw.rectangle(box, outline=None if small else _KEPT, fill=_KEPT if small else None)
    counts = [("kept", int((reason < 0).sum()), _KEPT)]
    counts += [(_WORDS[name], int((reason == number).sum()), _COLOURS[name]) for number, name in enumerate(names)]
    _legend(draw, counts, height)
    return np.asarray(picture)


def _boxes(grid: TileGrid, width: int, height: int) -> tuple[NDArray[np.int64], ...]:
    """Left, top, right and bottom of each tile in px of the thumbnail, cut to it, at least one px wide."""
    scale = np.array([width, height]) / np.array(grid.slide.size0_px)
    start = np.clip(np.floor(grid.xy0 * scale + 0.5).astype(np.int64), 0, np.array([width, height]) - 1)
    end = np.clip(np.floor((grid.xy0 + grid.size0) * scale + 0.5).astype(np.int64), start + 1, [width, height])
    return start[:, 0], start[:, 1], end[:, 0], end[:, 1]


def _legend(draw: ImageDraw.ImageDraw, counts: list[tuple[str, int, tuple[int, int, int]]], top: int) -> None:
    font = ImageFont.load_default(size=_FONT_PX)
    x = 6
    for word, count, colour in counts:
        text = f"{word} {count}"
        draw.rectangle((x, top + 6, x + 11, top + 17), fill=colour)
        draw.text((x + 17, top + 4), text, fill=(20, 20, 20), font=font)
        x += 17 + int(draw.textlength(text, font=font)) + 18
