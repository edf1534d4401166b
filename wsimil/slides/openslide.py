"""Slides read with OpenSlide 4: SVS, NDPI, MRXS, SCN, BIF, SVSlide, VMS, VMU, DICOM, Philips and generic tiled TIFF, CZI.

Positions at levels above 0. OpenSlide takes level-0 px, divides by the level's downsample and interpolates where the quotient
is not whole, which blurs by an amount that changes from tile to tile. So tiles start on a whole px of the level
(`geometry.level_position`), and OpenSlide is handed the level-0 px nearest to it. Against the stored pixels, over 60 random
224 px tiles (mean absolute difference; horizontal gradient kept), this gives 2.7 instead of 4.3 grey values and 88 % instead of
81 % at a downsample of 2.0005, 0.55 instead of 1.34 and 87 % instead of 69 % at 4.0017; at whole downsamples it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsimil.errors import SlideError
from wsimil.geometry import SlideInfo, round_half_up
from wsimil.slides.content import content_digest, file_ends, is_tiff
from wsimil.slides.mpp import resolve_mpp
from wsimil.slides.pyramid import PyramidSlide, is_another_piece, is_level, level_downsample, mean_downsample
from wsimil.slides.tiff import why_not_of_the_slide, why_not_shown

_CACHE_BYTES = 64 * 2**20
_PAGE_A_LEVEL_VENDORS = {"aperio", "dicom", "generic-tiff"}
"""Of which OpenSlide takes for levels whatever images could be some; of others it knows how levels lie on one another."""
_NO_TILE_PX = 2**31
_MAYBE_CUT_SHORT = "it is a TIFF, so the copy may be cut short: compare its size with the source's; if it is whole, "
_CONVERT = (
    "convert it to a pyramidal TIFF or SVS (bioformats2raw with raw2ometiff --rgb, vips tiffsave --tile --pyramid, or QuPath's"
    " export), or drop it"
)


def library_version() -> str:
    """Version of the OpenSlide library, such as "4.0.0"."""
    return str(openslide.__library_version__)


class RefusedError(SlideError):
    """A file that is not read through OpenSlide; another reader may read it."""


class NotShownError(RefusedError):
    """A file that OpenSlide opens, and of which it would not show the slide as it is."""


class OpenSlideSlide(PyramidSlide):
    """A `Slide` on top of an OpenSlide handle. Raises RefusedError for a file that OpenSlide does not open."""

    def __init__(self, path: Path, *, slide_id: str, mpp_override: float | None) -> None:
        head, tail, size = file_ends(path, slide_id)
        self._handle = _open(path, slide_id, head=head)
        try:
            properties = dict(self._handle.properties)
            if properties.get("openslide.vendor") == "generic-tiff":
                _refuse_if_not_shown(path, slide_id)
            resolved = resolve_mpp(properties, slide_id=slide_id, override=mpp_override)
            quickhash = properties.get("openslide.quickhash-1", "")
            vendor = properties.get("openslide.vendor", "unknown")
            if vendor == "generic-tiff" and resolved.source == "metadata":
                _refuse_resolution_of_another(path, slide_id)
            count = _level_count(self._handle, path, slide_id, properties)
            self._own_downsamples = self._handle.level_downsamples[:count]
            sizes_px = self._handle.level_dimensions[:count]
            file = _level0_file(path, properties) if vendor == "dicom" else path
            if file != path:
                head, tail, size = file_ends(file, slide_id)
            info = SlideInfo(
                slide_id=slide_id,
                path=path,
                size0_px=self._handle.dimensions,
                mpp=resolved.mpp,
                mpp_source=resolved.source,
                mpp_detail=resolved.detail,
                level_downsamples=tuple(
                    _downsample(own, sizes_px[0], size_px)
                    for own, size_px in zip(self._own_downsamples, sizes_px, strict=True)
                ),
                bounds0_px=_bounds0_px(properties, self._handle.dimensions),
                vendor=vendor,
                digest=content_digest(file, slide_id, quickhash=quickhash, head=head, tail=tail, size=size),
            )
            super().__init__(info, sizes_px)
            self._handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
        except BaseException:
            self._handle.close()
            raise

    @property
    def reader(self) -> str:
        """See `Slide.reader`."""
        return "openslide"

    @property
    def icc_profile(self) -> bytes | None:
        """See `Slide.icc_profile`."""
        profile = self._handle.color_profile
        return None if profile is None else bytes(profile.tobytes())

    def _release(self) -> None:
        self._handle.close()

    def _origin0(self, position: int, level: int) -> float:
        own, downsample = self._own_downsamples[level], self._info.level_downsamples[level]
        return position * downsample if position < 0 else _level0_of(position, own) * (downsample / own)

    def _read_into(self, output: NDArray[np.uint8], x: int, y: int, level: int, *, step: int = 0) -> None:
        if x < 0 or y < 0:
            # OpenSlide cuts what lies before the slide down to whole px, and so shifts the slide itself.
            output[...] = 255
            inside = output[max(0, -y) :, max(0, -x) :]
            if inside.size:
                self._read_into(inside, max(0, x), max(0, y), level, step=step)
            return
        own = self._own_downsamples[level]
        position0 = _level0_of(x, own), _level0_of(y, own)
        # OpenSlide keeps a handle that failed once in that state: what follows would only repeat the first message.
        with self._reading(x, y, level, openslide.OpenSlideError):
            region = self._handle.read_region(position0, level, (output.shape[1], output.shape[0]))
        rgba = np.asarray(region)
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            output[...] = rgba[..., :3]
        else:
            opacity = alpha.astype(np.uint16)
            output[...] = (rgba[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255


def _downsample(own: float, size0_px: tuple[int, int], size_px: tuple[int, int]) -> float:
    """OpenSlide's word, or a better one where it takes the mean of both axes. Vendors that state theirs may pad levels."""
    return level_downsample(size0_px, size_px) if math.isclose(own, mean_downsample(size0_px, size_px)) else own


