"""Where extraction found tissue, for predictions that do not say it themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wsimil.errors import SlideError, StoreError
from wsimil.export.scores import ScoreTable
from wsimil.stages.export import tissue_of


def with_tissue(table: ScoreTable, features: Path | None) -> ScoreTable:
    """The table with its own tissue, else with that beside the features, where there is any that can be read."""
    if table.tissue or features is None:
        return table
    try:
        return replace(table, tissue=tissue_of(features, table.slide_id, table.bounds0_px))
    except (SlideError, StoreError):
        return table
