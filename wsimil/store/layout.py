"""The native layout of a feature file, the same for every backend: arrays, attributes, checksums.

    /features  [N, D] float16 or float32            attributes: encoder, name, savetodir
    /coords    [N, 2] int64, level-0 px, x then y   attributes: those of TRIDENT's coords
    /tissue    [N]    float32, share of the tile
    /quality   [N, Q] float32, where quality was measured: a column for each name in grid_json's "quality"
    file attributes: see `describe`; slide_json, grid_json and provenance_json hold the whole of their types,
    crc32_json the CRC-32 of the arrays' bytes (little-endian, row by row) and of these three texts; `complete` is last.

The attributes of /features and /coords let the readers of TRIDENT, Patho-Bench, torchmil and CLAM open the file as theirs.
The magnifications among them are derived as 10 / mpp for those tools alone; wsimil never computes with them.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError, WsimilError
from wsimil.geometry import SlideInfo, TileGrid, TileSpec
from wsimil.provenance import Json, Provenance, canonical_json
from wsimil.store.base import StoredHeader
from wsimil.store.places import PACK_MARK

FORMAT_VERSION = 1

Attribute: TypeAlias = bool | int | float | str
Array: TypeAlias = NDArray[np.generic]

READ_BACK = frozenset({"wsimil_version", "slide_id", "slide_json", "grid_json", "provenance_json", "crc32_json"})
"""The texts among the file attributes that wsimil reads; all others are for people and other tools."""

ARRAYS = ("features", "coords", "tissue")
"""Of every file; one more where quality was measured."""
QUALITY = "quality"
TEXTS = ("slide_json", "grid_json", "provenance_json")

_EXTRACT_AGAIN = "delete it and run wsimil extract again"


class OpenFile(Protocol):
    """One slide's features, open to be read; methods raise KeyError for what is not there."""

    def attribute(self, name: str) -> object:
        """A file attribute."""

    def shape_and_dtype(self, array: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype name of an array."""

    def array(self, name: str) -> Array:
        """All values of an array."""

    def damaged(self, reason: str) -> StoreError:
        """The error for content that cannot be what was written, with what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a backend has to write: arrays by name, their attributes, then those of the file, in this order."""

    arrays: Mapping[str, Array]
    array_attributes: Mapping[str, Mapping[str, Attribute]]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a file says of itself, checked."""

    header: StoredHeader
    slide: SlideInfo
    spec: TileSpec
    read_level: int
    read_px: int
    crc32: Mapping[str, int]


def encode(bag: FeatureBag) -> Content:
    """The bag as arrays and attributes; nothing in it names a folder of this machine."""
    grid, slide, spec = bag.grid, bag.grid.slide, bag.grid.spec
    arrays: dict[str, Array] = {"features": bag.features, "coords": grid.xy0, "tissue": grid.tissue}
    if bag.quality:
        arrays[QUALITY] = np.stack(list(bag.quality.values()), axis=1)
    measured = {QUALITY: list(bag.quality)} if bag.quality else {}
    encoder = bag.provenance.encoder
    names: dict[str, Attribute] = {"name": slide.slide_id, "savetodir": ""}
    coords: dict[str, Attribute] = {
        "patch_size": spec.size_px,
        "patch_size_level0": grid.size0_px,
        "level0_magnification": max(1, round(10 / slide.mpp)),
        "target_magnification": 10 / spec.mpp,
        "overlap": max(0, spec.size_px - spec.stride_px),
        **names,
        "level0_width": slide.size0_px[0],
        "level0_height": slide.size0_px[1],
    }
    texts = {
        "slide_json": _json({**asdict(slide), "path": slide.path.name}),
        "grid_json": _json({**asdict(spec), "read_level": grid.read_level, "read_px": grid.read_px, **measured}),
        "provenance_json": _json(bag.provenance.to_json()),
    }
    crc32 = {name: _crc32(array) for name, array in arrays.items()} | {
        name: zlib.crc32(text.encode("ascii")) for name, text in texts.items()
    }
    attributes: dict[str, Attribute] = {
        "wsimil_version": bag.provenance.version,
        "format_version": FORMAT_VERSION,
        "slide_id": slide.slide_id,
        "mpp": slide.mpp,
        "tile_mpp": spec.mpp,
        "tile_size_um": spec.size_um,
        "tile_effective_mpp": grid.effective_mpp,
        "read_level": grid.read_level,
        "read_px": grid.read_px,
        "encoder": _text(encoder.get("name")),
        "encoder_pooling": _text(encoder.get("pooling")),
        "encoder_weights_sha256": _text(encoder.get("weights_sha256")),
        "transform_json": canonical_json(encoder.get("transform")),
        "dtype": str(bag.features.dtype),
        "slide_quickhash": slide.digest,
        "provenance_digest": bag.provenance.digest,
        **texts,
        "crc32_json": _json(crc32),
        "complete": True,
    }
    return Content(
        arrays=arrays,
        array_attributes={name: {} for name in arrays}
        | {"features": {"encoder": attributes["encoder"], **names}, "coords": coords},
        attributes=attributes,
    )


def describe(file: OpenFile, slide_id: str, path: Path) -> Description:
    """Read and check everything but the arrays. Raises StoreError."""
    _check_ours(file, path)
    try:
        texts = {name: str(file.attribute(name)) for name in TEXTS}
        crc32 = json.loads(str(file.attribute("crc32_json")))
        for name, text in texts.items():
            _check_crc32(file, name, zlib.crc32(text.encode("utf-8", "surrogatepass")), crc32[name])
        slide, grid, provenance = (json.loads(text) for text in texts.values())
        spec = {name: grid[name] for name in TileSpec.__dataclass_fields__}
        quality = tuple(str(name) for name in grid.get(QUALITY, ()))
        shapes = {name: file.shape_and_dtype(name) for name in ARRAYS}
        if quality:
            shapes[QUALITY] = file.shape_and_dtype(QUALITY)
        _check_shapes(file, shapes, quality)
        (n, dim), dtype = shapes["features"]
        description = Description(
            header=StoredHeader(
                slide_id=slide["slide_id"],
                n=n,
                dim=dim,
                dtype="float16" if dtype == "float16" else "float32",
                provenance=Provenance.from_json(provenance),
                content=" ".join(f"{name} {crc32[name]:08x}" for name in shapes),
                quality=quality,
                level_downsamples=tuple(slide["level_downsamples"]),
            ),
            slide=_slide(slide),
            spec=TileSpec(**spec),
            read_level=grid["read_level"],
            read_px=grid["read_px"],
            crc32=crc32,
        )
    except StoreError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, WsimilError) as error:
        reason = error.args[0] if error.args else error
        raise file.damaged(f"its description cannot be understood ({reason})") from error
    check_owner(description.slide.slide_id, slide_id, path)
    return description


