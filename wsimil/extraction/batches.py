"""Tiles on their way to an encoder: read in pieces of one slide, encoded in batches of any slides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from wsimil.extraction.timing import StageSeconds
from wsimil.geometry import TileGrid
from wsimil.slides import Slide


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What is known of n tiles once they are read: numbers by name, float32 [n], and by limit which are beyond it, bool [n]."""

    values: Mapping[str, NDArray[np.float32]]
    beyond: Mapping[str, NDArray[np.bool_]]


Judge: TypeAlias = Callable[[NDArray[np.uint8]], Judged]
"""Looks at tiles, uint8 [n, r, r, 3], as they are read."""


@dataclass(eq=False, kw_only=True)
class SlideJob:
    """One slide under way: its tiles, and the features [N, D] that they become; row i belongs to `grid.xy0[i]`.

    `values` and `beyond` hold what `judge` said, [N] each; rows that are beyond a limit are not encoded. `to_srgb` and
    `restain` change the colours of tiles: as they are read, and on the device at the encoder's size.
    """

    key: int
    slide: Slide
    grid: TileGrid
    features: NDArray[np.float16] | NDArray[np.float32]
    judge: Judge | None = None
    to_srgb: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    restain: Callable[[torch.Tensor], torch.Tensor] | None = None
    values: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    beyond: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    begun: bool = False
    seconds: StageSeconds = field(default_factory=StageSeconds)
    error: Exception | None = None
    ended: bool = False
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.grid)

    @property
    def slide_id(self) -> str:
        """Id of the slide."""
        return self.grid.slide.slide_id

    def keep(self, rows: NDArray[np.int64], tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which of these rows are to be encoded; remembers what was said of them. From any thread, each row once."""
        kept = np.ones(len(rows), dtype=np.bool_)
        if self.judge is None:
            return kept
        judged = self.judge(tiles)
        for name, values in judged.values.items():
            self.values.setdefault(name, np.zeros(len(self.grid), dtype=np.float32))[rows] = values
        for name, beyond in judged.beyond.items():
            self.beyond.setdefault(name, np.zeros(len(self.grid), dtype=np.bool_))[rows] = beyond
            kept &= ~beyond
        return kept


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Rows of one slide's grid and their tiles, uint8 [n, r, r, 3]; `memory` is handed back once they are encoded.

    `dropped` rows were read with them and are not among them.
    """

    job: SlideJob
    rows: NDArray[np.int64]
    tiles: torch.Tensor
    memory: Memory
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, count: int) -> tuple[Part, Part]:
        """The first `count` tiles, and the others; both stand on the same memory."""
        self.memory.share()
        return (
            Part(job=self.job, rows=self.rows[:count], tiles=self.tiles[:count], memory=self.memory),
            Part(job=self.job, rows=self.rows[count:], tiles=self.tiles[count:], memory=self.memory),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Up to a batch of tiles, of one slide or several."""

    parts: Sequence[Part]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)


class Memory:
    """Bytes that the tiles of one piece are read into, until the last part of it gave them back."""

    def __init__(self, flat: torch.Tensor, *, counted: int, pooled: bool) -> None:
        self.flat, self.counted, self.pooled = flat, counted, pooled
        self._parts, self._lock = 1, threading.Lock()

    def tiles(self, count: int, side: int) -> torch.Tensor:
        """The first bytes as uint8 [count, side, side, 3]."""
        return self.flat[: count * side * side * 3].view(count, side, side, 3)

    def share(self) -> None:
        """One part more stands on it."""
        with self._lock:
            self._parts += 1

    def release(self) -> bool:
        """One part less stands on it; whether that was the last."""
        with self._lock:
            self._parts -= 1
            return self._parts == 0


class TileMemory:
    """Memory for tiles, used again, with a limit to the number of tiles that are on their way.

    New memory costs its page faults each time, and memory that a GPU reads from must be pinned, which costs more.
    """

    def __init__(self, *, most_tiles: int, piece: int, pinned: bool) -> None:
        self._most, self._piece, self._pinned = most_tiles, piece, pinned
        self._free: list[torch.Tensor] = []
        self._out, self._closed = 0, False
        self._changed = threading.Condition()

    def take(self, count: int, side: int) -> Memory | None:
        """Room for `count` tiles of `side` px; waits while too many are on their way. None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._out + count <= self._most)
            if self._closed:
                return None
            self._out += count
            size = self._piece * side * side * 3
            # Of small pieces there can be many, and each would hold the memory of a large one.
            pooled = 2 * count > self._piece
            fit = next((flat for flat in self._free if pooled and size <= flat.numel() <= 4 * size), None)
            self._free = [flat for flat in self._free if flat is not fit]
        if fit is None:
            room = size if pooled else count * side * side * 3
            fit = torch.empty(room, dtype=torch.uint8, pin_memory=self._pinned and pooled)
        return Memory(fit, counted=count, pooled=pooled)

    def move(self, memory: Memory, tiles: torch.Tensor) -> Memory:
        """Memory of their own for copies of some of a piece's tiles; the rest of it would be held for nothing."""
        with self._changed:
            self._out += len(tiles)
        self.give_back(memory)
        return Memory(tiles.flatten(), counted=len(tiles), pooled=False)

    def give_back(self, memory: Memory) -> None:
        """One part of what was read into `memory` is not needed any more."""
        if not memory.release():
            return
        with self._changed:
            self._out -= memory.counted
            if memory.pooled:
                # Sides differ from slide to slide: what no slide took for a while goes first.
                self._free = [*self._free, memory.flat][-max(1, self._most // self._piece) :]
            self._changed.notify_all()

    def close(self) -> None:
        """Whoever waits gets None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
