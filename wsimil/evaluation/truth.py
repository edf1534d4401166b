"""What pixels are known to be, such as tumor: outlines of a slide, and the share of each tile that lies in them.

GeoJSON as QuPath writes it, in the frame of `wsimil.tissue.geojson`: counted from the area that the slide's vendor declares,
unless its features say "level0" in their metadata under `wsimil.origin`. Or .npz with `xy0` int [N, 2], corners of square cells
in level-0 px, `cell0`, their side, and `tumour` bool [N].
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from numpy.typing import NDArray

from wsimil.errors import SlideError
from wsimil.geometry import TileGrid

_SUFFIXES = (".geojson", ".json", ".npz")
_ORIGIN_KEY = "wsimil.origin"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """Outlines in level-0 px, as they were drawn, and the name of the class of each, "" where it has none."""

    polygons: shapely.MultiPolygon
    names: tuple[str, ...]

    def of(self, name: str) -> shapely.MultiPolygon:
        """The outlines of one class, whatever its case, and those without a class."""
        pairs = zip(self.polygons.geoms, self.names, strict=True)
        return shapely.MultiPolygon([one for one, own in pairs if not own or spelled(own) == spelled(name)])


def find_truth(folder: Path, slide_id: str) -> Path | None:
    """The truth file of a slide of a store; None where there is none."""
    return next((path for suffix in _SUFFIXES if (path := folder / f"{slide_id}{suffix}").is_file()), None)


def read_truth(path: Path, *, bounds0_xy: tuple[int, int] | None = (0, 0)) -> Truth:
    """The outlines in a file; `bounds0_xy` is where the declared area of the slide begins, level-0 px, None if nobody knows.

    Raises SlideError for a file that cannot be read or meant.
    """
    where = f"truth file {path}"
    try:
        if path.suffix == ".npz":
            return _cells(path)
        tree: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        return _outlines(tree, bounds0_xy, where)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SlideError(f"{where} cannot be read ({error}); wanted GeoJSON of polygons, or .npz of cells") from error
    except (shapely.errors.ShapelyError, zipfile.BadZipFile) as error:
        raise SlideError(f"{where} cannot be read ({error}); export it again") from error


def tile_truth(grid: TileGrid, polygons: shapely.MultiPolygon) -> NDArray[np.float32]:
    """Share of each tile's area inside of `polygons` (level-0 px, not overlapping), float32 [N] in [0, 1]."""
    low = grid.xy0.astype(np.float64)
    boxes = shapely.box(low[:, 0], low[:, 1], low[:, 0] + grid.size0, low[:, 1] + grid.size0)
    shapely.prepare(polygons)
    return np.asarray(shapely.area(shapely.intersection(boxes, polygons)) / grid.size0**2, np.float32)


def connected(polygons: shapely.MultiPolygon) -> shapely.MultiPolygon:
    """Lesions of drawn areas: those that overlap or share an edge are one; a corner in common joins nothing."""
    joined = shapely.union_all([shapely.make_valid(one) for one in polygons.geoms])
    parts = [part for part in shapely.get_parts(joined) if part.geom_type == "Polygon" and part.area > 0]
    return shapely.MultiPolygon(parts)


def grown(lesions: shapely.MultiPolygon, margin0: float) -> shapely.MultiPolygon:
    """Lesions, connected, as CAMELYON16 counts them: grown by a margin (level-0 px) on all sides, without holes, and those that
    then meet are one. Its margin is 37.5 µm, so that what is less than 75 µm apart is one lesion.
    """
    if margin0 == 0:
        return lesions
    wide = shapely.union_all([shapely.buffer(one, margin0) for one in lesions.geoms])
    filled = [shapely.Polygon(part.exterior) for part in shapely.get_parts(wide) if part.geom_type == "Polygon"]
    return connected(shapely.MultiPolygon(filled))


def spelled(name: str) -> str:
    """A name as it is compared: in lower case, tumour as tumor."""
    return name.strip().casefold().replace("tumour", "tumor")


def _cells(path: Path) -> Truth:
    with np.load(path, allow_pickle=False) as file:
        low = file["xy0"][file["tumour"]].astype(np.float64)
        side = float(file["cell0"])
    boxes = shapely.box(low[:, 0], low[:, 1], low[:, 0] + side, low[:, 1] + side)
    return Truth(polygons=shapely.MultiPolygon(list(boxes)), names=("tumor",) * len(low))


def _outlines(tree: Any, bounds0_xy: tuple[int, int] | None, where: str) -> Truth:
    features = tree["features"] if isinstance(tree, Mapping) else tree
    if not isinstance(features, list):
        raise SlideError(f"{where}: wanted a FeatureCollection or a list of features")
    shapes: list[shapely.Polygon] = []
    names: list[str] = []
    origins = set()
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        if shape.geom_type not in ("Polygon", "MultiPolygon"):
            raise SlideError(
                f"{where}: got a {shape.geom_type}, wanted Polygon or MultiPolygon; draw what is true as areas"
            )
        parts = [part for part in shapely.get_parts(shape) if not part.is_empty]
        properties = feature.get("properties") or {}
        origins.add((properties.get("metadata") or {}).get(_ORIGIN_KEY, "bounds"))
        kind = properties.get("classification")
        name = kind.get("name") if isinstance(kind, Mapping) else kind
        shapes += parts
        names += [str(name or "")] * len(parts)
    if len(origins) > 1 or not origins <= {"bounds", "level0"}:
        raise SlideError(
            f"{where}: its features name the frames {sorted(map(str, origins))}, wanted one of bounds or level0"
        )
    shift = bounds0_xy if origins == {"bounds"} else (0, 0)
    if shift is None:
        raise SlideError(
            f"{where}: it counts from where the scan of the slide begins, which is not known, because the features were made by"
            " another tool and converted without the slide; convert them with --slides, or give outlines that count from level 0"
            f" and say so ({_ORIGIN_KEY} level0)"
        )
    polygons = shapely.MultiPolygon(shapes)
    moved = polygons if shift == (0, 0) else shapely.transform(polygons, lambda xy: xy + np.asarray(shift))
    return Truth(polygons=moved, names=tuple(names))
