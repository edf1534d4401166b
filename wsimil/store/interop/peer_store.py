"""A read-only feature store over another tool's folder."""

from __future__ import annotations

from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import FeatureError, StoreError
from wsimil.store.base import OrderedFeatures, StoredHeader, slide_path
from wsimil.store.interop.detect import PeerFolder
from wsimil.store.interop.peer import Features, Layout, LayoutName, PeerBag, PeerHeader, ReadOptions
from wsimil.store.interop.placed import place, raster_order


class PeerStore:
    """Bags out of files of CLAM, TRIDENT and others, as `wsimil.store.FeatureStore` gives ours.

    Features need no more than the files. `read` gives a bag whose tiles lie in physical space, and so needs the slide's µm per
    pixel: where the files do not state it, it says what to do.
    """

    def __init__(self, peer: PeerFolder, options: ReadOptions) -> None:
        self._peer, self._options = peer, options
        self._layout = layout_module(peer.layout)

    @property
    def layout(self) -> LayoutName:
        """Whose files these are."""
        return self._peer.layout

    def ids(self) -> list[str]:
        """Ids of all slides that are there, sorted; names only, nothing is opened."""
        return sorted([*self._peer.files, *self._peer.clashes])

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self._peer.files or slide_id in self._peer.clashes

    def path(self, slide_id: str) -> Path:
        """Where the slide's features lie. Raises StoreError where the id cannot be a file name, or names several files."""
        if slide_id in self._peer.clashes:
            names = ", ".join(str(path) for path in self._peer.clashes[slide_id])
            raise StoreError(
                f"slide id {slide_id!r} names {len(self._peer.clashes[slide_id])} files: {names}; rename one, and say so in the"
                " cohort"
            )
        return self._peer.files.get(slide_id) or slide_path(self._peer.folder, slide_id, ".h5")

    def describe(self, slide_id: str) -> PeerHeader:
        """What the file says of itself; reads no features. Raises StoreError."""
        return self._layout.describe(self.path(slide_id), slide_id, self._options)

    def read_peer(self, slide_id: str) -> PeerBag:
        """The rows in the order of the file, places in its own unit. Raises StoreError, FeatureError for NaN or infinity."""
        bag = self._layout.read(self.path(slide_id), slide_id, self._options)
        bad = int(np.count_nonzero(~np.isfinite(bag.features).all(axis=1)))
        if bad:
            raise FeatureError(
                f"{bag.header.path}: {bad} of {len(bag.features)} feature rows hold NaN or infinity; extract the slide again, in"
                " float32 if it was a narrower type"
            )
        return bag

    def header(self, slide_id: str) -> StoredHeader:
        """Size and provenance; reads no features. Raises StoreError."""
        header = self.describe(slide_id)
        return StoredHeader(
            slide_id=slide_id,
            n=header.n,
            dim=header.dim,
            dtype=header.stored_dtype,
            provenance=header.provenance,
            content=_stamp(self.path(slide_id)),
        )

    def read(self, slide_id: str) -> FeatureBag:
        """The bag, its tiles placed by what the file states. Raises StoreError where that is not enough."""
        return place(self.read_peer(slide_id)).to_bag()

    def read_features(self, slide_id: str) -> Features:
        """The features [N, D] alone, in raster order where the file has coordinates. Raises StoreError."""
        return self.read_instances(slide_id).features

    def read_instances(self, slide_id: str) -> OrderedFeatures:
        """Features and the order of their places, in whichever unit the file keeps these. Raises StoreError."""
        bag = self.read_peer(slide_id)
        if bag.places is None:
            rows = np.arange(len(bag.features), dtype=np.int64)
            return OrderedFeatures(features=bag.features, order_xy=np.stack([rows, np.zeros_like(rows)], axis=1))
        order = raster_order(bag.places)
        return OrderedFeatures(features=bag.features[order], order_xy=_ranks(bag.places[order]))

    def write(self, bag: FeatureBag) -> Path:
        """Never. Raises StoreError."""
        raise StoreError(
            f"{self._peer.folder} holds features of {self.layout}, which are only read here; give another folder"
        )


def layout_module(name: LayoutName) -> Layout:
    """The module that reads a layout, loaded now."""
    return cast("Layout", import_module(f"wsimil.store.interop.{name}"))


def _stamp(path: Path) -> str:
    """Sizes and times of change of a file, or of all files of a folder. Raises StoreError."""
    try:
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        found = [(str(one.relative_to(path)), one.stat()) for one in files]
    except OSError as error:
        raise StoreError(f"{path} cannot be looked at: {error.strerror or error}") from error
    return sha256("".join(f"{name} {of.st_size} {of.st_mtime_ns}\n" for name, of in found).encode()).hexdigest()[:16]


def _ranks(places: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the column and of the row that each place lies in, int64 [N, 2]: their order, without their unit."""
    ranks = [np.unique(axis, return_inverse=True)[1].reshape(-1) for axis in places.T]
    return np.stack(ranks, axis=1).astype(np.int64) if len(places) else np.empty((0, 2), np.int64)
