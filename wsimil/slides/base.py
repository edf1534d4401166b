"""Slide: one whole-slide image, read in physical units."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wsimil.geometry import SlideInfo, TileGrid


class Slide(Protocol):
    """An open slide. Reads may come from several threads at once; what lies outside the slide is white.

    Every method raises SlideError, and only that, where pixels cannot be read. After a failed read the slide stays
    unreadable: open it again to try again.
    """

    @property
    def info(self) -> SlideInfo:
        """What is known without reading pixels."""
        ...

    @property
    def reader(self) -> str:
        """Name of the reader, as provenance states it."""
        ...

    @property
    def icc_profile(self) -> bytes | None:
        """What the slide says of its colours; pixels are given as they are stored, whatever it says."""
        ...

    def read_tiles(
        self, grid: TileGrid, indices: Sequence[int] | NDArray[np.int64], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Tiles of a grid in the order of `indices`, RGB [n, r, r, 3] with r = `grid.read_px`, at the grid's read level.

        Into the first n of `out` where that is given, uint8 [>= n, r, r, 3]: memory used again is faster than new memory.
        """
        ...

    def read_region(self, xy0: tuple[float, float], size_px: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
        """`size_px` (w, h) pixels of `mpp` µm from level-0 `xy0` on, RGB [h, w, 3].

        Bilinear, with its support widened when shrinking; the position is exact to a fraction of a pixel.
        """
        ...

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """The whole level-0 frame and nothing else, RGB [h, w, 3], the longer side `max_px` or the slide's own if smaller."""
        ...

    def close(self) -> None:
        """Release the file once the reads under way are done; reading afterwards is an error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
