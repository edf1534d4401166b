"""STAMP (El Nahhas et al. 2024, github.com/KatherLab/STAMP), versions 1 and 2.

    <extractor>-<hash>/<path of the slide>.h5
        /feats  float16 [N, D]
        /coords float32 [N, 2], top-left corners in µm from the slide's origin, in any order
        file attributes stamp_version, extractor, unit 'um', tile_size_um (2.0: tile_size), tile_size_px, code_hash, feat_type

Before version 2 files had no unit: where the stride is about 224, coordinates count 256/224 µm. Anything else is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil.provenance import Json
from wsimil.store.interop import h5
from wsimil.store.interop.peer import (
    PeerBag,
    PeerHeader,
    ReadOptions,
    TileFacts,
    as_features,
    check_rows,
    feature_shape,
    refused,
    text_of,
    whole,
)
from wsimil.store.interop.placed import PlacedTiles

WRITTEN_VERSION = "2.4.0"
"""STAMP refuses files of a version newer than its own."""

_HISTORIC_PX, _HISTORIC_UM = 224, 256.0


def describe(path: Path, slide_id: str, options: ReadOptions) -> PeerHeader:
    """All but the values. Raises StoreError."""
    with h5.opened(path) as file:
        attributes, shape, dtype = file.attributes(), file.shape("feats"), file.dtype("feats")
        coords = None if _stated_size(attributes) is not None else _array(file)
    kind = attributes.get("feat_type", "slide" if "encoder" in attributes else "tile")
    if kind != "tile":
        raise refused(path, f"it holds features of a whole {kind}", "give the folder of the tile features")
    n, dim = feature_shape(shape, path)
    size_um, px = _size(attributes, coords, path)
    size_px = px if "tile_size_px" not in attributes else whole(attributes["tile_size_px"], "tile_size_px", path)
    tiling: dict[str, Json] = {"size_um": size_um, "size_px": size_px}
    return PeerHeader(
        layout="stamp",
        slide_id=slide_id,
        path=path,
        n=n,
        dim=dim,
        dtype=dtype,
        encoder=text_of(attributes.get("extractor")) or options.encoder,
        tiling=tiling,
        unit="um",
        tile=TileFacts(size_um=size_um, size_px=size_px),
        version=text_of(attributes.get("stamp_version")),
    )


def read(path: Path, slide_id: str, options: ReadOptions) -> PeerBag:
    """All, places in µm. Raises StoreError."""
    header = describe(path, slide_id, options)
    with h5.opened(path) as file:
        coords = _array(file)
        check_rows(header.n, len(coords), path)
        features = as_features(file.array("feats"), path).reshape(header.n, header.dim)
        stated = _stated_size(file.attributes())
    if stated is None:
        coords = coords * (_HISTORIC_UM / _HISTORIC_PX)
    return PeerBag(header=header, features=features, places=coords.reshape(header.n, 2))


def write(folder: Path, placed: PlacedTiles) -> list[Path]:
    """Write a file that links to the features where they lie in an HDF5 file of ours, or holds them.

    Raises StoreError where mpp or encoder are not known, OutputError.
    """
    mpp, encoder = placed.known_mpp, placed.known_encoder
    target = folder / f"{placed.slide_id}.h5"
    values: NDArray[np.generic] | h5.Link = placed.features
    if placed.linkable is not None:
        values = h5.Link(file=os.path.relpath(placed.linkable.resolve(), folder.resolve()), dataset="/features")
    h5.write(
        target,
        {
            "coords": h5.NewDataset(values=(placed.xy0 * mpp).astype(np.float32)),
            "feats": h5.NewDataset(values=values),
        },
        {
            "stamp_version": WRITTEN_VERSION,
            "extractor": encoder,
            "unit": "um",
            "tile_size_um": placed.size0 * mpp,
            "tile_size_px": placed.known_size_px,
            "code_hash": "",
            "feat_type": "tile",
        },
    )
    return [target]


def _array(file: h5.H5) -> NDArray[np.float64]:
    return file.array("coords").astype(np.float64)


def _stated_size(attributes: dict[str, object]) -> float | None:
    size = attributes.get("tile_size_um")
    if size is None and attributes.get("unit") == "um":
        size = attributes.get("tile_size")
    return float(size) if isinstance(size, int | float) and size > 0 else None


def _size(attributes: dict[str, object], coords: NDArray[np.float64] | None, path: Path) -> tuple[float, int | None]:
    """Side of a tile in µm, and in px where the historic form fixes it."""
    stated = _stated_size(attributes)
    if stated is not None:
        return stated, None
    stride = attributes.get("tile_size")
    if stride is None and coords is not None:
        stride = _stride(coords)
    if isinstance(stride, int | float) and round(stride) == _HISTORIC_PX:
        return _HISTORIC_UM, _HISTORIC_PX
    found = "cannot be told" if stride is None else f"is {stride:g}"
    raise refused(
        path,
        f"the unit of its coordinates is not stated, and their stride {found}, wanted {_HISTORIC_PX} as of STAMP 1",
        "extract this slide again with stamp preprocess",
    )


def _stride(coords: NDArray[np.float64]) -> float | None:
    """The smallest step between two columns or rows of tiles."""
    steps = [np.diff(np.unique(axis)) for axis in coords.reshape(-1, 2).T]
    found = [float(step[step > 0.5].min()) for step in steps if np.any(step > 0.5)]
    return min(found, default=None)
