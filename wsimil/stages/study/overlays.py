"""Units of drawing: the overlay of a slide, from its scores alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import cast

from wsimil.errors import ConfigError
from wsimil.export.cohort_range import CohortRange
from wsimil.export.scores import read_scores
from wsimil.provenance import Json
from wsimil.stages.drawing import Drawing
from wsimil.stages.progress import Reporter
from wsimil.stages.study.one_by_one import WARM, OneByOne
from wsimil.stages.study.planning import PREDICT, PREDICTIONS, Study
from wsimil.store.base import slide_path
from wsimil.worklist import Ledger
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.worker import Made, Outcome


class OverlayRunner(OneByOne):
    """See `wsimil.worklist.worker.Runner`. An overlay each, in the colors that all slides of a model share."""

    def __init__(self, study: Study, ledger: Ledger, watch: Reporter) -> None:
        super().__init__(study, ledger, watch)
        self._spans = lru_cache(WARM)(self._span)
        self._ends = {str(unit.task["run"]): unit.id for unit in study.plan.stage(PREDICT).units if unit.last}

    def _do(self, attempt: Attempt) -> Outcome:
        run, slide = str(attempt.unit.task["run"]), str(attempt.unit.task["slide"])
        scores = slide_path(self._study.folder / PREDICTIONS / run / "scores", slide, ".parquet")
        if scores.is_file():  # else it has no answer, which is told there
            table = read_scores(scores)
            drawing = Drawing(
                features=self._features, out=attempt.scratch / PREDICTIONS / run, options=self._options,
                cohort=self._spans(run),
            )  # fmt: skip
            drawing.overlay(table, drawing.shown_score(table))
        return Made(attempt=attempt)

    def _span(self, run: str) -> CohortRange:
        end = self._ends[run]
        if not self._ledger.look(end).done:
            raise ConfigError(
                f"{end}, the tables of {run}, was set aside, and with it the range of colors of all overlays; `wsimil retry` it"
                " first, and these then"
            )
        said = cast("Mapping[str, Mapping[str, Json]]", self._ledger.receipt(end)["summary"])
        return CohortRange.from_json(said["ranges"])
