"""Slides read straight from their compressed tiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsimil.geometry import SlideInfo
from wsimil.slides.pyramid import PyramidSlide
from wsimil.slides.stored_tiles import StoredLevel, StoredTiles


class DirectSlide(PyramidSlide):
    """A `Slide` on top of its stored tiles.

    `reader` is the name in the provenance. Where the file has no tile, `absent` is asked for its level of the same size (no
    tile is missing from a level that it lacks), and white shows where that is None; the ICC profile is that of `absent` too,
    else `icc_profile`.
    """

    def __init__(
        self,
        info: SlideInfo,
        levels: Sequence[StoredLevel],
        *,
        reader: str,
        absent: PyramidSlide | None = None,
        icc_profile: bytes | None = None,
    ) -> None:
        super().__init__(info, [level.size_px for level in levels])
        self._reader, self._absent, self._icc_profile = reader, absent, icc_profile
        self._tiles = StoredTiles(levels)

    @property
    def reader(self) -> str:
        """See `Slide.reader`."""
        return self._reader

    @property
    def icc_profile(self) -> bytes | None:
        """See `Slide.icc_profile`."""
        return self._icc_profile if self._absent is None else self._absent.icc_profile

    def _release(self) -> None:
        self._tiles.close()
        if self._absent is not None:
            self._absent.close()

    def _origin0(self, position: int, level: int) -> float:
        return position * self._info.level_downsamples[level]

    def _read_into(self, output: NDArray[np.uint8], x: int, y: int, level: int, *, step: int = 0) -> None:
        width, height = self._level_sizes_px[level]
        if x < 0 or y < 0 or x + output.shape[1] > width or y + output.shape[0] > height:
            output[...] = 255
        with self._reading(x, y, level, ValueError, OSError, RuntimeError):
            for part in self._tiles.read_into(output, x, y, level, step=step):
                place = output[part.y - y : part.y - y + part.height, part.x - x : part.x - x + part.width]
                if self._absent is None:
                    place[...] = 255
                else:
                    same = self._absent.level_sizes_px.index((width, height))
                    self._absent._read_into(place, part.x, part.y, same)
