"""What a person says of a slide in the viewer: read from the page with suspicion, written as GeoJSON for QuPath and as CSV.

The GeoJSON holds the notes twice: as annotations, in the frame in which QuPath shows the slide, and under the key "wsimil" as the
page had them, which is what is read back. Every class has its color as a list and no ring crosses itself, or QuPath would
refuse the file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
import shapely
from numpy.typing import NDArray

from wsimil import __version__
from wsimil.evaluation.table import inert
from wsimil.export.scores import ScoreTable
from wsimil.geometry import Origin
from wsimil.provenance import Json, canonical_json
from wsimil.targets import AnswerColumn, Task

Verdict: TypeAlias = Literal["agree", "disagree", "unsure"]
PinKind: TypeAlias = Literal["point", "rectangle", "lasso", "what-if"]
Point: TypeAlias = tuple[float, float]

SCHEMA = "wsimil/notes/1"
MOST_TEXT, MOST_PINS, MOST_POINTS = 10_000, 500, 5_000
_FARTHEST = 1e8
_GRID_PX = 0.01
"""Places are told in hundredths of a level-0 px."""
_POINTS = {"point": (1, 1), "rectangle": (2, 2), "lasso": (3, MOST_POINTS), "what-if": (0, MOST_POINTS)}
_COLORS: Mapping[str, list[Json]] = {
    "note": [0, 114, 178],
    "what-if": [204, 121, 167],
    "agree": [0, 158, 115],
    "disagree": [213, 94, 0],
    "unsure": [120, 120, 120],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A place on the slide with a text; `xy0` in level-0 px: a point, two opposite corners, or an outline.

    A what-if names the tiles `without` which the answer was `values`.
    """

    kind: PinKind
    xy0: tuple[Point, ...]
    text: str = ""
    without: tuple[int, ...] = ()
    values: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """All that was said of one slide."""

    verdict: Verdict | None = None
    text: str = ""
    pins: tuple[Pin, ...] = field(default=())

    def to_json(self) -> dict[str, Json]:
        """As the page has them."""
        return {"verdict": self.verdict, "text": self.text, "pins": [_pin_json(pin) for pin in self.pins]}

    @property
    def stamp(self) -> str:
        """SHA-256 over all of it, 64 hex digits: whoever changes notes says by it which ones they have seen."""
        return hashlib.sha256(canonical_json(self.to_json()).encode("utf-8")).hexdigest()


def parse_notes(tree: Json, *, tiles: int, answers: int) -> Notes:
    """Notes of a slide with so many `tiles`, by a model that `answers` in so many numbers. Raises ValueError: what was wanted."""
    if not isinstance(tree, Mapping) or not set(tree) <= {"verdict", "text", "pins"}:
        raise ValueError("notes are an object with verdict, text and pins")
    verdict, pins = tree.get("verdict"), tree.get("pins", [])
    if verdict is not None and verdict not in get_args(Verdict):
        raise ValueError(f"verdict is null or one of {', '.join(get_args(Verdict))}")
    if not isinstance(pins, list) or len(pins) > MOST_PINS:
        raise ValueError(f"pins are a list of at most {MOST_PINS}")
    return Notes(
        verdict=verdict,  # type: ignore[arg-type]  # one of them, as was just checked
        text=_text(tree.get("text", "")),
        pins=tuple(_pin(pin, tiles, answers) for pin in pins),
    )


def notes_geojson(notes: Notes, table: ScoreTable, *, saved: str, origin: Origin = "bounds") -> dict[str, Json]:
    """A FeatureCollection: the verdict as an annotation around all tiles, and one for each pin; `saved` is a time.

    Raises StoreError where nobody knows where `origin` lies.
    """
    offset = table.origin0_px(origin)
    features = [_verdict_feature(notes, table, offset)] if notes.verdict or notes.text else []
    features += [_pin_feature(pin, table, offset) for pin in notes.pins]
    about: dict[str, Json] = {
        "schema": SCHEMA,
        "version": __version__,
        "slide": table.slide_id,
        "saved": saved,
        "origin": origin,
        "offset_level0_px": list(offset),
        "tiling": table.tiling,
        "model": {key: value for key, value in table.model.items() if isinstance(value, str)},
        "answer": answer_json(table.task, table.values),
        "notes": notes.to_json(),
    }
    return {"type": "FeatureCollection", "wsimil": about, "features": [*features]}


