"""CLAM (Lu et al. 2021, github.com/mahmoodlab/CLAM): h5_files, pt_files, and the patches that they were read from.

    FEATURES/h5_files/<id>.h5   /features float32 [N, D], /coords int32 [N, 2] level-0 px, no attributes at all
    FEATURES/pt_files/<id>.pt   FloatTensor [N, D]; what its training reads
    RESULTS/patches/<id>.h5     /coords with attributes patch_size, patch_level, downsample

What a tile is stands in the patches file alone, µm per pixel nowhere. Coordinates may be those of another layout of the same
plain form, such as the fine-tuning files of Prov-GigaPath.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from wsimil.provenance import Json
from wsimil.store.interop import h5
from wsimil.store.interop.peer import (
    PeerBag,
    PeerHeader,
    ReadOptions,
    Tensors,
    TileFacts,
    as_features,
    check_rows,
    feature_shape,
    refused,
    whole,
)
from wsimil.store.interop.placed import PlacedTiles


def describe(path: Path, slide_id: str, options: ReadOptions) -> PeerHeader:
    """All but the values. Raises StoreError."""
    if path.suffix == ".pt":
        shape, dtype = options.tensors.describe(path)
        places = _coords_of(path, slide_id)
    else:
        with h5.opened(path) as file:
            shape, dtype = file.shape("features"), file.dtype("features")
            places = path if file.kind("coords") else None
    n, dim = feature_shape(shape, path)
    patches = _patches_of(path, slide_id, options) if places is not None else None
    tile, tiling = (TileFacts(), _UNKNOWN) if patches is None else _tile(patches)
    return PeerHeader(
        layout="clam",
        slide_id=slide_id,
        path=path,
        n=n,
        dim=dim,
        dtype=dtype,
        encoder=options.encoder,
        tiling=tiling,
        unit=None if places is None else "px0",
        tile=tile,
        companions=tuple(file for file in (places, patches) if file is not None and file != path),
    )


def read(path: Path, slide_id: str, options: ReadOptions) -> PeerBag:
    """All. Raises StoreError."""
    header = describe(path, slide_id, options)
    source = _coords_of(path, slide_id) if path.suffix == ".pt" else path
    places = None
    if header.unit is not None and source is not None:
        with h5.opened(source) as file:
            check_rows(header.n, file.shape("coords")[0], path)
            places = file.array("coords").astype(np.float64)
        if places.shape != (header.n, 2):
            raise refused(
                source, f"coords have shape {list(places.shape)}, wanted [tiles, 2]", "say whose it is with --from"
            )
    if path.suffix == ".pt":
        values = options.tensors.load(path)
    else:
        with h5.opened(path) as file:
            values = file.array("features")
    return PeerBag(header=header, features=as_features(values, path).reshape(header.n, header.dim), places=places)


def write(folder: Path, placed: PlacedTiles, tensors: Tensors) -> list[Path]:
    """Write h5_files, pt_files and patches below `folder`. Raises OutputError, StoreError for places beyond int32."""
    slide_id = placed.slide_id
    patches, features, tensor = paths(folder, slide_id)
    if len(placed.xy0) and int(np.abs(placed.xy0).max()) >= 2**31:
        raise refused(features, "coordinates do not fit int32, as which CLAM keeps them", "choose another layout")
    downsample = placed.level_downsamples[placed.read_level]
    facts: dict[str, bool | int | float | str | NDArray[np.generic]] = {
        "patch_size": placed.read_px,
        "patch_level": placed.read_level,
        "downsample": np.array([downsample, downsample]),
        "name": slide_id,
        "save_path": "",
    }
    if placed.slide_size0_px is not None:
        size = np.array(placed.slide_size0_px, dtype=np.int64)
        facts |= {"level_dim": size, "downsampled_level_dim": np.rint(size / downsample).astype(np.int64)}
    h5.write(patches, {"coords": h5.NewDataset(values=placed.xy0, attributes=facts)})
    values = placed.features.astype(np.float32)
    h5.write(
        features,
        {
            "features": h5.NewDataset(values=values),
            "coords": h5.NewDataset(values=placed.xy0.astype(np.int32)),
        },
    )
    tensors.save(tensor, values)
    return [patches, features, tensor]


def paths(folder: Path, slide_id: str) -> tuple[Path, Path, Path]:
    """The three files of one slide; what CLAM's training looks for comes last."""
    return (
        folder / "patches" / f"{slide_id}.h5",
        folder / "h5_files" / f"{slide_id}.h5",
        folder / "pt_files" / f"{slide_id}.pt",
    )


_UNKNOWN: dict[str, Json] = {"size_px": None, "level": None}


def _tile(patches: Path) -> tuple[TileFacts, dict[str, Json]]:
    with h5.opened(patches) as file:
        found = file.attributes("coords")
    missing = [name for name in ("patch_size", "patch_level") if name not in found]
    if missing:
        raise refused(patches, f"coords have no attribute {missing[0]}", "give the patches of create_patches_fp.py")
    size, level = (whole(found[name], name, patches) for name in ("patch_size", "patch_level"))
    listed = found.get("downsample", [1.0, 1.0] if level == 0 else None)
    if not isinstance(listed, list) or not listed:
        raise refused(patches, f"level {level} has no downsample", "give the patches of create_patches_fp.py")
    return (
        TileFacts(size0=size * float(cast("float", listed[0])), size_px=size),
        {"size_px": size, "level": level},
    )


def _coords_of(tensor: Path, slide_id: str) -> Path | None:
    beside = tensor.parent.parent / "h5_files" / f"{slide_id}.h5"
    return beside if beside.is_file() else None


def _patches_of(path: Path, slide_id: str, options: ReadOptions) -> Path | None:
    folders = [path.parent.parent / "patches", path.parent.parent.parent / "patches"]
    if options.patches is not None:
        folders = [options.patches, options.patches / "patches"]
    return next((file for folder in folders if (file := folder / f"{slide_id}.h5").is_file()), None)
