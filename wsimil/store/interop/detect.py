"""Whose features lie in a folder: told by what the files hold, of which few are opened."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from wsimil.errors import ConfigError, StoreError
from wsimil.store.base import is_slide_id
from wsimil.store.interop import h5
from wsimil.store.interop.peer import LAYOUTS, LayoutName

_LOOKED_AT = 16
"""Files that are opened at most, where the first ones are damaged."""

_ELSEWHERE = ("thumbnails", "tissue", "visualization", "masks", "stitches", "images", "contours", "contours_geojson")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFolder:
    """A folder of another tool's features: `files` by slide id; `clashes` are ids that several files go by."""

    folder: Path
    layout: LayoutName
    files: Mapping[str, Path]
    clashes: Mapping[str, tuple[Path, ...]]


def find(folder: Path, *, layout: str | None = None) -> PeerFolder | None:
    """The features of another tool in `folder` or where that tool puts them below it; None where there are none.

    None is also the answer for a folder of ours. `layout` overrides what the content says. Raises StoreError where there are
    several kinds to choose from, where only coordinates are found, and for layouts that are known but not read; ConfigError for
    an unknown name.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"--from {layout!r}: wanted one of {', '.join(LAYOUTS)}")
    if not folder.is_dir():
        return None
    if layout_of_group(folder) == "spatialdata":
        raise StoreError(f"{folder} is one slide's SpatialData, wanted the folder that holds one such store a slide")
    for place in _places(folder):
        found = layout if layout is not None else _layout(place)
        if found is None:
            continue
        listed = _listed(place, found)
        if listed:
            name = next(known for known in LAYOUTS if known == found)
            files = {slide_id: paths[0] for slide_id, paths in listed.items() if len(paths) == 1}
            clashes = {slide_id: tuple(paths) for slide_id, paths in listed.items() if len(paths) > 1}
            return PeerFolder(
                folder=place, layout=name, files=MappingProxyType(files), clashes=MappingProxyType(clashes)
            )
    if layout is not None:
        raise StoreError(f"{folder} holds no file of {layout}; give the folder of the features")
    return None


def layout_of_file(path: Path) -> str | None:
    """What one HDF5 file is: a layout, "wsimil", or None where it is nothing that is known.

    Raises StoreError where it cannot be read, and for files of known tools that hold no features of tiles.
    """
    with h5.opened(path) as file:
        attributes = file.attributes()
        if {"wsimil_version", "format_version"} <= set(attributes):
            return "wsimil"
        if "tile_size_um" in attributes or file.kind("feats") == "dataset":
            return "stamp"
        coords = file.attributes("coords") if file.kind("coords") == "dataset" else {}
        if file.kind("features") == "group":
            return "atlaspatch" if file.kind("coords") == "dataset" else None
        if file.kind("features") == "dataset":
            return "trident" if "patch_size_level0" in coords else "clam"
        if {"patch_size", "patch_size_level0", "patch_level"} & (set(coords) | set(attributes)):
            raise StoreError(f"{path} holds coordinates without features; give the folder of the features beside it")
        return None


def layout_of_group(path: Path) -> str | None:
    """ "spatialdata" for a Zarr group of SpatialData; None for any other path."""
    for name, key in (("zarr.json", "attributes"), (".zattrs", None)):
        try:
            tree = json.loads((path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        attributes = tree.get(key, {}) if key and isinstance(tree, dict) else tree
        if isinstance(attributes, dict) and "spatialdata_attrs" in attributes:
            return "spatialdata"
    return None


def _places(folder: Path) -> Iterator[Path]:
    """The folder itself, then where tools put features below the folder that a person would name."""
    yield folder
    below = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    by_name = {entry.name: entry for entry in below}
    for name in ("h5_files", "pt_files", "tile_embeddings"):
        if name in by_name:
            yield by_name[name]
            return
    features = [entry for entry in below if entry.name.startswith("features_")]
    if len(features) > 1:
        raise StoreError(
            f"{folder} holds features of several encoders: {', '.join(entry.name for entry in features)}; give one of them"
        )
    yield from features
    if not features and "patches" in by_name:
        yield by_name["patches"]


def _layout(place: Path) -> str | None:
    names = sorted(_names(place))
    if any(name.endswith(".index.npz") for name in names):
        raise StoreError(
            f"{place} holds bags of slideflow, which wsimil does not read; export them as files of TRIDENT"
        )
    if any(name.endswith(".meta.json") and not name.endswith(".coordinates.meta.json") for name in names):
        return "slide2vec"
    if any(name.endswith(".coordinates.npz") for name in names):
        raise StoreError(f"{place} holds coordinates of hs2p without features; give the folder tile_embeddings")
    for name in [name for name in names if name.endswith(".zarr")][:_LOOKED_AT]:
        return layout_of_group(place / name)
    if any(name.endswith(".pt") for name in names) and not any(name.endswith(".h5") for name in names):
        return "clam"
    paths = [place / name for name in names if name.endswith(".h5")] or [path for path, _ in _nested(place)]
    refusal: StoreError | None = None
    for path in paths[:_LOOKED_AT]:
        try:
            found = layout_of_file(path)
        except StoreError as error:
            refusal = refusal or error
            continue
        if found is not None:
            return None if found == "wsimil" else found
    if refusal is not None and "coordinates without features" in str(refusal):
        raise refusal
    return None


def _listed(place: Path, layout: str) -> dict[str, list[Path]]:
    """Files by slide id; names only, nothing is opened."""
    found: dict[str, list[Path]] = {}
    if layout == "stamp":
        for path, name in _nested(place):
            found.setdefault(name, []).append(path)
        return found
    suffixes = {"spatialdata": (".zarr",), "slide2vec": (".pt", ".npz"), "clam": (".h5", ".pt")}.get(layout, (".h5",))
    names = _names(place)
    for suffix in suffixes:
        for name in names:
            slide_id = name.removesuffix(suffix)
            if name.endswith(suffix) and is_slide_id(slide_id):
                found.setdefault(slide_id, []).append(place / name)
        if layout == "clam" and found:  # both files of a slide hold the same rows; the first kind also has coordinates
            break
    return found


def _names(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return [entry.name for entry in entries if not entry.name.startswith(".")]


def _nested(place: Path) -> Iterator[tuple[Path, str]]:
    """HDF5 files anywhere below, by path, with the ids that their names make."""
    for root, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _ELSEWHERE)
        for name in sorted(names):
            slide_id = name.removesuffix(".h5")
            if name.endswith(".h5") and is_slide_id(slide_id):
                yield Path(root, name), slide_id
