"""Feature files in HDF5, one per slide: the default, and what the tools of the field read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from wsimil.errors import StoreError
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
        with created(path) as file:
            for name, array in content.arrays.items():
                file.create_dataset(name, data=array).attrs.update(content.array_attributes[name])
            file.attrs.update({name: _protected(name, value) for name, value in content.attributes.items()})


@contextmanager
def created(path: Path) -> Iterator[h5py.File]:
    """A new file, which takes its place at `path` at once when the block ends well. Raises OutputError."""
    with atomic_path(path) as temporary, temporary.open("r+b", buffering=0) as raw:
        sink = _Sink(raw)
        with h5py.File(sink, "w", libver=_LIBVER) as file:
            yield file
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
                raise self.damaged(f"attribute {name} cannot be read ({error})") from error
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

    def damaged(self, reason: str) -> StoreError:
        return damaged(self._path, reason)

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = self._file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise self.damaged(f"{name} is not a dataset")
        return dataset


class _Sink(io.RawIOBase):
    """A file for HDF5 that keeps the first error of the disk to itself.

    HDF5 told of a full disk leaves its file open and its handle leaked, and fails once more when the process ends. Told
    nothing, it closes cleanly, and the caller raises `error` then. What comes after the error is held in memory until
    then, because HDF5 reads some of its headers back.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._held: list[tuple[int, bytes]] = []
        self._position = 0
        self.error: OSError | None = None

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # narrower, as HDF5 calls it
        view = memoryview(buffer).cast("B")
        self._raw.seek(self._position)
        count = self._raw.readinto(view) or 0
        for start, data in self._held:
            offset = start - self._position
            low, high = max(0, offset), min(len(view), offset + len(data))
            if low < high:
                view[low:high] = data[low - offset : high - offset]
                count = max(count, high)
        self._position += count
        return count

    def write(self, data: memoryview) -> int:  # type: ignore[override]  # as above
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._write_through(view)
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._held.append((self._position, bytes(view)))
        self._position += len(view)
        return len(view)

    def _write_through(self, view: memoryview) -> None:
        self._raw.seek(self._position)
        done = 0
        while done < len(view):
            done += self._raw.write(view[done:])

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end()}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        wanted = self._position if size is None else size
        if self.error is None:
            try:
                self._raw.truncate(wanted)
            except OSError as error:
                self.error = error
        return wanted

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _end(self) -> int:
        return max([self._raw.seek(0, io.SEEK_END), *(start + len(data) for start, data in self._held)])
