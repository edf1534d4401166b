"""Which reader opens a slide: told from what the file is, or by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wsimil.errors import SlideError
from wsimil.geometry import SlideInfo
from wsimil.slides import Reader, Slide
from wsimil.slides.content import content_digest, file_ends, is_tiff
from wsimil.slides.direct import DirectSlide
from wsimil.slides.half_scale import JpegLevel, with_half_levels
from wsimil.slides.mpp import resolve_mpp
from wsimil.slides.openslide import OpenSlideSlide, RefusedError
from wsimil.slides.stored_tiles import NotDirectError
from wsimil.slides.tiff import TiffLevel, read_levels, read_ome_pyramid

_ONE_GRID_VENDORS = {"aperio", "generic-tiff", "philips"}
"""Vendors of TIFFs whose levels are one image each; others put images beside and over one another."""


def open_with(path: Path, *, slide_id: str, mpp_override: float | None, reader: Reader, half_scale_jpeg: bool) -> Slide:
    """See `wsimil.slides.open_slide`.

    What a slide is (size, levels, mpp, bounds) is OpenSlide's word wherever it opens the file, whoever reads the pixels.
    """
    try:
        slide = OpenSlideSlide(path, slide_id=slide_id, mpp_override=mpp_override)
    except RefusedError as refusal:
        if reader == "openslide":
            raise
        try:
            return _ome_slide(path, slide_id, mpp_override, half_scale_jpeg)
        except NotDirectError as reason:
            raise SlideError(
                f"{refusal}" if reader == "auto" else f"{refusal} Nor is it read straight: {reason}."
            ) from None
    if reader == "openslide":
        return slide
    try:
        return _direct(slide.info, _tiff_levels(slide), "tiff", half_scale_jpeg, absent=slide)
    except NotDirectError as reason:
        if reader == "auto":
            return slide
        slide.close()
        raise SlideError(
            f"slide {slide_id!r}: {path} cannot be read by the reader {reader!r}: {reason}; leave the reader to wsimil, or"
            " name openslide"
        ) from None
    except BaseException:
        slide.close()
        raise


def _tiff_levels(slide: OpenSlideSlide) -> tuple[TiffLevel, ...]:
    vendor = slide.info.vendor
    if vendor not in _ONE_GRID_VENDORS:
        raise NotDirectError(f"slides of {vendor} are read by OpenSlide alone")
    levels = read_levels(slide.info.path, slide.level_sizes_px, padded=vendor == "philips")
    if vendor == "aperio" and any(0 in level.counts for level in levels):
        # Where a tile is missing, Aperio's further levels hold broken tiles too (openslide/openslide#211): OpenSlide draws
        # those from the level before, which a count of 0 leaves to it.
        return levels[0], *(replace(level, counts=(0,) * len(level.counts)) for level in levels[1:])
    return levels


def _ome_slide(path: Path, slide_id: str, mpp_override: float | None, half_scale_jpeg: bool) -> Slide:
    head, tail, size = file_ends(path, slide_id)
    if not is_tiff(head):
        raise NotDirectError("it is no TIFF")
    pyramid = read_ome_pyramid(path)
    resolved = resolve_mpp(pyramid.properties, slide_id=slide_id, override=mpp_override)
    width, height = pyramid.levels[0].size_px
    info = SlideInfo(
        slide_id=slide_id,
        path=path,
        size0_px=(width, height),
        mpp=resolved.mpp,
        mpp_source=resolved.source,
        mpp_detail=resolved.detail,
        level_downsamples=tuple((width / level.size_px[0] + height / level.size_px[1]) / 2 for level in pyramid.levels),
        bounds0_px=(0, 0, width, height),
        vendor="ome-tiff",
        digest=content_digest(path, "", head, tail, size),
    )
    return _direct(info, pyramid.levels, "tiff", half_scale_jpeg)


def _direct(
    info: SlideInfo,
    levels: Sequence[JpegLevel],
    reader: str,
    half_scale_jpeg: bool,
    *,
    absent: OpenSlideSlide | None = None,
) -> DirectSlide:
    if not half_scale_jpeg:
        return DirectSlide(info, levels, reader=reader, absent=absent)
    more, downsamples = with_half_levels(levels, info.level_downsamples)
    return DirectSlide(replace(info, level_downsamples=downsamples), more, reader=reader, absent=absent)
