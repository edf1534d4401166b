"""Notes on disk: <slide_id>.geojson for each slide, and notes.csv of them all, both whole at any time."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

from wsimil.errors import OutputError, StoreError
from wsimil.export.scores import ScoreTable
from wsimil.export.viewer.notes import SCHEMA, Notes, notes_csv, notes_geojson, parse_notes
from wsimil.files import write_text
from wsimil.geometry import Origin
from wsimil.provenance import Json
from wsimil.store.base import slide_path
from wsimil.targets import Task

_ANY_TILE = 2**31
_MOST_BYTES = 64 * 2**20


class Notebook:
    """A folder of notes, which need not be there yet. `unreadable` are files in it that are not notes of the viewer."""

    def __init__(self, folder: Path, task: Task, *, origin: Origin = "bounds") -> None:
        self._folder, self._task, self._origin = folder, task, origin
        self._lock = threading.Lock()
        self._saved: dict[str, tuple[str, Notes]] = {}
        self.unreadable: list[str] = []
        for path in sorted(folder.glob("*.geojson")):
            try:
                self._saved[path.stem] = self._load(path)
            except StoreError as error:
                self.unreadable.append(str(error))

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

    def write(self, table: ScoreTable, notes: Notes) -> str:
        """Put notes in the place of earlier ones; when that was. Raises StoreError as `read` does, OutputError."""
        path = slide_path(self._folder, table.slide_id, ".geojson")
        with self._lock:
            if path.exists():
                self._load(path)  # refuses to replace what somebody else wrote
                _refuse_other_answer(path, table)
            saved = datetime.now(UTC).isoformat(timespec="seconds")
            tree = notes_geojson(notes, table, saved=saved, origin=self._origin)
            write_text(path, json.dumps(tree, ensure_ascii=False, allow_nan=False) + "\n")
            self._saved[table.slide_id] = (saved, notes)
            rows = [(slide_id, time, found) for slide_id, (time, found) in sorted(self._saved.items())]
            write_text(self._folder / "notes.csv", notes_csv(rows, self._task.answers))
        return saved

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
