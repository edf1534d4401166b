"""SpatialData (Marconato et al. 2025, spatialdata.scverse.org) as LazySlide and wsidata use it: one Zarr group a slide.

    <id>.zarr                               attributes spatialdata_attrs, slide_properties (shape [H, W], mpp, bounds ...),
                                            tile_spec {<tiles>: height, width, stride_*, mpp, base_downsample ...}
    <id>.zarr/shapes/<tiles>/shapes.parquet polygons of the tiles in level-0 px (WKB), tile_id
    <id>.zarr/tables/<name>                 AnnData: X [N, D]; obs/tile_id pairs its rows with the polygons, in any order

Written with zarr and pyarrow, by the documented on-disk formats: the libraries would drag in 700 MB and an older pandas.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import zarr
from numpy.typing import NDArray

from wsimil.errors import StoreError
from wsimil.provenance import Json
from wsimil.store.interop.peer import (
    PeerBag,
    PeerHeader,
    ReadOptions,
    SlideFacts,
    TileFacts,
    as_features,
    check_rows,
    feature_shape,
    refused,
    text_of,
)

_AGAIN = "write the slide again with wsi.write()"


def describe(path: Path, slide_id: str, options: ReadOptions) -> PeerHeader:
    """All but the values. Raises StoreError."""
    try:
        root = zarr.open_group(path, mode="r")
        attributes, specs = root.attrs.asdict(), _specs(root, path)
        name, region, _ = _table(root, specs, options, path)
        x = root[f"tables/{name}/X"]
        if not isinstance(x, zarr.Array):
            raise refused(path, f"table {name} is sparse, wanted a plain matrix of features", "store features densely")
        n, dim = feature_shape(x.shape, path)
        spec = cast("Mapping[str, float]", specs[region])
        sides, strides = (spec["width"], spec["height"]), (spec["stride_width"], spec["stride_height"])
        if sides[0] != sides[1] or strides[0] != strides[1]:
            raise refused(path, f"tiles are {sides[0]} × {sides[1]} px, wanted squares", "tile the slide in squares")
        size_px, downsample = int(sides[0]), float(spec.get("base_downsample", 1.0))
        tiling: dict[str, Json] = {"size_px": size_px, "stride_px": int(strides[0]), "mpp": spec.get("mpp")}
        return PeerHeader(
            layout="spatialdata",
            slide_id=slide_id,
            path=path,
            n=n,
            dim=dim,
            dtype=str(x.dtype),
            encoder=name.removesuffix(f"_{region}"),
            tiling=tiling,
            unit="px0",
            tile=TileFacts(size0=size_px * downsample, size_px=size_px, stride_px=int(strides[0])),
            slide=_slide(attributes),
            version=_version(attributes),
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def read(path: Path, slide_id: str, options: ReadOptions) -> PeerBag:
    """All. Raises StoreError."""
    header = describe(path, slide_id, options)
    try:
        root = zarr.open_group(path, mode="r")
        name, region, key = _table(root, _specs(root, path), options, path)
        features = as_features(_values(root, f"tables/{name}/X"), path)
        instances = _values(root, f"tables/{name}/obs/{key}").astype(np.int64)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    places, ids = _polygons(path / "shapes" / region / "shapes.parquet", key, cast("float", header.tile.size0))
    at = {int(number): row for row, number in enumerate(ids)}
    lost = sum(int(number) not in at for number in instances)
    if lost or len(at) != len(ids):
        raise refused(path, f"{lost} rows of table {name} name no tile of shapes {region}, or several", _AGAIN)
    check_rows(header.n, len(instances), path)
    rows = np.array([at[int(number)] for number in instances], dtype=np.int64)
    return PeerBag(header=header, features=features, places=places[rows].reshape(header.n, 2))


def _specs(root: zarr.Group, path: Path) -> Mapping[str, object]:
    specs = root.attrs.asdict().get("tile_spec")
    if not isinstance(specs, Mapping):
        raise refused(path, "it has no tile_spec", "lay tiles and extract features with LazySlide first")
    return specs


def _table(root: zarr.Group, specs: Mapping[str, object], options: ReadOptions, path: Path) -> tuple[str, str, str]:
    """Name, region and instance key of the table with the features of one encoder."""
    tables = root.get("tables")
    found: dict[str, tuple[str, str]] = {}
    for name, table in tables.groups() if isinstance(tables, zarr.Group) else ():
        region = table.attrs.get("region")
        if isinstance(region, str) and region in specs:
            found[name] = (region, str(table.attrs.get("instance_key", "tile_id")))
    wanted = options.encoder
    chosen = [name for name in found if wanted in (None, name, name.removesuffix(f"_{found[name][0]}"))]
    if len(chosen) != 1:
        raise refused(
            path,
            f"it has the tables {', '.join(sorted(found)) or 'none'} of tile features, wanted one"
            + (f" of {wanted}" if wanted else ""),
            "say which: wsimil convert --encoder NAME",
        )
    return (chosen[0], *found[chosen[0]])


def _slide(attributes: Mapping[str, object]) -> SlideFacts:
    properties = attributes.get("slide_properties")
    if not isinstance(properties, Mapping):
        return SlideFacts()
    height, width = (int(side) for side in properties["shape"])
    bounds = properties.get("bounds")
    return SlideFacts(
        mpp=None if properties.get("mpp") is None else float(properties["mpp"]),
        mpp_detail="slide_properties of wsidata",
        size0_px=(width, height),
        level_downsamples=tuple(float(value) for value in properties.get("level_downsample") or (1.0,)),
        bounds0_px=None if bounds is None else cast("tuple[int, int, int, int]", tuple(int(side) for side in bounds)),
    )


def _version(attributes: Mapping[str, object]) -> str | None:
    about = attributes.get("spatialdata_attrs")
    return text_of(about.get("spatialdata_software_version")) if isinstance(about, Mapping) else None


def _values(root: zarr.Group, name: str) -> NDArray[np.generic]:
    array = root[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name} is not an array")
    return np.asarray(array[...])


def _polygons(path: Path, key: str, size0: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Top-left corners and ids of the tiles, of which each is as large as the tile_spec says."""
    try:
        table = pq.read_table(path, partitioning=None)
        boxes = shapely.bounds(shapely.from_wkb(table.column("geometry").combine_chunks().to_pylist()))
        ids = table.column(key).to_numpy() if key in table.column_names else np.arange(len(table))
    except (pa.ArrowException, OSError, KeyError, shapely.GEOSException) as error:
        raise _unreadable(path, error) from error
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    off = float(np.abs(sides - size0).max(initial=0.0))
    if off > 1:
        raise refused(path, f"tiles differ from the {size0:g} px of the tile_spec by up to {off:g} px", _AGAIN)
    return boxes[:, :2], ids.astype(np.int64)


def _unreadable(path: Path, error: Exception) -> StoreError:
    reason = " ".join(str(error).split())
    return StoreError(f"{path} cannot be read as SpatialData ({type(error).__name__}: {reason}); {_AGAIN}")