def answer_json(task: Task, values: NDArray[np.float64]) -> dict[str, Json]:
    """An answer as notes say on which one they are."""
    return {
        "names": [column.name for column in task.answers],
        "values": [value if math.isfinite(value) else None for value in values.tolist()],
        "predicted": task.decided(values),
    }


def notes_csv(saved: Sequence[tuple[str, str, Notes]], answers: Sequence[AnswerColumn]) -> str:
    """All notes of a cohort, given as slide id, time and notes: a row for the slide and one for each pin.

    Text that a spreadsheet would run as a formula gets a leading quote.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    without = [f"without_{column.name}" for column in answers]
    head = ["slide_id", "saved", "verdict", "kind", "text", "x0", "y0", "width0", "height0", "tiles_left_out"]
    writer.writerow([*head, *(inert(name) for name in without)])
    for slide_id, time, notes in saved:
        blank = [""] * (5 + len(without))
        said = [inert(slide_id), inert(time), notes.verdict or ""]
        writer.writerow([*said, "slide", inert(notes.text), *blank])
        for pin in notes.pins:
            values = [_number(value) for value in pin.values] or [""] * len(without)
            place = [*_box(pin.xy0), str(len(pin.without)) if pin.kind == "what-if" else ""]
            writer.writerow([*said, pin.kind, inert(pin.text), *place, *values])
    return text.getvalue()


def _pin(tree: Json, tiles: int, answers: int) -> Pin:
    if not isinstance(tree, Mapping) or not set(tree) <= {"kind", "xy0", "text", "without", "values"}:
        raise ValueError("a pin is an object with kind, xy0, text, and of a what-if without and values")
    kind = tree.get("kind")
    if kind not in get_args(PinKind):
        raise ValueError(f"the kind of a pin is one of {', '.join(get_args(PinKind))}")
    few, most = _POINTS[str(kind)]
    points, without, values = (tree.get(name) or [] for name in ("xy0", "without", "values"))
    if not isinstance(points, list) or not few <= len(points) <= most:
        raise ValueError(f"a {kind} has {few} to {most} points")
    if not isinstance(without, list) or not isinstance(values, list) or len(values) not in (0, answers):
        raise ValueError(f"without is a list of tiles, values are {answers} numbers or none")
    if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < tiles for i in without):
        raise ValueError(f"without names tiles from 0 to {tiles - 1}")
    if len({*without}) < len(without):
        raise ValueError("without names each tile once")
    if kind != "what-if" and (without or values):
        raise ValueError(f"a {kind} leaves out no tiles")
    return Pin(
        kind=kind,  # type: ignore[arg-type]  # one of them, as was just checked
        xy0=tuple(_point(point) for point in points),
        text=_text(tree.get("text") or ""),
        without=tuple(without),  # type: ignore[arg-type]  # whole numbers, as was just checked
        values=tuple(None if value is None else _finite(value) for value in values),
    )


def _text(value: Json) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise ValueError(f"text is of at most {MOST_TEXT} characters")
    return value.encode("utf-8", "replace").decode("utf-8")


def _point(value: Json) -> Point:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("a point is [x, y] in level-0 px")
    x, y = (_finite(number) for number in value)
    if max(abs(x), abs(y)) > _FARTHEST:
        raise ValueError("a point lies on the slide")
    return round(x, 2), round(y, 2)


def _finite(value: Json) -> float:
    # A whole number of JSON may be larger than any float, on which isfinite fails.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError("numbers are finite")
    return float(value)


def _pin_json(pin: Pin) -> dict[str, Json]:
    tree: dict[str, Json] = {"kind": pin.kind, "xy0": [[x, y] for x, y in pin.xy0], "text": pin.text}
    if pin.kind == "what-if":
        tree |= {"without": list(pin.without), "values": list(pin.values)}
    return tree


def _verdict_feature(notes: Notes, table: ScoreTable, offset: tuple[int, int]) -> dict[str, Json]:
    low, high = table.xy0.min(axis=0).tolist(), (table.xy0.max(axis=0) + table.size0_px).tolist()
    name = notes.verdict or "note"
    box = shapely.box(low[0], low[1], high[0], high[1])
    metadata = {"wsimil.slide": table.slide_id, "wsimil.verdict": notes.verdict or "", "wsimil.text": notes.text}
    return _feature(box, offset, name, f"Slide: {name}", notes.text, {}, metadata)


def _pin_feature(pin: Pin, table: ScoreTable, offset: tuple[int, int]) -> dict[str, Json]:
    measured: dict[str, Json] = {}
    if pin.kind == "what-if":
        measured["wsimil: tiles left out"] = len(pin.without)
        for column, value in zip(table.task.answers, pin.values, strict=False):
            measured |= {} if value is None else {f"wsimil: {column.title} without them": value}
    name = "what-if" if pin.kind == "what-if" else "note"
    metadata = {"wsimil.slide": table.slide_id, "wsimil.kind": pin.kind, "wsimil.text": pin.text}
    return _feature(_shape(pin, table), offset, name, pin.kind.capitalize(), pin.text, measured, metadata)


def _feature(
    shape: shapely.Geometry,
    offset: tuple[int, int],
    kind: str,
    title: str,
    text: str,
    measured: Mapping[str, Json],
    metadata: Mapping[str, Json],
) -> dict[str, Json]:
    moved = shapely.transform(shape, lambda xy: np.round(xy - np.array(offset), 2))
    geometry = shapely.geometry.mapping(moved)
    line = " ".join(text.split())[:120]
    return {
        "type": "Feature",
        "geometry": {"type": geometry["type"], "coordinates": _lists(geometry["coordinates"])},
        "properties": {
            "objectType": "annotation",
            "name": f"{title}: {line}" if line else title,
            "classification": {"name": f"wsimil: {kind}", "color": _COLORS[kind]},
            "color": _COLORS[kind],
            "isLocked": True,
            "measurements": dict(measured),
            "metadata": dict(metadata),
        },
    }


def _shape(pin: Pin, table: ScoreTable) -> shapely.Geometry:
    """A point or areas, as QuPath takes them."""
    if pin.kind == "point":
        return shapely.Point(pin.xy0[0])
    if len(pin.xy0) >= 3:
        areas = _areas(shapely.make_valid(shapely.Polygon(pin.xy0)))
    elif pin.kind == "rectangle":
        areas = _areas(shapely.box(*shapely.LineString(pin.xy0).bounds))
    else:
        corners = table.xy0[list(pin.without)].astype(np.float64)
        x, y = corners[:, 0], corners[:, 1]
        areas = _areas(shapely.union_all(shapely.box(x, y, x + table.size0_px, y + table.size0_px)))
    if areas is not None:
        return areas
    # An outline without area, such as a line back and forth: where it was begun.
    return shapely.Point(pin.xy0[0] if pin.xy0 else table.xy0[0].tolist())


def _areas(shape: shapely.Geometry) -> shapely.Geometry | None:
    # Where outlines cross each other nearly, corners that are rounded one by one may make them cross.
    whole = shapely.set_precision(shapely.MultiPolygon(_polygons(shape)), _GRID_PX)
    parts = _polygons(whole)
    return None if not parts else parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _polygons(shape: shapely.Geometry) -> list[shapely.Polygon]:
    return [part for part in _parts(shape) if part.geom_type == "Polygon" and part.area > 0]


def _parts(shape: shapely.Geometry) -> Iterator[shapely.Geometry]:
    for part in getattr(shape, "geoms", [shape]):
        yield from [part] if not hasattr(part, "geoms") else _parts(part)


def _lists(coordinates: object) -> Json:
    if isinstance(coordinates, list | tuple):
        return [_lists(one) for one in coordinates]
    value = float(coordinates)  # type: ignore[arg-type]  # shapely holds numbers
    return int(value) if value.is_integer() else value


def _box(points: Sequence[Point]) -> list[str]:
    if not points:
        return [""] * 4
    x, y = [point[0] for point in points], [point[1] for point in points]
    return [f"{value:.10g}" for value in (min(x), min(y), max(x) - min(x), max(y) - min(y))]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"
