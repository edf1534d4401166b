"""Micrometres per pixel, from what a slide's metadata says or from what the user says; never from a magnification.

The chain, first plausible value wins (`metadata_mpp`):

    1  openslide.mpp-x, openslide.mpp-y                                   µm
    2  hamamatsu.PhysicalWidth, PhysicalHeight over the level-0 size      nm
    3  philips.DICOM_PIXEL_SPACING                                        mm, row spacing (y) first
    4  aperio.MPP                                                         µm
    5  dicom ... PixelSpacing                                             mm, row spacing (y) first
    6  tiff.XResolution, YResolution with tiff.ResolutionUnit             px per inch or cm
    7  OME-XML PhysicalSizeX, PhysicalSizeY in tiff.ImageDescription,     any unit of length
       of the image that is as large as level 0

Property names: https://openslide.org/properties/ and https://openslide.org/formats/; units of OME-XML:
https://www.openmicroscopy.org/Schemas/OME/2016-06/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from xml.parsers import expat

from wsimil.errors import SlideError
from wsimil.geometry import MAX_ANISOTROPY, MAX_MPP, MIN_MPP, MppSource

METADATA_DISAGREE = "metadata disagree"
"""Stands in the detail of an override that is more than 1 % off what the slide says."""

_REMEDY = "give it in the manifest's mpp column or with --mpp-override, or drop the slide"
_UM_PER_INCH, _UM_PER_CM = 25_400.0, 10_000.0
_PLACEHOLDER_DPI = (72, 96, 150, 300)
_UM_PER_UNIT = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "Å": 1e-4, "pm": 1e-6,
    "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6, "in": _UM_PER_INCH, "pt": _UM_PER_INCH / 72,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataMpp:
    """µm per level-0 px along both axes as a slide's metadata state it, and the property that said so."""

    x: float
    y: float
    prop: str

    @property
    def mean(self) -> float:
        """The one value to compute with: no axis is further from it than half the anisotropy."""
        return (self.x + self.y) / 2

    @property
    def anisotropy(self) -> float:
        """By how much the axes differ, relative to the smaller."""
        return max(self.x, self.y) / min(self.x, self.y) - 1

    @property
    def detail(self) -> str:
        """The property, and a warning where the value looks like an image program's default."""
        dpi = next((dpi for dpi in _PLACEHOLDER_DPI if abs(self.mean * dpi / _UM_PER_INCH - 1) < 1e-3), None)
        return self.prop if dpi is None else f"{self.prop}: {dpi} dpi, likely a placeholder of an image program"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedMpp:
    """The mpp of a slide, as `SlideInfo` records it."""

    mpp: float
    source: MppSource
    detail: str


def resolve_mpp(properties: Mapping[str, str], *, slide_id: str, override: float | None) -> ResolvedMpp:
    """The user's value where there is one, else the metadata's.

    Where a user's value and the metadata are more than 1 % apart, `detail` shows both. Raises SlideError where neither is
    there, where pixels are not square within 1 %, and where the override is not a positive number.
    """
    stated = metadata_mpp(properties)
    if override is not None:
        return _overridden(override, stated, slide_id)
    if stated is None:
        raise SlideError(f"slide {slide_id!r}: no mpp in metadata; {_REMEDY}")
    if stated.anisotropy > MAX_ANISOTROPY:
        raise SlideError(
            f"slide {slide_id!r}: pixels are not square: {stated.x:g} by {stated.y:g} µm (from {stated.prop}),"
            f" {stated.anisotropy:.1%} apart, wanted within {MAX_ANISOTROPY:.0%}; if the metadata are wrong, give the true mpp"
            " in the manifest's mpp column or with --mpp-override, else resample the slide to square pixels or drop it"
        )
    return ResolvedMpp(mpp=stated.mean, source="metadata", detail=stated.detail)


def metadata_mpp(properties: Mapping[str, str]) -> MetadataMpp | None:
    """The first value of the chain that is plausible for a slide; where none is, the first of all; None where none is stated."""
    stated = list(_stated(properties))
    return next((value for value in stated if MIN_MPP < value.mean < MAX_MPP), stated[0] if stated else None)


def ome_pixels(text: str) -> list[Mapping[str, str]]:
    """Attributes of every Pixels element of an OME-XML, one an image; see `ome_elements`."""
    return ome_elements(text, "Pixels")


def ome_elements(text: str, element: str) -> list[Mapping[str, str]]:
    """Attributes of every `element` of an OME-XML, in order; none where the XML is broken or declares a document type.

    OME-XML has no use for a document type, and refusing it leaves no entity to expand.
    """
    found: list[Mapping[str, str]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(":")[2] == element:
            found.append(attributes)

    def refuse(*_: object) -> None:
        raise expat.ExpatError("a document type is not part of OME-XML")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.encode(), True)
    except (expat.ExpatError, LookupError):  # the latter for an encoding that nobody knows
        return []
    return found


