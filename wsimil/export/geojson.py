"""Tile scores as GeoJSON that QuPath 0.5 to 0.7 reads, and with it tiaviz, TissUUmaps and TIAToolbox.

The schema keeps to what QuPath's reader was seen to take: tiles are objects of type "tile" (annotations would be slow and have
no measurement map), without ids; a classification always has its color as a list; measurements are a mapping, with "NaN" as a
string; coordinates are whole level-0 px and rings are closed. RFC 7946 but for the frame, which is the slide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsimil import __version__
from wsimil.export.scores import ScoreTable, Tissue
from wsimil.export.shown import Shown, shown
from wsimil.files import atomic_path
from wsimil.geometry import Origin
from wsimil.provenance import Json
from wsimil.targets import AnswerColumn

if TYPE_CHECKING:
    from shapely import Polygon

_BLOCK = 4096
_TOP_COLOR: list[Json] = [230, 97, 1]
_SLIDE_COLOR: list[Json] = [120, 120, 120]
_TISSUE_COLOR: list[Json] = [120, 120, 120]


def write_geojson(
    path: Path, table: ScoreTable, *, origin: Origin = "bounds", score: str | None = None, top: int = 10
) -> None:
    """Write `geojson_chunks` to `path` atomically. Raises OutputError."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(geojson_chunks(table, origin=origin, score=score, top=top))


def geojson_chunks(
    table: ScoreTable, *, origin: Origin = "bounds", score: str | None = None, top: int = 10
) -> Iterator[str]:
    """The file in pieces: every tile with its scores; the answer, the slide's tissue and the `top` tiles as annotations.

    `origin` "bounds" counts from the top-left of the scanned part, as QuPath shows slides whose vendor declares one; "level0"
    from that of the whole frame. The top tiles are those highest in `score`, the table's main score by default; for a signed
    score only tiles above 0, which speak for the class. A measurement is what `shown` makes of a score, over the largest size of
    it on the slide: between 0 and 1 for attention, -1 and 1 for contributions; raw numbers are in the score table.
    Raises KeyError where the table has no such score, ValueError where `top` is negative.
    """
    if top < 0:
        raise ValueError(f"top counts tiles, got {top}")
    if origin not in ("bounds", "level0"):
        raise ValueError(f"origin is 'bounds' or 'level0', got {origin!r}")
    offset = np.array(table.origin0_px(origin), np.int64)
    xy = table.xy0 - offset
    chosen = score if score is not None else table.main_score if table.score_names else None
    values = {name: shown(table, name) for name in table.score_names}
    top_features: list[dict[str, Json]] = []
    if chosen is not None:
        table.score(chosen)  # refuses a name that is not there
        top_features = _top_features(table, xy, chosen, values[chosen], top)
    yield '{"type":"FeatureCollection",\n'
    yield f'"wsimil":{_json(_about(table, values, origin, offset))},\n"features":[\n'
    yield _json(_slide_feature(table, xy, _metadata(table, origin, offset)))
    for number, geometry in enumerate(_outlines(table.tissue, offset), start=1):
        yield ",\n" + _json(_tissue_feature(geometry, number, origin))
    for feature in top_features:
        yield ",\n" + _json(feature)
    yield from _tile_chunks(table, xy, values)
    yield "\n]}\n"


def _top(found: Shown, count: int) -> list[int]:
    usable = found.values > 0 if found.kind == "signed" else ~np.isnan(found.values)
    order = np.argsort(-found.values, kind="stable")
    return [int(index) for index in order[usable[order]][:count]]


def _about(
    table: ScoreTable, values: Mapping[str, Shown], origin: Origin, offset: NDArray[np.int64]
) -> dict[str, Json]:
    return {
        "version": __version__,
        "slide": table.slide_id,
        "origin": origin,
        "offset_level0_px": [int(value) for value in offset],
        "mpp": table.mpp,
        "answer_of": table.answer_of,
        "answer": {column.name: value for column, value in zip(table.task.answers, table.values.tolist(), strict=True)},
        "scores": {
            _measurement(name): {"shows": one.label, "reading": one.reading, "rule": table.rule(name)}
            for name, one in values.items()
        },
        "model": dict(table.model),
        "notice": "Research use only",
    }


def _metadata(table: ScoreTable, origin: Origin, offset: NDArray[np.int64]) -> dict[str, Json]:
    """As QuPath keeps it: text to text."""
    model = {f"wsimil.model.{key}": value for key, value in table.model.items() if isinstance(value, str)}
    return {
        "wsimil.version": __version__,
        "wsimil.slide": table.slide_id,
        "wsimil.origin": origin,
        "wsimil.offset_level0_px": f"{offset[0]},{offset[1]}",
        **model,
    }


def _slide_feature(table: ScoreTable, xy: NDArray[np.int64], metadata: Mapping[str, Json]) -> dict[str, Json]:
    """One rectangle around all tiles, which carries what is known of the whole slide, and the answer, be it its patient's."""
    patient = table.unit == "patient"
    of = " of the patient" if patient else ""
    answer = {f"{_answer(column)}{of}": float(v) for column, v in zip(table.task.answers, table.values, strict=True)}
    whose = f"{table.slide_id}: {table.answer_of}" if patient else table.slide_id
    share = table.task.confidence(table.values)
    return {
        "type": "Feature",
        "geometry": _rectangle(xy.min(axis=0), xy.max(axis=0) + table.size0_px),
        "properties": {
            "objectType": "annotation",
            "name": f"{whose}: {table.predicted}" + ("" if share is None else f" ({share:.2f})"),
            "classification": {"name": "wsimil: Slide", "color": _SLIDE_COLOR},
            "color": _SLIDE_COLOR,
            "isLocked": True,
            "measurements": {**answer, "wsimil: tiles": len(table)},
            "metadata": metadata,
        },
    }


