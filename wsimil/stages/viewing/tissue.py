"""Where extraction found tissue, for the viewer to draw: what it left beside the features."""

from __future__ import annotations

import json
from pathlib import Path

import shapely

from wsimil.errors import StoreError
from wsimil.export.scores import ScoreTable
from wsimil.provenance import Json
from wsimil.store.base import slide_path

_MOST_BYTES = 32 * 2**20


def tissue_json(features: Path | None, table: ScoreTable) -> dict[str, Json] | None:
    """Where extraction found tissue, as a MultiPolygon in level-0 px; None where that is not known."""
    if features is None:
        return None
    try:
        path = slide_path(features / "tissue", table.slide_id, ".geojson")
        if path.stat().st_size > _MOST_BYTES:
            return None
        tree = json.loads(path.read_text(encoding="utf-8"))
        found = [shapely.geometry.shape(one["geometry"]) for one in tree["features"]]
        frames = {one["properties"]["metadata"]["wsimil.origin"] for one in tree["features"]}
    except (OSError, ValueError, KeyError, TypeError, StoreError, RecursionError, shapely.GEOSException):
        return None
    left, top = table.bounds0_px[:2] if frames == {"bounds"} else (0, 0)
    polygons = [part for one in found for part in shapely.get_parts(one) if part.geom_type == "Polygon"]
    coordinates: list[Json] = [
        [[[x + left, y + top] for x, y in ring.coords] for ring in (part.exterior, *part.interiors)]
        for part in polygons
    ]
    return {"type": "MultiPolygon", "coordinates": coordinates} if coordinates else None
