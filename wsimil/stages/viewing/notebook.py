"""Notes on disk: <slide_id>.geojson for each slide, and notes.csv of them all, both whole at any time."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from wsimil.errors import OutputError, StoreError, WsimilError
from wsimil.export.scores import ScoreTable
from wsimil.export.viewer.notes import SCHEMA, Notes, notes_csv, notes_geojson, parse_notes
from wsimil.files import write_text
from wsimil.geometry import Origin
from wsimil.provenance import Json
from wsimil.store.base import slide_path
from wsimil.targets import Task

_Mark: TypeAlias = tuple[int, int, int]

_ANY_TILE = 2**31
_MOST_BYTES = 64 * 2**20


class ChangedElsewhereError(StoreError):
    """Notes are no longer those that were read; the text names no path."""


class Notebook:
    """A folder of notes, which need not be there yet, and into which others may write too. `unreadable` are files in it that are
    not notes of the viewer.
    """

    def __init__(self, folder: Path, task: Task, *, origin: Origin = "bounds") -> None:
        self._folder, self._task, self._origin = folder, task, origin
        self._lock = threading.Lock()
        self._known: dict[str, tuple[_Mark, tuple[str, Notes] | WsimilError]] = {}
        self.unreadable = [str(error) for _, error in self._files() if isinstance(error, WsimilError)]

    def read(self, table: ScoreTable) -> Notes:
        """The notes of a slide, empty ones where there are none.

        Raises StoreError for a file that is not ours, or whose notes are on the answer of another model or over other tiles.
        """
        path = slide_path(self._folder, table.slide_id, ".geojson")
        if not path.exists():
            return Notes()
        found = self._load(path)[1]
        _refuse_other_answer(path, table)
        return found

    def write(self, table: ScoreTable, notes: Notes, *, seen: str | None = None) -> str:
        """Put notes in the place of earlier ones, whose stamp is `seen` by whoever writes, or whatever they are; when that was.

        Raises StoreError as `read` does, ChangedElsewhereError where others than those seen are there, OutputError.
        """
        path = slide_path(self._folder, table.slide_id, ".geojson")
        saved = datetime.now(UTC).isoformat(timespec="seconds")
        tree = notes_geojson(notes, table, saved=saved, origin=self._origin)
        with self._lock:
            there = self.read(table).stamp  # refuses to replace what somebody else wrote
            # An answer that got lost on its way is asked for again: the same notes are there then.
            if seen is not None and there not in (seen, notes.stamp):
                raise ChangedElsewhereError(
                    "they were changed elsewhere since this page read them, in another tab or by another wsimil view"
                )
            write_text(path, json.dumps(tree, ensure_ascii=False, allow_nan=False) + "\n")
            rows = [(slide_id, *found) for slide_id, found in self._files() if not isinstance(found, WsimilError)]
            write_text(self._folder / "notes.csv", notes_csv(rows, self._task.answers))
        return saved

    def _files(self) -> Iterator[tuple[str, tuple[str, Notes] | WsimilError]]:
        """Each slide with a file in the folder as it is now: when notes were saved and what they are, or why they are none.

        Files are read again once they are others.
        """
        for path in sorted(self._folder.glob("*.geojson"), key=lambda one: one.stem):
            try:
                mark = _mark(path)
            except OSError:
                continue  # gone meanwhile
            known = self._known.get(path.stem)
            if known is None or known[0] != mark:
                known = mark, self._tried(path)
                self._known[path.stem] = known
            yield path.stem, known[1]

    def _tried(self, path: Path) -> tuple[str, Notes] | WsimilError:
        try:
            return self._load(path)
        except WsimilError as error:
            return error

    def _load(self, path: Path) -> tuple[str, Notes]:
        try:
            about = _about(path)
            return str(about["saved"]), parse_notes(about["notes"], tiles=_ANY_TILE, answers=len(self._task.answers))
        except OSError as error:
            raise OutputError(f"notes {path.name} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{path.name} among the notes was not written by this viewer, or was changed since"
                f" ({type(error).__name__}: {error}); move it away, or give another folder with --notes"
            ) from error


def _mark(path: Path) -> _Mark:
    """What is another one once the file is; every writer here puts a new file in the place of the old one."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _refuse_other_answer(path: Path, table: ScoreTable) -> None:
    """Whoever agreed with the answer of one model has not agreed with that of the next, nor with one over other tiles, where
    the numbers of tiles in a what-if are other places.
    """
    about = _about(path)
    model, tiling = about.get("model"), about.get("tiling")
    noted = model.get("digest") if isinstance(model, dict) else None
    if noted != table.model.get("digest"):
        raise StoreError(
            f"{path.name} among the notes is on the answer of another model ({str(noted)[:12]}, not"
            f" {str(table.model.get('digest'))[:12]}); move it away, or give another folder with --notes"
        )
    if tiling != table.tiling:
        named = f"{tiling[:12]}, not" if isinstance(tiling, str) else "which it does not name, wanted"
        raise StoreError(
            f"{path.name} among the notes is on the answer over another tiling of the slide ({named} {table.tiling[:12]}), in"
            " which the numbers of tiles are other places; move it away, or give another folder with --notes"
        )


def _about(path: Path) -> dict[str, Json]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError("too large")
    about: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))["wsimil"]
    if about["schema"] != SCHEMA:
        raise ValueError(f"schema {about['schema']!r}, wanted {SCHEMA!r}")
    return about
