"""A feature store that is a folder with one entry per slide; what HDF5 and Zarr have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.store import layout
from wsimil.store.base import StoredHeader, is_slide_id, slide_path


class FolderStore(ABC):
    """FOLDER/<slide_id><suffix> for every slide; a backend says how one such entry is opened and written."""

    suffix: ClassVar[str]

    def __init__(self, folder: Path, *, mode: Literal["r", "w"]) -> None:
        self._folder = folder
        self._mode = mode

    @abstractmethod
    def _open(self, path: Path) -> AbstractContextManager[layout.OpenFile]:
        """Open to read; every error of the backend, also one inside the block, becomes StoreError."""

    @abstractmethod
    def _write(self, path: Path, content: layout.Content) -> None:
        """Write atomically; raises OutputError."""

    def ids(self) -> list[str]:
        """Ids of all slides that are there, sorted; names only, nothing is opened."""
        with os.scandir(self._folder) as entries:
            names = [entry.name.removesuffix(self.suffix) for entry in entries if entry.name.endswith(self.suffix)]
        return sorted(name for name in names if is_slide_id(name))

    def __contains__(self, slide_id: object) -> bool:
        return isinstance(slide_id, str) and is_slide_id(slide_id) and self.path(slide_id).exists()

    def path(self, slide_id: str) -> Path:
        """Where the slide's features lie or would lie. Raises StoreError where the id cannot be a file name."""
        return slide_path(self._folder, slide_id, self.suffix)

    def header(self, slide_id: str) -> StoredHeader:
        """Size and provenance; reads no features. Raises StoreError."""
        path = self._existing(slide_id)
        with self._open(path) as file:
            return layout.describe(file, slide_id, path).header

    def read(self, slide_id: str) -> FeatureBag:
        """The bag as it was written, of whose slide path only the file name is kept. Raises StoreError."""
        path = self._existing(slide_id)
        with self._open(path) as file:
            return layout.decode(file, layout.describe(file, slide_id, path))

    def read_features(self, slide_id: str) -> NDArray[np.float16] | NDArray[np.float32]:
        """The features [N, D] alone, checked against their checksum. Raises StoreError."""
        path = self._existing(slide_id)
        with self._open(path) as file:
            return layout.features_of(file, layout.describe(file, slide_id, path))

    def write(self, bag: FeatureBag) -> Path:
        """Put the bag at its place, at once and whole; an older or damaged one of the same slide is replaced.

        Raises StoreError where the place belongs to another slide or program, OutputError where the disk refuses.
        """
        if self._mode == "r":
            raise StoreError(f"feature store {self._folder} is open for reading; open it with mode 'w' to write")
        path = self.path(bag.slide_id)
        self._check_replaceable(path, bag.slide_id)
        self._write(path, layout.encode(bag))
        return path

    def _existing(self, slide_id: str) -> Path:
        path = self.path(slide_id)
        if not path.exists():
            raise StoreError(f"no features of slide {slide_id!r}: {path} does not exist; extract the slide or drop it")
        return path

    def _check_replaceable(self, path: Path, slide_id: str) -> None:
        if not path.exists():
            return
        try:
            with self._open(path) as file:
                ours = layout.is_ours(file)
                stranger = None if ours else layout.foreign(file, path)
                owner = file.attribute("slide_id") if ours else None
        except StoreError:
            return  # damaged beyond reading: nothing is lost
        if stranger is not None:
            raise stranger
        layout.check_owner(owner, slide_id, path)