def _overridden(override: float, stated: MetadataMpp | None, slide_id: str) -> ResolvedMpp:
    if not (math.isfinite(override) and override > 0):
        raise SlideError(
            f"slide {slide_id!r}: an mpp of {override!r} was given; wanted a positive number of µm per pixel"
        )
    if stated is None:
        detail = "override; no mpp in metadata"
    elif max(abs(stated.x / override - 1), abs(stated.y / override - 1)) > MAX_ANISOTROPY:
        values = f"{stated.x:g}" if stated.x == stated.y else f"{stated.x:g} by {stated.y:g}"
        detail = f"override; {METADATA_DISAGREE}: {values} ({stated.detail})"
    else:
        detail = "override; metadata agree within 1 %"
    return ResolvedMpp(mpp=override, source="override", detail=detail)


def _stated(properties: Mapping[str, str]) -> Iterator[MetadataMpp]:
    sources: tuple[Callable[[Mapping[str, str]], MetadataMpp | None], ...] = (
        _openslide, _hamamatsu, _philips, _aperio, _dicom, _tiff, _ome,
    )  # fmt: skip
    for source in sources:
        value = source(properties)
        if value is not None:
            yield value


def _openslide(properties: Mapping[str, str]) -> MetadataMpp | None:
    return _pair(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"), "openslide.mpp-x")


def _hamamatsu(properties: Mapping[str, str]) -> MetadataMpp | None:
    width, height = (_number(properties.get(f"openslide.level[0].{side}")) for side in ("width", "height"))
    if width is None or height is None:
        return None
    wide, high = properties.get("hamamatsu.PhysicalWidth"), properties.get("hamamatsu.PhysicalHeight")
    return _pair(wide, high, "hamamatsu.PhysicalWidth", x_scale=1e-3 / width, y_scale=1e-3 / height)


def _philips(properties: Mapping[str, str]) -> MetadataMpp | None:
    prop = "philips.DICOM_PIXEL_SPACING"
    parts = re.findall(r"[-+.,\deE]+", properties.get(prop, ""))
    return _pair(parts[1], parts[0], prop, x_scale=1e3, y_scale=1e3) if len(parts) == 2 else None


def _aperio(properties: Mapping[str, str]) -> MetadataMpp | None:
    return _pair(properties.get("aperio.MPP"), properties.get("aperio.MPP"), "aperio.MPP")


def _dicom(properties: Mapping[str, str]) -> MetadataMpp | None:
    for prop in (
        "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing",
        "dicom.PixelSpacing",
    ):
        value = _pair(properties.get(f"{prop}[1]"), properties.get(f"{prop}[0]"), prop, x_scale=1e3, y_scale=1e3)
        if value is not None:
            return value
    return None


def _tiff(properties: Mapping[str, str]) -> MetadataMpp | None:
    um = {"inch": _UM_PER_INCH, "centimeter": _UM_PER_CM}.get(properties.get("tiff.ResolutionUnit", ""))
    x, y = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    if um is None or x is None or y is None:
        return None
    return MetadataMpp(x=um / x, y=um / y, prop="tiff.XResolution")


def _ome(properties: Mapping[str, str]) -> MetadataMpp | None:
    description = properties.get("tiff.ImageDescription", "")
    if "<OME" not in description and ":OME" not in description:
        return None
    size0 = [_number(properties.get(f"openslide.level[0].{side}")) for side in ("width", "height")]
    found = {
        tuple(pixels.get(f"PhysicalSize{name}") for name in ("X", "Y", "XUnit", "YUnit"))
        for pixels in ome_pixels(description)
        if None not in size0 and [_number(pixels.get(f"Size{axis}")) for axis in "XY"] == size0
    }
    if len(found) != 1:
        return None
    x, y, *units = found.pop()
    x_scale, y_scale = (_UM_PER_UNIT.get(unit or "µm") for unit in units)
    if x_scale is None or y_scale is None:
        return None
    return _pair(x, y, "OME PhysicalSizeX", x_scale=x_scale, y_scale=y_scale)


def _pair(x: str | None, y: str | None, prop: str, *, x_scale: float = 1.0, y_scale: float = 1.0) -> MetadataMpp | None:
    x_value, y_value = _number(x), _number(y)
    if x_value is None or y_value is None:
        return None
    return MetadataMpp(x=x_value * x_scale, y=y_value * y_scale, prop=prop)


def _number(text: str | None) -> float | None:
    """A finite positive number; scanners in some countries write a decimal comma."""
    try:
        value = float((text or "").strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
