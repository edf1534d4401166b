"""Ctrl-C that is not lost: Python drops a KeyboardInterrupt that falls into a finalizer, and the work would go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Interrupt:
    """Whether Ctrl-C was pressed since `remembered` was entered."""

    def __init__(self) -> None:
        self._pressed = False

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """SIGINT raises KeyboardInterrupt as always and is remembered; a handler of somebody else's stays in its place."""
        self._pressed = False
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._remember)
        try:
            yield
            self.check()
        finally:
            signal.signal(signal.SIGINT, before)

    def check(self) -> None:
        """Raises KeyboardInterrupt where one was lost; stages call this between two pieces of work."""
        if self._pressed:
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        signal.default_int_handler(number, frame)


interrupt = _Interrupt()
"""The one of this process, as there is one SIGINT."""
