"""failures.csv of a folder of features: which slides failed, at which step and why, in this run and in earlier ones."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from wsimil.cohort import Finding
from wsimil.files import printable, write_text
from wsimil.stages.occupied import occupied
from wsimil.store.places import FailureRow, failure_rows, failure_tables

_WRITE_S = 5.0
_WAIT_S = 60.0


class FailedSlides:
    """The list of slides that failed, failures.csv, while slides are tried: a context, left once no more are.

    A slide that failed earlier stays listed until it is tried, by whoever tries it, also where a run is interrupted. Who fails is
    put in at once, who does not is taken out every few seconds and at the end, then also from the lists of other shards.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._tried, self._failed = set[str](), list[FailureRow]()
        self._written_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        for other in failure_tables(self._table.parent):
            if other != self._table:
                _relist(other, self._tried)

    def tried(self, slide_id: str, failure: FailureRow | None = None) -> None:
        """A slide came to its end, with a failure or without one. Raises StoreError, OutputError."""
        self._tried.add(slide_id)
        if failure is not None:
            self._failed.append(failure)
        if failure is not None or time.monotonic() - self._written_at > _WRITE_S:
            self._write()

    def _write(self) -> None:
        _relist(self._table, self._tried, self._failed)
        self._written_at = time.monotonic()


def _relist(table: Path, tried: Collection[str], failed: Sequence[FailureRow] = ()) -> None:
    """Take out of a list what was tried, and put in what failed; it goes with its last slide."""
    if not failed:
        before = listed([table])
        if len(not_among(before, tried)) == len(before) and (before or not table.exists()):
            return
    # Shards write each other's lists.
    with occupied(table.parent, wait_s=_WAIT_S):
        if rows := [*not_among(listed([table]), tried), *failed]:
            write_failures(table, rows)
        else:
            table.unlink(missing_ok=True)


def listed(tables: Iterable[Path]) -> list[FailureRow]:
    """The slides of these failures.csv; of two lines of one file the later."""
    return list({(row.slide_id, row.path): row for table in tables for row in failure_rows(table)}.values())


def not_among(rows: Iterable[FailureRow], slide_ids: Iterable[str]) -> list[FailureRow]:
    """Those of other slides."""
    here = {printable(slide_id) for slide_id in slide_ids}
    return [row for row in rows if row.slide_id not in here]


def stays_listed(earlier: Sequence[FailureRow], out: Path) -> str:
    """What is to be said of slides that failed earlier and are not tried again."""
    return (
        f"{len(earlier)} slides failed in earlier runs and are not among these: they stay in {out}/failures*.csv, and count as"
        " failed for who uses the features; remove the lines of those that are meant to be gone"
    )


def write_failures(path: Path, rows: Iterable[FailureRow]) -> None:
    """Write failures.csv. Raises OutputError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FailureRow._fields)
    writer.writerows(rows)
    write_text(path, printable(text.getvalue()))


def used_though_failed(failed: Collection[str], used: Iterable[str]) -> tuple[Finding, ...]:
    """What is to be said where slides that `failed` in their last extraction are among the `used` ones."""
    doubtful = tuple(sorted({*failed} & {*used}))
    what = "slides failed in the last extraction, and are used with the features of an earlier one"
    return (Finding(what=what, slide_ids=doubtful),) if doubtful else ()
