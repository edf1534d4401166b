"""Which reader opens a slide: told from what the file is, or by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wsimil.errors import SlideError
from wsimil.geometry import SlideInfo
from wsimil.slides import Reader, Slide
from wsimil.slides.content import content_digest, file_ends, is_dicom, is_tiff
from wsimil.slides.direct import DirectSlide
from wsimil.slides.half_scale import JpegLevel, with_half_levels
from wsimil.slides.mpp import resolve_mpp
from wsimil.slides.openslide import NotShownError, OpenSlideSlide, RefusedError
from wsimil.slides.pyramid import level_downsample
from wsimil.slides.stored_tiles import NotDirectError, OtherKindError, UnreadableError
from wsimil.slides.tiff import (
    TiffLevel,
    TiffPyramid,
    read_levels,
    read_ome_pyramid,
    why_not_left_to_openslide,
)

_ONE_GRID_VENDORS = {"aperio", "generic-tiff", "philips"}
"""Vendors of TIFFs whose levels are one image each; others put images beside and over one another."""

_NO_DICOM, _NO_TIFF = "it is no DICOM file", "it is no TIFF"


def open_with(path: Path, *, slide_id: str, mpp_override: float | None, reader: Reader, half_scale_jpeg: bool) -> Slide:
    """See `wsimil.slides.open_slide`.

    What a slide is (size, levels, mpp, bounds) is OpenSlide's word wherever it opens the file and shows all of the slide, whoever
    reads the pixels.
    """
    try:
        slide = OpenSlideSlide(path, slide_id=slide_id, mpp_override=mpp_override)
    except RefusedError as refusal:
        if reader == "openslide":
            raise
        try:
            opens = isinstance(refusal, NotShownError)
            return _straight_slide(path, slide_id, mpp_override, reader, half_scale_jpeg, openslide_opens=opens)
        except UnreadableError as reason:
            raise _unreadable(path, slide_id, reason) from None
        except NotDirectError as reason:
            # Of files that are of neither kind OpenSlide says more than a reader that was not asked for.
            said_all = reader == "auto" and isinstance(reason, OtherKindError)
            raise SlideError(f"{refusal}" if said_all else f"{refusal}; nor is it read straight: {reason}") from None
    if reader == "openslide":
        return _read_by_openslide(slide, "it was asked to")
    try:
        ome = None if reader == "dicom" else _with_hidden_levels(slide)
        if ome is not None:
            whole = _straight_slide(
                path, slide_id, mpp_override, reader, half_scale_jpeg, openslide_opens=True, ome=ome
            )
            slide.close()
            return whole
        return _read_straight(slide, reader, half_scale_jpeg)
    except UnreadableError as reason:
        slide.close()
        raise _unreadable(path, slide_id, reason) from None
    except NotDirectError as reason:
        if reader == "auto":
            return _read_by_openslide(slide, f"{reason}")
        slide.close()
        raise SlideError(
            f"slide {slide_id!r}: {path} cannot be read by the reader {reader!r}: {reason}; leave the reader to wsimil, or"
            " name openslide"
        ) from None
    except BaseException:
        slide.close()
        raise


def _read_by_openslide(slide: OpenSlideSlide, reason: str) -> Slide:
    """The slide itself, unless OpenSlide would not read it. Raises SlideError."""
    info = slide.info
    would = why_not_left_to_openslide(info.path) if info.vendor in _ONE_GRID_VENDORS else None
    if would is not None:
        slide.close()
        raise SlideError(f"slide {info.slide_id!r}: OpenSlide would read {info.path} ({reason}) and {would}")
    return slide


def _unreadable(path: Path, slide_id: str, reason: UnreadableError) -> SlideError:
    return SlideError(f"slide {slide_id!r}: {path} cannot be read: {reason}")


def _read_straight(slide: OpenSlideSlide, reader: Reader, half_scale_jpeg: bool) -> Slide:
    """The slide that OpenSlide opened, its pixels read by another reader."""
    info = slide.info
    if info.vendor != "dicom":
        if reader == "dicom":
            raise NotDirectError(_NO_DICOM)
        levels = _tiff_levels(slide)
        return _direct(info, levels, _tiff_reader(levels), half_scale_jpeg, absent=slide)
    if reader == "tiff":
        raise NotDirectError(_NO_TIFF)
    # Loads pydicom, which slides of other kinds must not wait for.
    from wsimil.slides.dicom import read_levels as read_dicom_levels

    dicom_levels, icc_profile = read_dicom_levels(info.path, slide.level_sizes_px), slide.icc_profile
    slide.close()
    return _direct(info, dicom_levels, "dicom", half_scale_jpeg, icc_profile=icc_profile)


def _with_hidden_levels(slide: OpenSlideSlide) -> TiffPyramid | None:
    """An OME-TIFF as Bio-Formats and QuPath write it, with further levels in SubIFDs, which OpenSlide does not see."""
    if slide.info.vendor != "generic-tiff" or len(slide.level_sizes_px) > 1:
        return None
    try:
        ome = read_ome_pyramid(slide.info.path)
    except NotDirectError:
        return None
    return ome if len(ome.levels) > 1 and ome.levels[0].size_px == slide.level_sizes_px[0] else None


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


def _tiff_reader(levels: Sequence[TiffLevel], *, shown: bool = True) -> str:
    # Earlier versions showed JFIF in pages of RGB in false colors, and of an OME-TIFF what OpenSlide shows, where it opens the
    # file: with these names a rerun makes such features anew. The digest may be the same, for OpenSlide hashes no large image.
    if any(level.is_belied for level in levels):
        return "tiff-jfif"
    return "tiff" if shown else "tiff-ome"


def _straight_slide(
    path: Path,
    slide_id: str,
    mpp_override: float | None,
    reader: Reader,
    half_scale_jpeg: bool,
    *,
    openslide_opens: bool,
    ome: TiffPyramid | None = None,
) -> Slide:
    """A slide that OpenSlide does not open, or opens without showing it, or all its levels; `ome` where it was read already."""
    head, tail, size = file_ends(path, slide_id)
    levels: Sequence[JpegLevel]
    file = path
    if is_dicom(head) and reader != "tiff":
        # As above.
        from wsimil.slides.dicom import read_pyramid

        dicom = read_pyramid(path)
        file = dicom.path
        if file != path:
            head, tail, size = file_ends(file, slide_id)
        levels, properties, icc_profile = dicom.levels, dicom.properties, dicom.icc_profile
        vendor, name, hashed = "dicom", "dicom", dicom.series_uid
    elif is_tiff(head) and reader != "dicom":
        ome = ome or read_ome_pyramid(path)
        levels, properties, icc_profile = ome.levels, ome.properties, ome.icc_profile
        vendor, name, hashed = "ome-tiff", _tiff_reader(ome.levels, shown=not openslide_opens), ""
    else:
        raise OtherKindError(_NO_DICOM if reader == "dicom" else _NO_TIFF)
    resolved = resolve_mpp(properties, slide_id=slide_id, override=mpp_override)
    width, height = levels[0].size_px
    info = SlideInfo(
        slide_id=slide_id,
        path=path,
        size0_px=(width, height),
        mpp=resolved.mpp,
        mpp_source=resolved.source,
        mpp_detail=resolved.detail,
        level_downsamples=tuple(level_downsample((width, height), level.size_px) for level in levels),
        bounds0_px=(0, 0, width, height),
        vendor=vendor,
        digest=content_digest(file, slide_id, quickhash=hashed, head=head, tail=tail, size=size),
    )
    return _direct(info, levels, name, half_scale_jpeg, icc_profile=icc_profile)


def _direct(
    info: SlideInfo,
    levels: Sequence[JpegLevel],
    reader: str,
    half_scale_jpeg: bool,
    *,
    absent: OpenSlideSlide | None = None,
    icc_profile: bytes | None = None,
) -> DirectSlide:
    if not half_scale_jpeg:
        return DirectSlide(info, levels, reader=reader, absent=absent, icc_profile=icc_profile)
    more, downsamples = with_half_levels(levels, info.level_downsamples)
    info = replace(info, level_downsamples=downsamples)
    return DirectSlide(info, more, reader=reader, absent=absent, icc_profile=icc_profile)
