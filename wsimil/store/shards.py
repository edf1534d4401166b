"""Rows of a sharded Zarr 3 array, read straight from its files.

    NAME/zarr.json      shape, type, rows of a chunk, rows of a shard
    NAME/c.<i>[.0]      shard i: its chunks, then offset and size of each as uint64 pairs, then a CRC-32C of these

Chunks of a pack are not compressed and hold whole rows, so that the rows of a slide are one stretch of a file, or of two. One
read fetches it, at the speed of a plain file; a general reader of Zarr fetches chunk by chunk, which takes three times as long
for bags of a thousand rows. Only arrays as `wsimil pack` writes them are taken.

Zarr core specification 3.0 and its sharding codec, zarr-specs.readthedocs.io.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEPARATOR = "."
"""In the names of shards: c.5.0 and no folders, which cluster file systems are slow at."""

_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_PLAIN = ([_LITTLE], [{"name": "bytes"}])  # types of one byte have no order of bytes
_INDEX_CODECS = [_LITTLE, {"name": "crc32c"}]
_PAIR = 2 * 8
_CRC = 4


class ShardedArray:
    """Array [N, ...] in `folder`; safe to read from several threads and processes, and to pickle.

    Raises OSError, KeyError, TypeError or ValueError where it is not there, or not laid out as above.
    """

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        self._folder = folder
        self.name = folder.name
        self.shape: tuple[int, ...] = tuple(meta["shape"])
        self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
        shard = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
        (codec,) = meta["codecs"]
        config = codec["configuration"]
        chunk = tuple(config["chunk_shape"])
        laid_out = (
            meta["node_type"] == "array"
            and codec["name"] == "sharding_indexed"
            and config["codecs"] in _PLAIN
            and config["index_codecs"] == _INDEX_CODECS
            and config.get("index_location", "end") == "end"
            and meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": SEPARATOR}}
            and shard[1:] == chunk[1:] == self.shape[1:]
            and min(shard[0], chunk[0]) > 0
            and shard[0] % chunk[0] == 0
        )
        if not laid_out:
            raise ValueError(f"array {folder.name} is laid out otherwise than wsimil pack does")
        self._shard_rows: int = shard[0]
        self._chunk_rows: int = chunk[0]
        self._row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self._indexes: dict[int, NDArray[np.uint64]] = {}

    def missing(self) -> list[str]:
        """Names of shards that are not there; looks at names only."""
        there = {entry.name for entry in self._folder.iterdir()}
        wanted = (self._shard(number).name for number in range(-(-self.shape[0] // self._shard_rows)))
        return [name for name in wanted if name not in there]

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Rows start to stop. Raises OSError where a shard cannot be read, ValueError where it is cut short or lacks them."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        bytes_ = rows.reshape(-1).view(np.uint8).data
        for number in range(start // self._shard_rows, -(-stop // self._shard_rows) if stop > start else 0):
            first = number * self._shard_rows
            low, high = max(start, first), min(stop, first + self._shard_rows)
            self._read_shard(
                number,
                low - first,
                high - first,
                bytes_[(low - start) * self._row_bytes : (high - start) * self._row_bytes],
            )
        return rows.astype(self.dtype.newbyteorder("="), copy=False)

    def _read_shard(self, number: int, low: int, high: int, into: memoryview) -> None:
        with self._shard(number).open("rb", buffering=0) as file:
            index = self._indexes.get(number)
            if index is None:
                chunks = self._shard_rows // self._chunk_rows
                file.seek(-(chunks * _PAIR + _CRC), 2)
                index = np.frombuffer(file.read(chunks * _PAIR), "<u8").reshape(chunks, 2)
                self._indexes[number] = index
            done = 0
            for offset, size in self._stretches(index, low, high):
                file.seek(offset)
                while size:
                    got = file.readinto(into[done : done + size])
                    if not got:
                        raise ValueError(f"{self.name}/{self._shard(number).name} is cut short")
                    done, size = done + got, size - got

    def _stretches(self, index: NDArray[np.uint64], low: int, high: int) -> Iterator[tuple[int, int]]:
        """Offset and size of the bytes of rows low to high of a shard; neighbors in the file are one stretch."""
        chunk_bytes = self._chunk_rows * self._row_bytes
        begin = size = 0
        for chunk in range(low // self._chunk_rows, -(-high // self._chunk_rows)):
            offset, length = (int(value) for value in index[chunk])
            if length != chunk_bytes:
                raise ValueError(f"a shard of {self.name} has {length} bytes for a chunk, wanted {chunk_bytes}")
            first = chunk * self._chunk_rows
            skipped = (max(low, first) - first) * self._row_bytes
            wanted = (min(high, first + self._chunk_rows) - first) * self._row_bytes - skipped
            if size and offset + skipped == begin + size:
                size += wanted
                continue
            if size:
                yield begin, size
            begin, size = offset + skipped, wanted
        if size:
            yield begin, size

    def _shard(self, number: int) -> Path:
        rest = [0] * (len(self.shape) - 1)
        return self._folder / SEPARATOR.join(["c", str(number), *map(str, rest)])