def features_of(file: OpenFile, description: Description) -> NDArray[np.float16] | NDArray[np.float32]:
    """The features [N, D]. Raises StoreError where their checksum is not the one that was written."""
    return _checked(file, "features", description)  # type: ignore[return-value]  # `describe` checked the dtype


def decode(file: OpenFile, description: Description) -> FeatureBag:
    """The bag that was encoded. Raises StoreError."""
    names = description.header.quality
    arrays = {name: _checked(file, name, description) for name in (*ARRAYS, *((QUALITY,) if names else ()))}
    quality = {name: np.ascontiguousarray(arrays[QUALITY][:, column]) for column, name in enumerate(names)}
    try:
        grid = TileGrid(
            slide=description.slide,
            spec=description.spec,
            xy0=arrays["coords"],  # type: ignore[arg-type]  # `describe` checked the dtypes
            tissue=arrays["tissue"],  # type: ignore[arg-type]  # as above
            read_level=description.read_level,
            read_px=description.read_px,
        )
        return FeatureBag(
            grid=grid,
            features=arrays["features"],  # type: ignore[arg-type]  # as above
            provenance=description.header.provenance,
            quality=quality,  # type: ignore[arg-type]  # as above
        )
    except (ValueError, WsimilError) as error:
        raise file.damaged(f"its content contradicts itself ({error})") from error


