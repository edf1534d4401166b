"""Pictures of tile scores: QuPath files and overlays, from the tables of scores alone; no model is needed, and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from wsimil.errors import ConfigError, OutputError, WsimilError
from wsimil.export.cohort_range import CohortRange
from wsimil.export.formats import FORMATS, HEATMAPS, Beside
from wsimil.export.heatmap import Heatmap, rank_heatmap, raw_heatmap
from wsimil.export.scores import ScoreTable, read_scores
from wsimil.export.shown import kind_of
from wsimil.pseudonyms import Pseudonyms
from wsimil.stages.export import thumbnail_of, write_formats
from wsimil.stages.interrupt import interrupt
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.progress import Reporter
from wsimil.store.base import slide_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What is drawn of slides into `out`; `features` is the folder that was predicted, with thumbnails.

    Overlays whose colors span one range for all slides wait for `draw`, as ids of slides and names of scores.
    """

    features: Path
    out: Path
    options: PredictOptions
    names: Pseudonyms | None = None
    cohort: CohortRange = field(default_factory=CohortRange)
    waiting: list[tuple[str, str]] = field(default_factory=list)

    def add(self, tables: Sequence[ScoreTable]) -> None:
        """The pictures of an answer's slides, those that must know all slides first at the end.

        What is left to do of an answer goes before: slides of one that fails must not count in the range of colors.
        """
        for table in tables:
            self._write("qupath", table)
            if self.options.range != "cohort":
                heatmap = raw_heatmap if self.options.range == "slide" else rank_heatmap
                self._draw(table, heatmap(table, self.shown_score(table)))
        for table in tables if self.options.range == "cohort" else ():
            name = self.shown_score(table)
            self.cohort.add(table, name)
            self.waiting.append((table.slide_id, name))

    def forget(self, slide_ids: Sequence[str]) -> None:
        """Remove what was written of slides whose answer failed."""
        for slide_id in slide_ids:
            self.path(slide_id).unlink(missing_ok=True)
            for form in (FORMATS[name] for name in HEATMAPS):
                slide_path(self.out / form.folder, slide_id, form.suffix).unlink(missing_ok=True)

    def draw(self, reporter: Reporter) -> dict[str, str]:
        """The overlays that waited, from the scores on disk, one after another; slides that could not be drawn, and why."""
        failures: dict[str, str] = {}
        if not self.waiting:
            return failures
        reporter.begin("overlays", len(self.waiting))
        for slide_id, name in self.waiting:
            interrupt.check()
            reporter.item(slide_id, 0)
            try:
                self.overlay(read_scores(self.path(slide_id)), name)
            except (OutputError, ConfigError):
                raise  # concerns every slide
            except (WsimilError, KeyError, ValueError) as error:
                failures[slide_id] = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            reporter.finish_item(f"{slide_id}: overlay of {name}{' FAILED' if slide_id in failures else ''}")
        self.waiting.clear()
        return failures

    def overlay(self, table: ScoreTable, name: str) -> None:
        """The overlay of a slide, in the colors of the cohort's range."""
        span = self.cohort.span(name, kind_of(table, name))
        self._draw(table, raw_heatmap(table, name, cohort_range=span, slides=self.cohort.slides(name)))

    def shown_score(self, table: ScoreTable) -> str:
        """The score that overlays show."""
        return self.options.score or table.main_score

    def path(self, slide_id: str) -> Path:
        """Where the scores of a slide lie."""
        return slide_path(self.out / "scores", slide_id, ".parquet")

    def identity(self, slide_id: str) -> str:
        """The name of the slide's files in the folder that is predicted."""
        return slide_id if self.names is None else self.names.identity(slide_id)

    def _draw(self, table: ScoreTable, heatmap: Heatmap) -> None:
        self._write("png", table, heatmap=heatmap)

    def _write(self, form: str, table: ScoreTable, *, heatmap: Heatmap | None = None) -> None:
        beside = Beside(
            now=datetime.now(UTC),
            origin=self.options.origin,
            heatmap=heatmap,
            thumbnail=thumbnail_of(self.features, self.identity(table.slide_id)),
        )
        write_formats(table, (form,), self.out, beside)
