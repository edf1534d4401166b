"""slide2vec with hs2p (github.com/clemsgrs/slide2vec, github.com/clemsgrs/hs2p).

    tile_embeddings/<id>.pt | .npz    tensor [N, D] | features [N, D] and tile_index [N]
    tile_embeddings/<id>.meta.json    encoder_name, feature_dim, num_tiles, coordinates_npz_path, tile_size_lv0 ...
    tiles/<id>.coordinates.npz        x, y int64 in level-0 px, tile_index, tissue_fractions; absent where there is no tile
    tiles/<id>.coordinates.meta.json  slide: dimensions, base_spacing_um, level_downsamples; tiling: what was asked and read

A spacing within hs2p's tolerance is read as it is: what counts is tile_size_lv0 times the slide's spacing, not what was asked.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

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

META = ".meta.json"


def describe(path: Path, slide_id: str, options: ReadOptions) -> PeerHeader:
    """All but the values. Raises StoreError."""
    meta_path = path.with_name(f"{slide_id}{META}")
    meta = _json(meta_path)
    shape, dtype = _npz_shape(path, "features") if path.suffix == ".npz" else options.tensors.describe(path)
    n, dim = feature_shape(shape, path)
    tiles_meta = _tiles(path, slide_id, meta)
    tiles = None if tiles_meta is None else _json(tiles_meta)
    tile, slide = (TileFacts(), SlideFacts()) if tiles is None else _facts(tiles, cast("Path", tiles_meta))
    tiling: dict[str, Json] = {
        "size_px": _number(meta, "requested_tile_size_px", meta_path),
        "mpp": _number(meta, "requested_spacing_um", meta_path),
        "encoder_px": _number(meta, "encoder_input_size_px", meta_path),
    }
    return PeerHeader(
        layout="slide2vec",
        slide_id=slide_id,
        path=path,
        n=n,
        dim=dim,
        dtype=dtype,
        encoder=text_of(meta.get("encoder_name")) or options.encoder,
        tiling=tiling,
        unit=None if tiles is None else "px0",
        tile=tile,
        slide=slide,
        companions=(meta_path,) if tiles_meta is None else (meta_path, tiles_meta),
    )


def read(path: Path, slide_id: str, options: ReadOptions) -> PeerBag:
    """All. Raises StoreError."""
    header = describe(path, slide_id, options)
    rows: NDArray[np.int64] | None = None
    if path.suffix == ".npz":
        arrays = _npz(path)
        values: NDArray[np.generic] = arrays["features"]
        if "tile_index" in arrays:
            rows = arrays["tile_index"].astype(np.int64)
    else:
        values = options.tensors.load(path)
    features = as_features(values, path).reshape(header.n, header.dim)
    if header.unit is None:
        return PeerBag(header=header, features=features, places=None)
    npz = header.companions[-1].with_name(f"{slide_id}.coordinates.npz")
    if not header.n and not npz.exists():
        return PeerBag(header=header, features=features, places=np.empty((0, 2)), tissue=np.empty(0, np.float32))
    tiles = _npz(npz)
    for name in ("x", "y", "tissue_fractions"):
        if name not in tiles:
            raise refused(npz, f"it has no array {name}", "extract this slide again")
    places = np.stack([tiles["x"], tiles["y"]], axis=1).astype(np.float64)
    tissue = tiles["tissue_fractions"].astype(np.float32)
    if rows is not None:
        index = tiles.get("tile_index", np.arange(len(places))).astype(np.int64)
        at = {int(number): row for row, number in enumerate(index)}
        if any(int(number) not in at for number in rows):
            raise refused(path, f"it has tiles that {npz.name} does not hold", "extract this slide again")
        chosen = np.array([at[int(number)] for number in rows], dtype=np.int64)
        places, tissue = places[chosen], tissue[chosen]
    check_rows(header.n, len(places), path)
    return PeerBag(header=header, features=features, places=places, tissue=tissue)


def _tiles(path: Path, slide_id: str, meta: Mapping[str, object]) -> Path | None:
    """The description of the coordinates: beside the features, else where they were when the run was made."""
    name = f"{slide_id}.coordinates.meta.json"
    recorded = text_of(meta.get("coordinates_meta_path"))
    folders = [path.parent.parent / "tiles", path.parent]
    candidates = [folder / name for folder in folders] + ([Path(recorded)] if recorded else [])
    return next((file for file in candidates if file.is_file()), None)


def _facts(tiles: Mapping[str, object], path: Path) -> tuple[TileFacts, SlideFacts]:
    try:
        slide = cast("Mapping[str, object]", tiles["slide"])
        tiling = cast("Mapping[str, object]", tiles["tiling"])
        artifact = cast("Mapping[str, object]", tiles["artifact"])
        if artifact["coordinate_space"] != "level0_px":
            raise refused(
                path, f"coordinates are in {artifact['coordinate_space']!r}, wanted 'level0_px'", "update wsimil"
            )
        width, height = (int(side) for side in cast("list[int]", slide["dimensions"]))
        size0, step0 = float(cast("float", tiling["tile_size_lv0"])), float(cast("float", tiling["step_px_lv0"]))
        size_px = int(cast("int", tiling["requested_tile_size_px"]))
        return (
            TileFacts(size0=size0, size_px=size_px, stride_px=max(1, round(size_px * step0 / size0))),
            SlideFacts(
                mpp=float(cast("float", slide["base_spacing_um"])),
                mpp_detail="base_spacing_um of hs2p",
                size0_px=(width, height),
            ),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise refused(path, f"it is not a tiling of hs2p ({error!r})", "extract this slide again") from None


def _json(path: Path) -> Mapping[str, object]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refused(path, f"it cannot be read ({error})", "copy it again, or extract this slide again") from None
    if not isinstance(tree, dict):
        raise refused(path, f"it holds a {type(tree).__name__}, wanted an object", "extract this slide again")
    return tree


def _number(meta: Mapping[str, object], name: str, path: Path) -> int | float | None:
    value = meta.get(name)
    if value is not None and not isinstance(value, int | float):
        raise refused(path, f"{name} is {value!r}, wanted a number", "extract this slide again")
    return value


def _npz(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise refused(path, f"it cannot be read ({error})", "copy it again, or extract this slide again") from None


def _npz_shape(path: Path, name: str) -> tuple[tuple[int, ...], str]:
    """Shape and type of one array, from its header alone."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise refused(path, f"it cannot be read ({error})", "copy it again, or extract this slide again") from None
    return shape, str(dtype)
