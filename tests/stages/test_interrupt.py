"""Ctrl-C, also where Python loses it."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from wsimil.stages.interrupt import interrupt

pytestmark = pytest.mark.usefixtures("ctrl_c")


class PressedWhileDying:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_that_python_drops_in_a_finalizer_is_raised_at_the_next_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    went_on = False
    with pytest.raises(KeyboardInterrupt), interrupt.remembered():  # noqa: PT012  # what goes on inside is the point
        PressedWhileDying()
        went_on = True
        interrupt.check()
    assert went_on
    assert len(dropped) == 1


def test_one_that_nobody_checked_for_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with pytest.raises(KeyboardInterrupt), interrupt.remembered():
        PressedWhileDying()


def test_handlers_are_put_back_and_those_of_others_stay() -> None:
    with interrupt.remembered():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.remembered():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            interrupt.check()
    finally:
        signal.signal(signal.SIGINT, before)
