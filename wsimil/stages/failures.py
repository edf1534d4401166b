"""failures.csv of a folder of features: which slides failed, at which step and why, in this run and in earlier ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from wsimil.cohort import Finding
from wsimil.files import printable, write_text
from wsimil.store.places import FailureRow, failure_rows


def failed_earlier(tables: Iterable[Path], again: Iterable[str]) -> list[FailureRow]:
    """Slides of these failures.csv that are not those which are tried `again`."""
    here = {printable(slide_id) for slide_id in again}
    rows = {(row.slide_id, row.path): row for table in tables for row in failure_rows(table)}
    return [row for row in rows.values() if row.slide_id not in here]


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
