"""Levels that a JPEG slide does not store: its tiles decoded at half their size, which leaves out most of the inverse DCT.

Each px is the mean of 2 x 2 px in the DCT sense, not the antialiased bilinear of `wsimil.extraction.embedding.resample`: tiles
of real tissue differ by 3 grey values in the mean and 80 at most. Hence an option, off unless asked for, and recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsimil.slides.stored_tiles import StoredLevel

_SAME_LEVEL = 0.05


class JpegLevel(StoredLevel, Protocol):
    """A stored level that may be JPEG, whose tiles decode at half scale too."""

    @property
    def is_jpeg(self) -> bool:
        """Whether `decode_half` may be called."""
        ...

    def decode_half(self, data: bytes, index: int, output: NDArray[np.uint8]) -> None:
        """As `StoredLevel.decode`, into an output of half the tile's width and height."""
        ...


Level = TypeVar("Level", bound=JpegLevel)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HalfLevel:
    """A `StoredLevel` of half the width and height of another."""

    level: JpegLevel

    @property
    def size_px(self) -> tuple[int, int]:
        """See `StoredLevel.size_px`; a last px that would be half outside is left out."""
        return self.level.size_px[0] // 2, self.level.size_px[1] // 2

    @property
    def tile_px(self) -> tuple[int, int]:
        """See `StoredLevel.tile_px`."""
        return self.level.tile_px[0] // 2, self.level.tile_px[1] // 2

    @property
    def columns(self) -> int:
        """See `StoredLevel.columns`: what `size_px` leaves out may be all of the last one."""
        return self.level.columns

    @property
    def files(self) -> Sequence[Path]:
        """See `StoredLevel.files`."""
        return self.level.files

    @property
    def offsets(self) -> Sequence[int]:
        """See `StoredLevel.offsets`."""
        return self.level.offsets

    @property
    def counts(self) -> Sequence[int]:
        """See `StoredLevel.counts`."""
        return self.level.counts

    def decode(self, data: bytes, index: int, output: NDArray[np.uint8]) -> None:
        """See `StoredLevel.decode`."""
        self.level.decode_half(data, index, output)


def with_half_levels(
    levels: Sequence[Level], downsamples: Sequence[float]
) -> tuple[list[Level | HalfLevel], tuple[float, ...]]:
    """Levels and downsamples with the half of every complete JPEG level between them, where the slide has none like it."""
    found: list[tuple[float, Level | HalfLevel]] = list(zip(downsamples, levels, strict=True))
    for level, downsample in zip(levels, downsamples, strict=True):
        even = level.tile_px[0] % 2 == 0 and level.tile_px[1] % 2 == 0
        stored = any(abs(other / (2 * downsample) - 1) < _SAME_LEVEL for other in downsamples)
        if level.is_jpeg and even and not stored and 0 not in level.counts:
            found.append((2 * downsample, HalfLevel(level=level)))
    found.sort(key=lambda pair: pair[0])
    return [level for _, level in found], tuple(downsample for downsample, _ in found)