def check_owner(found: object, wanted: str, path: Path) -> None:
    """Raise StoreError where the file at `path` is of another slide: renamed, or one name to this file system."""
    if found != wanted:
        raise StoreError(
            f"{path} holds the features of slide {found!r}, wanted {wanted!r}: the file was renamed, or this file system takes"
            " the two names for one; give it its name back, or give one of the slides another id"
        )


def damaged(path: Path, reason: str, *, remedy: str = _EXTRACT_AGAIN) -> StoreError:
    """The error for a file that cannot be what was written."""
    return StoreError(f"{path} is damaged: {reason}; {remedy}")


def unreadable(path: Path, error: Exception, *, remedy: str = _EXTRACT_AGAIN) -> StoreError:
    """The error where a backend failed with `error`: told apart by whether the file or the way to it is at fault."""
    reason = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE):
        return StoreError(f"{path} cannot be read: {os.strerror(error.errno)}; check its permissions and the disk")
    return damaged(path, f"it cannot be read as a feature file ({reason})", remedy=remedy)


def is_ours(file: OpenFile) -> bool:
    """Whether wsimil wrote the file, whole or not."""
    try:
        file.attribute("format_version")
        file.attribute("wsimil_version")
    except KeyError:
        return False
    return True


def foreign(file: OpenFile, path: Path) -> StoreError:
    """The error for a readable file that is not of one slide's features: of another program, or a pack."""
    try:
        file.attribute(PACK_MARK)
    except KeyError:
        pass
    else:
        return StoreError(
            f"{path} is a pack of a whole cohort, not the features of one slide: give the pack itself, or move it to a folder"
            " where it is alone"
        )
    return StoreError(
        f"{path} was not written by wsimil (it has no attributes format_version and wsimil_version): give a folder that wsimil"
        " extract wrote to, or move this file away"
    )


def _check_ours(file: OpenFile, path: Path) -> None:
    if not is_ours(file):
        raise foreign(file, path)
    version = file.attribute("format_version")
    if not isinstance(version, int) or version < 1:
        raise file.damaged(f"format_version is {version!r}, wanted a number from 1 on")
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {version}, this wsimil reads up to {FORMAT_VERSION}: install a newer wsimil"
        )
    try:
        complete = file.attribute("complete")
    except KeyError:
        complete = False
    if complete is not True:
        raise StoreError(f"{path} is incomplete (it has no mark complete): {_EXTRACT_AGAIN}")


def _check_shapes(file: OpenFile, shapes: Mapping[str, tuple[tuple[int, ...], str]], quality: tuple[str, ...]) -> None:
    (features, dtype), (coords, coords_dtype), (tissue, tissue_dtype) = (shapes[name] for name in ARRAYS)
    if len(features) != 2 or features[1] < 1 or dtype not in ("float16", "float32"):
        raise file.damaged(f"features are {dtype} {list(features)}, wanted float16 or float32 [N, D]")
    wanted_shapes: list[tuple[str, tuple[int, ...], str, tuple[int, ...], str]] = [
        ("coords", coords, coords_dtype, (features[0], 2), "int64"),
        ("tissue", tissue, tissue_dtype, (features[0],), "float32"),
    ]
    if quality:
        wanted_shapes.append((QUALITY, *shapes[QUALITY], (features[0], len(quality)), "float32"))
    for name, shape, got, wanted_shape, wanted in wanted_shapes:
        if shape != wanted_shape or got != wanted:
            raise file.damaged(
                f"{name} are {got} {list(shape)}, wanted {wanted} {list(wanted_shape)} for {features[0]} rows of features"
            )


def _checked(file: OpenFile, name: str, description: Description) -> Array:
    array = file.array(name)
    _check_crc32(file, name, _crc32(array), description.crc32[name])
    return array


def _check_crc32(file: OpenFile, name: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise file.damaged(f"the CRC-32 of {name} is {got:08x}, wanted {wanted:08x}: it changed after it was written")


def _crc32(array: Array) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _slide(tree: Mapping[str, Json]) -> SlideInfo:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}
    return SlideInfo(**fields | {"path": Path(str(tree["path"]))})  # type: ignore[arg-type]  # the constructor checks names
