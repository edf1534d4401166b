"""Every form in which scores of tiles leave wsimil: its name, where its files lie, and the function of a table that writes one.

A new form is one module with one function, and one line here; it needs nothing but the table and what `Beside` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsimil.errors import SlideError
from wsimil.export.csv_table import write_csv
from wsimil.export.dsa import write_dsa
from wsimil.export.geojson import write_geojson
from wsimil.export.heatmap import Heatmap, raw_heatmap
from wsimil.export.ome_tiff import write_ome_tiff
from wsimil.export.png import write_png
from wsimil.export.qupath_script import write_script
from wsimil.export.scores import ScoreTable
from wsimil.geometry import Origin
from wsimil.pseudonyms import is_pseudonym


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What an export may use beside the score table. `now` is when it is made, for forms that must say so.

    `score` is the one that is shown; None for the table's main score where one is shown, for all of them where all can be.
    `heatmap` is what a picture shows; None for that score with colors that span this slide's own range.
    `spans` are the ranges of colors of all slides, by score, for forms that show several. `thumbnail` is a picture of the whole
    slide, `slide` the slide itself; a form that can do without takes None.
    """

    now: datetime
    score: str | None = None
    origin: Origin = "bounds"
    heatmap: Heatmap | None = None
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    thumbnail: Path | None = None
    slide: Path | None = None

    @property
    def scores(self) -> tuple[str, ...]:
        """The score that was asked for, or none, which means all."""
        return () if self.score is None else (self.score,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One form. Its files are `folder`/<slide_id>`suffix`, or folders of that name where there is no suffix.

    `write` raises WsimilError, and KeyError where the table lacks the score. `once` writes what serves all slides.
    """

    name: str
    folder: str
    suffix: str
    about: str
    write: Callable[[Path, ScoreTable, Beside], None]
    once: Callable[[Path], None] | None = None


def _qupath(path: Path, table: ScoreTable, beside: Beside) -> None:
    write_geojson(path, table, origin=beside.origin, score=beside.score)


def _png(path: Path, table: ScoreTable, beside: Beside) -> None:
    heatmap = beside.heatmap or raw_heatmap(table, beside.score or table.main_score)
    # A picture of the whole slide covers no frame that is only as large as tiles reach.
    seen = beside.thumbnail if table.size_known else None
    write_png(path, table, heatmap, thumbnail=None if seen is None else _picture(seen))


def _ome_tiff(path: Path, table: ScoreTable, beside: Beside) -> None:
    write_ome_tiff(path, table, origin=beside.origin, scores=beside.scores)


def _dsa(path: Path, table: ScoreTable, beside: Beside) -> None:
    write_dsa(path, table, scores=beside.scores, spans=beside.spans)


def _csv(path: Path, table: ScoreTable, beside: Beside) -> None:
    write_csv(path, table, scores=beside.scores)


def _dicom(path: Path, table: ScoreTable, beside: Beside) -> None:
    from wsimil.export.dicom import write_parametric_maps  # needs the extra "dicom"

    if beside.slide is None:
        slides = "the slides"
        if is_pseudonym(table.slide_id):
            slides = "a manifest of de-identified DICOM slides, whose slide_id are these names,"
        raise SlideError(
            f"slide {table.slide_id!r}: a DICOM map must belong to the study of its slide, which was not found; give {slides}"
            " with --slides, or leave out dicom"
        )
    write_parametric_maps(path, table, beside.slide, scores=beside.scores, spans=beside.spans, now=beside.now)


def _picture(path: Path) -> NDArray[np.uint8] | None:
    """The whole slide, small; None where extraction left no picture, which the overlay says."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError:  # absent, or cut short
        return None


PICTURE, SEVERAL, WINDOWED = "png", "dsa", "dicom"
"""The form that shows one score in colors, the one that shows all, and the one that says which values a viewer shall show."""
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        form.name: form
        for form in (
            Format(
                name="qupath",
                folder="qupath",
                suffix=".geojson",
                about="GeoJSON for QuPath, with a script that loads it",
                write=_qupath,
                once=write_script,
            ),
            Format(
                name=PICTURE, folder="overlays", suffix=".png", about="picture with legend and scale bar", write=_png
            ),
            Format(
                name="ome-tiff",
                folder="ome_tiff",
                suffix=".ome.tiff",
                about="what maps show as float32 image, for napari, Fiji and OMERO",
                write=_ome_tiff,
            ),
            Format(
                name=WINDOWED,
                folder="dicom",
                suffix="",
                about="Parametric Maps, for slides that are DICOM",
                write=_dicom,
            ),
            Format(
                name=SEVERAL,
                folder="dsa",
                suffix=".json",
                about="annotations for the Digital Slide Archive",
                write=_dsa,
            ),
            Format(name="csv", folder="csv", suffix=".csv", about="raw scores as a table", write=_csv),
        )
    }
)
HEATMAPS = ("qupath", PICTURE)
"""What a prediction with heatmaps writes."""