def _level0_of(position: int, downsample: float) -> int:
    """What to hand OpenSlide, whose own downsample is given, for a whole px of a level: the level-0 px nearest to it."""
    return round_half_up(position * downsample)


def _open(path: Path, slide_id: str, *, head: bytes) -> openslide.OpenSlide:
    hint = _MAYBE_CUT_SHORT if is_tiff(head) else ""
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        raise RefusedError(
            f"slide {slide_id!r}: {path} is not a slide that OpenSlide {library_version()} reads; {hint}{_CONVERT}"
        ) from None
    except openslide.OpenSlideError as error:
        raise RefusedError(
            f"slide {slide_id!r}: {path} cannot be opened: {error}; if the file is damaged or cut short, copy it again"
            f" from its source; if it is whole, {_CONVERT}"
        ) from error


def _refuse_if_not_shown(path: Path, slide_id: str) -> None:
    reason = why_not_shown(path)
    if reason is not None:
        raise NotShownError(
            f"slide {slide_id!r}: OpenSlide does not show {path} as it is: {reason}; wanted the slide in color, as the first"
            f" and only image of its size, with samples of at most 8 bits: {_CONVERT}"
        )


def _refuse_resolution_of_another(path: Path, slide_id: str) -> None:
    reason = why_not_of_the_slide(path)
    if reason is not None:
        raise NotShownError(
            f"slide {slide_id!r}: OpenSlide gives the resolution of another image of {path} for the slide's: {reason}; give the"
            " slide's own with --mpp-override, or in the manifest"
        )


def _level_count(handle: openslide.OpenSlide, path: Path, slide_id: str, properties: Mapping[str, str]) -> int:
    """How many of OpenSlide's levels are levels of the slide: from the first that is a macro, or padded, they are left out.

    What comes after it is, too: of SVS OpenSlide draws missing tiles from the image before, and others count levels as OpenSlide.
    Raises NotShownError where one is of another piece of tissue, which would not be there, and for any in DICOM, of which the
    images that are none are left out by who reads it straight.
    """
    (size0_px, *others), tile0_px = handle.level_dimensions, _tile_px(properties, 0)
    vendor, count = properties.get("openslide.vendor"), 1 + len(others)
    if vendor not in _PAGE_A_LEVEL_VENDORS:
        return count
    belied = _left_out(path) if vendor == "dicom" and others else frozenset()
    for number, size_px in enumerate(others, start=1):
        tile_px = _tile_px(properties, number)
        if is_level(size0_px, size_px, tile0_px=tile0_px, tile_px=tile_px) and size_px not in belied:
            continue
        if vendor == "dicom" or is_another_piece(size0_px, size_px, tile_px=tile_px):
            (width, height), (w, h) = size0_px, size_px
            raise NotShownError(
                f"slide {slide_id!r}: OpenSlide takes an image of {w} x {h} px for a level of {path}, which is {width} x {height}"
                f" px: it is not all of that at a lower resolution, but shows something else, or is padded; {_CONVERT}"
            )
        count = min(count, number)
    return count


def _tile_px(properties: Mapping[str, str], number: int) -> tuple[int, int]:
    """Of the stored tiles of one of OpenSlide's levels; of no image a whole number where it does not say."""
    width, height = (
        int(properties.get(f"openslide.level[{number}].tile-{side}", _NO_TILE_PX)) for side in ("width", "height")
    )
    return width, height


def _left_out(path: Path) -> frozenset[tuple[int, int]]:
    """Sizes of images in a DICOM series that are no levels, of which headers say more than OpenSlide does."""
    # As below.
    from wsimil.slides.dicom import left_out

    return left_out(path)


def _level0_file(path: Path, properties: dict[str, str]) -> Path:
    """The file that holds level 0 of a DICOM series, so that each of its files is the same slide."""
    # Loads pydicom, which slides of other kinds must not wait for.
    from wsimil.slides.dicom import instance_file

    return instance_file(path, properties.get("dicom.MediaStorageSOPInstanceUID", ""))


def _bounds0_px(properties: dict[str, str], size0_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """The scanned part as the vendor declares it, cut to the slide; the whole slide where nothing usable is declared."""
    whole = (0, 0, *size0_px)
    try:
        x, y, w, h = (int(properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return whole
    left, top = max(0, x), max(0, y)
    right, bottom = min(size0_px[0], x + w), min(size0_px[1], y + h)
    return (left, top, right - left, bottom - top) if right > left and bottom > top else whole
