"""Feature folders, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from wsimil.stages.tensors import TorchTensors
from wsimil.store import FeatureStore, open_store
from wsimil.store.interop.detect import find
from wsimil.store.interop.peer import ReadOptions
from wsimil.store.interop.peer_store import PeerStore


def open_features(
    folder: Path, *, layout: str | None = None, encoder: str | None = None, patches: Path | None = None
) -> FeatureStore:
    """The store in `folder`, to read: ours, or another tool's, told by its content unless `layout` names it.

    `encoder` and `patches` as in `ReadOptions`. Raises StoreError, ConfigError.
    """
    peer = find(folder, layout=layout) if layout != "wsimil" else None
    if peer is None:
        return open_store(folder, mode="r")
    return PeerStore(peer, ReadOptions(tensors=TorchTensors(), encoder=encoder, patches=patches))


def is_feature_folder(folder: Path) -> bool:
    """Whether `open_features` would find something. Raises StoreError as it does."""
    if not folder.is_dir():
        return False
    ours = any(entry.suffix in (".h5", ".zarr") and not entry.name.startswith(".") for entry in folder.iterdir())
    return ours or find(folder) is not None
