"""A feature store of a whole cohort in one sharded Zarr 3 group: few large files, an index that opens at once, read only.

    /features  [T, D] float16 or float32            all slides, one behind the other in the order of their ids
    /coords    [T, 2] int64, level-0 px, x then y
    /tissue    [T]    float32, share of the tile
    /quality   [T, Q] float32, where quality was measured on any slide; NaN for the others
    /slides    [bytes] uint8: a table as UTF-8 text, tabs between columns, one line a slide: its id, its rows n, and the texts
               crc32_json, slide_json, grid_json and provenance_json of a slide's own file, to the letter
    group attributes: slides, rows, dim, dtype; crc32_slides, the CRC-32 of the table; what the encoder and the tiling were,
    which are one for all; failed_ids; `complete` is last.

Chunks are not compressed. `wsimil.store.packing` writes it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.store import layout
from wsimil.store.base import StoredHeader, slide_path
from wsimil.store.layout import Array
from wsimil.store.places import PACK_MARK
from wsimil.store.shards import ShardedArray

PACK_FORMAT_VERSION = 1
COLUMNS = ("slide_id", "n", "crc32_json", *layout.TEXTS)
"""Of the table of slides, in this order."""

_PACK_AGAIN = "copy it again, or delete it and run wsimil pack again"


class PackedStore:
    """FOLDER.zarr as a feature store. It holds what it was opened with: a pack that is replaced has to be opened again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._translated():
            attributes = self._checked_attributes()
            names = (*layout.ARRAYS, *((layout.QUALITY,) if attributes.get(layout.QUALITY) else ()))
            self._arrays = {name: ShardedArray(path / name) for name in names}
            table = ShardedArray(path / "slides")
            self._check_whole([*self._arrays.values(), table])
            text = table.read(0, *table.shape).tobytes()
            if zlib.crc32(text) != attributes["crc32_slides"]:
                raise self._damaged("the CRC-32 of its table of slides is not the one that was written")
            heading, *lines = text.decode("utf-8").split("\n")
            if tuple(heading.split("\t")) != COLUMNS:
                raise self._damaged(f"its table of slides has columns {heading!r}, wanted {COLUMNS}")
            cells = [line.split("\t", 2) for line in lines]
            counts = [int(n) for _, n, _ in cells]
            self._lines = {slide_id: rest for slide_id, _, rest in cells}
            self._rows = dict(zip(self._lines, zip(accumulate([0, *counts]), counts, strict=False), strict=True))
            self._check_sizes(attributes, sum(counts))

    def ids(self) -> list[str]:
        """Ids of all slides that are there, sorted; nothing is read."""
        return sorted(self._lines)

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self._lines

    def path(self, slide_id: str) -> Path:
        """The pack, which holds every slide. Raises StoreError where the id could not be a slide's."""
        slide_path(self._path, slide_id, "")
        return self._path

    def header(self, slide_id: str) -> StoredHeader:
        """Size and provenance; reads no file. Raises StoreError."""
        return self._described(slide_id)[1].header

    def read(self, slide_id: str) -> FeatureBag:
        """The bag as it was written, of whose slide path only the file name is kept. Raises StoreError."""
        slide, description = self._described(slide_id)
        with self._translated():
            return layout.decode(slide, description)

    def read_features(self, slide_id: str) -> NDArray[np.float16] | NDArray[np.float32]:
        """The features [N, D] alone, checked against their checksum. Raises StoreError."""
        slide, description = self._described(slide_id)
        with self._translated():
            return layout.features_of(slide, description)

    def write(self, bag: FeatureBag) -> NoReturn:
        """A pack is not written to: raises StoreError."""
        slide_path(self._path, bag.slide_id, "")
        raise StoreError(
            f"{self._path} is a pack, which is open for reading only: extract into a folder of slides and pack that again"
        )

    def _described(self, slide_id: str) -> tuple[_PackedSlide, layout.Description]:
        self.path(slide_id)
        if slide_id not in self._lines:
            raise StoreError(
                f"no features of slide {slide_id!r} in pack {self._path}, which holds {len(self._lines)} slides; extract the"
                " slide and pack again, or drop it"
            )
        start, n = self._rows[slide_id]
        texts = dict(zip(COLUMNS[2:], self._lines[slide_id].split("\t"), strict=True))
        slide = _PackedSlide(self._path, slide_id, texts, self._arrays, start, n)
        return slide, layout.describe(slide, slide_id, self._path)

    def _checked_attributes(self) -> Mapping[str, object]:
        attributes: Mapping[str, object] = json.loads((self._path / "zarr.json").read_text(encoding="utf-8"))[
            "attributes"
        ]
        version = attributes[PACK_MARK]
        if not isinstance(version, int) or version < 1:
            raise self._damaged(f"{PACK_MARK} is {version!r}, wanted a number from 1 on")
        if version > PACK_FORMAT_VERSION:
            raise StoreError(
                f"{self._path} has pack format version {version}, this wsimil reads up to {PACK_FORMAT_VERSION}: install a newer"
                " wsimil"
            )
        if attributes.get("complete") is not True:
            raise StoreError(f"{self._path} is incomplete (it has no mark complete): {_PACK_AGAIN}")
        return attributes

    def _check_whole(self, arrays: list[ShardedArray]) -> None:
        missing = [f"{array.name}/{shard}" for array in arrays for shard in array.missing()]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise StoreError(f"{self._path} is incomplete: it lacks {', '.join(missing[:3])}{more}; {_PACK_AGAIN}")

    def _check_sizes(self, attributes: Mapping[str, object], rows: int) -> None:
        features, coords, tissue = (self._arrays[name] for name in layout.ARRAYS)
        found = (len(self._rows), rows, features.shape, features.dtype.name, coords.shape, tissue.shape)
        slides, rows_, dim, dtype = (attributes[name] for name in ("slides", "rows", "dim", "dtype"))
        wanted = (slides, rows_, (rows_, dim), dtype, (rows_, 2), (rows_,))
        if found != wanted:
            raise self._damaged(f"numbers of slides and rows, and shapes of its arrays, are {found}, wanted {wanted}")

    def _damaged(self, reason: str) -> StoreError:
        return layout.damaged(self._path, reason, remedy=_PACK_AGAIN)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise layout.unreadable(self._path, error, remedy=_PACK_AGAIN) from error


class _PackedSlide:
    """One slide of a pack, as `layout` reads the file of a slide."""

    def __init__(
        self,
        path: Path,
        slide_id: str,
        texts: Mapping[str, str],
        arrays: Mapping[str, ShardedArray],
        start: int,
        n: int,
    ) -> None:
        self._path, self._slide_id, self._arrays, self._start, self._n = path, slide_id, arrays, start, n
        self._attributes = {
            **texts,
            "slide_id": slide_id,
            "wsimil_version": "",
            "format_version": layout.FORMAT_VERSION,
            "complete": True,
        }

    def attribute(self, name: str) -> object:
        return self._attributes[name]

    def shape_and_dtype(self, array: str) -> tuple[tuple[int, ...], str]:
        stored = self._arrays[array]
        return (self._n, *stored.shape[1:]), stored.dtype.name

    def array(self, name: str) -> Array:
        return self._arrays[name].read(self._start, self._start + self._n)

    def damaged(self, reason: str) -> StoreError:
        return layout.damaged(self._path, f"slide {self._slide_id!r}: {reason}", remedy=_PACK_AGAIN)
