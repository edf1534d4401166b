"""How a stage tells what it does: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from wsimil.files import printable

if TYPE_CHECKING:
    from rich.console import Console


class Reporter(Protocol):
    """What a stage tells to whoever watches."""

    def note(self, text: str) -> None:
        """One line for a person."""
        ...

    def begin(self, what: str, total: int) -> None:
        """A run of `total` items starts: "slides", "epochs"."""
        ...

    def item(self, name: str, parts: int) -> None:
        """Work on one item starts, which has `parts` parts (tiles); 0 where that is not known."""
        ...

    def advance(self, parts: int) -> None:
        """That many more parts of the current item are done."""
        ...

    def finish_item(self, line: str) -> None:
        """The current item is done; `line` says how it went."""
        ...


class Quiet:
    """Tells nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def begin(self, what: str, total: int) -> None:
        """Say nothing."""

    def item(self, name: str, parts: int) -> None:
        """Say nothing."""

    def advance(self, parts: int) -> None:
        """Say nothing."""

    def finish_item(self, line: str) -> None:
        """Say nothing."""


class Lines(Quiet):
    """One plain line an item, with its number; for logs, pipes and batch jobs."""

    def __init__(self, console: Console) -> None:
        self._console, self._total, self._done = console, 0, 0

    def note(self, text: str) -> None:
        """Write the line."""
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def begin(self, what: str, total: int) -> None:
        """Count from here."""
        self._total, self._done = total, 0

    def finish_item(self, line: str) -> None:
        """Write the line behind its number."""
        self._done += 1
        self.note(f"[{self._done}/{self._total}] {line}")


def reporter(console: Console, *, quiet: bool = False) -> AbstractContextManager[Reporter]:
    """The reporter that fits where `console` writes to."""
    if quiet:
        return nullcontext(Quiet())
    if not console.is_terminal:
        return nullcontext(Lines(console))
    from wsimil.stages.live import Live

    return Live(console)
