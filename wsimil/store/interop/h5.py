"""HDF5 files of other tools: looked into without assuming anything, and written whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from wsimil.errors import StoreError
from wsimil.store.hdf5 import created


class H5:
    """An open file. Methods raise KeyError for what is not there."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def kind(self, name: str) -> Literal["dataset", "group"] | None:
        """What stands under a name, if anything."""
        if name not in self._file:
            return None
        return "dataset" if isinstance(self._file[name], h5py.Dataset) else "group"

    def names(self, group: str) -> list[str]:
        """What a group holds, sorted."""
        return sorted(self._file[group])

    def attributes(self, name: str = "/") -> dict[str, object]:
        """Attributes as plain values: texts as str, numbers as int and float, arrays as lists."""
        return {key: _plain(value) for key, value in self._file[name].attrs.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a dataset."""
        return tuple(self._file[name].shape)

    def dtype(self, name: str) -> str:
        """Name of a dataset's type."""
        return str(self._file[name].dtype)

    def array(self, name: str) -> NDArray[np.generic]:
        """All values of a dataset."""
        return np.asarray(self._file[name][...])


@contextmanager
def opened(path: Path) -> Iterator[H5]:
    """Open to read; every error of HDF5, also one inside the block, becomes StoreError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield H5(file)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; extract the slide or drop it") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"{path} cannot be read ({reason}); copy it again, or extract the slide again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A dataset of another file, by a path relative to the folder of the file that links to it."""

    file: str
    dataset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDataset:
    """A dataset to be written."""

    values: NDArray[np.generic] | Link
    attributes: Mapping[str, bool | int | float | str | NDArray[np.generic]] = field(default_factory=dict)


def write(
    path: Path,
    datasets: Mapping[str, NewDataset],
    attributes: Mapping[str, bool | int | float | str] | None = None,
) -> None:
    """Write a file, whole or not at all; datasets are contiguous. Raises OutputError."""
    with created(path) as file:
        for name, dataset in datasets.items():
            if isinstance(dataset.values, Link):
                file[name] = h5py.ExternalLink(dataset.values.file, dataset.values.dataset)
            else:
                file.create_dataset(name, data=dataset.values).attrs.update(dataset.attributes)
        file.attrs.update(attributes or {})


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()] if value.ndim else _plain(value[()])
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
