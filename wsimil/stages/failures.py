"""failures.csv of a folder of features: which slides failed, at which step and why, in this run and in earlier ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from wsimil.cohort import Finding
from wsimil.files import printable, write_text
from wsimil.store.places import FailureRow, failure_rows


class FailedSlides:
    """failures.csv while slides are tried: who failed `earlier` stays in it until tried again, also if the run is interrupted."""

    def __init__(self, table: Path, earlier: Iterable[FailureRow]) -> None:
        self._table, self._earlier, self._failed = table, list(earlier), list[FailureRow]()
        self._write()

    def tried(self, slide_id: str, failure: FailureRow | None = None) -> None:
        """A slide came to its end, with a failure or without one. Raises OutputError."""
        if failure is not None:
            self._failed.append(failure)
        if not self.forget([slide_id]) and failure is not None:
            self._write()

    def forget(self, slide_ids: Iterable[str]) -> bool:
        """Take out what earlier runs say of these; False where that is nothing. Raises OutputError."""
        kept = not_among(self._earlier, slide_ids)
        if len(kept) == len(self._earlier):
            return False
        self._earlier = kept
        self._write()
        return True

    def _write(self) -> None:
        if rows := [*self._earlier, *self._failed]:
            write_failures(self._table, rows)
        else:
            self._table.unlink(missing_ok=True)


def listed(tables: Iterable[Path]) -> list[FailureRow]:
    """The slides of these failures.csv; of two lines of one file the later."""
    return list({(row.slide_id, row.path): row for table in tables for row in failure_rows(table)}.values())


def not_among(rows: Iterable[FailureRow], slide_ids: Iterable[str]) -> list[FailureRow]:
    """Those of other slides."""
    here = {printable(slide_id) for slide_id in slide_ids}
    return [row for row in rows if row.slide_id not in here]


def strike(table: Path, slide_ids: Iterable[str]) -> None:
    """Take slides out of a failures.csv, which goes with the last of its slides. Raises StoreError, OutputError."""
    if table.exists():
        FailedSlides(table, not_among(listed([table]), slide_ids))


def stays_listed(earlier: Sequence[FailureRow], table: Path) -> str:
    """What is to be said of slides that failed earlier and are not tried again."""
    return (
        f"{len(earlier)} slides failed in earlier runs and are not among these: they stay in {table}, and count as failed for who"
        " uses the features; remove the lines of those that are meant to be gone"
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
