"""Bags on their way from a store to a training step: read ahead by one thread, delivered in order, few at a time in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """The instances of one bag: `features` [n, D] and where each lies, `xy0` int64 [n, 2], level-0 px.

    Methods look at the order of places alone, so where a source cannot tell px, numbers that order likewise do as well.
    """

    features: NDArray[np.float16] | NDArray[np.float32]
    xy0: NDArray[np.int64]


class BagSource(Protocol):
    """Where bags come from, by slide id. `load` is called from one thread at a time, which need not be the caller's."""

    def load(self, slide_id: str) -> Instances:
        """The instances of one slide. Raises StoreError."""
        ...

    def count(self, slide_id: str) -> int:
        """How many instances a slide has, without reading them. Raises StoreError."""
        ...


class BagLoader:
    """Reads up to `ahead` bags before they are asked for; those within `cache_gb` stay in memory from their first reading on.

    Beyond the cache at most `ahead` bags and those of the step are held. `waited_s` grows by the time that the caller waited.
    """

    def __init__(self, source: BagSource, *, ahead: int, cache_gb: float) -> None:
        self.waited_s = 0.0
        self._source, self._ahead = source, ahead
        self._left, self._kept = cache_gb * 1e9, dict[str, Instances]()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="wsimil-bags") if ahead else None

    def __enter__(self) -> BagLoader:
        return self

    def __exit__(self, *details: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def stream(self, steps: Sequence[Sequence[str]]) -> Iterator[list[Instances]]:
        """The bags of each step, in order. Raises StoreError at the step whose bag cannot be read."""
        names = iter([name for step in steps for name in step])
        pending: deque[Future[Instances]] = deque()
        try:
            for step in steps:
                yield [self._next(names, pending) for _ in step]
        finally:
            for future in pending:
                future.cancel()

    def _next(self, names: Iterator[str], pending: deque[Future[Instances]]) -> Instances:
        began = time.perf_counter()
        if self._pool is None:
            bag = self._load(next(names))
        else:
            self._fill(names, pending, self._pool)
            bag = pending.popleft().result()
            self._fill(names, pending, self._pool)
        self.waited_s += time.perf_counter() - began
        return bag

    def _fill(self, names: Iterator[str], pending: deque[Future[Instances]], pool: ThreadPoolExecutor) -> None:
        while len(pending) < self._ahead and (name := next(names, None)) is not None:
            pending.append(pool.submit(self._load, name))

    def _load(self, slide_id: str) -> Instances:
        if slide_id in self._kept:
            return self._kept[slide_id]
        instances = self._source.load(slide_id)
        size = instances.features.nbytes + instances.xy0.nbytes
        if size <= self._left:
            self._left -= size
            self._kept[slide_id] = instances
        return instances
