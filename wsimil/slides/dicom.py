"""Levels of a DICOM whole-slide image, to be read straight from its frames.

A slide is a series: every file beside the given one with its Series Instance UID, a level (or part of one, a concatenation)
each, and labels and overviews, which are no levels. So does OpenSlide gather them. DICOM PS3.3, A.32.8 and C.8.12.4 (VL
Whole Slide Microscopy Image), C.7.6.16.2.2.4 (concatenations), C.7.6.17.3 (TILED_FULL and TILED_SPARSE).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil.slides.dicom_codec import FrameDecoder, Kind, frame_decoder, frame_kind
from wsimil.slides.dicom_frames import Frames, join_fragments, read_frames
from wsimil.slides.dicom_header import read_header, read_instance_uid, read_series_header, read_series_uid
from wsimil.slides.pyramid import is_another_piece, is_level, level_downsample
from wsimil.slides.stored_tiles import NotDirectError, UnreadableError

_FIXED = {"BitsAllocated": 8, "BitsStored": 8, "PixelRepresentation": 0}
# The planes of RLE frames are apart, whatever the header says.
_INTERLEAVED = {"PlanarConfiguration": 0}
_COPY = "copy all files of its series again from their source"
_ASIDE = 1.25
"""By more than this factor must spacings differ from what sizes say before an image is no level, for headers are not exact."""
_COPIED = 0.01
"""Spacings that differ by no more were copied from level to level, however they are written."""
_LEAST_MM, _MOST_MM = 1e-6, 1e3
_SPACING = "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DicomLevel:
    """A `StoredLevel` of a DICOM series: one image, in one file or in several."""

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    files: Sequence[Path]
    offsets: Sequence[int]
    counts: Sequence[int]
    decoder: FrameDecoder

    @property
    def columns(self) -> int:
        """See `StoredLevel.columns`."""
        return -(-self.size_px[0] // self.tile_px[0])

    @property
    def is_jpeg(self) -> bool:
        """See `JpegLevel.is_jpeg`."""
        return self.decoder.kind == "JPEG"

    def decode(self, data: bytes, index: int, output: NDArray[np.uint8]) -> None:
        """See `StoredLevel.decode`."""
        self.decoder.decode(_frame(data, self.decoder.kind), output)

    def decode_half(self, data: bytes, index: int, output: NDArray[np.uint8]) -> None:
        """See `JpegLevel.decode_half`."""
        self.decoder.decode(_frame(data, self.decoder.kind), output, half=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomPyramid:
    """The levels of a series, the largest first, the series' UID, and its metadata under OpenSlide's names of properties.

    `path`: the file that holds the largest level, or its first frames; `icc_profile`: of the optical path; None where it
    states none.
    """

    path: Path
    levels: tuple[DicomLevel, ...]
    series_uid: str
    properties: Mapping[str, str]
    icc_profile: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A file that holds a level: all its `count` frames, or those from the image's frame `first` on.

    `start`: the byte after the header; `of`: how many parts there are, where that is stated.
    """

    path: Path
    sop_uid: str
    source_uid: str
    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    count: int
    first: int
    of: int | None
    full: bool
    kind: Kind
    photometric: str
    spacing: Sequence[str]
    icc_profile: bytes | None
    start: int
    implicit: bool

    def frames(self) -> Frames:
        native = self.tile_px[0] * self.tile_px[1] * 3 if self.kind == "native" else None
        return read_frames(self.path, self.start, implicit=self.implicit, count=self.count, native_bytes=native)


def read_levels(path: Path, sizes_px: Sequence[tuple[int, int]]) -> tuple[DicomLevel, ...]:
    """The levels of exactly these sizes, in the series of a file.

    Raises NotDirectError where there is none, or more than one, or one that is not read here; UnreadableError where a part of
    it is missing, or two frames are at one place.
    """
    images = _images(path)
    missing = [size for size in sizes_px if size not in images]
    if missing:
        raise NotDirectError(f"no image of its series is {missing[0][0]} x {missing[0][1]} px")
    return tuple(_level(images[size]) for size in sizes_px)


