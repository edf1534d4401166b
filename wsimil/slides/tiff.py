"""Levels of a tiled TIFF, to be read straight from its compressed tiles.

OpenSlide composes every region in floating point, which costs several times the decoding of a JPEG slide
(openslide/openslide#440). Layouts: TIFF 6.0 and its supplement 2; Aperio's JPEG 2000 numbers; OME-TIFF 6.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsimil.slides.jpeg import Space, decode_jpeg, stated_space, stream_head
from wsimil.slides.mpp import ome_elements, ome_pixels
from wsimil.slides.pyramid import is_level, of_one_shape, over_half
from wsimil.slides.stored_tiles import NotDirectError, OtherKindError

_JPEG = 7
_JPEG_2000 = {33005, 34712}
_UNTURNED = {_JPEG, 33003, 33005}
"""JPEG and Aperio's JPEG 2000: interleaved, OpenSlide decodes them without libtiff, which turns what it decodes to RGBA."""
_LOSSLESS = {1, 5, 8, 32946, 50000}
"""Nothing, LZW, deflate by both its numbers, ZSTD."""
_RGB, _YCBCR = 2, 6
_SPACES: dict[int, Space] = {_RGB: "RGB", _YCBCR: "YCbCr"}
_BITS, _SHOWN_BITS, _APART = 8, {1, 2, 4, 8}, 2
_UPRIGHT, _TURNED = 1, {2, 3, 4, 6, 7, 8}
"""Orientations. libtiff mirrors and turns by halves; of 5, the transposed, nothing is left to do."""
_MOST_TILE_PX = 2**28
"""Of one stored tile: where a damaged header says more, OpenSlide ends the process for want of memory."""
_FIRST = "it shows the first image alone"
_BROKEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
    tifffile.TiffFileError,
)
_RESOLUTION_UNITS = {2: "inch", 3: "centimeter"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TiffLevel:
    """A `StoredLevel` of a TIFF: one page (IFD). `is_belied`: its JPEGs are YCbCr, and the page says RGB."""

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    files: Sequence[Path]
    offsets: Sequence[int]
    counts: Sequence[int]
    page: tifffile.TiffPage
    jpeg_head: bytes | None
    is_belied: bool = False

    @property
    def columns(self) -> int:
        """See `StoredLevel.columns`."""
        return -(-self.size_px[0] // self.tile_px[0])

    @property
    def is_jpeg(self) -> bool:
        """See `JpegLevel.is_jpeg`."""
        return self.jpeg_head is not None

    def decode_half(self, data: bytes, index: int, output: NDArray[np.uint8]) -> None:
        """See `JpegLevel.decode_half`."""
        if self.jpeg_head is None:
            raise ValueError(f"stored tile {index} is no JPEG")
        decode_jpeg(self.jpeg_head, data, output, half=True)

    def decode(self, data: bytes, index: int, output: NDArray[np.uint8]) -> None:
        """See `StoredLevel.decode`."""
        if self.jpeg_head is not None:
            decode_jpeg(self.jpeg_head, data, output)
            return
        if self.page.compression in _JPEG_2000:
            imagecodecs.jpeg2k_decode(data, out=output)
            return
        decoded, _, _ = self.page.decode(data, index)
        if decoded is None or decoded.shape[1:] != output.shape:
            raise ValueError(f"stored tile {index} is not {output.shape[1]} x {output.shape[0]} px of RGB")
        output[...] = decoded[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffPyramid:
    """The levels of a file's main image, the largest first, and its metadata under OpenSlide's names of properties."""

    levels: tuple[TiffLevel, ...]
    properties: Mapping[str, str]
    icc_profile: bytes | None


def read_levels(path: Path, sizes_px: Sequence[tuple[int, int]], *, padded: bool = False) -> tuple[TiffLevel, ...]:
    """The levels of exactly these sizes, whatever else the file holds.

    `padded`: as Philips writes them, pages in the order of the levels whose sizes are rounded up to whole tiles.
    Raises NotDirectError where a size has no page, or more than one, or a page that is not read here.
    """
    with _opened(path) as file:
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        if padded:
            return tuple(_padded_level(page, size) for page, size in zip(pages, sizes_px, strict=False))
        levels = []
        for width, height in sizes_px:
            found = [page for page in pages if _size_px(page) == (width, height)]
            if len(found) != 1:
                raise NotDirectError(f"{len(found)} of its images are {width} x {height} px")
            levels.append(_level(found[0], (width, height)))
        return tuple(levels)


def read_ome_pyramid(path: Path) -> TiffPyramid:
    """The main image of an OME-TIFF. Raises NotDirectError where there is none, or more than one of its size."""
    with _opened(path) as file:
        if not file.is_ome:
            raise OtherKindError("it is no OME-TIFF")
        images = sorted(file.series, key=lambda series: -max(series.keyframe.shape))
        main = images[0]
        if main.axes != "YXS":
            raise NotDirectError(f"its main image has the axes {main.axes}, wanted one plane of interleaved RGB, YXS")
        first = file.series[0].keyframe.shape[:2]
        # A macro may be wider than a small region that goes before it.
        overtakes = main is not file.series[0] and any(
            over_half(side, most) for side, most in zip(first, main.keyframe.shape[:2], strict=True)
        )
        if overtakes or (len(images) > 1 and over_half(max(images[1].keyframe.shape), max(main.keyframe.shape))):
            raise NotDirectError("it holds several images of about one size")
        if main.keyframe.parent is not file:
            raise NotDirectError(f"its main image is in another file, {main.keyframe.parent.filename}")
        # SubIFDs may lie in any order, and may be padded, or show something else.
        pages = sorted((level.keyframe for level in main.levels), key=lambda page: -page.imagewidth)
        return TiffPyramid(
            levels=tuple(_level(page, _size_px(page)) for page in pages if _shows_all(main.keyframe, page)),
            properties=_properties(main.keyframe, file.ome_metadata or ""),
            icc_profile=main.keyframe.iccprofile,
        )


def why_not_of_the_slide(path: Path) -> str | None:
    """Why the resolution that OpenSlide gives of a TIFF of no known vendor is not the slide's, half a sentence; None where it is.

    It is that of the first image, also of a pyramid whose smallest level comes first.
    """
    with suppress(NotDirectError), _opened(path) as file:
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and not page.is_mask]
        first, largest = pages[0], max(pages, key=lambda page: math.prod(_size_px(page)))
        if _size_px(largest) != _size_px(first) and _resolution(largest) != _resolution(first):
            sizes = (f"{width} x {height} px" for width, height in map(_size_px, (first, largest)))
            return "that of the first, of {}, where the slide has {}".format(*sizes)
    return None


def why_not_shown(path: Path) -> str | None:
    """Why OpenSlide does not show a TIFF of no known vendor as it is, half a sentence; None where it does.

    It shows the first image alone: a larger one may come later, as where the macro goes first, or further ones of the same
    size, as where color channels, planes of focus or times are an image each, in this file or in others of its OME-TIFF, or of
    about its size, as where an OME-TIFF has an image of each piece of tissue. Of more than 8 bits it shows the highest, which
    are 0 in what a camera of 12 recorded.
    """
    with suppress(NotDirectError), _opened(path) as file:
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
        first, *others = pages
        size = _size_px(first)
        full = [page for page in others if not page.is_reduced and not page.is_mask]
        later = [_size_px(page) for page in full]
        # A mask of one sample beside a slide of three is no channel of it, nor a plane.
        alike = [_size_px(page) for page in full if page.samplesperpixel == first.samplesperpixel]
        count = 1 + alike.count(size)
        if len({uuid["FileName"] for uuid in ome_elements(file.ome_metadata or "", "UUID") if "FileName" in uuid}) > 1:
            for pixels in ome_pixels(file.ome_metadata or ""):
                x, y, z, c, t = (int(pixels.get(f"Size{axis}", "1")) for axis in "XYZCT")
                later.append((x, y))
                if (x, y) == size:
                    count = max(count, z * t * -(-c // first.samplesperpixel))
        width, height = max(later, key=math.prod, default=size)
        if width * height > math.prod(size):
            return f"{_FIRST}, and that is {size[0]} x {size[1]} px, a later one {width} x {height} px"
        if count > 1:
            return f"{_FIRST}, and there are {count} of {size[0]} x {size[1]} px (channels, planes of focus or times)"
        # Levels may be images of their own.
        other = max(alike, key=max, default=(0, 0))
        if file.is_ome and over_half(max(other), max(size)):
            return f"{_FIRST}, of {size[0]} x {size[1]} px, and another is nearly as large, {other[0]} x {other[1]} px"
        if first.bitspersample not in _SHOWN_BITS:
            return f"its samples have {first.bitspersample} bits"
        if first.planarconfig == _APART and first.photometric == _YCBCR:
            return "Y, Cb and Cr are stored apart"
    return None


def why_not_left_to_openslide(path: Path) -> str | None:
    """What OpenSlide would do to a TIFF rather than read it, and the remedy; None where it reads it.

    It takes the word of pages that say RGB for JPEGs that are YCbCr, and of a damaged header for how large a stored tile is, and
    turns by the Orientation of a page each stored tile by itself, unless it is a JPEG of interleaved colors.
    """
    with suppress(NotDirectError), _opened(path) as file:
        for page in file.pages:
            if not isinstance(page, tifffile.TiffPage) or not page.is_tiled:
                continue
            if page.tilewidth * page.tilelength > _MOST_TILE_PX:
                return (
                    f"end for want of memory: its header tells of stored tiles of {page.tilewidth} x {page.tilelength} px, so it"
                    " is damaged; copy it again from its source, or drop it"
                )
            orientation = int(page.tags.valueof("Orientation", _UPRIGHT))
            if orientation in _TURNED and _is_level(page) and not _is_decoded_by_openslide(page):
                return (
                    f"turn each of its stored tiles in its place: its Orientation is {orientation}, wanted {_UPRIGHT}; convert it"
                    " with vips autorot, then vips tiffsave --tile --pyramid"
                )
            if page.compression == _JPEG and _jpeg_space(page) == "YCbCr":
                return (
                    "show it in false colors: its tiles are JPEGs of YCbCr in pages that say RGB; leave the reader to wsimil, or"
                    " convert it with vips tiffsave --tile --pyramid"
                )
    return None


def _resolution(page: tifffile.TiffPage) -> tuple[object, ...]:
    tags = (page.tags.get(name) for name in ("ResolutionUnit", "XResolution", "YResolution"))
    return tuple(None if tag is None else tag.value for tag in tags)


def _properties(page: tifffile.TiffPage, description: str) -> dict[str, str]:
    unit = page.tags.get("ResolutionUnit")
    properties = {
        "openslide.level[0].width": str(page.imagewidth),
        "openslide.level[0].height": str(page.imagelength),
        "tiff.ImageDescription": description,
        "tiff.ResolutionUnit": "inch" if unit is None else _RESOLUTION_UNITS.get(int(unit.value), "none"),
    }
    for axis in "XY":
        tag = page.tags.get(f"{axis}Resolution")
        if tag is not None and tag.value[1]:
            properties[f"tiff.{axis}Resolution"] = repr(tag.value[0] / tag.value[1])
    return properties


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """A file whose tags and OME-XML may be broken wherever they are read. Raises NotDirectError."""
    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except NotDirectError:
        raise
    except _BROKEN as error:
        raise NotDirectError(f"it cannot be read as a TIFF: {error}") from error


def _is_level(page: tifffile.TiffPage) -> bool:
    """Whether OpenSlide may take a tiled page for a level: no macro that is an image of its own."""
    return page.is_reduced or of_one_shape(_size_px(page.parent.pages.first), _size_px(page))


def _shows_all(main: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    tile0_px, tile_px = ((one.tilewidth, one.tilelength) for one in (main, page))
    if not page.is_tiled:
        return of_one_shape(_size_px(main), _size_px(page))
    return is_level(_size_px(main), _size_px(page), tile0_px=tile0_px, tile_px=tile_px)


def _is_decoded_by_openslide(page: tifffile.TiffPage) -> bool:
    interleaved = page.planarconfig != _APART and page.samplesperpixel == 3 and page.photometric in _SPACES
    return page.compression in _UNTURNED and interleaved


def _size_px(page: tifffile.TiffPage) -> tuple[int, int]:
    return page.imagewidth, page.imagelength


def _padded_level(page: tifffile.TiffPage, size_px: tuple[int, int]) -> TiffLevel:
    stored = _size_px(page)
    tile_px = page.tilewidth, page.tilelength
    if any(not have - tile < want <= have for have, want, tile in zip(stored, size_px, tile_px, strict=True)):
        raise NotDirectError(f"an image of {stored} px cannot be the level of {size_px} px")
    return _level(page, size_px)


def _level(page: tifffile.TiffPage, size_px: tuple[int, int]) -> TiffLevel:
    tiled = page.is_tiled and page.imagedepth == 1 and page.planarconfig != _APART
    if not tiled or page.bitspersample != _BITS or page.samplesperpixel != 3 or page.photometric not in _SPACES:
        raise NotDirectError("an image is not tiled RGB of 8 bits")
    space = _SPACES[page.photometric]
    if page.compression != _JPEG and (page.compression not in _LOSSLESS | _JPEG_2000 or space != "RGB"):
        name = getattr(page.compression, "name", page.compression)
        raise NotDirectError(f"an image is compressed as {name}, {space}")
    if page.tilewidth * page.tilelength > _MOST_TILE_PX:
        raise NotDirectError(f"an image has stored tiles of {page.tilewidth} x {page.tilelength} px")
    columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    if not len(page.dataoffsets) == len(page.databytecounts) == columns * rows:
        raise NotDirectError(f"an image lists {len(page.dataoffsets)} tiles, wanted {columns * rows}")
    if -(-size_px[0] // page.tilewidth) != columns:
        raise NotDirectError(f"an image has {columns} columns of tiles for {size_px[0]} px")
    stored = _jpeg_space(page) or space if page.compression == _JPEG else space
    return TiffLevel(
        size_px=size_px,
        tile_px=(page.tilewidth, page.tilelength),
        files=(Path(page.parent.filehandle.path),) * len(page.dataoffsets),
        offsets=page.dataoffsets,
        counts=page.databytecounts,
        page=page,
        jpeg_head=stream_head(stored, page.jpegtables) if page.compression == _JPEG else None,
        is_belied=stored != space,
    )


def _jpeg_space(page: tifffile.TiffPage) -> Space | None:
    """What the JPEGs of a page that says RGB state of themselves.

    Bio-Formats 6, and so QuPath, wrote JFIF, which is YCbCr, into such pages. Of one color each, as where they are stored
    apart, JPEGs are JFIF as well and state nothing.
    """
    place = next((place for place, count in enumerate(page.databytecounts) if count), None)
    if page.photometric != _RGB or page.planarconfig == _APART or place is None:
        return None
    file = page.parent.filehandle
    file.seek(page.dataoffsets[place])
    return stated_space(file.read(page.databytecounts[place]))
