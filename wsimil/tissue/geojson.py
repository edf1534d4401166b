"""Tissue masks as GeoJSON that QuPath reads and writes.

Frames. wsimil computes in level-0 px as OpenSlide counts them. QuPath cuts a slide to the area that its vendor declares
(`openslide.bounds-*`: MRXS and a few others) and counts from there. So files are in the frame "bounds", which is what QuPath
shows, unless "level0" is asked for, and every feature says in its metadata which one it is; on slides without declared bounds
the two are the same. A file that does not say is taken to be in "bounds", because it came from QuPath.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import SlideError
from wsimil.geometry import Origin, SlideInfo, TissueMask, round_half_up
from wsimil.provenance import Json
from wsimil.tissue.config import TissueConfig
from wsimil.tissue.outline import fill, outlines
from wsimil.tissue.resolution import mask_mpp, mask_size_px

_ORIGIN_KEY = "wsimil.origin"
_COLOR = (120, 120, 120)
_Ring: TypeAlias = NDArray[np.float64]


def to_geojson(mask: TissueMask, info: SlideInfo, *, origin: Origin = "bounds") -> dict[str, Json]:
    """A FeatureCollection with one annotation per piece of tissue, along the edges of mask px, in whole level-0 px.

    `read_geojson` makes the same mask of it. What the last mask px have beyond the slide is kept.
    """
    shift = _shift0(info.bounds0_px, origin)
    scale = mask.mpp / info.mpp
    features: list[Json] = []
    for number, outline in enumerate(outlines(mask.mask), start=1):
        rings = [_closed0(ring, scale, shift) for ring in (outline.exterior, *outline.holes)]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": rings},
                "properties": {
                    "objectType": "annotation",
                    "name": f"Tissue {number}",
                    "classification": {"name": "Tissue", "color": list(_COLOR)},
                    "isLocked": True,
                    "metadata": {"wsimil.slide": info.slide_id, _ORIGIN_KEY: origin, "wsimil.method": mask.method},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def read_geojson(
    path: Path,
    info: SlideInfo,
    *,
    origin: Origin | None = None,
    config: TissueConfig = TissueConfig(),  # noqa: B008  # frozen
) -> TissueMask:
    """The mask of all polygons in a file, on the same mask px that `segment` would use; no polygon at all is no tissue.

    Takes a FeatureCollection, a Feature, a list of features or a bare geometry; coordinates in level-0 px may be fractional.
    A mask px is tissue if its centre lies in a polygon. `origin` overrules what the file says of its frame. Raises
    SlideError where the file cannot be read or meant, and where all its polygons lie beside the slide, or are too small for a px.
    """
    where = f"slide {info.slide_id!r}: tissue file {path}"
    tree = _load(path, where)
    geometries = list(_geometries(tree, where, ""))
    shift = _shift0(info.bounds0_px, origin or _stated_origin(tree, where))
    mpp = mask_mpp(info, config)
    width, height = mask_size_px(info, mpp)
    mask, on_slide = np.zeros((height, width), dtype=np.bool_), False
    for rings in geometries:
        inside = [(ring + shift) * (info.mpp / mpp) for ring in rings]
        low = np.clip(np.floor(inside[0].min(axis=0)), 0, (width, height)).astype(np.int64)
        high = np.clip(np.ceil(inside[0].max(axis=0)), 0, (width, height)).astype(np.int64)
        part = mask[low[1] : high[1], low[0] : high[0]]
        on_slide |= bool(((inside[0] >= 0) & (inside[0] <= (width, height))).all(axis=1).any())
        part |= fill([ring - low for ring in inside], (part.shape[0], part.shape[1]))
    if geometries and not mask.any():
        if on_slide:
            raise SlideError(
                f"{where}: none of its {len(geometries)} polygons holds the middle of a pixel of the mask, which is {mpp:g} µm"
                " wide; draw larger ones, or choose a smaller tissue.mpp"
            )
        corner = geometries[0][0][0]
        raise SlideError(
            f"{where}: none of its {len(geometries)} polygons covers the slide of {info.size0_px[0]} x {info.size0_px[1]} px;"
            f" the first starts at x={corner[0]:g}, y={corner[1]:g}; export it from this slide, in level-0 pixels"
        )
    return TissueMask(mask=mask, mpp=mpp, method="geojson")


def is_geojson(path: Path) -> bool:
    """Whether there is a file that holds features or geometry, whatever it is called and whether they can be read."""
    try:
        tree = _load(path, str(path))
    except SlideError:
        return False
    one = tree[0] if isinstance(tree, list) and tree else tree
    return isinstance(one, dict) and bool({"features", "geometry", "geometries", "coordinates"} & one.keys())


def read_polygons(
    path: Path, *, slide_id: str, bounds0_px: tuple[int, int, int, int]
) -> tuple[tuple[NDArray[np.int64], ...], ...]:
    """The polygons of a file as they are, each as rings int64 [n, 2], the outer one first: level-0 px, rounded half up.

    Takes what `read_geojson` takes; `bounds0_px` is the slide's. Raises SlideError.
    """
    where = f"slide {slide_id!r}: tissue file {path}"
    tree = _load(path, where)
    shift = _shift0(bounds0_px, _stated_origin(tree, where))
    return tuple(
        tuple(np.floor(ring + shift + 0.5).astype(np.int64) for ring in rings) for rings in _geometries(tree, where, "")
    )


def _shift0(bounds0_px: tuple[int, int, int, int], origin: Origin) -> NDArray[np.int64]:
    """What to add to a file's coordinates to have them in the level-0 frame."""
    return np.array(bounds0_px[:2] if origin == "bounds" else (0, 0), dtype=np.int64)


