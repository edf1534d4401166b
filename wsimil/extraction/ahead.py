"""Work on the next items while the caller is busy with the current one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    items: Sequence[T], work: Callable[[T], R], *, threads: int, discard: Callable[[R], None]
) -> Generator[tuple[int, T, Future[R]], None, None]:
    """Yield position, item and finished result of every item, in order; `threads` and one more are under way.

    What was made and never asked for, because the caller ended early, goes to `discard`.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        futures: dict[int, Future[R]] = {}
        try:
            for index, item in enumerate(items):
                for next_one in range(index, min(index + threads + 1, len(items))):
                    if next_one not in futures:
                        futures[next_one] = pool.submit(work, items[next_one])
                future = futures[index]
                future.exception()  # waits, and leaves what was raised to the caller
                del futures[index]
                yield index, item, future
        finally:
            for future in futures.values():
                if not future.cancel() and future.exception() is None:
                    discard(future.result())
