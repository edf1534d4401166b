"""Notes on disk: <slide_id>.geojson for each slide, and notes.csv of them all, both whole at any time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import OutputError, StoreError, WsimilError
from wsimil.export.scores import ScoreTable
from wsimil.export.viewer.notes import SCHEMA, Notes, answer_json, notes_csv, notes_geojson, parse_notes
from wsimil.export.viewer.payload import Cohort
from wsimil.files import write_text
from wsimil.geometry import Origin
from wsimil.provenance import Json
from wsimil.stages.occupied import occupied
from wsimil.store.base import slide_path
from wsimil.targets import Task

_Mark: TypeAlias = tuple[int, int, int]

_ANY_TILE = 2**31
_WAIT_S = 10.0
_MOST_BYTES = 64 * 2**20
_MOST_TOLD = 5
_HARDWARE = 1e-4
"""Answers of one model on two machines differ by less; a page shows a tenth of a per cent."""
_REMEDY = "move it away, or give another folder with --notes"


class ChangedElsewhereError(StoreError):
    """Notes are no longer those that were read; the text names no path."""


class Notebook:
    """A folder of notes on the answers of `cohort`, which need not be there yet, and into which others may write too.

    `tiling` tells over which tiles a slide was answered. `left_out` says which of its files are not in notes.csv, and why: those
    that are not notes of the viewer, and those on other answers or over other tiles, whose numbers would stand below this model's
    names.
    """

    def __init__(
        self, folder: Path, cohort: Cohort, *, tiling: Callable[[str], str | None], origin: Origin = "bounds"
    ) -> None:
        self._folder, self._cohort, self._tiling, self._origin = folder, cohort, tiling, origin
        self._values = {case.slide_id: case.values for case in cohort.cases}
        self._lock = threading.Lock()
        self._known: dict[str, tuple[_Mark, tuple[str, Notes] | WsimilError]] = {}
        self.left_out = _told([error for _, error in self._files() if isinstance(error, WsimilError)])

    def read(self, table: ScoreTable) -> Notes:
        """The notes of a slide, empty ones where there are none.

        Raises StoreError for a file that is not ours, or whose notes are on another answer or over other tiles.
        """
        path = slide_path(self._folder, table.slide_id, ".geojson")
        if not path.exists():
            return Notes()
        return self._load(path, table.tiling)[1]

    def write(self, table: ScoreTable, notes: Notes, *, seen: str | None = None) -> str:
        """Put notes in the place of earlier ones, whose stamp is `seen` by whoever writes, or whatever they are; when that was.

        Raises StoreError as `read` does, ChangedElsewhereError where others than those seen are there, OutputError.
        """
        path = slide_path(self._folder, table.slide_id, ".geojson")
        saved = datetime.now(UTC).isoformat(timespec="seconds")
        tree = notes_geojson(notes, table, saved=saved, origin=self._origin)
        with self._lock, occupied(self._folder, wait_s=_WAIT_S):
            there = self.read(table).stamp  # refuses to replace what somebody else wrote
            # An answer that got lost on its way is asked for again: the same notes are there then.
            if seen is not None and there not in (seen, notes.stamp):
                raise ChangedElsewhereError(
                    "they were changed elsewhere since this page read them, in another tab or by another wsimil view"
                )
            write_text(path, json.dumps(tree, ensure_ascii=False, allow_nan=False) + "\n")
            rows = [(slide_id, *found) for slide_id, found in self._files() if not isinstance(found, WsimilError)]
            write_text(self._folder / "notes.csv", notes_csv(rows, self._cohort.rule.task.answers))
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
            return self._load(path, self._tiling(path.stem))
        except WsimilError as error:
            return error

    def _load(self, path: Path, tiling: str | None) -> tuple[str, Notes]:
        """When a file was saved, and its notes, which are over this `tiling` where it is known."""
        try:
            about = _about(path)
            task = self._cohort.rule.task
            _refuse_other_model(path.name, about, self._cohort.model.digest)
            if tiling is not None:
                _refuse_other_tiling(path.name, about, tiling)
            _refuse_other_answer(path.name, about, task, self._values.get(path.stem))
            return str(about["saved"]), parse_notes(about["notes"], tiles=_ANY_TILE, answers=len(task.answers))
        except OSError as error:
            raise OutputError(f"notes {path.name} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{path.name} among the notes was not written by this viewer, or was changed since"
                f" ({type(error).__name__}: {error}); {_REMEDY}"
            ) from error


def _told(errors: Sequence[WsimilError]) -> list[str]:
    if not errors:
        return []
    more = f"and {len(errors) - _MOST_TOLD} more files among the notes; " if len(errors) > _MOST_TOLD else ""
    return [*map(str, errors[:_MOST_TOLD]), f"{more}none of these is shown, nor in notes.csv once a note is saved"]


def _mark(path: Path) -> _Mark:
    """What is another one once the file is; every writer here puts a new file in the place of the old one."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _refuse_other_model(name: str, about: Mapping[str, Json], digest: str) -> None:
    """Whoever agreed with the answer of one model has not agreed with that of the next."""
    model = about.get("model")
    noted = model.get("digest") if isinstance(model, dict) else None
    if noted != digest:
        raise StoreError(
            f"{name} among the notes is on the answer of another model ({str(noted)[:12]}, not {digest[:12]}); {_REMEDY}"
        )


def _refuse_other_answer(name: str, about: Mapping[str, Json], task: Task, values: NDArray[np.float64] | None) -> None:
    """Nor with another answer of the same model, as after calibration. Notes of earlier versions do not tell their answer."""
    noted = about.get("answer")
    if noted is None or values is None:
        return
    answer = answer_json(task, values)
    if not isinstance(noted, dict) or not _same(noted, answer, decides=task.decides):
        was, now = noted.get("predicted") if isinstance(noted, dict) else noted, answer["predicted"]
        change = "with other numbers" if was == now else f"{was}, not {now}"
        raise StoreError(f"{name} among the notes is on another answer of this model ({change}); {_REMEDY}")


def _same(noted: Mapping[str, Json], answer: Mapping[str, Json], *, decides: bool) -> bool:
    before, now = (np.array(one["values"], np.float64) for one in (noted, answer))
    return (
        noted["names"] == answer["names"]
        and (not decides or noted["predicted"] == answer["predicted"])
        and bool(np.allclose(before, now, rtol=_HARDWARE, atol=_HARDWARE, equal_nan=True))
    )


def _refuse_other_tiling(name: str, about: Mapping[str, Json], tiling: str) -> None:
    """In another tiling the numbers of tiles in a what-if are other places."""
    noted = about.get("tiling")
    if noted != tiling:
        named = f"{noted[:12]}, not" if isinstance(noted, str) else "which it does not name, wanted"
        raise StoreError(
            f"{name} among the notes is on the answer over another tiling of the slide ({named} {tiling[:12]}), in"
            f" which the numbers of tiles are other places; {_REMEDY}"
        )


def _about(path: Path) -> dict[str, Json]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError("too large")
    about: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))["wsimil"]
    if about["schema"] != SCHEMA:
        raise ValueError(f"schema {about['schema']!r}, wanted {SCHEMA!r}")
    return about
