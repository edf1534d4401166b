"""The streaming engine: tiles of one slide are read ahead by threads, encoded in batches, and come back in row order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from wsimil.encoders import Encoder
from wsimil.errors import FeatureError
from wsimil.geometry import TileGrid
from wsimil.slides import Slide


@dataclass(slots=True, kw_only=True)
class StageSeconds:
    """Where the time of an extraction went. `read` adds up over threads; the rest is wall time of the encoding thread."""

    prepare: float = 0.0
    read: float = 0.0
    wait: float = 0.0
    transform: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def add(self, other: StageSeconds) -> None:
        """Add the seconds of `other` to these."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def rounded(self) -> dict[str, float]:
        """Seconds by stage, to the millisecond."""
        return {name: round(getattr(self, name), 3) for name in self.__slots__}


def encode_tiles(
    slide: Slide,
    grid: TileGrid,
    encoder: Encoder,
    *,
    readers: ThreadPoolExecutor,
    batch_size: int,
    ahead: int = 3,
    dtype: Literal["float16", "float32"] = "float16",
    seconds: StageSeconds | None = None,
    on_tiles: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float16] | NDArray[np.float32]:
    """Features [N, D] of the N tiles of `grid`, row i for `grid.xy0[i]`.

    `readers` is shared by all slides of a run; `ahead` batches are in flight, so memory does not grow with the slide beyond
    the features. `on_tiles` hears how many tiles were encoded, batch by batch.
    Raises SlideError where a tile cannot be read, FeatureError where a feature is not finite also in float32.
    """
    seconds = seconds or StageSeconds()
    features = np.empty((len(grid), encoder.card.dim), dtype=dtype)
    with closing(_read_ahead(slide, grid, readers, batch_size, ahead, seconds)) as batches:
        for start, tiles in batches:
            begin = time.perf_counter()
            batch = resample(torch.from_numpy(tiles), grid.spec.size_px)
            resampled = time.perf_counter()
            with np.errstate(over="ignore"):  # what overflows is refused by place in the next line
                embedded = _embed_finite(encoder, batch, grid, start).numpy().astype(dtype)
            _refuse_overflow(embedded, grid, start)
            features[start : start + len(tiles)] = embedded
            seconds.transform += resampled - begin
            seconds.encode += time.perf_counter() - resampled
            on_tiles(len(tiles))
    return features


def resample(tiles: torch.Tensor, size_px: int) -> torch.Tensor:
    """Bring uint8 [b, r, r, 3] to uint8 [b, size_px, size_px, 3] by bilinear interpolation with antialias.

    Equal to Pillow's BILINEAR within one grey level; the same tensor where the size is right already.
    """
    if tiles.shape[1] == size_px:
        return tiles
    planes = tiles.permute(0, 3, 1, 2)  # channels last in memory, which is the fast path for uint8
    resized = F.interpolate(planes, size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1)


def _read_ahead(
    slide: Slide, grid: TileGrid, readers: ThreadPoolExecutor, batch_size: int, ahead: int, seconds: StageSeconds
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Yield (first row, tiles) in row order, with up to `ahead` batches in flight; once closed, nobody reads any more."""
    in_flight: deque[tuple[int, Future[tuple[NDArray[np.uint8], float]]]] = deque()
    starts = iter(range(0, len(grid), batch_size))

    def submit() -> None:
        start = next(starts, None)
        if start is not None:
            rows = np.arange(start, min(start + batch_size, len(grid)))
            in_flight.append((start, readers.submit(_read, slide, grid, rows)))

    try:
        for _ in range(ahead):
            submit()
        while in_flight:
            start, future = in_flight[0]
            begin = time.perf_counter()
            tiles, read_s = future.result()
            in_flight.popleft()
            seconds.wait += time.perf_counter() - begin
            seconds.read += read_s
            submit()
            yield start, tiles
    finally:
        for _, future in in_flight:
            future.cancel()
        for _, future in in_flight:
            if not future.cancelled():
                future.exception()


def _read(slide: Slide, grid: TileGrid, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], float]:
    begin = time.perf_counter()
    return slide.read_tiles(grid, rows), time.perf_counter() - begin


def _embed_finite(encoder: Encoder, tiles: torch.Tensor, grid: TileGrid, start: int) -> torch.Tensor:
    embedded = encoder.embed(tiles).float().cpu()
    if torch.isfinite(embedded).all():
        return embedded
    if encoder.precision != "fp32":
        embedded = encoder.embed(tiles, precision="fp32").float().cpu()
    bad = torch.nonzero(~torch.isfinite(embedded).all(dim=1)).flatten().tolist()
    if bad:
        x, y = grid.xy0[start + bad[0]]
        raise FeatureError(
            f"slide {grid.slide.slide_id!r}: encoder {encoder.card.name!r} gives NaN or infinity for {len(bad)} of"
            f" {len(tiles)} tiles of a batch, also in float32; the first is the tile at level-0 x={x}, y={y}: look at that"
            " place, and check the encoder's weights"
        )
    return embedded


def _refuse_overflow(features: NDArray[np.float16] | NDArray[np.float32], grid: TileGrid, start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        x, y = grid.xy0[start + bad[0]]
        raise FeatureError(
            f"slide {grid.slide.slide_id!r}: features of the tile at level-0 x={x}, y={y} are beyond the range of"
            f" {features.dtype}; store them with --dtype float32"
        )
