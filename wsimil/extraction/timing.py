"""Where the time of an extraction goes: seconds by stage, and a trace of every span for a browser's timeline."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wsimil.files import write_text


@dataclass(slots=True, kw_only=True)
class StageSeconds:
    """Seconds by stage. `prepare`, `read` and `write` add up over threads that work beside the encoder.

    `wait`, `transform` and `encode` add up over encoders, of which each does one at a time: waiting for tiles (of the first
    slides too), bringing tiles to the encoder's size, and embedding them.
    """

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


class Trace:
    """Spans of all threads, in the trace event format of Chrome (chrome://tracing, ui.perfetto.dev).

    Format: "Trace Event Format", complete events ("X"), times in µs.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._events: list[dict[str, object]] = []
        self._threads: dict[int, str] = {}

    @contextmanager
    def span(self, name: str, **facts: object) -> Iterator[None]:
        """Record what happens inside; from any thread."""
        thread = threading.get_ident()
        self._threads.setdefault(thread, threading.current_thread().name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            # Appending to a list is atomic, so that nobody waits for a lock.
            self._events.append(
                {
                    "name": name, "ph": "X", "pid": 1, "tid": thread, "ts": round((begin - self._begin) * 1e6, 1),
                    "dur": round((time.perf_counter() - begin) * 1e6, 1), "args": facts,
                }
            )  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the spans of so far. Raises OutputError."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": thread, "args": {"name": name}}
            for thread, name in sorted(self._threads.items(), key=lambda item: item[1])
        ]
        write_text(path, json.dumps({"traceEvents": names + self._events, "displayTimeUnit": "ms"}))
