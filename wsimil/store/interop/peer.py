"""What another tool's feature file says of itself: only what it states, and in its own units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

import wsimil
from wsimil.errors import StoreError
from wsimil.provenance import Json, Provenance

LayoutName: TypeAlias = Literal["clam", "trident", "stamp", "atlaspatch", "slide2vec", "spatialdata"]
LAYOUTS: tuple[LayoutName, ...] = ("clam", "trident", "stamp", "atlaspatch", "slide2vec", "spatialdata")

Features: TypeAlias = NDArray[np.float16] | NDArray[np.float32]
Unit: TypeAlias = Literal["px0", "um"]


class Tensors(Protocol):
    """Files of one tensor, as `torch.save` writes them; this half of the house does without torch."""

    def describe(self, path: Path) -> tuple[tuple[int, ...], str]:
        """Shape and dtype name ("float32"). Raises StoreError."""

    def load(self, path: Path) -> NDArray[np.generic]:
        """All values; bfloat16 becomes float32. Raises StoreError."""

    def save(self, path: Path, array: Features) -> None:
        """Write atomically, as float32. Raises OutputError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What files do not say. `encoder`: which one's features, where a file holds several; its name, where files say none.

    `patches`: the folder with CLAM's coordinates, where it is not beside the features.
    """

    tensors: Tensors
    encoder: str | None = None
    patches: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TileFacts:
    """Side of a tile in level-0 px and in µm, in so far as stated; side and stride in px as the encoder got it."""

    size0: float | None = None
    size_um: float | None = None
    size_px: int | None = None
    stride_px: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFacts:
    """What a feature file says of its slide; as in `wsimil.geometry.SlideInfo`."""

    mpp: float | None = None
    mpp_detail: str = ""
    size0_px: tuple[int, int] | None = None
    level_downsamples: tuple[float, ...] = (1.0,)
    bounds0_px: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerHeader:
    """One slide's features without their values: `n` rows of `dim` (0 where an empty file does not say it).

    `tiling` is what was asked of the tiler, the same for all slides of one run; `unit` that of the places, None where there are
    none; `companions` are further files that were read.
    """

    layout: LayoutName
    slide_id: str
    path: Path
    n: int
    dim: int
    dtype: str
    encoder: str | None
    tiling: Mapping[str, Json]
    unit: Unit | None
    tile: TileFacts = field(default_factory=TileFacts)
    slide: SlideFacts = field(default_factory=SlideFacts)
    version: str | None = None
    companions: tuple[Path, ...] = ()

    @property
    def stored_dtype(self) -> Literal["float16", "float32"]:
        """The type that the features have in a bag."""
        return "float16" if self.dtype == "float16" else "float32"

    @property
    def provenance(self) -> Provenance:
        """Honest about what is not known: of the encoder there is a name at best, so pooling, transform and weights are null."""
        return Provenance(
            encoder={
                "name": self.encoder,
                "dim": self.dim,
                "pooling": None,
                "transform": None,
                "weights_sha256": None,
                "stated_by": self.layout,
            },
            tiling={**self.tiling, "stated_by": self.layout},
            pixels={"layout": self.layout, "layout_version": self.version, "dtype": self.dtype},
            slide={},
            slide_digest="",
            version=wsimil.__version__,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBag:
    """One slide's features [N, D] in the order of the file, and where they lie, `places` [N, 2] in `header.unit`, if it says.

    `tissue` float32 [N] is the share of the tile, if it says.
    """

    header: PeerHeader
    features: Features
    places: NDArray[np.float64] | None
    tissue: NDArray[np.float32] | None = None


class Layout(Protocol):
    """A module that reads one layout."""

    def describe(self, path: Path, slide_id: str, options: ReadOptions) -> PeerHeader:
        """All but the values. Raises StoreError."""

    def read(self, path: Path, slide_id: str, options: ReadOptions) -> PeerBag:
        """All. Raises StoreError."""


def refused(path: Path, reason: str, remedy: str) -> StoreError:
    """The error for a file that is whole and cannot be used."""
    return StoreError(f"{path}: {reason}; {remedy}")


def as_features(array: NDArray[np.generic], path: Path) -> Features:
    """The array as features of a bag: float16 and float32 as they are, float64 as float32. Raises StoreError."""
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise refused(path, f"features are {array.dtype}, wanted floats", "extract this slide again")
    return array.astype(np.float32) if array.dtype == np.float64 else array  # type: ignore[return-value]  # checked above


def feature_shape(shape: Sequence[int], path: Path) -> tuple[int, int]:
    """(n, dim) of tile features; (0, 0) for the empty vector that stands for no tiles of unknown width. Raises StoreError."""
    if len(shape) == 2 and (shape[1] or not shape[0]):
        return int(shape[0]), int(shape[1])
    if tuple(shape) == (0,):
        return 0, 0
    raise refused(
        path,
        f"features have shape {list(shape)}, wanted [tiles, features]",
        "features of whole slides or patients are no bag of tiles: give the folder of the tile features",
    )


def check_rows(features: int, coords: int, path: Path) -> None:
    """Raise StoreError where rows of features and of coordinates do not pair."""
    if features != coords:
        raise refused(
            path,
            f"{features} rows of features and {coords} of coordinates, wanted as many",
            "the run that wrote it was cut short: extract this slide again",
        )


def text_of(value: object) -> str | None:
    """A text attribute; None for what is absent, empty or the text 'None', as which TRIDENT stores nothing."""
    return None if value is None or str(value) in ("", "None") else str(value)


def whole(value: object, name: str, path: Path) -> int:
    """A number attribute that must be whole, such as 512 or 512.0. Raises StoreError."""
    if not isinstance(value, int | float) or value != round(value):
        raise refused(path, f"attribute {name} is {value!r}, wanted a whole number", "extract this slide again")
    return round(value)
