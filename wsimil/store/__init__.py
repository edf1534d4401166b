"""Feature files: one per slide, or one pack for a cohort; whole or absent, with everything that says where they came from."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from wsimil.errors import StoreError
from wsimil.files import check_writable
from wsimil.store.places import pack_at

if TYPE_CHECKING:
    from wsimil.store.base import FeatureStore as FeatureStore
    from wsimil.store.base import StoredHeader as StoredHeader

__all__ = ["Backend", "FeatureStore", "StoredHeader", "open_store"]

Backend: TypeAlias = Literal["hdf5", "zarr"]

_HOMES = {"hdf5": ("wsimil.store.hdf5", "Hdf5Store"), "zarr": ("wsimil.store.zarr", "ZarrStore")}
_SUFFIXES: dict[Backend, str] = {"hdf5": ".h5", "zarr": ".zarr"}


def open_store(path: Path, *, mode: Literal["r", "w"], backend: Backend | None = None) -> FeatureStore:
    """The store in folder `path`; without `backend`, the one that is there, and HDF5 where nothing is.

    "w" makes the folder, may replace slides, and keeps one backend to a folder. A pack that `wsimil pack` wrote, or a folder
    that holds one and no slides, is a store to read; `backend` does not matter to it.
    Raises StoreError where the folder is missing, empty (to read) or of two backends; OutputError where it cannot be written.
    """
    path = Path(path)
    if backend is not None and backend not in _SUFFIXES:
        raise StoreError(f"feature store {path}: got backend {backend!r}, wanted one of: {', '.join(_SUFFIXES)}")
    if path.is_file():
        raise StoreError(f"feature store {path} is a file, wanted the folder that holds one such file per slide")
    pack = pack_at(path)
    if pack is not None:
        if mode == "w":
            raise StoreError(
                f"{pack} is a pack, which is only read: choose another output folder for slides, and pack that folder again"
            )
        packed: FeatureStore = import_module("wsimil.store.packed").PackedStore(pack)
        return packed
    if mode == "w":
        check_writable(path)
    chosen = _choose(path, _present(path), mode, backend)
    module, name = _HOMES[chosen]
    store: FeatureStore = getattr(import_module(module), name)(path, mode=mode)
    return store


def __getattr__(name: str) -> object:
    # The types bring numpy with them, for which `wsimil --help` should not wait.
    if name in ("FeatureStore", "StoredHeader"):
        return getattr(import_module("wsimil.store.base"), name)
    raise AttributeError(f"module 'wsimil.store' has no attribute {name!r}")


def _present(folder: Path) -> list[Backend]:
    try:
        with os.scandir(folder) as entries:
            suffixes = {Path(entry.name).suffix for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        raise StoreError(
            f"feature folder {folder} does not exist; give the folder that wsimil extract wrote to"
        ) from None
    except OSError as error:
        raise StoreError(f"feature folder {folder} cannot be read: {error.strerror}") from error
    return [backend for backend, suffix in _SUFFIXES.items() if suffix in suffixes]


def _choose(folder: Path, present: list[Backend], mode: Literal["r", "w"], backend: Backend | None) -> Backend:
    others = [_SUFFIXES[other] for other in present if other != backend]
    if backend is not None and mode == "w" and others:
        raise StoreError(
            f"feature folder {folder} holds {others[0]} features, {backend} was asked for: choose another output folder, or"
            " the backend that is there"
        )
    if backend is not None:
        return backend
    if len(present) > 1:
        raise StoreError(
            f"feature folder {folder} holds both {' and '.join(others)} features; wanted one kind: name the backend to"
            " read, or move one kind to a folder of its own"
        )
    if not present and mode == "r":
        if folder.suffix == ".zarr":
            raise StoreError(f"{folder} has no zarr.json: it is no pack, or was copied in part; copy it again")
        raise StoreError(
            f"feature folder {folder} holds no feature files (*.h5, *.zarr); give the folder that wsimil extract wrote to"
        )
    return present[0] if present else "hdf5"
