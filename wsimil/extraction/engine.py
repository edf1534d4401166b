"""The streaming engine: slides are made ready and read ahead by threads, and every encoder gets full batches across slides.

    slides, in order ─ readers ─► pieces of tiles, in order ─► batches ─► encoders ─► rows of features

Batches are cut from the tiles of all slides in their order, so what is in a batch depends on the slides alone and not on who was
quick. An encoder looks at one tile at a time; what the company of other tiles changes is the rounding of the libraries' matrix
products: relative to the vector's length below 1e-5 in float32, which a test holds.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from wsimil.encoders import Encoder
from wsimil.errors import WsimilError
from wsimil.extraction.batches import Batch, Judge, Memory, Part, SlideJob, TileMemory
from wsimil.extraction.embedding import Embedder, Features, Launched
from wsimil.extraction.timing import StageSeconds, Trace
from wsimil.geometry import TileGrid
from wsimil.slides import Slide

T = TypeVar("T")
U = TypeVar("U")

_LARGEST_PIECE = 64
_UNWRITTEN_SLIDES = 4
_READER_NICENESS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A slide and its tiles; without them where there is nothing to encode. `key` is answered with it.

    `judge` looks at the tiles as they are read; what it finds beyond a limit is not encoded. `to_srgb` and `restain` change
    colours: of tiles as they are read, and of tiles of the encoder's size, on its device.
    """

    key: int
    slide: Slide | None = None
    grid: TileGrid | None = None
    judge: Judge | None = None
    to_srgb: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    restain: Callable[[torch.Tensor], torch.Tensor] | None = None
    prepare_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The first tiles of a slide are about to be encoded."""

    key: int
    tiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """That many tiles more are through: encoded, or dropped."""

    tiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Something that a person should hear."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A slide is through: its features [N, D], or the error that ended it, or neither where there was nothing to encode.

    `values` and `beyond` are what a judge said of the N tiles; features of a tile beyond a limit mean nothing.
    """

    key: int
    features: Features | None
    error: Exception | None
    seconds: StageSeconds
    values: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    beyond: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


Event: TypeAlias = Begun | Advanced | Told | Ended


def run_engine(
    slides: Iterable[Ready],
    encoders: Sequence[Encoder],
    *,
    size_px: int,
    batch_size: int,
    readers: int,
    dtype: Literal["float16", "float32"],
    trace: Trace | None = None,
) -> Generator[Event, None, None]:
    """Encode `slides`, which are asked for in a thread of the engine's; each is answered by one `Ended`.

    Tiles are brought to `size_px`, and come in batches of `batch_size`, of which each of `encoders` takes the next in a thread of
    its own; `readers` threads read. Memory is bounded by a few batches of tiles and the features of the slides under way.
    A slide that cannot be read or encoded ends with its error and disturbs no other. Once the generator is closed nobody
    reads any more. Raises what concerns all slides, such as EncoderError where a device has no memory for one tile.
    """
    run = _Run(encoders, size_px=size_px, batch_size=batch_size, readers=readers, dtype=dtype, trace=trace)
    return run.events(slides)


def encode_tiles(
    slide: Slide,
    grid: TileGrid,
    encoder: Encoder,
    *,
    readers: int,
    batch_size: int,
    dtype: Literal["float16", "float32"] = "float16",
    seconds: StageSeconds | None = None,
) -> Features:
    """Features [N, D] of one slide, row i for `grid.xy0[i]`; adds to `seconds`.

    Raises SlideError where a tile cannot be read, FeatureError where a feature is not finite also in float32.
    """
    ready = Ready(key=0, slide=slide, grid=grid)
    run = run_engine(
        [ready], [encoder], size_px=grid.spec.size_px, batch_size=batch_size, readers=readers, dtype=dtype
    )  # fmt: skip
    with closing(run):
        ended = next(event for event in run if isinstance(event, Ended))
    if seconds is not None:
        seconds.add(ended.seconds)
    if ended.features is None:
        raise ended.error or RuntimeError("an engine without features and without an error")
    return ended.features


def _let_encoders_go_first() -> None:
    """Called by a reader: where all cores are busy an encoder is not held up by tiles that are read ahead of it."""
    if sys.platform != "linux":
        return  # elsewhere a priority is that of the whole process
    reader = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, reader, min(os.getpriority(os.PRIO_PROCESS, reader) + _READER_NICENESS, 19))


