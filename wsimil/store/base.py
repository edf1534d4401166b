"""What a feature store is, and the one rule by which slide ids become file names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.provenance import Provenance

_Read = TypeVar("_Read")

MAX_ID_BYTES = 200
"""Leaves room, in the 255 bytes that file systems allow, for suffixes such as _heatmap.ome.tiff."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHeader:
    """What is known of one slide's features without reading them: `n` rows of `dim`, and what of quality was measured.

    `content` is a text that differs where what is stored does: by the checksums of the arrays in our files; by size and time of
    change in those of other tools, which have none. `level_downsamples` are those of the slide as it was read, empty where
    another tool read it.
    """

    slide_id: str
    n: int
    dim: int
    dtype: Literal["float16", "float32"]
    provenance: Provenance
    content: str
    quality: tuple[str, ...] = ()
    level_downsamples: tuple[float, ...] = ()


class FeatureStore(Protocol):
    """Feature bags by slide id: what was written is read back bit for bit, or StoreError says why not.

    Safe to use from several threads and processes; two writers of one slide leave the bag of one of them.
    """

    def ids(self) -> list[str]:
        """Ids of all slides that are there, sorted; names only, nothing is opened."""

    def __contains__(self, slide_id: object) -> bool:
        """Whether a file of that slide is there; nothing is opened."""

    def path(self, slide_id: str) -> Path:
        """Where the slide's features lie or would lie. Raises StoreError where the id cannot be a file name."""

    def header(self, slide_id: str) -> StoredHeader:
        """Size and provenance; reads no features. Raises StoreError."""

    def read(self, slide_id: str) -> FeatureBag:
        """The bag as it was written, of whose slide path only the file name is kept. Raises StoreError."""

    def read_features(self, slide_id: str) -> NDArray[np.float16] | NDArray[np.float32]:
        """The features [N, D] alone, checked against their checksum. Raises StoreError."""

    def write(self, bag: FeatureBag) -> Path:
        """Put the bag at its place, at once and whole; an older or damaged one of the same slide is replaced.

        Raises StoreError where the place belongs to another slide or program, OutputError where the disk refuses.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedFeatures:
    """What a method learns from: `features` [N, D] in raster order, and `order_xy` int64 [N, 2], whole numbers that order
    columns and rows as the tiles lie. They are no px and no µm: a file of another tool may not tell.
    """

    features: NDArray[np.float16] | NDArray[np.float32]
    order_xy: NDArray[np.int64]


@runtime_checkable
class InstanceStore(Protocol):
    """A feature store that gives features also where tiles cannot be placed in physical space."""

    def read_instances(self, slide_id: str) -> OrderedFeatures:
        """Features and the order of their places. Raises StoreError."""


def read_headers(store: FeatureStore, slide_ids: Sequence[str]) -> dict[str, StoredHeader]:
    """Headers of many slides, in the order of their ids. Raises StoreError."""
    return read_each(slide_ids, store.header)


def read_each(slide_ids: Sequence[str], read: Callable[[str], _Read]) -> dict[str, _Read]:
    """What `read` gives of each of many slides, some at a time, in the order of their ids. Raises what `read` raises."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(slide_ids, pool.map(read, slide_ids), strict=True))


def slide_path(folder: Path, slide_id: str, suffix: str) -> Path:
    """folder / (slide_id + suffix), for ids that make one file name, visible and inside `folder`.

    Raises StoreError for ids that are empty, hidden, longer than MAX_ID_BYTES in UTF-8, begin or end in a space, or hold
    slashes, control or invisible characters. Two ids that differ only in case or in Unicode normalization are two files on
    Linux and one on macOS and Windows; the id inside the file tells them apart there.
    """
    fault = _fault(slide_id)
    if fault:
        shown = repr(slide_id) if len(slide_id) <= MAX_ID_BYTES else repr(slide_id[:40]) + "..."
        raise StoreError(
            f"slide id {shown} cannot be a file name: it {fault}; give the slide another id in the manifest's slide_id column"
        )
    return folder / f"{slide_id}{suffix}"


def is_slide_id(slide_id: str) -> bool:
    """Whether `slide_path` takes it."""
    return _fault(slide_id) is None


def _fault(slide_id: str) -> str | None:
    if not slide_id:
        return "is empty"
    if slide_id.startswith("."):
        return "begins with a dot, which hides the file"
    if slide_id != slide_id.strip():
        return "begins or ends with a space"
    if "/" in slide_id or "\\" in slide_id:
        return "holds a slash"
    if not slide_id.isprintable():
        odd = next(character for character in slide_id if not character.isprintable())
        return f"holds the character {odd!a}, which cannot be seen"
    size = len(slide_id.encode("utf-8"))
    if size > MAX_ID_BYTES:
        return f"has {size} bytes, wanted at most {MAX_ID_BYTES}"
    return None
