"""A live display of what a stage does, on a terminal."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from wsimil.files import printable


class Live(AbstractContextManager["Live"]):
    """Two bars on a terminal: items of the run, parts of the current item. Finished items scroll above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._items: TaskID | None = None
        self._parts: TaskID | None = None
        self._start, self._count = 0.0, 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Write the line above the bars."""
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def begin(self, what: str, total: int) -> None:
        """Show the bar of the run."""
        for task in (self._items, self._parts):
            if task is not None:
                self._progress.remove_task(task)
        self._items = self._progress.add_task(what, total=total, rate="")
        self._parts, self._start, self._count = None, time.monotonic(), 0

    def item(self, name: str, parts: int) -> None:
        """Show the bar of the item."""
        if self._parts is not None:
            self._progress.remove_task(self._parts)
        shown = name if len(name) <= 24 else name[:11] + "…" + name[-12:]
        self._parts = self._progress.add_task(f"  {escape(shown)}", total=parts or None, rate="")

    def advance(self, parts: int) -> None:
        """Move both bars' figures."""
        self._count += parts
        if self._parts is not None:
            rate = self._count / max(time.monotonic() - self._start, 1e-9)
            self._progress.update(self._parts, advance=parts, rate=f"{rate:.0f}/s")

    def finish_item(self, line: str) -> None:
        """Write the line above the bars and move on."""
        self.note(line)
        if self._parts is not None:
            self._progress.remove_task(self._parts)
            self._parts = None
        if self._items is not None:
            self._progress.advance(self._items)
