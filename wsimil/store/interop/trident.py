"""TRIDENT (Zhang et al. 2025, arXiv:2502.06750, github.com/mahmoodlab/TRIDENT).

    JOB/<mag>x_<px>px_<overlap>px_overlap/features_<encoder>/<id>.h5
        /features [N, D]        attributes encoder, name, savetodir; nothing is stored as the text 'None'
        /coords   int64 [N, 2]  level-0 px; attributes patch_size, patch_size_level0 (whole, but at times a float),
                                level0_magnification, target_magnification, overlap, level0_width, level0_height
    JOB/.../patches/<id>_patches.h5   /coords alone

Its magnifications are rounded to 5, 10, 20, 40: they say nothing exact of µm per pixel, so wsimil does not compute with them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsimil.provenance import Json
from wsimil.store.interop import h5
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
    whole,
)
from wsimil.store.interop.placed import PlacedTiles


def describe(path: Path, slide_id: str, options: ReadOptions) -> PeerHeader:
    """All but the values. Raises StoreError."""
    with h5.opened(path) as file:
        shape, dtype = file.shape("features"), file.dtype("features")
        coords, features = file.attributes("coords"), file.attributes("features")
    n, dim = feature_shape(shape, path)
    missing = [name for name in ("patch_size", "patch_size_level0") if name not in coords]
    if missing:
        raise refused(path, f"coords have no attribute {missing[0]}", "extract this slide again")
    size_px = whole(coords["patch_size"], "patch_size", path)
    overlap = whole(coords.get("overlap", 0), "overlap", path)
    tiling: dict[str, Json] = {"size_px": size_px, "overlap_px": overlap}
    target = coords.get("target_magnification")
    tiling["target_magnification"] = float(target) if isinstance(target, int | float) else None
    return PeerHeader(
        layout="trident",
        slide_id=slide_id,
        path=path,
        n=n,
        dim=dim,
        dtype=dtype,
        encoder=text_of(features.get("encoder")) or options.encoder,
        tiling=tiling,
        unit="px0",
        tile=TileFacts(
            size0=float(whole(coords["patch_size_level0"], "patch_size_level0", path)),
            size_px=size_px,
            stride_px=max(1, size_px - overlap),
        ),
        slide=SlideFacts(size0_px=slide_size(coords, path)),
    )


def read(path: Path, slide_id: str, options: ReadOptions) -> PeerBag:
    """All. Raises StoreError."""
    header = describe(path, slide_id, options)
    with h5.opened(path) as file:
        check_rows(header.n, file.shape("coords")[0], path)
        places = file.array("coords").astype(np.float64).reshape(header.n, 2)
        features = as_features(file.array("features"), path).reshape(header.n, header.dim)
    return PeerBag(header=header, features=features, places=places)


def write(folder: Path, placed: PlacedTiles) -> list[Path]:
    """Write features_<encoder> and patches below `folder`. Raises StoreError for what is not known, OutputError."""
    mpp, encoder = placed.known_mpp, placed.known_encoder
    patches, features = paths(folder, placed.slide_id, encoder)
    names = {"name": placed.slide_id, "savetodir": ""}
    width, height = placed.known_slide_size0_px
    size_px, stride_px = placed.known_size_px, placed.stride_px or placed.known_size_px
    coords = h5.NewDataset(
        values=placed.xy0,
        attributes={
            "patch_size": size_px,
            "patch_size_level0": max(1, round(placed.size0)),
            "level0_magnification": max(1, round(10 / mpp)),
            "target_magnification": 10 * size_px / (placed.size0 * mpp),
            "overlap": max(0, size_px - stride_px),
            **names,
            "level0_width": width,
            "level0_height": height,
        },
    )
    h5.write(patches, {"coords": coords})
    stored = h5.NewDataset(values=placed.features, attributes={"encoder": encoder, **names})
    h5.write(features, {"features": stored, "coords": coords})
    return [patches, features]


def paths(folder: Path, slide_id: str, encoder: str) -> tuple[Path, Path]:
    """The two files of one slide."""
    safe = encoder.replace("/", "_").replace(":", "_")
    return folder / "patches" / f"{slide_id}_patches.h5", folder / f"features_{safe}" / f"{slide_id}.h5"


def slide_size(attributes: dict[str, object], path: Path) -> tuple[int, int] | None:
    """Width and height in level-0 px, where both are stated; AtlasPatch states them likewise."""
    found = [attributes.get(name) for name in ("level0_width", "level0_height")]
    if any(value is None for value in found):
        return None
    width, height = (whole(value, "level0_width, level0_height", path) for value in found)
    return width, height
