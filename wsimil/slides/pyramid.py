"""What every reader of a pyramid shares: tiles by place on a level, regions and thumbnails resampled from one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsimil.geometry import SlideInfo, TileGrid, level_position, round_half_up

_CHUNK_PX = 2048


class PyramidSlide(ABC):
    """A `Slide` whose levels are read by `_read_into`, from any threads at once."""

    _info: SlideInfo
    _level_sizes_px: tuple[tuple[int, int], ...]

    @property
    def info(self) -> SlideInfo:
        """See `Slide.info`."""
        return self._info

    @property
    @abstractmethod
    def reader(self) -> str:
        """See `Slide.reader`."""

    @abstractmethod
    def close(self) -> None:
        """See `Slide.close`."""

    @abstractmethod
    def _read_into(self, output: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        """Fill `output` [h, w, 3] with px of a level from its px (x, y) on, on white."""

    @abstractmethod
    def _origin0(self, position: int, downsample: float) -> float:
        """The level-0 px that a read from this px of a level on begins with."""

    def read_tiles(self, grid: TileGrid, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `Slide.read_tiles`."""
        side, level = grid.read_px, grid.read_level
        downsample = self._info.level_downsamples[level]
        tiles = np.empty((len(indices), side, side, 3), dtype=np.uint8)
        for row, index in enumerate(indices):
            x, y = (level_position(int(at0), downsample) for at0 in grid.xy0[index])
            self._read_into(tiles[row], x, y, level)
        return tiles

    def read_region(self, xy0: tuple[float, float], size_px: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
        """See `Slide.read_region`."""
        if min(size_px) < 1 or not mpp > 0:
            raise ValueError(f"a region has at least 1 x 1 px and a positive mpp, got {size_px} and {mpp}")
        scale = mpp / self._info.mpp
        return self._resampled(xy0, (scale, scale), size_px)

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """See `Slide.thumbnail`."""
        width, height = self._info.size0_px
        shrink = max(1.0, max(width, height) / max(1, max_px))
        size_px = max(1, round_half_up(width / shrink)), max(1, round_half_up(height / shrink))
        return self._resampled((0.0, 0.0), (width / size_px[0], height / size_px[1]), size_px)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _resampled(
        self, xy0: tuple[float, float], scale: tuple[float, float], size_px: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Output px (i, j) shows level-0 [x0 + j * sx, x0 + (j + 1) * sx) x ...; read in chunks, so that memory stays bounded."""
        level = max(
            i for i, downsample in enumerate(self._info.level_downsamples) if downsample <= max(1.0, min(scale) * 1.001)
        )
        shrink = max(scale) / self._info.level_downsamples[level]
        if shrink > _CHUNK_PX / 2:
            finer = math.ceil(shrink / (_CHUNK_PX / 2))
            larger = self._resampled(
                xy0, (scale[0] / finer, scale[1] / finer), (size_px[0] * finer, size_px[1] * finer)
            )
            return np.asarray(Image.fromarray(larger).resize(size_px, Image.Resampling.BOX))
        output = np.empty((size_px[1], size_px[0], 3), dtype=np.uint8)
        step = max(1, int(_CHUNK_PX / max(shrink, 1.0)))
        for top in range(0, size_px[1], step):
            for left in range(0, size_px[0], step):
                chunk = output[top : top + step, left : left + step]
                corner = xy0[0] + left * scale[0], xy0[1] + top * scale[1]
                chunk[...] = self._resampled_chunk(corner, scale, (chunk.shape[1], chunk.shape[0]), level)
        return output

    def _resampled_chunk(
        self, xy0: tuple[float, float], scale: tuple[float, float], size_px: tuple[int, int], level: int
    ) -> NDArray[np.uint8]:
        x, y = (
            self._span(at, step, n, limit, level_px, self._info.level_downsamples[level])
            for at, step, n, limit, level_px in zip(
                xy0, scale, size_px, self._info.size0_px, self._level_sizes_px[level], strict=True
            )
        )
        source = np.empty((y.count, x.count, 3), dtype=np.uint8)
        self._read_into(source, x.start, y.start, level)
        box = (x.low, y.low, x.high, y.high)
        return np.asarray(Image.fromarray(source).resize(size_px, Image.Resampling.BILINEAR, box=box))

    def _span(self, at0: float, step0: float, count: int, limit0: int, level_px: int, downsample: float) -> _Span:
        """What to read for `count` steps from `at0` on, with room for a filter that reaches one step further.

        So chunks join unseen. There is no room past the slide (`limit0`, or `level_px` in px of the level): white would bleed in.
        """
        length0 = step0 * count
        start = max(math.floor((at0 - step0) / downsample) - 1, min(0, math.floor(at0 / downsample)))
        start0 = self._origin0(start, downsample)
        low = (at0 - start0) / downsample
        high = (at0 + length0 - start0) / downsample
        read = math.ceil(high + step0 / downsample + 1)
        if at0 + length0 <= limit0 + 1e-6 * downsample:
            # A level is whole px wide and so may end a fraction of a px before the slide does.
            read = min(read, max(1, round_half_up(level_px - start0 / downsample)))
        else:
            read = max(math.ceil(high), 1)
        return _Span(start=start, count=read, low=min(low, read - 0.5), high=min(high, float(read)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """Along one axis: `count` px of a level from its px `start` on, of which [low, high) is wanted."""

    start: int
    count: int
    low: float
    high: float
