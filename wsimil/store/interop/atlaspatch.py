"""AtlasPatch (arXiv:2602.03998, github.com/AtlasAnalyticsLab/AtlasPatch): all encoders in one file.

OUT/patches/<id>.h5   /coords int32 [N, 5]: level-0 x, level-0 y, and width, height, level of what was read
                      /features/<encoder> float32 [N, D]
                      file attributes patch_size, patch_size_level0, target_magnification, overlap, level0_width ...
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
    whole,
)
from wsimil.store.interop.trident import slide_size


def describe(path: Path, slide_id: str, options: ReadOptions) -> PeerHeader:
    """All but the values. Raises StoreError."""
    with h5.opened(path) as file:
        encoder = _encoder(file, options, path)
        shape, dtype = file.shape(f"features/{encoder}"), file.dtype(f"features/{encoder}")
        attributes, coords = file.attributes(), file.shape("coords")
    n, dim = feature_shape(shape, path)
    if len(coords) != 2 or coords[1] != 5:
        raise refused(path, f"coords have shape {list(coords)}, wanted [tiles, 5]", "extract this slide again")
    missing = [name for name in ("patch_size", "patch_size_level0") if name not in attributes]
    if missing:
        raise refused(path, f"it has no attribute {missing[0]}", "extract this slide again")
    size_px = whole(attributes["patch_size"], "patch_size", path)
    overlap = whole(attributes.get("overlap", 0), "overlap", path)
    target = attributes.get("target_magnification")
    tiling: dict[str, Json] = {
        "size_px": size_px,
        "overlap_px": overlap,
        "target_magnification": float(target) if isinstance(target, int | float) else None,
    }
    return PeerHeader(
        layout="atlaspatch",
        slide_id=slide_id,
        path=path,
        n=n,
        dim=dim,
        dtype=dtype,
        encoder=encoder,
        tiling=tiling,
        unit="px0",
        tile=TileFacts(
            size0=float(whole(attributes["patch_size_level0"], "patch_size_level0", path)),
            size_px=size_px,
            stride_px=max(1, size_px - overlap),
        ),
        slide=SlideFacts(size0_px=slide_size(attributes, path)),
    )


def read(path: Path, slide_id: str, options: ReadOptions) -> PeerBag:
    """All. Raises StoreError."""
    header = describe(path, slide_id, options)
    with h5.opened(path) as file:
        coords = file.array("coords")
        check_rows(header.n, len(coords), path)
        features = as_features(file.array(f"features/{header.encoder}"), path)
    return PeerBag(header=header, features=features, places=coords[:, :2].astype(np.float64))


def _encoder(file: h5.H5, options: ReadOptions, path: Path) -> str:
    # An encoder that is still being written, or was interrupted, stands under a name of its own.
    names = [name for name in file.names("features") if not name.startswith("__tmp_")]
    if options.encoder is not None and options.encoder not in names:
        raise refused(
            path, f"it has features of {', '.join(names) or 'no encoder'}, wanted {options.encoder}", "see --encoder"
        )
    if options.encoder is None and len(names) != 1:
        raise refused(
            path,
            f"it has features of {', '.join(names) or 'no encoder'}, wanted one",
            "say which: wsimil convert --encoder NAME",
        )
    return options.encoder or names[0]