class _StopError(Exception):
    """Ends a thread of an engine that was closed."""


class _Run:
    """One run: its threads and what they share."""

    def __init__(
        self,
        encoders: Sequence[Encoder],
        *,
        size_px: int,
        batch_size: int,
        readers: int,
        dtype: Literal["float16", "float32"],
        trace: Trace | None,
    ) -> None:
        self._dim, self._dtype, self._batch_size, self._trace = encoders[0].card.dim, dtype, batch_size, trace
        self._embedders = [
            Embedder(encoder, size_px=size_px, batch_size=batch_size, dtype=dtype, note=lambda text: self._tell(Told(text=text)))
            for encoder in encoders
        ]  # fmt: skip
        self._piece = max(1, min(batch_size // 2, _LARGEST_PIECE))
        # Enough for a batch that is put together, those on their way through the encoders, and a piece in each reader's hands.
        most = (1 + sum(1 + embedder.overlaps for embedder in self._embedders)) * batch_size + (
            readers + 1
        ) * self._piece
        pinned = any(embedder.overlaps for embedder in self._embedders)
        self._memory = TileMemory(most_tiles=most, piece=self._piece, pinned=pinned)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="read", initializer=_let_encoders_go_first)
        self._pieces: queue.Queue[tuple[SlideJob, Future[Part]] | None] = queue.Queue()
        self._events: queue.Queue[Event | Exception | None] = queue.Queue()
        self._unwritten = threading.Semaphore(_UNWRITTEN_SLIDES)
        self._stopped = threading.Event()
        self._assembling, self._ending = threading.Lock(), threading.Lock()
        self._parts: deque[Part] = deque()
        self._all_read = False

    def events(self, slides: Iterable[Ready]) -> Generator[Event, None, None]:
        """Start the threads, and yield what they tell until all slides are through."""
        threads = [self._thread("feed", self._feed, slides)]
        threads += [self._thread(f"encode {i}", self._encode, embedder) for i, embedder in enumerate(self._embedders)]
        left = len(threads)
        try:
            while left:
                event = self._events.get()
                if event is None:
                    left -= 1
                elif isinstance(event, Exception):
                    raise event
                else:
                    yield event
                    if isinstance(event, Ended):
                        self._unwritten.release()
        finally:
            self._stopped.set()
            self._memory.close()
            self._unwritten.release(len(threads))  # each thread waits once at most, and then stops
            self._readers.shutdown(wait=True, cancel_futures=True)
            for _ in self._embedders:  # each waits once at most, too
                self._pieces.put(None)
            for thread in threads:
                thread.join()

    def _thread(self, name: str, work: Callable[..., None], *arguments: object) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*arguments)
                self._events.put(None)
            except (_StopError, CancelledError):
                pass
            except Exception as error:  # noqa: BLE001 - raised again where the events are read
                self._events.put(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _feed(self, slides: Iterable[Ready]) -> None:
        """Have the tiles of one slide after the other read, piece by piece; waits while enough are on their way."""
        for ready in slides:
            if self._stopped.is_set():
                raise _StopError
            if ready.slide is None or ready.grid is None:
                self._tell(
                    Ended(key=ready.key, features=None, error=None, seconds=StageSeconds(prepare=ready.prepare_s))
                )
                continue
            features = np.empty((len(ready.grid), self._dim), dtype=self._dtype)
            job = SlideJob(
                key=ready.key, slide=ready.slide, grid=ready.grid, features=features, judge=ready.judge,
                to_srgb=ready.to_srgb, restain=ready.restain,
            )  # fmt: skip
            job.seconds.prepare = ready.prepare_s
            if not len(job.grid):
                self._tell(Begun(key=job.key, tiles=0))
                self._end(job)
            for start in range(0, len(job.grid), self._piece):
                rows = np.arange(start, min(start + self._piece, len(job.grid)))
                memory = self._memory.take(len(rows), job.grid.read_px)
                if memory is None:
                    raise _StopError
                if job.error is not None:
                    self._memory.give_back(memory)
                    break
                self._pieces.put((job, self._readers.submit(self._read, job, rows, memory)))
        self._pieces.put(None)

    def _read(self, job: SlideJob, rows: NDArray[np.int64], memory: Memory) -> Part:
        try:
            begin = time.perf_counter()
            with self._span("read", slide=job.slide_id, tiles=len(rows)):
                tiles = memory.tiles(len(rows), job.grid.read_px)
                job.slide.read_tiles(job.grid, rows, out=tiles.numpy())
                kept = job.keep(rows, tiles.numpy())
                if job.to_srgb is not None:
                    tiles.numpy()[...] = job.to_srgb(tiles.numpy())
            job.seconds.read += time.perf_counter() - begin
            if kept.all():
                return Part(job=job, rows=rows, tiles=tiles, memory=memory)
            tiles, dropped = tiles[torch.from_numpy(kept)], int(len(rows) - kept.sum())
            memory = self._memory.move(memory, tiles)
            return Part(job=job, rows=rows[kept], tiles=tiles, memory=memory, dropped=dropped)
        except BaseException:
            self._memory.give_back(memory)
            raise

    def _encode(self, embedder: Embedder) -> None:
        """Take one batch after the other; a device that computes beside the processor has the next before the last is back."""
        under_way: Launched | None = None
        while True:
            begin = time.perf_counter()
            with self._span("wait"), self._assembling:
                batch = self._next_batch()
            if batch is None:
                break
            batch.parts[0].job.seconds.wait += time.perf_counter() - begin
            with self._span("encode", tiles=len(batch), slides=len({part.job.key for part in batch.parts})):
                launched = self._guarded(batch, embedder.launch, batch)
                if under_way is not None:
                    self._finish(embedder, under_way)
                under_way = launched
                if under_way is not None and not embedder.overlaps:
                    self._finish(embedder, under_way)
                    under_way = None
        if under_way is not None:
            self._finish(embedder, under_way)

    def _guarded(self, batch: Batch, work: Callable[[T], U], what: T) -> U | None:
        """What `work` gives; an error that is not meant for all slides ends those of the batch."""
        try:
            return work(what)
        except WsimilError:
            raise
        except Exception as error:  # noqa: BLE001 - recorded with each slide
            for part in batch.parts:
                self._memory.give_back(part.memory)
                self._end(part.job, error)
            return None

    def _next_batch(self) -> Batch | None:
        """The next tiles in the order of the slides; None at the end."""
        while sum(map(len, self._parts)) < self._batch_size and not self._all_read:
            piece = self._pieces.get()
            if self._stopped.is_set():
                raise _StopError
            if piece is None:
                self._all_read = True
                break
            job, future = piece
            try:
                part = future.result()
            except Exception as error:  # noqa: BLE001 - it is this slide's, and ends it alone
                self._end(job, error)
                continue
            if not job.begun and job.error is None:
                job.begun = True
                self._tell(Begun(key=job.key, tiles=len(job.grid)))
            if part.dropped and job.error is None:
                self._through(job, part.dropped)
            if len(part) and job.error is None:
                self._parts.append(part)
            else:
                self._memory.give_back(part.memory)
        parts, room = [], self._batch_size
        while self._parts and room:
            part = self._parts.popleft()
            if len(part) > room:
                part, rest = part.split(room)
                self._parts.appendleft(rest)
            parts.append(part)
            room -= len(part)
        return Batch(parts=parts) if parts else None

    def _finish(self, embedder: Embedder, launched: Launched) -> None:
        if self._guarded(launched.batch, embedder.finish, launched) is None:
            return
        for part in launched.batch.parts:
            self._memory.give_back(part.memory)
            self._through(part.job, len(part))

    def _through(self, job: SlideJob, count: int) -> None:
        """So many tiles of a slide were encoded, or dropped."""
        with self._ending:
            job.left -= count
            last = not job.left
        self._tell(Advanced(tiles=count))
        if last or job.error is not None:
            self._end(job)

    def _end(self, job: SlideJob, error: Exception | None = None) -> None:
        """Answer a slide, once."""
        with self._ending:
            job.error = job.error or error
            ended, job.ended = job.ended, True
        if not ended:
            features = job.features if job.error is None else None
            self._tell(
                Ended(
                    key=job.key, features=features, error=job.error, seconds=job.seconds, values=job.values, beyond=job.beyond
                )
            )  # fmt: skip

    def _tell(self, event: Event) -> None:
        if isinstance(event, Ended):
            # Features wait here for whoever writes them, and must not pile up.
            self._unwritten.acquire()
            if self._stopped.is_set():
                raise _StopError
        self._events.put(event)

    def _span(self, name: str, **facts: object) -> AbstractContextManager[None]:
        return nullcontext() if self._trace is None else self._trace.span(name, **facts)
