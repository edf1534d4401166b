"""Work on the next items while the caller is busy with the current one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    items: Iterable[T], work: Callable[[T], R], *, threads: int, discard: Callable[[R], None]
) -> Generator[tuple[int, T, Future[R]], None, None]:
    """Yield position, item and finished result of every item, in order; `threads` and one more are under way.

    An item is asked for when there is room for it. What was made and never asked for, because the caller ended early, goes to
    `discard`.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        under_way: deque[tuple[int, T, Future[R]]] = deque()
        numbered = enumerate(items)
        try:
            while True:
                for index, item in islice(numbered, threads + 1 - len(under_way)):
                    under_way.append((index, item, pool.submit(work, item)))
                if not under_way:
                    return
                under_way[0][2].exception()  # waits, and leaves what was raised to the caller
                yield under_way.popleft()
        finally:
            for _, _, future in under_way:
                if not future.cancel() and future.exception() is None:
                    discard(future.result())
