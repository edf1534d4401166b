"""Where the frames of a DICOM image lie: in its file, and on its total pixel matrix.

Positions of sparse frames and item tags come by the hundred thousand, for which a general DICOM library needs some ten
times as long; what little of the encoding they need is read here. DICOM PS3.5, section 7 and annex A.4 (data elements,
encapsulated frames); PS3.3, C.7.6.3.1.8 (Extended Offset Table) and C.8.12.14 (positions).
"""

from __future__ import annotations

import itertools
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wsimil.slides.stored_tiles import NotDirectError

_PER_FRAME_GROUPS = 0x52009230
_POSITION, _COLUMN, _ROW = 0x0048021A, 0x0048021E, 0x0048021F
_OFFSETS, _LENGTHS, _PIXELS = 0x7FE00001, 0x7FE00002, 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ITEM_HEAD = struct.pack("<HHI", 0xFFFE, 0xE000, 0)[:4]
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_UNDEFINED = 0xFFFFFFFF
_NO_END = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Bytes of every frame, the tags of its items included where frames are encapsulated.

    `corners`: (x, y) on the total pixel matrix, from 0, of each frame's upper left px; empty where the file states none.
    """

    offsets: Sequence[int]
    counts: Sequence[int]
    corners: Sequence[tuple[int, int]]


class _Head(NamedTuple):
    tag: int
    value_at: int
    length: int
    implicit: bool


def read_frames(path: Path, start: int, *, implicit: bool, count: int, native_bytes: int | None) -> Frames:
    """The `count` frames of a file whose per-frame functional groups, or what follows them, begin at byte `start`.

    `implicit`: value representations are not written. `native_bytes`: of one frame that is not encapsulated; None where
    frames are. Raises NotDirectError for a file that is cut short, contradicts itself, or leaves open what is a frame.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _frames(data, start, implicit, count, native_bytes)
        except (struct.error, IndexError):
            raise NotDirectError(f"{path.name} is cut short, or is not encoded as DICOM is") from None


def join_fragments(data: bytes) -> bytes:
    """The bytes of one encapsulated frame, given with the tags of its items. Raises ValueError for anything else."""
    parts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 4) if len(data) >= at + 8 else (0,)
        part = data[at + 8 : at + 8 + length]
        if data[at : at + 4] != _ITEM_HEAD or len(part) < length:
            raise ValueError("a frame does not lie where the file says it does")
        parts.append(part)
        at += 8 + length
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _frames(data: mmap.mmap, start: int, implicit: bool, count: int, native_bytes: int | None) -> Frames:
    found: dict[int, list[int]] = {_COLUMN: [], _ROW: []}
    tables: dict[int, bytes] = {}
    head = _head(data, start, implicit)
    while head.tag != _PIXELS:
        if head.tag in (_OFFSETS, _LENGTHS):
            tables[head.tag] = data[head.value_at : head.value_at + head.length]
        head = _head(data, _walk(data, head, found), implicit)
    columns, rows = found[_COLUMN], found[_ROW]
    if not len(columns) == len(rows) or len(columns) not in (0, count):
        raise NotDirectError(
            f"it states {len(columns)} columns and {len(rows)} rows for the positions of {count} frames"
        )
    corners = [(column - 1, row - 1) for column, row in zip(columns, rows, strict=True)]
    if native_bytes is not None:
        if head.length == _UNDEFINED or head.length < count * native_bytes:
            raise NotDirectError(f"its pixel data are not {count} frames of {native_bytes} bytes")
        offsets: Sequence[int] = range(head.value_at, head.value_at + count * native_bytes, native_bytes)
        counts: Sequence[int] = [native_bytes] * count
    else:
        offsets, counts = _encapsulated(data, head, count, tables)
    if any(offset + size > len(data) for offset, size in zip(offsets, counts, strict=True)):
        raise NotDirectError("it is cut short: frames reach beyond its end")
    return Frames(offsets=offsets, counts=counts, corners=corners)


def _encapsulated(
    data: mmap.mmap, pixels: _Head, count: int, tables: dict[int, bytes]
) -> tuple[Sequence[int], Sequence[int]]:
    """Offsets and counts, from the first that is there: Extended Offset Table, Basic Offset Table, the items themselves."""
    basic = _head(data, pixels.value_at, True)
    if pixels.length != _UNDEFINED or basic.tag != _ITEM:
        raise NotDirectError("its pixel data are not encapsulated, as its transfer syntax says they are")
    first = basic.value_at + basic.length
    starts = struct.unpack(f"<{len(tables.get(_OFFSETS, b'')) // 8}Q", tables.get(_OFFSETS, b""))
    lengths = struct.unpack(f"<{len(tables.get(_LENGTHS, b'')) // 8}Q", tables.get(_LENGTHS, b""))
    if len(starts) == len(lengths) == count:
        return [first + start for start in starts], [8 + length + length % 2 for length in lengths]
    starts = struct.unpack_from(f"<{basic.length // 4}I", data, basic.value_at)
    if len(starts) == count and all(one < after for one, after in itertools.pairwise(starts)):
        # Only the last frame's end is not in the table.
        end = _items(data, first + starts[-1])[-1]
        return [first + start for start in starts], [
            after - start for start, after in zip(starts, (*starts[1:], end - first), strict=True)
        ]
    # Offsets of 32 bits run over in large files, which then have no table that holds.
    ends = _items(data, first)
    if len(ends) != count:
        raise NotDirectError(f"it has no table of offsets, and {len(ends)} fragments for {count} frames")
    offsets = [first, *ends[:-1]]
    return offsets, [end - offset for offset, end in zip(offsets, ends, strict=True)]


def _items(data: mmap.mmap, at: int) -> list[int]:
    """Where each item from `at` on ends, up to the end of their sequence."""
    ends = []
    unpack = struct.Struct("<HHI").unpack_from
    while True:
        group, element, length = unpack(data, at)
        if group << 16 | element != _ITEM:
            break
        at += 8 + length
        ends.append(at)
    if group << 16 | element != _SEQUENCE_END or not ends:
        raise NotDirectError("its frames are not where their lengths say they are")
    return ends


def _head(data: mmap.mmap, at: int, implicit: bool) -> _Head:
    """Tag and length of the data element, item or delimiter at `at`."""
    group, element, length = struct.unpack_from("<HHI", data, at)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return _Head(tag, at + 8, length, implicit)
    kind = data[at + 4 : at + 6]
    if kind not in _LONG:
        return _Head(tag, at + 8, length >> 16, implicit)
    (length,) = struct.unpack_from("<I", data, at + 8)
    # What a sequence of unknown kind and undefined length holds is implicit: PS3.5, 6.2.2.
    return _Head(tag, at + 12, length, kind == b"UN" and length == _UNDEFINED)


def _walk(data: mmap.mmap, head: _Head, found: dict[int, list[int]]) -> int:
    """Where an element ends; on the way, the values of tags in `found` are added to it."""
    if head.tag in found:
        found[head.tag] += struct.unpack_from("<i", data, head.value_at)
    if head.length != _UNDEFINED and head.tag not in (_PER_FRAME_GROUPS, _POSITION, _ITEM):
        return head.value_at + head.length
    at, end = head.value_at, head.value_at + head.length if head.length != _UNDEFINED else _NO_END
    while at < end:
        inner = _head(data, at, head.implicit)
        if inner.tag in (_ITEM_END, _SEQUENCE_END):
            return inner.value_at
        at = _walk(data, inner, found)
    return at
