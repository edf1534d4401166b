"""Tile scores as annotations of large_image, for the Digital Slide Archive and HistomicsUI.

One `griddata` element draws what would be 100,000 rectangles otherwise. Its values are points, each in the middle of a cell. Of
its three interpretations HistomicsUI draws "contour" and "heatmap", not "choropleth"; "contour" runs from `minColor` over
transparent at 0 to `maxColor`. So evidence for and against are two grids, both of values at or above 0, and -1 is what was not
scored: grey, not transparent as 0 is. It has `maxColor` at the greatest value of an element, whatever `rangeValues` says; so
values end where colors do, and `maxColor` is what the greatest of them has on the way there. Each grid is an annotation of its
own: of several in one the viewer forgets all but the first, and leaves them on the slide when the annotation is hidden.
https://girder.github.io/large_image/annotations.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from wsimil import __version__
from wsimil.export.heatmap import display_range
from wsimil.export.raster import Cells, cells_of_tiles
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import shown
from wsimil.files import atomic_path
from wsimil.provenance import Json

UNSCORED = -1.0

_FOR = (230, 97, 1)
_AGAINST = (33, 102, 172)
_AMOUNT = (253, 231, 37)
_ALPHA = 0.7
_UNSCORED_COLOR = "rgba(128, 128, 128, 0.3)"
_BLOCK = 4096
_OWN: Mapping[str, tuple[float, float]] = MappingProxyType({})


def write_dsa(
    path: Path,
    table: ScoreTable,
    *,
    scores: tuple[str, ...] = (),
    spans: Mapping[str, tuple[float, float]] = _OWN,
) -> None:
    """Write a list of annotations, atomically: one of each of `scores` (all of the table if none is named), two of a signed one.

    Values are those that `shown` makes of a score, up to where colors end. These end where `spans` says of it, the same on every
    slide of a cohort, and at this slide's own range where it says nothing. Coordinates are level-0 px of the whole frame, as
    large_image shows every slide. Raises KeyError where the table has no such score, OutputError.
    """
    cells = cells_of_tiles(table)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        before = "[\n"
        for name in scores or table.score_names:
            for annotation in _annotations(table, name, cells, spans.get(name)):
                file.write(before)
                file.writelines(annotation)
                before = ",\n"
        file.write("\n]\n" if scores or table.score_names else "[]\n")


def _annotations(
    table: ScoreTable, name: str, cells: Cells, span: tuple[float, float] | None
) -> Iterator[Iterator[str]]:
    one = shown(table, name)
    _, end = span or display_range(one.values, one.kind)
    raster = np.pad(cells.raster(one.values), ((1, 1), (1, _right_margin(cells))), constant_values=np.nan)
    grids: list[tuple[str | None, NDArray[np.float32], tuple[int, int, int]]] = [(None, raster, _AMOUNT)]
    if one.kind == "signed":
        grids = [("for", raster, _FOR), ("against", -raster, _AGAINST)]
    colors = "this slide's own range" if span is None else "one range for all slides"
    reading = f", {one.reading}" if one.reading else ""
    for evidence, values, color in grids:
        about: dict[str, Json] = {
            "name": f"wsimil: {name}, {evidence}" if evidence else f"wsimil: {name}",
            "description": f"{one.label} ({table.rule(name)}){reading}; colors end at {end:.4g}, {colors}; {UNSCORED:g} where no"
            " tile was scored. Research use only.",
            "attributes": {
                "slide": table.slide_id,
                "score": name,
                "evidence": evidence,
                "rule": table.rule(name),
                "cell_level0_px": cells.cell0,
                "level0_mpp": table.mpp,
                "answer_of": table.answer_of,
                "answer": {
                    column.name: value for column, value in zip(table.task.answers, table.values.tolist(), strict=True)
                },
                "model": dict(table.model),
                "version": __version__,
            },
        }
        label = f"{name} {evidence}" if evidence else name
        yield _annotation(about, _element(cells, values, color, end, label))


def _right_margin(cells: Cells) -> int:
    """How many cells that are not scored stand behind each row.

    One stands all around: what lies beyond the last point is not drawn, and that would be half of a tile at the edge. geojs
    takes x for longitudes, which it wraps, where points are less than 180 px apart and all within 360.
    """
    if cells.cell0 >= 180:
        return 1
    return max(1, int(361 / cells.cell0) + 1 - cells.shape[1])


def _annotation(about: dict[str, Json], element: Iterator[str]) -> Iterator[str]:
    yield json.dumps(about, allow_nan=False)[:-1] + ', "elements": [\n'
    yield from element
    yield "\n]}"


def _element(
    cells: Cells, values: NDArray[np.float32], color: tuple[int, int, int], end: float, label: str
) -> Iterator[str]:
    middle = [edge - cells.cell0 / 2 for edge in cells.origin0]
    shown = np.where(np.isnan(values), np.float32(UNSCORED), np.clip(values, 0, end)).ravel()
    about: dict[str, Json] = {
        "type": "griddata",
        "interpretation": "contour",
        "label": {"value": label},
        "gridWidth": values.shape[1],
        "origin": [*middle, 0],
        "dx": cells.cell0,
        "dy": cells.cell0,
        "normalizeRange": False,
        "rangeValues": [UNSCORED, 0, end],
        "colorRange": [_UNSCORED_COLOR, _rgba(color, 0), _rgba(color, 1)],
        "minColor": _UNSCORED_COLOR,
        "maxColor": _rgba(color, max(float(shown.max()), 0) / end),
    }
    yield json.dumps(about, allow_nan=False)[:-1] + ', "values": ['
    for first in range(0, len(shown), _BLOCK):
        block = ",".join([f"{value:.6g}" for value in shown[first : first + _BLOCK].tolist()])
        yield ("," if first else "") + block
    yield "]}"


def _rgba(color: tuple[int, int, int], share: float) -> str:
    """The color at this share of the way from transparent black to `color`."""
    red, green, blue = (round(part * share) for part in color)
    return f"rgba({red}, {green}, {blue}, {_ALPHA * share:.4f})"
