"""Feature files in HDF5, one per slide: the default, and what the tools of the field read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from wsimil.files import atomic_path
from wsimil.store.folder import FolderStore
from wsimil.store.layout import READ_BACK, Array, Attribute, Content, OpenFile, damaged, unreadable

_LIBVER = "v108"
"""The oldest version of HDF5's format whose headers carry checksums; readers since 2008 know it."""


class Hdf5Store(FolderStore):
    """FOLDER/<slide_id>.h5, contiguous datasets."""

    suffix = ".h5"

    @contextmanager
    def _open(self, path: Path) -> Iterator[OpenFile]:
        try:
            # Without locks: files are never changed in place, and many cluster file systems cannot lock.
            with h5py.File(path, "r", locking=False) as file:
                yield _Hdf5File(file, path)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
            raise unreadable(path, error) from error

    def _write(self, path: Path, content: Content) -> None:
        with atomic_path(path) as temporary, temporary.open("r+b", buffering=0) as raw:
            sink = _Sink(raw)
            with h5py.File(sink, "w", libver=_LIBVER) as file:
                for name, array in content.arrays.items():
                    file.create_dataset(name, data=array).attrs.update(content.array_attributes[name])
                file.attrs.update({name: _protected(name, value) for name, value in content.attributes.items()})
            if sink.error is not None:
                raise sink.error


def _protected(name: str, value: Attribute) -> Attribute | np.bytes_:
    # HDF5 keeps text of any length apart, without a checksum: one flipped bit there, and reading it may never end. Text of
    # fixed length lies within the checksummed header. Other tools' texts stay as h5py writes them, so that they read str.
    return np.bytes_(str(value).encode("utf-8")) if name in READ_BACK else value


class _Hdf5File:
    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file = file
        self._attributes = file.attrs  # h5py opens the root group again at each access
        self._path = path

    def attribute(self, name: str) -> object:
        try:
            value = self._attributes[name]
        except KeyError as error:
            if name in self._attributes:  # h5py says KeyError for damage, too; for most of it this line raises
                raise damaged(self._path, f"attribute {name} cannot be read ({error})") from error
            raise KeyError(f"no attribute {name}") from None
        plain = value.item() if isinstance(value, np.generic) else value
        return plain.decode("utf-8") if isinstance(plain, bytes) else plain

    def shape_and_dtype(self, array: str) -> tuple[tuple[int, ...], str]:
        dataset = self._dataset(array)
        return dataset.shape, str(dataset.dtype)

    def array(self, name: str) -> Array:
        dataset = self._dataset(name)
        array: Array = dataset[...]
        return array

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = self._file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise damaged(self._path, f"{name} is not a dataset")
        return dataset


class _Sink(io.RawIOBase):
    """A file for HDF5 that keeps the first error of the disk to itself.

    HDF5 told of a full disk leaves its file open and its handle leaked, and fails once more when the process ends. Told
    nothing, it closes cleanly, and the caller raises `error` then.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]  # narrower, as HDF5 calls it
        return self._raw.readinto(buffer)

    def write(self, data: memoryview) -> int:  # type: ignore[override]  # as above
        view = memoryview(data).cast("B")
        try:
            done = 0
            while done < len(view):
                done += self._raw.write(view[done:])
        except OSError as error:
            self.error = self.error or error
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
