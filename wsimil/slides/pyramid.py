"""What every reader of a pyramid shares: tiles by place on a level, regions and thumbnails resampled from one."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsimil.errors import SlideError
from wsimil.geometry import SlideInfo, TileGrid, level_position, round_half_up

_CHUNK_PX = 2048


def of_one_shape(size0_px: tuple[int, int], level_px: tuple[int, int]) -> bool:
    """Whether an image can be a level of a slide: each side of a level is rounded to a whole px."""
    (width, height), (w, h) = size0_px, level_px
    return abs(w * height - h * width) <= width + height


def is_padded(
    size0_px: tuple[int, int], level_px: tuple[int, int], *, tile0_px: tuple[int, int], tile_px: tuple[int, int]
) -> bool:
    """Whether an image of whole tiles of the slide is not the slide halved some times, so that what pads it may be part of it.

    A slide that is nearly square keeps its shape under padding, and then its tissue lies aside all the same. A whole number
    of tiles at another downsample, as of a third, is taken for padding too.
    """
    if tile_px != tile0_px or any(side % tile for side, tile in zip(level_px, tile_px, strict=True)):
        return False
    halvings = 2 ** round(math.log2(size0_px[0] / level_px[0]))
    return any(abs(side0 / halvings - side) >= 1 for side0, side in zip(size0_px, level_px, strict=True))


def is_level(
    size0_px: tuple[int, int], level_px: tuple[int, int], *, tile0_px: tuple[int, int], tile_px: tuple[int, int]
) -> bool:
    """Whether an image is all of a slide at a lower resolution, and nothing else; `tile_px` as in `is_padded`."""
    return of_one_shape(size0_px, level_px) and not is_padded(size0_px, level_px, tile0_px=tile0_px, tile_px=tile_px)


def is_another_piece(size0_px: tuple[int, int], image_px: tuple[int, int], *, tile_px: tuple[int, int]) -> bool:
    """Whether an image that is no level of a slide is of another piece of tissue: more than half as large, padding apart."""
    is_whole = all(side % tile == 0 for side, tile in zip(image_px, tile_px, strict=True))
    least = max(side - (tile - 1) * is_whole for side, tile in zip(image_px, tile_px, strict=True))
    return over_half(least, max(size0_px))


def over_half(length_px: int, length0_px: int) -> bool:
    """Whether an image is too long for a level below a slide: of the half, too, a side is rounded to a whole px."""
    return 2 * length_px > length0_px + 2


def mean_downsample(size0_px: tuple[int, int], level_px: tuple[int, int]) -> float:
    """By how much a level is smaller than its slide, as OpenSlide takes it where a format does not tell."""
    return (size0_px[0] / level_px[0] + size0_px[1] / level_px[1]) / 2


def level_downsample(size0_px: tuple[int, int], level_px: tuple[int, int]) -> float:
    """By how much a level is smaller than its slide, so that its ends lie in their places within some px.

    The mean does that on most slides. The short side of a narrow one is rounded to a whole px, too, which is a large part of
    it; its long side is then told by the long side alone.
    """
    mean = mean_downsample(size0_px, level_px)
    if all(abs(side0 / mean - side) <= 1 for side0, side in zip(size0_px, level_px, strict=True)):
        return mean
    return max(size0_px) / max(level_px)


class PyramidSlide(ABC):
    """A `Slide` whose levels are read by `_read_into`, from any threads at once."""

    def __init__(self, info: SlideInfo, level_sizes_px: Sequence[tuple[int, int]]) -> None:
        self._info = info
        self._level_sizes_px = tuple(level_sizes_px)
        self._failure: str | None = None
        self._readers, self._readers_left = 0, threading.Condition()

    @property
    def info(self) -> SlideInfo:
        """See `Slide.info`."""
        return self._info

    @property
    def level_sizes_px(self) -> tuple[tuple[int, int], ...]:
        """Width and height of every level, the largest first."""
        return self._level_sizes_px

    @property
    @abstractmethod
    def reader(self) -> str:
        """See `Slide.reader`."""

    @property
    @abstractmethod
    def icc_profile(self) -> bytes | None:
        """See `Slide.icc_profile`."""

    def close(self) -> None:
        """See `Slide.close`."""
        with self._readers_left:
            self._failure = self._failure or f"slide {self._info.slide_id!r} is closed; open it again to read"
            # What a reader still holds must not be taken from under it: libraries abort the process there.
            self._readers_left.wait_for(lambda: self._readers == 0)
            self._release()

    @abstractmethod
    def _release(self) -> None:
        """Close the file; nobody reads any more."""

    @abstractmethod
    def _read_into(self, output: NDArray[np.uint8], x: int, y: int, level: int, *, step: int = 0) -> None:
        """Fill `output` [h, w, 3] with px of a level from its px (x, y) on, on white; `step` as in `StoredTiles.read_into`."""

    @contextmanager
    def _reading(self, x: int, y: int, level: int, *errors: type[Exception]) -> Iterator[None]:
        """Keep the file open; one of `errors` becomes the SlideError that this and all later reads raise."""
        with self._readers_left:
            if self._failure is not None:
                raise SlideError(self._failure)
            self._readers += 1
        try:
            yield
        except errors as error:
            x0, y0 = (round_half_up(at * self._info.level_downsamples[level]) for at in (x, y))
            self._failure = (
                f"slide {self._info.slide_id!r} ({self._info.path}): cannot read pixels at level-0 x={x0}, y={y0}: {error};"
                " the file is damaged or cut short: copy it again from its source, or drop the slide"
            )
            raise SlideError(self._failure) from error
        finally:
            with self._readers_left:
                self._readers -= 1
                self._readers_left.notify_all()

    @abstractmethod
    def _origin0(self, position: int, level: int) -> float:
        """The level-0 px that a read from this px of a level on begins with."""

    def read_tiles(
        self, grid: TileGrid, indices: Sequence[int] | NDArray[np.int64], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """See `Slide.read_tiles`."""
        side, level = grid.read_px, grid.read_level
        downsample = self._info.level_downsamples[level]
        tiles = np.empty((len(indices), side, side, 3), dtype=np.uint8) if out is None else out[: len(indices)]
        if tiles.shape != (len(indices), side, side, 3) or tiles.dtype != np.uint8:
            raise ValueError(f"{len(indices)} tiles are uint8 [n, {side}, {side}, 3], got {tiles.dtype} {tiles.shape}")
        step = grid.spec.stride_px * side // grid.spec.size_px
        for tile, (x0, y0) in zip(tiles, grid.xy0[np.asarray(indices, dtype=np.int64)].tolist(), strict=True):
            x, y = level_position(x0, downsample), level_position(y0, downsample)
            self._read_into(tile, x, y, level, step=step)
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
            self._span(at, step, n, limit, level_px, level)
            for at, step, n, limit, level_px in zip(
                xy0, scale, size_px, self._info.size0_px, self._level_sizes_px[level], strict=True
            )
        )
        source = np.empty((y.count, x.count, 3), dtype=np.uint8)
        self._read_into(source, x.start, y.start, level)
        box = (x.low, y.low, x.high, y.high)
        return np.asarray(Image.fromarray(source).resize(size_px, Image.Resampling.BILINEAR, box=box))

    def _span(self, at0: float, step0: float, count: int, limit0: int, level_px: int, level: int) -> _Span:
        """What to read for `count` steps from `at0` on, with room for a filter that reaches one step further.

        So chunks join unseen. There is no room past the slide (`limit0`, or `level_px` in px of the level): white would bleed in.
        """
        downsample, length0 = self._info.level_downsamples[level], step0 * count
        start = max(math.floor((at0 - step0) / downsample) - 1, min(0, math.floor(at0 / downsample)))
        start0 = self._origin0(start, level)
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
