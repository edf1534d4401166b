"""What a slide's file is, told from its first and last bytes, and from some between where these say too little."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from wsimil.errors import SlideError

_HASHED_BYTES = 64 * 2**10
_BLOCKS, _BLOCK_BYTES = 256, 16 * 2**10
_GOLDEN = 0.6180339887
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head.startswith(_TIFF_MAGIC)


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is a DICOM file."""
    return head[128:132] == b"DICM"


def file_ends(path: Path, slide_id: str) -> tuple[bytes, bytes, int]:
    """First and last 64 KiB, and the size in bytes."""
    with _reading(path, slide_id) as file:
        head = file.read(_HASHED_BYTES)
        size = file.seek(0, 2)
        file.seek(max(0, size - _HASHED_BYTES))
        tail = file.read()
    if size == 0:
        raise SlideError(f"slide {slide_id!r}: {path} is empty (0 bytes); copy it again from its source")
    return head, tail, size


def content_digest(path: Path, slide_id: str, *, quickhash: str, head: bytes, tail: bytes, size: int) -> str:
    """Identity of a slide's content: SHA-256, 64 hex digits, the same wherever the file lies. Reads what is needed of 4 MiB at
    most.

    Over OpenSlide's quickhash-1 (which covers the smallest pyramid level and the metadata of most formats), the size, and
    the first and last 64 KiB; for MRXS also names and sizes of the files in its data folder, where the pixels are. Where
    there is no quickhash, as where the smallest level is large, 4 MiB from all over the file stand for the pixels.
    """
    digest = hashlib.sha256(f"wsimil slide digest {1 if quickhash else 2}\n{quickhash}\n{size}\n".encode())
    digest.update(head)
    digest.update(tail)
    if not quickhash:
        with _reading(path, slide_id) as file:
            for block in _blocks(file, size):
                digest.update(block)
    if path.suffix.lower() == ".mrxs":
        for companion in sorted(path.with_suffix("").glob("*")):
            digest.update(f"\n{companion.name} {companion.stat().st_size}".encode())
    return digest.hexdigest()


@contextmanager
def _reading(path: Path, slide_id: str) -> Iterator[BinaryIO]:
    where = f"slide {slide_id!r}: {path}"
    if path.is_dir():
        raise SlideError(f"{where} is a folder; give a slide file, or a folder where a folder of slides is wanted")
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise SlideError(f"{where} does not exist; check the path, or the slide_id in the manifest") from None
    except OSError as error:
        raise SlideError(f"{where} cannot be read: {error.strerror or error}; check its permissions") from error


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """A small file whole, of a larger one a block from somewhere in each of as many equal stretches."""
    if size <= _BLOCKS * _BLOCK_BYTES:
        file.seek(0)
        yield file.read()
        return
    for stretch in range(_BLOCKS):
        # Even steps may all fall into one column of tiles, which may be glass.
        file.seek(int((stretch + stretch * _GOLDEN % 1) / _BLOCKS * (size - _BLOCK_BYTES)))
        yield file.read(_BLOCK_BYTES)