def read_pyramid(path: Path) -> DicomPyramid:
    """All levels in the series of a file. Raises as `read_levels` does."""
    images = _images(path)
    largest = _first(next(iter(images.values())))
    return DicomPyramid(
        path=largest.path,
        levels=tuple(_level(parts) for parts in images.values()),
        series_uid=read_series_header(path).series_uid,
        properties={f"{_SPACING}[{axis}]": value for axis, value in enumerate(largest.spacing)},
        icc_profile=largest.icc_profile,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomImage:
    """An image of a slide: its size, and the file that holds it, or that which holds its first frames."""

    size_px: tuple[int, int]
    path: Path


def read_images(path: Path) -> tuple[DicomImage, ...]:
    """The images in the series of a file that show the slide, the largest first. Raises NotDirectError."""
    images = _images(path)
    return tuple(DicomImage(size_px=size, path=_first(parts).path) for size, parts in images.items())


def left_out(path: Path) -> frozenset[tuple[int, int]]:
    """Sizes of images in the series of a file that are no levels of the slide; none where they cannot be read straight."""
    try:
        images = _series_images(path)
    except NotDirectError:
        return frozenset()
    size0_px = max(images, key=math.prod)
    return frozenset(size for size in images if not _is_level(images, size0_px, size))


def instance_file(path: Path, instance_uid: str) -> Path:
    """The file of this SOP Instance UID in the folder of `path`; `path` where there is none."""
    if read_instance_uid(path) == instance_uid:
        return path
    return next((file for file in _others(path) if read_instance_uid(file) == instance_uid), path)


def _images(path: Path) -> dict[tuple[int, int], list[_Part]]:
    """The files of each level, by its size, the largest first; the given file before others. Raises NotDirectError.

    What is of another shape is left out, and so are levels that are padded to whole frames, as Philips writes them: they lie
    aside. So is what has the shape, and states by its pixel spacing that it shows more or less than the slide: padding to one
    frame, the whole glass, or a part.
    """
    images = _series_images(path)
    sizes = sorted(images, key=math.prod, reverse=True)
    (width, height), tile_px = sizes[0], images[sizes[0]][0].tile_px
    levels = [size for size in sizes if _is_level(images, sizes[0], size)]
    for w, h in sizes:
        if (w, h) not in levels and is_another_piece((width, height), (w, h), tile_px=tile_px):
            raise NotDirectError(
                f"its images of {width} x {height} and {w} x {h} px are not of one shape, and so of two pieces of tissue"
            )
    return {size: images[size] for size in levels}


def _series_images(path: Path) -> dict[tuple[int, int], list[_Part]]:
    """The files of each image that shows the slide, by its size; the given file before others. Raises NotDirectError."""
    series_uid = read_series_header(path).series_uid
    images: dict[tuple[int, int], list[_Part]] = {}
    for file in (path, *_siblings(path, series_uid)):
        try:
            part = _part(file)
        except NotDirectError as reason:
            raise NotDirectError(f"{reason} ({file.name})") from None
        if part is not None:
            images.setdefault(part.size_px, []).append(part)
    if not images:
        raise NotDirectError("its series holds labels and overviews, and no image of the slide itself")
    return images


def _is_level(
    images: Mapping[tuple[int, int], Sequence[_Part]], size0_px: tuple[int, int], size_px: tuple[int, int]
) -> bool:
    largest, part = _first(images[size0_px]), _first(images[size_px])
    has_shape = is_level(size0_px, size_px, tile0_px=largest.tile_px, tile_px=part.tile_px)
    return has_shape and not _is_belied(largest, part)


def _is_belied(largest: _Part, part: _Part) -> bool:
    """Whether pixel spacings state another downsample than sizes do, whatever their last digits were rounded from.

    What is not stated, or copied from level to level, says nothing.
    """
    ends = [_rounded(text) for text in (*largest.spacing, *part.spacing)]
    stated = [end for end in ends if end is not None]
    if len(stated) != 4:
        return False
    (low_y0, high_y0), (low_x0, high_x0), (low_y, high_y), (low_x, high_x) = stated
    if all(math.isclose(sum(own), sum(of0), rel_tol=_COPIED) for own, of0 in zip(stated[2:], stated[:2], strict=True)):
        return False
    least, most = min(low_x / high_x0, low_y / high_y0), max(high_x / low_x0, high_y / low_y0)
    downsample = level_downsample(largest.size_px, part.size_px)
    return not least / _ASIDE <= downsample <= most * _ASIDE


def _rounded(text: str) -> tuple[float, float] | None:
    """Between what two numbers lies what was rounded to a decimal; None for what can be no spacing in mm."""
    try:
        value = Decimal(text.replace(",", "."))
    except InvalidOperation:
        return None
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or not _LEAST_MM < value < _MOST_MM:
        return None
    half = Decimal(5).scaleb(exponent - 1)
    return float(value - half), float(value + half)


def _first(parts: Sequence[_Part]) -> _Part:
    """The file that holds an image, or its first frames."""
    return min(parts, key=lambda part: part.first)


def _siblings(path: Path, series_uid: str) -> list[Path]:
    """The other files of a series."""
    return [file for file in _others(path) if read_series_uid(file) == series_uid]


def _others(path: Path) -> Iterator[Path]:
    """The files beside a file."""
    try:
        entries = sorted(path.parent.iterdir())
    except OSError as error:
        raise NotDirectError(f"its folder cannot be searched for the files of its series: {error.strerror}") from error
    return (entry for entry in entries if entry.name != path.name and entry.is_file())


def _part(path: Path) -> _Part | None:
    """A file of a series; None where its image is no level."""
    header = read_header(path)
    if not header.is_level:
        return None
    kind, photometric = frame_kind(header.syntax), header.text("PhotometricInterpretation")
    samples = header.number("SamplesPerPixel")
    if samples != 3:
        raise NotDirectError(
            f"its pixels are {photometric or 'of no stated color space'} of {samples} sample{'s' * (samples != 1)}, wanted color"
        )
    for name, wanted in {**_FIXED, **({} if kind == "RLE" else _INTERLEAVED)}.items():
        if header.number(name) != wanted:
            raise NotDirectError(f"its {name} is {header.number(name)}, wanted {wanted}")
    for name in ("NumberOfOpticalPaths", "TotalPixelMatrixFocalPlanes"):
        if header.number(name) not in (None, 1):
            raise NotDirectError(f"its {name} is {header.number(name)}, wanted 1")
    return _Part(
        path=path,
        sop_uid=header.text("SOPInstanceUID"),
        source_uid=header.text("SOPInstanceUIDOfConcatenationSource"),
        size_px=header.size_px,
        tile_px=(header.positive("Columns"), header.positive("Rows")),
        count=header.frame_count(),
        first=header.first_frame,
        of=header.number("InConcatenationTotalNumber"),
        full=header.text("DimensionOrganizationType") == "TILED_FULL",
        kind=kind,
        photometric=photometric,
        spacing=header.text("SharedFunctionalGroupsSequence", "PixelMeasuresSequence", "PixelSpacing").split("\\"),
        icc_profile=header.raw("OpticalPathSequence", "ICCProfile") or None,
        start=header.end,
        implicit=header.implicit,
    )


def _level(parts: Sequence[_Part]) -> DicomLevel:
    # A copy of a file beside it changes nothing.
    parts = list({part.sop_uid: part for part in reversed(parts)}.values())[::-1]
    one = parts[0]
    width, height = one.size_px
    sources = {(part.source_uid, part.tile_px, part.kind, part.photometric) for part in parts}
    if len(parts) > 1 and (len(sources) > 1 or not one.source_uid):
        raise NotDirectError(f"{len(parts)} of its images are {width} x {height} px")
    if one.of is not None and one.of != len(parts):
        raise UnreadableError(
            f"its image of {width} x {height} px is in {one.of} files, of which {len(parts)} are there; {_COPY}"
        )
    columns, rows = -(-width // one.tile_px[0]), -(-height // one.tile_px[1])
    files, offsets, counts = [one.path] * (columns * rows), [0] * (columns * rows), [0] * (columns * rows)
    for part in parts:
        frames = part.frames()
        full = part.full or len(counts) == 1
        places = range(part.first, part.first + part.count) if full else _places(part, frames, columns)
        for place, offset, count in zip(places, frames.offsets, frames.counts, strict=True):
            if place >= len(counts):
                raise NotDirectError(f"it has more frames than its {columns} x {rows} places")
            if counts[place]:
                x, y = place % columns * one.tile_px[0], place // columns * one.tile_px[1]
                raise UnreadableError(f"two of its frames lie at x={x}, y={y}; export it again as one plane of color")
            files[place], offsets[place], counts[place] = part.path, offset, count
    if one.full and 0 in counts:
        raise UnreadableError(
            f"{counts.count(0)} of the {len(counts)} frames of {width} x {height} px are not there; {_COPY}"
        )
    place = next(place for place, count in enumerate(counts) if count)
    with files[place].open("rb") as file:
        file.seek(offsets[place])
        sample = _frame(file.read(counts[place]), one.kind)
    return DicomLevel(
        size_px=one.size_px,
        tile_px=one.tile_px,
        files=files,
        offsets=offsets,
        counts=counts,
        decoder=frame_decoder(one.kind, one.photometric, sample),
    )


def _places(part: _Part, frames: Frames, columns: int) -> list[int]:
    """Where each frame lies, row by row."""
    if not frames.corners:
        # Such files are about, and some of them are written column by column.
        raise NotDirectError("it states neither TILED_FULL nor positions, so that the order of its frames is unknown")
    (width, height), (tile_width, tile_height) = part.size_px, part.tile_px
    for x, y in frames.corners:
        if not (0 <= x < width and 0 <= y < height) or x % tile_width or y % tile_height:
            raise NotDirectError(f"a frame lies at x={x}, y={y}, which is not on the grid of its frames")
    return [y // tile_height * columns + x // tile_width for x, y in frames.corners]


def _frame(data: bytes, kind: Kind) -> bytes:
    return data if kind == "native" else join_fragments(data)
