"""A SpatialData group as LazySlide opens it, written from scratch: AnnData 0.1.0 on Zarr 3, shapes as GeoParquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import zarr
from numpy.typing import NDArray

from wsimil.files import atomic_directory
from wsimil.provenance import Json
from wsimil.store.interop.placed import PlacedTiles

_TILES = "tiles"


def write(folder: Path, placed: PlacedTiles) -> list[Path]:
    """Write <id>.zarr. Raises StoreError for what is not known, OutputError."""
    encoder, attributes = placed.known_encoder, _attributes(placed)
    target = folder / f"{placed.slide_id}.zarr"
    name = f"{encoder.replace('/', '_').replace(':', '_')}_{_TILES}"
    with atomic_directory(target) as temporary:
        root = zarr.create_group(temporary, zarr_format=3)
        root.create_group("shapes").create_group(_TILES).attrs.update(_SHAPES)
        _write_table(root.create_group("tables").create_group(name), placed)
        _write_shapes(temporary / "shapes" / _TILES / "shapes.parquet", placed)
        root.attrs.update(attributes)
    return [target]


def _attributes(placed: PlacedTiles) -> dict[str, Json]:
    mpp, (width, height) = placed.known_mpp, placed.known_slide_size0_px
    size_px, stride_px = placed.known_size_px, placed.stride_px or placed.known_size_px
    downsample = placed.size0 / size_px
    shapes: list[Json] = [[round(height / factor), round(width / factor)] for factor in placed.level_downsamples]
    return {
        "spatialdata_attrs": {"version": "0.2"},
        "slide_properties": {
            "shape": [height, width],
            "n_level": len(placed.level_downsamples),
            "level_shape": shapes,
            "level_downsample": list(placed.level_downsamples),
            "mpp": mpp,
            "magnification": None,
            "bounds": list(placed.bounds0_px or (0, 0, width, height)),
            "scene": 0,
            "n_scenes": 1,
            "scene_names": ["Image 0"],
        },
        "tile_spec": {
            _TILES: {
                "height": size_px,
                "width": size_px,
                "stride_height": stride_px,
                "stride_width": stride_px,
                "mpp": downsample * mpp,
                "ops_level": 0,
                "ops_downsample": downsample,
                "base_level": 0,
                "base_downsample": downsample,
                "tissue_name": None,
            }
        },
    }


def _write_shapes(path: Path, placed: PlacedTiles) -> None:
    low = placed.xy0.astype(np.float64)
    side = int(placed.size0)  # as wsidata lays it from the tile_spec: cut down to whole px
    polygons = shapely.to_wkb(shapely.box(low[:, 0], low[:, 1], low[:, 0] + side, low[:, 1] + side))
    columns: dict[str, pa.Array] = {
        "tile_id": pa.array(np.arange(len(low), dtype=np.int64)),
        "x": pa.array(placed.xy0[:, 0].copy()),
        "y": pa.array(placed.xy0[:, 1].copy()),
    }
    if placed.tissue is not None:
        columns["tissue_fraction"] = pa.array(placed.tissue)
    columns["geometry"] = pa.array(list(polygons), type=pa.binary())
    geo = {
        "version": "1.0.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}},
    }
    table = pa.table(columns).replace_schema_metadata({b"geo": json.dumps(geo).encode()})
    pq.write_table(table, path, compression="zstd")


def _write_table(group: zarr.Group, placed: PlacedTiles) -> None:
    count, dim = placed.features.shape
    _array(group, "X", placed.features.astype(np.float32))
    obs = _frame(group, "obs", [str(number) for number in range(count)], columns=["tile_id", "library_id"])
    _array(obs, "tile_id", np.arange(count, dtype=np.int64))
    library = obs.create_group("library_id")
    library.attrs.update({"ordered": False, **_encoding("categorical", "0.2.0")})
    _array(library, "codes", np.zeros(count, np.int8))
    _texts(library, "categories", [_TILES])
    _frame(group, "var", [str(number) for number in range(dim)], columns=[])
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        group.create_group(name).attrs.update(_encoding("dict", "0.1.0"))
    about = group.create_group("uns/spatialdata_attrs")
    about.attrs.update(_encoding("dict", "0.1.0"))
    keys = {"region": _TILES, "region_key": "library_id", "instance_key": "tile_id"}
    for name, value in keys.items():
        text = about.create_array(name, shape=(), dtype="str", attributes={**_encoding("string", "0.2.0")})
        text[...] = np.array(value, dtype=object)
    group.attrs.update(
        {
            **_encoding("anndata", "0.1.0"),
            "spatialdata-encoding-type": "ngff:regions_table",
            "version": "0.2",
            **keys,
        }
    )


def _frame(group: zarr.Group, name: str, index: list[str], *, columns: list[str]) -> zarr.Group:
    frame = group.create_group(name)
    frame.attrs.update({"column-order": columns, "_index": "_index", **_encoding("dataframe", "0.2.0")})
    _texts(frame, "_index", index)
    return frame


def _array(group: zarr.Group, name: str, values: NDArray[np.generic]) -> None:
    rows = max(1, len(values))
    stored = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(min(rows, 4096), *values.shape[1:]),
        attributes={**_encoding("array", "0.2.0")},
    )
    stored[...] = values


def _texts(group: zarr.Group, name: str, values: list[str]) -> None:
    stored = group.create_array(
        name,
        shape=(len(values),),
        dtype="str",
        chunks=(max(1, len(values)),),
        attributes={**_encoding("string-array", "0.2.0")},
    )
    stored[...] = np.array(values, dtype=object)


def _encoding(kind: str, version: str) -> dict[str, str]:
    return {"encoding-type": kind, "encoding-version": version}


_AXES = [{"name": name, "type": "space", "unit": "unit"} for name in ("x", "y")]

_SHAPES: Mapping[str, Json] = {
    **_encoding("ngff:shapes", "0.3"),
    "axes": ["x", "y"],
    "coordinateTransformations": [
        {
            "type": "identity",
            "input": {"name": "xy", "axes": _AXES},  # type: ignore[dict-item]  # plain JSON
            "output": {"name": "global", "axes": _AXES},  # type: ignore[dict-item]
        }
    ],
    "spatialdata_attrs": {"version": "0.3"},
}
