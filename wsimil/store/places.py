"""What lies at a path, told by names and one small JSON file: slides, a pack, or no features. Nothing heavy is imported."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from wsimil.errors import StoreError
from wsimil.tables import read_table

SUFFIXES = (".h5", ".zarr")
"""Of the entries that hold features, one slide each or a pack."""

PACK_MARK = "pack_format_version"
"""The attribute of a Zarr group by which a pack of a whole cohort is told from the features of one slide."""

_FAILURES = re.compile(r"failures(\.\d+-of-\d+)?\.csv")

FAILED_IDS = "failed_ids"
"""The attribute of a pack that names the slides whose last extraction failed; they are there with earlier features."""


class FailureRow(NamedTuple):
    """A line of failures.csv: a slide that failed, its file, where and why."""

    slide_id: str
    path: str
    step: str
    reason: str


def is_feature_place(path: Path) -> bool:
    """Whether `path` is a folder that `open_store` would look for features in: it holds slides or a pack, or is a pack."""
    return path.is_dir() and (pack_at(path) is not None or bool(_entries(path)))


def pack_at(path: Path) -> Path | None:
    """The pack that `path` means: itself, or the only entry with features in that folder; None where there is none.

    Raises StoreError where `path` is a Zarr group of another kind.
    """
    if (path / "zarr.json").is_file():
        if PACK_MARK in _attributes(path):
            return path
        raise StoreError(
            f"{path} is a Zarr group but no pack of a cohort: give the folder that holds one such group per slide, or a pack"
            " that wsimil pack wrote"
        )
    entries = _entries(path, most=2)
    if len(entries) == 1 and entries[0].suffix == ".zarr":
        with suppress(StoreError):  # a damaged slide: whoever opens it says so
            return entries[0] if PACK_MARK in _attributes(entries[0]) else None
    return None


def failed_ids(path: Path) -> frozenset[str]:
    """Slides that could not be extracted: those of failures.csv in a folder, or that of a shard, and of a pack.

    Raises StoreError as `failures`.
    """
    found = set(failures(path))
    listed: object = None
    with suppress(StoreError):  # a Zarr group of another tool names no such slides
        if (pack := pack_at(path)) is not None:
            listed = _attributes(pack).get(FAILED_IDS)
    return frozenset(found | {str(slide_id) for slide_id in listed}) if isinstance(listed, list) else frozenset(found)


def failures(path: Path) -> dict[str, str]:
    """Slides that could not be extracted into a folder, with the reason; of all its shards. Raises StoreError."""
    return {row.slide_id: row.reason for table in failure_tables(path) for row in failure_rows(table)}


def failure_tables(folder: Path) -> list[Path]:
    """The lists of failed slides in a folder: failures.csv, and those of shards, as failures.2-of-8.csv."""
    return sorted(table for table in folder.glob("failures*.csv") if _FAILURES.fullmatch(table.name))


def failure_rows(table: Path) -> list[FailureRow]:
    """The slides in a failures.csv, also as a spreadsheet program saves it; none where it is not there, or empty.

    Raises StoreError where it cannot be read: slides that failed would pass for others.
    """
    try:
        read = read_table(table, "list of failed slides", keys=FailureRow._fields, error=StoreError)
    except StoreError:
        if table.exists():
            raise
        return []
    if not read.columns:
        return []
    if "slide_id" not in read.columns:
        raise StoreError(
            f"list of failed slides {table}: wanted a column slide_id, got {', '.join(read.columns)}; give it back its"
            f" first line, {','.join(FailureRow._fields)}, or move it away where nothing in it counts"
        )
    rows = (row.given for row in read.rows)
    return [FailureRow(*(row.get(name, "") for name in FailureRow._fields)) for row in rows if row["slide_id"]]


def _entries(folder: Path, *, most: int | None = None) -> list[Path]:
    found: list[Path] = []
    with suppress(OSError), os.scandir(folder) as entries:  # whoever opens the folder says what is wrong with it
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.endswith(SUFFIXES):
                found.append(Path(entry.path))
                if len(found) == most:
                    break
    return found


def _attributes(group: Path) -> Mapping[str, object]:
    """Attributes of a Zarr group. Raises StoreError where they cannot be read."""
    place = group / "zarr.json"
    try:
        attributes = json.loads(place.read_text(encoding="utf-8")).get("attributes", {})
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{place} cannot be read: {error.strerror}; check its permissions and the disk") from error
    except (ValueError, AttributeError) as error:
        raise StoreError(
            f"{group} is damaged: its zarr.json is no JSON ({error}); copy it again, or delete it and write it anew"
        ) from error
    return attributes if isinstance(attributes, dict) else {}
