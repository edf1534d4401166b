"""Feature folders, whoever wrote them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from wsimil.errors import StoreError
from wsimil.slides import SLIDE_SUFFIXES
from wsimil.store import FeatureStore, open_store
from wsimil.store.interop.detect import find
from wsimil.store.interop.peer import ReadOptions
from wsimil.store.interop.peer_store import PeerStore
from wsimil.store.places import is_feature_place


def open_features(
    folder: Path, *, layout: str | None = None, encoder: str | None = None, patches: Path | None = None
) -> FeatureStore:
    """The store in `folder`, to read: ours, or another tool's, told by its content unless `layout` names it.

    `encoder` and `patches` as in `ReadOptions`. Raises StoreError, ConfigError.
    """
    peer = find(folder, layout=layout) if layout != "wsimil" else None
    if peer is None:
        return open_store(folder, mode="r")
    from wsimil.stages.tensors import TorchTensors

    return PeerStore(peer, ReadOptions(tensors=TorchTensors(), encoder=encoder, patches=patches))


def is_feature_folder(folder: Path) -> bool:
    """Whether `open_features` is what a folder is for: it holds features, and no slides. Raises StoreError as that does."""
    if not folder.is_dir():
        return False
    with suppress(StoreError):  # a Zarr group that is no pack may be another tool's
        if is_feature_place(folder):
            return True
    suffixes = {entry.suffix.lower() for entry in folder.iterdir() if not entry.name.startswith(".")}
    # Features may lie in folders below, and so may those that somebody left among slides.
    return not suffixes & SLIDE_SUFFIXES and find(folder) is not None
