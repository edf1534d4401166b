"""Batches through one encoder on one device: tiles go over as uint8, everything else happens there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from wsimil.encoders import Encoder
from wsimil.errors import EncoderError, FeatureError
from wsimil.extraction.batches import Batch, Part, SlideJob

Features = NDArray[np.float16] | NDArray[np.float32]


def resample(tiles: torch.Tensor, size_px: int) -> torch.Tensor:
    """Bring uint8 [b, r, r, 3] to uint8 [b, size_px, size_px, 3] by bilinear interpolation with antialias.

    Equal to Pillow's BILINEAR within one grey level; the same tensor where the size is right already.
    """
    if tiles.shape[1] == size_px:
        return tiles
    planes = tiles.permute(0, 3, 1, 2)  # channels last in memory, which is the fast path for uint8
    if tiles.is_cuda:
        # CUDA has no interpolation of uint8; what Pillow rounds half up, a float must be rounded to here.
        planes = planes.float()
    resized = F.interpolate(planes, size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
    if tiles.is_cuda:
        resized = (resized + 0.5).clamp_(0, 255).to(torch.uint8)
    return resized.permute(0, 2, 3, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launched:
    """A batch whose vectors [b, D] are computed or on their way."""

    batch: Batch
    tiles: torch.Tensor
    vectors: torch.Tensor


class Embedder:
    """Turns batches into rows of features, and remembers how many tiles fit the device at once."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        size_px: int,
        batch_size: int,
        dtype: Literal["float16", "float32"],
        note: Callable[[str], None],
    ) -> None:
        self.encoder, self._size_px, self._dtype, self._note = encoder, size_px, dtype, note
        self._at_once = batch_size

    @property
    def overlaps(self) -> bool:
        """Whether `launch` returns before the vectors are there."""
        return self.encoder.device.type == "cuda"

    def launch(self, batch: Batch) -> Launched:
        """Send a batch to the device and start on it; what comes out does not depend on how it is cut into slides."""
        begin = time.perf_counter()
        sent = [self._sent(part) for part in batch.parts]
        tiles = torch.cat(sent) if len(sent) > 1 else sent[0]
        transformed = time.perf_counter()
        vectors = self._embed(tiles)
        embedded = time.perf_counter()
        for part in batch.parts:
            share = len(part) / len(batch)
            part.job.seconds.transform += share * (transformed - begin)
            part.job.seconds.encode += share * (embedded - transformed)
        return Launched(batch=batch, tiles=tiles, vectors=vectors)

    def finish(self, launched: Launched) -> int:
        """Wait for the vectors and put them into their slides' rows; a slide whose vectors are unusable gets an error.

        Returns the number of tiles.
        """
        begin = time.perf_counter()
        vectors = self._finite(launched)
        waited = time.perf_counter() - begin
        start = 0
        for part in launched.batch.parts:
            end = start + len(part)
            if part.job.error is None:
                try:
                    part.job.features[part.rows] = self._stored(part.job, part.rows, vectors[start:end])
                except FeatureError as error:
                    part.job.error = error
            part.job.seconds.encode += len(part) / len(launched.batch) * waited
            start = end
        return start

    def _sent(self, part: Part) -> torch.Tensor:
        """The tiles of a part on the device, at the encoder's size and in the colours that are wanted."""
        tiles = resample(part.tiles.to(self.encoder.device, non_blocking=True), self._size_px)
        return tiles if part.job.restain is None else part.job.restain(tiles)

    def _embed(self, tiles: torch.Tensor) -> torch.Tensor:
        while True:
            try:
                parts = [self._padded(tiles[i : i + self._at_once]) for i in range(0, len(tiles), self._at_once)]
                return torch.cat(parts) if len(parts) > 1 else parts[0]
            except torch.OutOfMemoryError as error:
                fewer = (min(self._at_once, len(tiles)) + 1) // 2
                if fewer == self._at_once or len(tiles) == 1:
                    raise EncoderError(
                        f"encoder {self.encoder.card.name!r}: {self.encoder.device} has not the memory for one tile: {error};"
                        " free memory there, or use another device"
                    ) from None
                self._at_once = fewer
            # Outside of the handler: what the failed attempt held lives as long as its error.
            if self.overlaps:
                torch.cuda.empty_cache()
            self._note(
                f"{self.encoder.device} is out of memory: goes on with {self._at_once} tiles at once; start with --batch-size"
                f" {self._at_once} to spare the attempt"
            )

    def _padded(self, tiles: torch.Tensor) -> torch.Tensor:
        """A compiled encoder sees one length, as it would be compiled anew for another."""
        missing = self._at_once - len(tiles) if self.encoder.compiled else 0
        if not missing:
            return self.encoder.embed(tiles)
        filled = torch.cat([tiles, tiles[-1:].expand(missing, -1, -1, -1)])
        return self.encoder.embed(filled)[: len(tiles)]

    def _finite(self, launched: Launched) -> NDArray[np.float32]:
        """Vectors in float32; those that are not finite are made again in it, each alone, so that others stay as they are."""
        vectors = launched.vectors.float().cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad) and self.encoder.precision != "fp32":
            vectors = vectors.copy()
            for row in bad:
                vectors[row] = (
                    self.encoder.embed(launched.tiles[row : row + 1], precision="fp32").float().cpu().numpy()[0]
                )
        return vectors

    def _stored(self, job: SlideJob, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> Features:
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            x, y = job.grid.xy0[rows[bad[0]]]
            raise FeatureError(
                f"slide {job.slide_id!r}: encoder {self.encoder.card.name!r} gives NaN or infinity for {len(bad)} of"
                f" {len(rows)} tiles that were read together, also in float32; the first is the tile at level-0 x={x}, y={y}:"
                " look at that place, and check the encoder's weights"
            )
        with np.errstate(over="ignore"):  # what overflows is refused by place in the next lines
            stored = vectors.astype(self._dtype)
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(bad):
            x, y = job.grid.xy0[rows[bad[0]]]
            raise FeatureError(
                f"slide {job.slide_id!r}: features of the tile at level-0 x={x}, y={y} are beyond the range of"
                f" {self._dtype}; store them with --dtype float32"
            )
        return stored