def _closed0(ring: NDArray[np.int64], scale: float, shift: NDArray[np.int64]) -> Json:
    points: list[Json] = [
        [round_half_up(x * scale) - int(shift[0]), round_half_up(y * scale) - int(shift[1])] for x, y in ring.tolist()
    ]
    return [*points, points[0]]


def _load(path: Path, where: str) -> Json:
    try:
        tree: Json = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SlideError(f"{where} does not exist; export it, or leave it out to have tissue found") from None
    except OSError as error:
        raise SlideError(f"{where} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SlideError(f"{where} is not GeoJSON: {error}; export it again as GeoJSON") from None
    return tree


def _stated_origin(tree: Json, where: str) -> Origin:
    found = set(_origins(tree))
    if len(found) > 1 or not found <= {"bounds", "level0"}:
        raise SlideError(
            f"{where}: its features name the frames {sorted(found)}, wanted one of 'bounds' or 'level0' for all of them"
        )
    return "level0" if found == {"level0"} else "bounds"


def _origins(tree: Json) -> Iterator[str]:
    if isinstance(tree, list):
        for item in tree:
            yield from _origins(item)
    elif isinstance(tree, Mapping):
        yield from _origins(tree.get("features"))
        properties = tree.get("properties")
        metadata = properties.get("metadata") if isinstance(properties, Mapping) else None
        if isinstance(metadata, Mapping) and _ORIGIN_KEY in metadata:
            yield str(metadata[_ORIGIN_KEY])


def _geometries(tree: Json, where: str, at: str) -> Iterator[list[_Ring]]:
    """Every polygon as a list of rings, exterior first; `at` says in messages where in the file we are."""
    place = f"{where}: {at or 'the top'}"
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            yield from _geometries(item, where, f"{at}[{i}]")
        return
    kind = tree.get("type") if isinstance(tree, Mapping) else None
    if not isinstance(tree, Mapping) or not isinstance(kind, str):
        raise SlideError(f"{place}: wanted a GeoJSON object with a type, got {_short(tree)}")
    inner = {"FeatureCollection": "features", "Feature": "geometry", "GeometryCollection": "geometries"}.get(kind)
    if inner is not None:
        if inner not in tree:
            raise SlideError(f"{place}: a {kind} without {inner}")
        yield from _geometries(tree[inner], where, f"{at}.{inner}" if at else inner)
    elif kind == "Polygon":
        yield _polygon(tree.get("coordinates"), place)
    elif kind == "MultiPolygon":
        polygons = tree.get("coordinates")
        if not isinstance(polygons, list):
            raise SlideError(f"{place}: a MultiPolygon without a list of coordinates, got {_short(polygons)}")
        for polygon in polygons:
            yield _polygon(polygon, place)
    else:
        raise SlideError(f"{place}: got a {kind}, wanted Polygon or MultiPolygon; draw tissue as areas")


def _polygon(coordinates: Json, place: str) -> list[_Ring]:
    if not isinstance(coordinates, list) or not coordinates:
        raise SlideError(f"{place}: a polygon needs a list of rings, got {_short(coordinates)}")
    return [_ring(ring, place) for ring in coordinates]


def _ring(points: Json, place: str) -> _Ring:
    if not isinstance(points, list) or len(points) < 3:
        raise SlideError(f"{place}: a ring needs at least 3 points, got {_short(points)}")
    return np.array([_point(point, place) for point in points], dtype=np.float64)


def _point(point: Json, place: str) -> list[float]:
    if isinstance(point, list) and len(point) >= 2:
        values = [float(value) for value in point[:2] if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(values) == 2 and all(math.isfinite(value) for value in values):
            return values
    raise SlideError(f"{place}: a point is [x, y] in px, got {_short(point)}")


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
