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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within `remembered`, the first SIGINT only sets `pressed`, so that work can end at a good place; the second raises."""
        before = signal.getsignal(signal.SIGINT)
        if before != self._remember:
            yield
            return
        signal.signal(signal.SIGINT, self._hold)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @property
    def pressed(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._pressed

    def check(self) -> None:
        """Raises KeyboardInterrupt where one was lost; stages call this between two pieces of work."""
        if self._pressed:
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        signal.default_int_handler(number, frame)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._pressed:
            signal.default_int_handler(number, frame)
        self._pressed = True


interrupt = _Interrupt()
"""The one of this process, as there is one SIGINT."""
