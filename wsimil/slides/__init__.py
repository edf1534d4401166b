"""Whole-slide images: opening, finding, reading. The library that decodes them is loaded when the first slide is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

from wsimil.errors import SlideError
from wsimil.slides.base import Slide

__all__ = ["SLIDE_SUFFIXES", "Reader", "Slide", "find_slides", "open_slide"]

Reader: TypeAlias = Literal["auto", "openslide", "tiff", "dicom"]
"""Who reads a slide: "openslide", "tiff" or "dicom" straight from compressed tiles, or "auto", the quickest that can."""

SLIDE_SUFFIXES: frozenset[str] = frozenset(
    {".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu"}
)
"""Lower-case suffixes by which `find_slides` knows a slide; `open_slide` looks at the content alone."""


def open_slide(
    path: Path,
    *,
    slide_id: str | None = None,
    mpp_override: float | None = None,
    reader: Reader = "auto",
    half_scale_jpeg: bool = False,
) -> Slide:
    """Open one slide; the id is the file's name without its suffix where none is given.

    `mpp_override` is µm per level-0 px and wins over the metadata. Readers agree at level 0 to the px; at further levels
    whose downsample is no whole number OpenSlide interpolates, and the others do not. `half_scale_jpeg` adds levels between
    those of a JPEG slide, whose px are decoded at half scale: quick, and not what the resampling of tiles gives.
    Raises SlideError: not a slide, not one for this reader, no mpp, an mpp that cannot be, pixels that are not square.
    """
    # Loads the decoders, which `import wsimil.slides` must not.
    from wsimil.slides.opening import open_with

    name = slide_id if slide_id is not None else path.stem
    return open_with(path, slide_id=name, mpp_override=mpp_override, reader=reader, half_scale_jpeg=half_scale_jpeg)


def find_slides(folder: Path) -> list[Path]:
    """Every slide below `folder`, sorted by path; hidden entries and the data folders beside .mrxs files are left out.

    A DICOM slide is the series of its files in one folder, and stands there as the file that holds its largest image. Links
    to folders are followed, each folder once. Raises SlideError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise SlideError(f"folder {error.filename} cannot be listed: {error.strerror}; check its permissions")

    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        visible = [Path(root, name) for name in names if not name.startswith(".")]
        companions = {path.stem for path in visible if path.suffix.lower() == ".mrxs"}
        folders[:] = [name for name in folders if name not in companions and not name.startswith(".")]
        found += _standing_alone([path for path in visible if path.suffix.lower() in SLIDE_SUFFIXES])
    return sorted(found)


def _standing_alone(files: list[Path]) -> list[Path]:
    """Without those that belong to the slide of another file of their folder."""
    dicom = [path for path in files if path.suffix.lower() == ".dcm"]
    if len(dicom) < 2:
        return files
    # Loads pydicom, which takes 0.2 s.
    from wsimil.slides.dicom_series import lesser_files

    lesser = lesser_files(dicom)
    return [path for path in files if path not in lesser]