def _outlines(tissue: Tissue, offset: NDArray[np.int64]) -> Iterator[dict[str, Json]]:
    """A geometry for each piece of tissue: valid, a Polygon or MultiPolygon, for QuPath refuses a whole file for any other."""
    if not tissue:
        return
    import shapely  # most of what is exported again and again comes without

    for rings in tissue:
        outer, *holes = (ring - offset for ring in rings)
        if len(outer) < 3:
            continue
        shape = shapely.Polygon(outer, [hole for hole in holes if len(hole) > 2])
        parts = [_rings(polygon) for polygon in ([shape] if shape.is_valid else _mended(shape))]
        if len(parts) == 1:
            yield {"type": "Polygon", "coordinates": parts[0]}
        elif parts:
            yield {"type": "MultiPolygon", "coordinates": parts}  # type: ignore[dict-item]  # lists of lists of JSON


def _mended(shape: Polygon) -> list[Polygon]:
    """A polygon that crosses itself as polygons that do not, in whole px; lines and points that are left over are dropped."""
    import shapely  # as above

    # Apart: a hole that touches the outer ring is filled where both are mended together.
    holes = [shapely.make_valid(shapely.Polygon(ring)) for ring in shape.interiors]
    whole = shapely.make_valid(shapely.Polygon(shape.exterior)).difference(shapely.union_all(holes))
    # Two parts that were cut may meet in a point on the grid of px: that is valid in two polygons only.
    parts = shapely.get_parts(shapely.get_parts(shapely.set_precision(whole, 1.0)))
    return [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]


def _rings(polygon: Polygon) -> list[Json]:
    """Closed rings in whole px: the outer one counterclockwise as RFC 7946 counts, the others clockwise."""
    found: list[Json] = []
    for number, ring in enumerate((polygon.exterior, *polygon.interiors)):
        points = np.rint(np.asarray(ring.coords)).astype(np.int64)
        found.append((points if ring.is_ccw == (number == 0) else points[::-1]).tolist())
    return found


def _tissue_feature(geometry: Json, number: int, origin: Origin) -> dict[str, Json]:
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {
            "objectType": "annotation",
            "name": f"Tissue {number}",
            "classification": {"name": "Tissue", "color": _TISSUE_COLOR},
            "isLocked": True,
            "measurements": {},
            "metadata": {"wsimil.origin": origin},
        },
    }


def _top_features(
    table: ScoreTable, xy: NDArray[np.int64], name: str, found: Shown, count: int
) -> list[dict[str, Json]]:
    kind, _, of = name.partition(":")
    sign = "+" if found.kind == "signed" else ""
    return [
        {
            "type": "Feature",
            "geometry": _rectangle(xy[index], xy[index] + table.size0_px),
            "properties": {
                "objectType": "annotation",
                "name": f"Top {rank} {of or kind} ({found.values[index]:{sign}.3g})",
                "classification": {"name": "wsimil: Top tile", "color": _TOP_COLOR},
                "color": _TOP_COLOR,
                "isLocked": True,
                "measurements": {"wsimil: rank": rank},
                "metadata": {"wsimil.score": name, "wsimil.tile_id": str(index)},
            },
        }
        for rank, index in enumerate(_top(found, count), start=1)
    ]


def _rectangle(low: NDArray[np.int64], high: NDArray[np.int64]) -> dict[str, Json]:
    (x0, y0), (x1, y1) = low.tolist(), high.tolist()
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


def _tile_chunks(table: ScoreTable, xy: NDArray[np.int64], values: Mapping[str, Shown]) -> Iterator[str]:
    """One line for each tile: filled into a template, which takes a tenth of the time of a JSON encoder."""
    names = [_json(_measurement(name)).replace("%", "%%") for name in table.score_names]
    template = (
        ',\n{"type":"Feature","geometry":{"type":"Polygon","coordinates":'
        "[[[%d,%d],[%d,%d],[%d,%d],[%d,%d],[%d,%d]]]},"
        '"properties":{"objectType":"tile","isLocked":true,"measurements":{'
        + ",".join(f"{name}:%s" for name in names)
        + "}}}"
    )
    columns = [one.values for one in values.values()]
    scale = [_largest(one) for one in columns]
    for first in range(0, len(table), _BLOCK):
        part = slice(first, first + _BLOCK)
        x0, y0 = xy[part, 0].tolist(), xy[part, 1].tolist()
        x1, y1 = (xy[part, 0] + table.size0_px).tolist(), (xy[part, 1] + table.size0_px).tolist()
        numbers = [_numbers(one[part] / largest) for one, largest in zip(columns, scale, strict=True)]
        rows = zip(x0, y0, x1, y0, x1, y1, x0, y1, x0, y0, *numbers, strict=True)
        yield "".join([template % row for row in rows])


def _answer(column: AnswerColumn) -> str:
    if column.probability:
        return f"wsimil: P({column.title})"
    return f"wsimil: {column.title}" + (f" ({column.unit})" if column.unit else "")


def _measurement(name: str) -> str:
    kind, _, of = name.partition(":")
    return f"wsimil: {' '.join(part for part in (kind, of) if part)} (relative to max)"


def _largest(values: NDArray[np.float32]) -> float:
    return float(np.abs(np.nan_to_num(values)).max()) or 1.0


def _numbers(values: NDArray[np.float64] | NDArray[np.float32]) -> list[str]:
    return ['"NaN"' if isnan(value) else f"{value:.5g}" for value in values.tolist()]


def _json(value: Json | Mapping[str, Json]) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, default=dict)
