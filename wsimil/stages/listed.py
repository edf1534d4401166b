"""Whether tile scores belong to the answers beside them: maps of another answer would mislead whoever compares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import StoreError
from wsimil.evaluation.table import read_table
from wsimil.export.scores import ScoreTable
from wsimil.stages.learned import ORIGIN, read_origin


class MadeAnewError(StoreError):
    """Predictions are no longer those that were listed; the text names no path."""


def refuse_another_answer(table: ScoreTable, slide_id: str, values: NDArray[np.float64] | None) -> None:
    """Raise MadeAnewError where these are not the scores of the slide that was answered with `values`, None for no answer."""
    if table.slide_id != slide_id or values is None or not np.array_equal(values, table.values):
        raise MadeAnewError(
            f"slide {slide_id!r}: its tile scores belong to another answer than the one in the list, as the slides were"
            " predicted anew since, or are being, or its file came from elsewhere; start this command again when that has ended,"
            " or predict again"
        )


@dataclass(slots=True, kw_only=True)
class Listed:
    """What was answered for each slide by `values`; None where scores lie alone, which must then all be of one model."""

    values: Mapping[str, NDArray[np.float64] | None] | None
    _first: tuple[str, str] | None = field(default=None, init=False)

    @classmethod
    def of(cls, folder: Path) -> Listed:
        """Those of a folder of predictions. Raises WsimilError where its list cannot be read."""
        if not (folder / ORIGIN).is_file() or not (folder / "predictions.parquet").is_file():
            return cls(values=None)
        model = read_origin(folder).model
        rows = read_table(folder, task=model.task, bag=model.bag, answered_by=model.answers)
        return cls(values={slide_id: row.values for row in rows for slide_id in row.slides or (row.slide_id,)})

    def refuse_another(self, table: ScoreTable) -> None:
        """Raise StoreError where the scores belong to another answer, or to another model than those before."""
        if self.values is not None:
            refuse_another_answer(table, table.slide_id, self.values.get(table.slide_id))
            return
        digest = str(table.model.get("digest", ""))
        self._first = self._first or (table.slide_id, digest)
        if digest != self._first[1]:
            raise StoreError(
                f"slide {table.slide_id!r}: its tile scores are of another model ({digest[:12]}) than those of slide"
                f" {self._first[0]!r} ({self._first[1][:12]}), and no list of answers says which is meant; give the scores of"
                " each model a folder of their own"
            )
