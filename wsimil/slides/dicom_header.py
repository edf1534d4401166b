"""What a DICOM whole-slide file says of itself before its frames begin, read with pydicom.

pydicom is the reference library for DICOM in Python and needs nothing else; its import takes 0.2 s, so this module is imported
when the first DICOM file is met. Values are taken as they are stored: pydicom's own conversion warns of much that does no
harm here. DICOM PS3.3, C.8.12.4; PS3.10, section 7.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_partial

from wsimil.slides.stored_tiles import NotDirectError

PER_FRAME_GROUPS = 0x52009230
_AFTER_MATRIX_SIZE = 0x00480008
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_BROKEN = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    NotImplementedError,
    struct.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomHeader:
    """Data elements of a whole-slide file up to its byte `end`; `implicit`: without value representations."""

    dataset: Dataset
    syntax: str
    implicit: bool
    end: int

    @property
    def series_uid(self) -> str:
        """What all files of a slide have in common."""
        return self.text("SeriesInstanceUID")

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the total pixel matrix. Raises NotDirectError."""
        return self.positive("TotalPixelMatrixColumns"), self.positive("TotalPixelMatrixRows")

    @property
    def is_level(self) -> bool:
        """Whether the image is of the slide itself, and no label or overview. Raises NotDirectError where that is not stated."""
        image_type = self.text("ImageType").split("\\")
        if len(image_type) < 3:
            raise NotDirectError("it does not state its ImageType, by which a slide is told from its label")
        return image_type[2] == "VOLUME" and image_type[3:4] in ([], ["NONE"], ["RESAMPLED"])

    @property
    def first_frame(self) -> int:
        """Which frame of the image the file begins with: not 0 in further files of a concatenation."""
        return self.number("ConcatenationFrameOffsetNumber") or 0

    def raw(self, *names: str) -> bytes:
        """A value as it is stored; empty where there is none. More names than one lead through first items of sequences."""
        dataset = self.dataset
        for name in names[:-1]:
            items = dataset[name].value if name in dataset else []
            dataset = items[0] if items else Dataset()
        value = dataset.get_item(names[-1]).value if names[-1] in dataset else b""
        return value if isinstance(value, bytes) else b""

    def text(self, *names: str) -> str:
        """A string, several values joined by backslashes; empty where there is none. `names` as in `raw`."""
        parts = self.raw(*names).decode("ascii", "replace").split("\\")
        return "\\".join(part.strip(" \0") for part in parts)

    def number(self, name: str) -> int | None:
        """An unsigned integer; None where there is none."""
        value = self.raw(name)
        return int.from_bytes(value, "little") if len(value) in (2, 4) else None

    def positive(self, name: str) -> int:
        """An unsigned integer that must be there and not 0. Raises NotDirectError."""
        value = self.number(name)
        if not value:
            raise NotDirectError(f"its {name} is {'not stated' if value is None else value}")
        return value

    def frame_count(self) -> int:
        """How many frames are in the file. Raises NotDirectError."""
        text = self.text("NumberOfFrames") or "1"
        if not text.isdecimal() or int(text) == 0:
            raise NotDirectError(f"its NumberOfFrames is {text!r}")
        return int(text)


def read_header(path: Path) -> DicomHeader:
    """The header of a whole-slide file up to what it says of its frames. Raises NotDirectError for any other file."""
    return _read(path, PER_FRAME_GROUPS)


def read_series_header(path: Path) -> DicomHeader:
    """As `read_header`, but no further than `size_px`, which is quicker."""
    return _read(path, _AFTER_MATRIX_SIZE)


def read_series_uid(path: Path) -> str | None:
    """What all files of a slide have in common; None for files that are no whole-slide images.

    Every slide of a folder is told from all others there, so what a file said is kept until it changes.
    """
    try:
        state = path.stat()
        return _series_uid(path, (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    except (OSError, NotDirectError):
        return None


@lru_cache(maxsize=1 << 17)
def _series_uid(path: Path, _state: tuple[int, ...]) -> str | None:
    try:
        return read_series_header(path).series_uid
    except NotDirectError as reason:
        if isinstance(reason.__cause__, OSError):
            raise  # it may be read the next time
        return None


def read_instance_uid(path: Path) -> str | None:
    """The SOP Instance UID that a file begins with, which is quickest of all; None for files that are not DICOM."""
    try:
        return str(read_file_meta_info(path).MediaStorageSOPInstanceUID)
    except _BROKEN:
        return None


def _read(path: Path, until: int) -> DicomHeader:
    try:
        with path.open("rb") as file:
            dataset = read_partial(file, stop_when=lambda tag, *_: tag >= until)
            end = file.tell()
        kind, syntax = dataset.file_meta.MediaStorageSOPClassUID, str(dataset.file_meta.TransferSyntaxUID)
    except InvalidDicomError:
        raise NotDirectError("it is no DICOM file") from None
    except _BROKEN as error:
        raise NotDirectError(f"its header cannot be read: {error}") from error
    if kind != _WHOLE_SLIDE:
        raise NotDirectError(f"it is no whole-slide image but of the DICOM class {kind.name}")
    return DicomHeader(dataset=dataset, syntax=syntax, implicit=bool(dataset.original_encoding[0]), end=end)
