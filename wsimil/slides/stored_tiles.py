"""The compressed tiles of a file: read, decoded once for all that is asked of them, and held while they are of use."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_LEAST_HELD_BYTES, _MOST_HELD_BYTES = 32 << 20, 512 << 20


class NotDirectError(ValueError):
    """Why the tiles of a slide are not read straight; the message is half a sentence."""


class OtherKindError(NotDirectError):
    """A file of another kind than is read straight, of which the message says no more than that."""


class UnreadableError(NotDirectError):
    """Why no reader can read a slide rightly, and what to do; the message is half a sentence."""


class StoredLevel(Protocol):
    """One level of a pyramid, cut into tiles of one size: where each lies in which file, and what decodes it."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height; the last tiles of a row and column may reach beyond."""
        ...

    @property
    def tile_px(self) -> tuple[int, int]:
        """Width and height of every stored tile."""
        ...

    @property
    def columns(self) -> int:
        """How many tiles are in a row, those beyond `size_px` included."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """The file of each tile, row by row."""
        ...

    @property
    def offsets(self) -> Sequence[int]:
        """First byte of each tile in its file."""
        ...

    @property
    def counts(self) -> Sequence[int]:
        """Bytes of each tile; 0 where there is none."""
        ...

    def decode(self, data: bytes, index: int, output: NDArray[np.uint8]) -> None:
        """Fill `output` RGB [h, w, 3], contiguous, of the tile's size. Raises ValueError or the codec's error."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A rectangle in px of a level."""

    x: int
    y: int
    width: int
    height: int


@dataclass(slots=True, eq=False)
class _Held:
    """A decoded tile; its memory is given to another tile only while nobody copies from it."""

    pixels: NDArray[np.uint8]
    users: int = 1
    ready: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class StoredTiles:
    """Px of a slide's levels, out of their compressed tiles; from any threads at once.

    Decoded tiles are held up to twice the bytes of the widest row of tiles. Whoever reads row by row says where the next regions
    begin: tiles that these cannot touch make room first, so that each is decoded once.
    """

    def __init__(self, levels: Sequence[StoredLevel]) -> None:
        self.levels = levels
        widest = max(level.columns * _tile_bytes(level) for level in levels)
        self._most = min(max(_LEAST_HELD_BYTES, 2 * widest), _MOST_HELD_BYTES)
        self._held: OrderedDict[tuple[int, int], _Held] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()
        self._files: dict[Path, int] = {}
        try:
            for path in sorted({path for level in levels for path in level.files}):
                self._files[path] = os.open(path, os.O_RDONLY)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Release the files and the memory; nobody may be reading."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._held.clear()

    def read_into(self, output: NDArray[np.uint8], x: int, y: int, number: int, *, step: int = 0) -> list[Part]:
        """Fill `output` [h, w, 3] with px of level `number` from (x, y) on; what lies outside the level is left as it is.

        Returns the parts that there are no tiles for, left as they are too. `step`: px to the next region to the right, and to
        the next row of regions; 0 where nothing is known of what comes. Raises ValueError or the codec's error for a broken tile.
        """
        level = self.levels[number]
        width, height = level.tile_px
        right = min(x + output.shape[1], level.size_px[0])
        lower = min(y + output.shape[0], level.size_px[1])
        columns = level.columns
        apart = step >= max(output.shape[:2]) and min(x, y) >= 0
        if apart and output.shape[:2] == (height, width) == (lower - y, right - x) and x % width == y % height == 0:
            index = y // height * columns + x // width
            if (number, index) not in self._held and level.counts[index] and output.flags.c_contiguous:
                self._decode(level, index, output)
                return []
        absent: list[Part] = []
        if x >= right or y >= lower:
            return absent
        for row in range(max(y, 0) // height, -(-lower // height)):
            for column in range(max(x, 0) // width, -(-right // width)):
                left, top = max(x, column * width), max(y, row * height)
                end, bottom = min((column + 1) * width, right), min((row + 1) * height, lower)
                index = row * columns + column
                if level.counts[index] == 0:
                    absent.append(Part(x=left, y=top, width=end - left, height=bottom - top))
                    continue
                held = self._borrow(number, level, index)
                try:
                    output[top - y : bottom - y, left - x : end - x] = held.pixels[
                        top - row * height : bottom - row * height, left - column * width : end - column * width
                    ]
                finally:
                    over = step > 0 and (column + 1) * width <= x + step and (row + 1) * height <= y + step
                    with self._lock:
                        held.users -= 1
                        if over:
                            self._held.move_to_end((number, index), last=False)
        return absent

    def _borrow(self, number: int, level: StoredLevel, index: int) -> _Held:
        """The decoded tile, which stays as it is until its `users` are counted down again."""
        key = number, index
        with self._lock:
            held = self._held.get(key)
            mine = held is None
            if held is None:
                held = self._held[key] = _Held(self._room(level))
            else:
                held.users += 1
                self._held.move_to_end(key)
        if mine:
            try:
                self._decode(level, index, held.pixels)
            except Exception as error:  # whoever else waits for the tile gets the same
                held.error = error
                raise
            finally:
                held.ready.set()
        else:
            held.ready.wait()
            if held.error is not None:
                raise held.error
        return held

    def _room(self, level: StoredLevel) -> NDArray[np.uint8]:
        """Memory for one more tile: that of the tile which was asked for longest ago, where as much as may be is held."""
        size = _tile_bytes(level)
        shape = (level.tile_px[1], level.tile_px[0], 3)
        while self._bytes + size > self._most:
            key = next((key for key, held in self._held.items() if held.users == 0), None)
            if key is None:
                break
            pixels = self._held.pop(key).pixels
            if pixels.shape == shape:
                return pixels
            self._bytes -= pixels.nbytes
        self._bytes += size
        return np.empty(shape, dtype=np.uint8)

    def _decode(self, level: StoredLevel, index: int, output: NDArray[np.uint8]) -> None:
        count = level.counts[index]
        data = os.pread(self._files[level.files[index]], count, level.offsets[index])
        if len(data) < count:
            raise ValueError(f"stored tile {index} has {len(data)} of its {count} bytes")
        level.decode(data, index, output)


def _tile_bytes(level: StoredLevel) -> int:
    return level.tile_px[0] * level.tile_px[1] * 3
