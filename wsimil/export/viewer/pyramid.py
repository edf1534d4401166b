"""Which tile of which level shows what of a slide, by the rules of Deep Zoom images: each level half of the one above it.

The frame is the whole level-0 frame of the slide as OpenSlide sees it, so that tiles lie where scores say they do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2

from wsimil.provenance import Json

TILE_PX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidTile:
    """One tile: `size_px` (w, h) px of `downsample` level-0 px each, from level-0 `xy0` on."""

    xy0: tuple[int, int]
    size_px: tuple[int, int]
    downsample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyramid:
    """Levels of tiles of a slide of `size0_px`. At level 0 everything is one px, at `full_level` a px is a level-0 px.

    `max_level` is the largest that there is, None for the full one; `min_level` is one tile, those below it are left out.
    """

    size0_px: tuple[int, int]
    max_level_wanted: int | None = None
    tile_px: int = TILE_PX

    @property
    def full_level(self) -> int:
        """The number of the level of full size."""
        return ceil(log2(max(self.size0_px)))

    @property
    def max_level(self) -> int:
        """The number of the largest level that there is."""
        return self.full_level if self.max_level_wanted is None else min(self.full_level, self.max_level_wanted)

    @property
    def min_level(self) -> int:
        """The largest level that is a single tile."""
        return next(level for level in range(self.max_level, -1, -1) if max(self.level_size_px(level)) <= self.tile_px)

    def downsample(self, level: int) -> int:
        """Level-0 px for each px of a level."""
        return int(2 ** (self.full_level - level))

    def level_size_px(self, level: int) -> tuple[int, int]:
        """Width and height of a level, whose last px may reach past the slide."""
        width, height = (-(-side // self.downsample(level)) for side in self.size0_px)
        return width, height

    def tile(self, level: int, x: int, y: int) -> PyramidTile:
        """Column `x`, row `y` of a level. Raises KeyError for one that does not exist."""
        if not self.min_level <= level <= self.max_level:
            raise KeyError(f"level {level}")
        width, height = self.level_size_px(level)
        left, top = x * self.tile_px, y * self.tile_px
        if not (0 <= left < width and 0 <= top < height):
            raise KeyError(f"tile {x}, {y} of level {level}")
        downsample = self.downsample(level)
        return PyramidTile(
            xy0=(left * downsample, top * downsample),
            size_px=(min(self.tile_px, width - left), min(self.tile_px, height - top)),
            downsample=downsample,
        )

    def without_largest(self, levels: int) -> Pyramid:
        """The same less its `levels` largest levels, and at least one px."""
        return replace(self, max_level_wanted=max(0, self.max_level - levels))

    def all_tiles(self) -> list[tuple[int, int, int]]:
        """Level, column and row of every tile, the smallest level first."""
        found = []
        for level in range(self.min_level, self.max_level + 1):
            columns, rows = (ceil(side / self.tile_px) for side in self.level_size_px(level))
            found += [(level, x, y) for y in range(rows) for x in range(columns)]
        return found

    def to_json(self, tiles: Json) -> dict[str, Json]:
        """What the page is told, with where it finds the tiles."""
        width, height = self.size0_px
        return {
            "width": width,
            "height": height,
            "downsample": self.downsample(self.max_level),
            "tile_size": self.tile_px,
            "overlap": 0,
            "format": "jpg",
            "min_level": self.min_level,
            "max_level": self.max_level,
            "tiles": tiles,
        }
