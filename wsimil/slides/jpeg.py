"""One compressed JPEG tile of a slide to RGB, with the color space that the file states, refusing damaged data."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray

Space: TypeAlias = Literal["RGB", "YCbCr"]

_START, _END = b"\xff\xd8", b"\xff\xd9"
_JFIF, _ADOBE = b"\xff\xe0", b"\xff\xee"
_SCAN = b"\xff\xda"
_ADOBE_BYTES = 12
_TRANSFORM = {"RGB": b"\0", "YCbCr": b"\1"}
_LEFT_OVER = re.compile("extraneous bytes before marker 0xd9")


def stream_head(space: Space, tables: bytes | None = None) -> bytes:
    """What `decode_jpeg` puts before a tile: the color space, as the marker by which decoders know it, and shared tables."""
    shared = (tables or b"").removeprefix(_START).removesuffix(_END)
    return _START + _ADOBE + b"\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + _TRANSFORM[space] + shared


def stated_space(data: bytes) -> Space | None:
    """The color space that a JPEG states by a JFIF or Adobe marker, as decoders heed them; None where it states none."""
    adobe: Space | None = None
    at = len(_START)
    while data[at : at + 1] == b"\xff" and data[at : at + 2] != _SCAN and at + 4 <= len(data):
        marker, length = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == _JFIF and body.startswith(b"JFIF\0"):
            return "YCbCr"
        if marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= _ADOBE_BYTES:
            adobe = "YCbCr" if body[_ADOBE_BYTES - 1] else "RGB"
        at += 2 + length
    return adobe


def decode_jpeg(head: bytes, data: bytes, output: NDArray[np.uint8], *, half: bool = False) -> None:
    """Fill `output` RGB [h, w, 3], contiguous; with `half`, from a JPEG of twice its width and height.

    `head` is of `stream_head`: slides of some scanners hold RGB without the marker that says so, and there the file's word
    counts, not a decoder's guess. Raises ValueError for another size and for data that are cut short or damaged, which
    most decoders fill up with grey.
    """
    stream = head + data[_after_markers(data) :]
    height, width = output.shape[:2]
    least = {}
    if half:
        # A decoder asked for a least size finds the scale by itself, which must be one half and no other.
        found = simplejpeg.decode_jpeg_header(stream)[:2]
        _refuse_size(found, (2 * height, 2 * width))
        least = {"min_height": height, "min_width": width}
    try:
        decoded = simplejpeg.decode_jpeg(stream, "RGB", buffer=output, **least)
    except ValueError as error:
        # Bytes left over after the last px: some scanners pad so, and every px is there.
        if not _LEFT_OVER.search(str(error)):
            raise
        decoded = simplejpeg.decode_jpeg(stream, "RGB", buffer=output, strict=False, **least)
    _refuse_size(decoded.shape[:2], (height, width))


def _refuse_size(found: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if tuple(found) != wanted:
        raise ValueError(f"a JPEG of {found[1]} x {found[0]} px, wanted {wanted[1]} x {wanted[0]}")


def _after_markers(data: bytes) -> int:
    """Where a tile's stream goes on after its start and after markers that would contradict the head."""
    if not data.startswith(_START):
        raise ValueError("these bytes are not a JPEG")
    at = len(_START)
    while data[at : at + 2] in (_JFIF, _ADOBE):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at
