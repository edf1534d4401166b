"""What the viewer is answered: page, slides, pixels, notes and what-ifs of one study, by the number of a slide in its list."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from wsimil.export.scores import ScoreTable
from wsimil.export.viewer.built import Built
from wsimil.export.viewer.notes import Notes, parse_notes
from wsimil.export.viewer.page import server_page
from wsimil.export.viewer.payload import case_json, index_json, numbers, shown_status, what_if_json
from wsimil.export.viewer.pyramid import Pyramid
from wsimil.export.viewer.what_if import NotCalibratedError, NotClosedError, closed_form, kept_tiles
from wsimil.provenance import Json
from wsimil.stages.viewing.notebook import Notebook
from wsimil.stages.viewing.pictures import Pictures
from wsimil.stages.viewing.study import Study
from wsimil.stages.viewing.tissue import with_tissue

if TYPE_CHECKING:
    from wsimil.stages.viewing.recompute import Recompute

_KEPT_TABLES = 4


class NotThereError(Exception):
    """Something that does not exist: a slide beyond the list, a tile beyond the slide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Answers by number; every method may be called from several threads.

    Methods raise NotThereError for a number that is none, WsimilError for what cannot be read or written, ValueError for a wish
    that cannot be meant.
    """

    study: Study
    pictures: Pictures
    notebook: Notebook
    built: Built
    recompute: Recompute | None = None
    features: Path | None = None
    _tables: _Tables = field(default_factory=lambda: _Tables())

    def page(self, base: str) -> str:
        """The page, served under `base`."""
        return server_page(self.index(), base=base)

    def index(self) -> dict[str, Json]:
        """The list."""
        return index_json(self.study.cohort)

    def case(self, index: int) -> dict[str, Json]:
        """A slide with its tiles; URLs are relative to the page's base."""
        table = self._table(index)
        what_if = what_if_json(
            table, mix=self.study.mix, rule=self.study.cohort.rule, recomputed=self.recompute is not None
        )
        tree = case_json(index, with_tissue(table, self.features), what_if=what_if)
        refusal = self.pictures.refuse(table)
        if refusal is None:
            url: dict[str, Json] = {"url": f"cases/{index}/tiles/{{level}}/{{x}}_{{y}}.jpg"}
            tree["pyramid"] = Pyramid(size0_px=table.slide_size0_px).to_json(url)
            tree["crops"] = {"url": f"cases/{index}/crops/{{tile}}.jpg"}
        tree["pyramid_note"] = refusal
        return tree

    def tile(self, index: int, level: int, x: int, y: int) -> bytes:
        """A tile of a slide's pyramid, JPEG."""
        table = self._table(index)
        try:
            part = Pyramid(size0_px=table.slide_size0_px).tile(level, x, y)
        except KeyError as error:
            raise NotThereError(f"{error.args[0]} does not exist") from None
        return self.pictures.tile(table, part)

    def crop(self, index: int, tile: int) -> bytes:
        """A tile of the model, JPEG."""
        table = self._table(index)
        if not 0 <= tile < len(table):
            raise NotThereError(f"tile {tile} does not exist")
        return self.pictures.crop(table, tile)

    def what_if(self, index: int, tree: Json) -> dict[str, Json]:
        """The answer for a slide without some of its tiles."""
        without = tree.get("without") if isinstance(tree, Mapping) and set(tree) == {"without"} else None
        if not isinstance(without, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in without):
            raise ValueError('wanted {"without": [numbers of tiles]}')
        table = self._table(index)
        kept = kept_tiles(len(table), without)  # type: ignore[arg-type]  # whole numbers, as was just checked
        rule = self.study.cohort.rule
        try:
            logits = closed_form(table, self.study.mix, rule).logits(kept)
        except NotCalibratedError as reason:
            raise ValueError(f"{reason}") from None
        except NotClosedError as reason:
            if self.recompute is None:
                raise ValueError(f"{reason}: give --run and --features to have it recomputed") from None
            logits = self.recompute.without(table, kept, others=self._siblings(index))
        values = rule.values(logits)
        return {"values": numbers(values), "logits": numbers(logits), "predicted": table.task.decided(values)}

    def notes(self, index: int) -> Notes:
        """What was said of a slide."""
        return self.notebook.read(self._table(index))

    def save_notes(self, index: int, tree: Json, *, seen: str | None) -> tuple[Notes, str]:
        """Replace what was said of a slide, and when that was; `seen` as `Notebook.write` takes it."""
        table = self._table(index)
        notes = parse_notes(tree, tiles=len(table), answers=len(table.task.answers))
        return notes, self.notebook.write(table, notes, seen=seen)

    def _siblings(self, index: int) -> tuple[str, ...]:
        """All slides of a slide's patient, in the order in which they were predicted; none where answers are of slides."""
        if self.study.cohort.model.bag == "slide":
            return ()
        patient = self.study.cohort.cases[index].patient_id
        return tuple(case.slide_id for case in self.study.cohort.cases if case.patient_id == patient)

    def _table(self, index: int) -> ScoreTable:
        if not 0 <= index < len(self.study.cohort.cases):
            raise NotThereError(f"slide {index} does not exist")
        case = self.study.cohort.cases[index]
        if not case.scored:
            raise NotThereError(f"there are no tile scores: {shown_status(case.status)}")
        return self._tables.get(self.study, index)


class _Tables:
    """The score tables that were asked for last."""

    def __init__(self) -> None:
        self._lock, self._found = Lock(), OrderedDict[int, ScoreTable]()

    def get(self, study: Study, index: int) -> ScoreTable:
        with self._lock:
            table = self._found.pop(index, None) or study.table(index)
            self._found[index] = table
            while len(self._found) > _KEPT_TABLES:
                self._found.popitem(last=False)
        return table
