"""Tile scores as DICOM Parametric Maps, for viewers and archives that hold the slide as DICOM.

A map lies on the px of one image of the slide's own pyramid, that near 64 level-0 px, in the same study and frame of reference:
viewers such as Slim draw it in place only so. Frames are TILED_SPARSE, and those without a scored px are left out; other px that
are not scored are NaN. Px hold what pictures show of a score; the window ends where their colors do. DICOM PS3.3, A.75
(Parametric Map) and C.7.6.17.3. Written with highdicom, Bridge et al. 2022, doi:10.1007/s10278-022-00683-y.

A map must name the patient of its study as the slide does, so name, id, birth date and sex are copied, and what else identifies
the study, the glass and its specimens; nothing else of the slide's header is. Where that says that the slide was de-identified,
the map leaves out the slide's id, too, unless it is a pseudonym. A table under a pseudonym therefore gets a map on a slide alone
whose header says that it was de-identified. A map of such a table with ids of its own would be of no use: no viewer would find
the slide that it lies on, which is found by study and frame of reference.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from math import log
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsimil import __version__
from wsimil.errors import ConfigError, SlideError
from wsimil.export.heatmap import display_range
from wsimil.export.raster import area_mean, point_mean
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import Shown, shown
from wsimil.files import atomic_directory
from wsimil.provenance import canonical_json
from wsimil.pseudonyms import is_pseudonym
from wsimil.slides import open_slide
from wsimil.slides.stored_tiles import NotDirectError

if TYPE_CHECKING:
    from highdicom import PixelMeasuresSequence, PlanePositionSequence
    from pydicom import Dataset

_NEAR = 64
_FRAME_PX = 128
_MOST_PX = 2**25
_OWN: Mapping[str, tuple[float, float]] = MappingProxyType({})
_KEPT = frozenset(
    {
        # Who, and which study: as the slide says it, for it is one study.
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
        "StudyID", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator",
        "SpecificCharacterSet", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
        # Which image the map was made of, and where it lies.
        "ReferencedSeriesSequence", "SourceImageSequence", "TotalPixelMatrixColumns", "TotalPixelMatrixRows",
        "TotalPixelMatrixOriginSequence", "TotalPixelMatrixFocalPlanes", "ImageOrientationSlide",
        "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
        # The map itself.
        "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "InstanceNumber",
        "Modality", "Laterality", "ImageType", "ContentDate", "ContentTime", "InstanceCreationDate",
        "InstanceCreationTime", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
        "ContentQualification", "ContentLabel", "ContentDescription", "ContentCreatorName", "PixelPresentation",
        "DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionOrganizationType", "SamplesPerPixel",
        "NumberOfFrames", "Rows", "Columns", "PhotometricInterpretation", "BitsAllocated",
        "FloatPixelData", "BurnedInAnnotation", "RecognizableVisualFeatures",
        "AcquisitionContextSequence", "PresentationLUTShape", "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
    }
)  # fmt: skip
"""All that a map may hold, besides which glass it is of; whatever else was copied of the slide is dropped."""


_SHARED = ("StudyInstanceUID", "FrameOfReferenceUID", "TotalPixelMatrixOriginSequence", "ImageOrientationSlide")
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
)  # fmt: skip


def write_parametric_maps(
    folder: Path,
    table: ScoreTable,
    slide: Path,
    *,
    now: datetime,
    scores: tuple[str, ...] = (),
    spans: Mapping[str, tuple[float, float]] = _OWN,
) -> None:
    """Write a folder with one map, a series of its own, for each of `scores` (all of the table if none is named), atomically.

    Viewers take the instances of one series for the parts of one map, and refuse two that are as large.
    Values are those that `shown` makes of a score. Windows end where `spans` says of it, the same on every slide of a cohort, and
    at this slide's own range where it says nothing.
    `slide` is a file of the DICOM series that was scored. Raises SlideError where it is none, or another slide, or has no image
    coarse enough; ConfigError where highdicom is not installed; KeyError where the table has no such score; OutputError.
    """
    _require_highdicom()
    names = scores or table.score_names
    values = [shown(table, name) for name in names]
    image, size_px = _image(table, slide)
    with atomic_directory(folder) as temporary:
        for number, (name, one) in enumerate(zip(names, values, strict=True), start=1):
            window = _window(one, spans.get(name))
            made = _map(table, name, one, window, image, size_px, number=number, now=now)
            made.save_as(temporary / f"{number:02}.dcm", enforce_file_format=True)


def _require_highdicom() -> None:
    try:
        import highdicom  # noqa: F401  # takes a second, and is an extra
    except ImportError:
        raise ConfigError(
            "DICOM is written with highdicom, which is not installed: pip install 'wsimil[dicom]', or leave out dicom"
        ) from None


def _image(table: ScoreTable, slide: Path) -> tuple[Dataset, tuple[int, int]]:
    """The header of the image that the map will lie on, and its size."""
    from pydicom import dcmread

    from wsimil.slides.dicom import read_images

    where = f"slide {table.slide_id!r}"
    try:
        images = read_images(slide)
    except NotDirectError as reason:
        raise SlideError(
            f"{where}: a DICOM map can only be made for a slide that is DICOM itself, with which it shares study and frame of"
            f" reference ({reason}); convert the slide first, for example with wsidicomizer, or leave out dicom"
        ) from None
    if images[0].size_px != table.slide_size0_px:
        raise SlideError(
            f"{where}: the DICOM slide is {images[0].size_px[0]} x {images[0].size_px[1]} px, the scores are of one of"
            f" {table.slide_size0_px[0]} x {table.slide_size0_px[1]} px; give the slide that was scored"
        )
    if table.slide_content:
        with open_slide(slide, slide_id=table.slide_id, mpp_override=table.mpp) as opened:
            other = table.other_content(opened.info.digest)
        if other is not None:
            raise SlideError(other)
    width = table.slide_size0_px[0]
    usable = [image for image in images if image.size_px[0] * image.size_px[1] <= _MOST_PX]
    if not usable:
        raise SlideError(
            f"{where}: its smallest image has {images[-1].size_px[0]} x {images[-1].size_px[1]} px, too many for a map; wanted a"
            " pyramid: convert the slide with one, or leave out dicom"
        )
    chosen = min(usable, key=lambda image: abs(log(width / image.size_px[0] / _NEAR)))
    header = dcmread(chosen.path, stop_before_pixels=True)
    if is_pseudonym(table.slide_id) and header.get("PatientIdentityRemoved") != "YES":
        raise SlideError(
            f"{where}: a DICOM map repeats patient and study of its slide, or no viewer would find the slide, and the header of"
            " this one does not say that it was de-identified (PatientIdentityRemoved YES), so no map is made of it under a"
            " pseudonym; give --slides a manifest of de-identified DICOM slides with these names as slide_id, or take ome-tiff,"
            " which refers to no slide"
        )
    lacking = [name for name in _SHARED if name not in header]
    if not _stated_measures(header).get("PixelSpacing"):
        lacking.append("PixelSpacing")
    if lacking:
        raise SlideError(
            f"{where}: the header of its DICOM image does not state {', '.join(lacking)}, which a map must share; convert the"
            " slide again, or leave out dicom"
        )
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    return header, chosen.size_px


def _explained(one: Shown) -> str:
    """First what must not be cut off: of signed values the unit, of weights that they are no evidence."""
    unit = one.reading.partition("; ")[0]
    return ": ".join(filter(None, (unit, one.label) if one.kind == "signed" else (one.label, unit)))


def _on_image(table: ScoreTable, values: NDArray[np.float32], size_px: tuple[int, int]) -> NDArray[np.float32]:
    """float32 [h, w]: each px has the mean of the tiles on its middle, or of those on it where tiles are smaller than it."""
    scale = np.array(size_px) / np.array(table.slide_size0_px)
    side = table.size0 * scale
    mean = point_mean if side.min() >= 1 else area_mean
    return mean(table.xy0 * scale, (float(side[0]), float(side[1])), values, (size_px[1], size_px[0]))


def _map(
    table: ScoreTable,
    name: str,
    one: Shown,
    window: _Window,
    image: Dataset,
    size_px: tuple[int, int],
    *,
    number: int,
    now: datetime,
) -> Dataset:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    frames, corners = _frames(_on_image(table, one.values, size_px))
    if not corners:
        raise SlideError(f"slide {table.slide_id!r}: no tile has the score {name!r}, so there is no map of it")
    meaning = hd.pm.RealWorldValueMapping(
        lut_label=_label(name),
        lut_explanation=_text(_explained(one), 64),
        value_range=_range(one.values, window),
        slope=1.0,
        intercept=0.0,
        unit=codes.UCUM.NoUnits,
        quantity_definition=codes.DCM.ClassActivation,
    )
    made = hd.pm.ParametricMap(
        source_images=[image],
        pixel_array=frames,
        series_instance_uid=_uid(table, image, f"{name} series of"),
        series_number=_series_number(image) + number,
        sop_instance_uid=_uid(table, image, name, one.values),
        instance_number=number,
        manufacturer="wsimil",
        manufacturer_model_name="wsimil",
        software_versions=__version__,
        device_serial_number=str(table.model.get("digest", "0"))[:64],
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        voi_lut_transformations=[
            hd.VOILUTTransformation(
                # As lists of one: a text by itself is taken for a list of letters.
                window_center=[window.center],
                window_width=[window.width],
                window_explanation=[window.explanation],
                voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,
            )
        ],
        content_label="HEATMAP",
        content_description=_text(f"{name}, research use only", 64),
        content_qualification="RESEARCH",
        pixel_measures=_measures(image),
        plane_positions=_positions(image, corners),
        dimension_organization_type="TILED_SPARSE",
        specific_character_set="ISO_IR 192",
        series_description=_text(_series(table, image, name), 64),
    )
    _complete(made, table, image, name, now)
    return made


def _complete(made: Dataset, table: ScoreTable, image: Dataset, name: str, now: datetime) -> None:
    """Say what was left out, keep to `_KEPT`, and take chance and time out of what is written."""
    # As large as the image, not as the tiles that are there.
    made.TotalPixelMatrixColumns, made.TotalPixelMatrixRows = (
        image.TotalPixelMatrixColumns,
        image.TotalPixelMatrixRows,
    )
    made.TotalPixelMatrixOriginSequence = image.TotalPixelMatrixOriginSequence
    made.Laterality = image.get("Laterality", "")
    made.ContentDate = made.InstanceCreationDate = now.strftime("%Y%m%d")
    made.ContentTime = made.InstanceCreationTime = now.strftime("%H%M%S")
    dimensions = _uid(table, image, f"{name} dimensions of")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    for element in list(made):
        if element.keyword not in _KEPT:
            del made[element.tag]
    _name_glass(made, image)


def _name_glass(made: Dataset, image: Dataset) -> None:
    """Ids of the container and its specimens, or neither: Slim draws a map on the slide of the same container alone.

    Who gave the ids, where a specimen is from and how it was prepared is left out.
    """
    from pydicom import Dataset

    specimens = [one for one in image.get("SpecimenDescriptionSequence") or () if one.get("SpecimenIdentifier")]
    if not image.get("ContainerIdentifier") or not specimens or not all(one.get("SpecimenUID") for one in specimens):
        return
    named = [Dataset() for _ in specimens]
    for ours, theirs in zip(named, specimens, strict=True):
        ours.SpecimenIdentifier, ours.SpecimenUID = theirs.SpecimenIdentifier, theirs.SpecimenUID
        ours.IssuerOfTheSpecimenIdentifierSequence = ours.SpecimenPreparationSequence = []
    made.ContainerIdentifier = image.ContainerIdentifier
    made.IssuerOfTheContainerIdentifierSequence = made.ContainerTypeCodeSequence = []
    made.SpecimenDescriptionSequence = named
    # Of an image that names its specimens it may not be said.
    del made.Laterality


def _frames(matrix: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
    """The parts with at least one scored px, float32 [n, t, t], and the corner (x, y) of each."""
    side = min(_FRAME_PX, max(matrix.shape))
    frames: list[NDArray[np.float32]] = []
    corners: list[tuple[int, int]] = []
    for y in range(0, matrix.shape[0], side):
        for x in range(0, matrix.shape[1], side):
            part = matrix[y : y + side, x : x + side]
            if np.isnan(part).all():
                continue
            frame = np.full((side, side), np.nan, np.float32)
            frame[: part.shape[0], : part.shape[1]] = part
            frames.append(frame)
            corners.append((x, y))
    return np.array(frames, np.float32), corners


def _positions(image: Dataset, corners: list[tuple[int, int]]) -> list[PlanePositionSequence]:
    """Where the first px of each frame lies on the glass: as far along rows and columns as in the image, from its origin on."""
    from highdicom import CoordinateSystemNames, PlanePositionSequence

    origin = image.TotalPixelMatrixOriginSequence[0]
    start = np.array([*(float(origin[f"{axis}OffsetInSlideCoordinateSystem"].value) for axis in "XY"), 0.0])
    row_step, column_step = (float(step) for step in _measures(image)[0].PixelSpacing)
    along = np.array([float(cosine) for cosine in image.ImageOrientationSlide])
    return [
        PlanePositionSequence(
            coordinate_system=CoordinateSystemNames.SLIDE,
            image_position=tuple(start + along[:3] * x * column_step + along[3:] * y * row_step),
            pixel_matrix_position=(x + 1, y + 1),
        )
        for x, y in corners
    ]


def _stated_measures(image: Dataset) -> Dataset:
    """What is said of all frames' px; empty where nothing is."""
    from pydicom import Dataset

    for name in ("SharedFunctionalGroupsSequence", "PixelMeasuresSequence"):
        image = next(iter(image.get(name) or ()), Dataset())
    return image


def _measures(image: Dataset) -> PixelMeasuresSequence:
    from highdicom import PixelMeasuresSequence

    measures = _stated_measures(image)
    # DICOM asks for the thickness of the section, which some slides state only as the depth of their volume, in µm.
    thickness = measures.get("SliceThickness") or float(image.get("ImagedVolumeDepth") or 0) / 1000
    return PixelMeasuresSequence(
        pixel_spacing=[float(step) for step in measures.PixelSpacing], slice_thickness=float(thickness)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """Which values a viewer shall show, and why these."""

    center: float
    width: float
    explanation: str


def _window(one: Shown, span: tuple[float, float] | None) -> _Window:
    low, high = span or display_range(one.values, one.kind)
    whose = "this slide's own range" if span is None else "one range for all slides"
    return _Window(center=(low + high) / 2, width=high - low, explanation=whose)


def _range(values: NDArray[np.float32], window: _Window) -> tuple[float, float]:
    """Of all values and the whole window: viewers write its ends beside the colors, which end where the window does."""
    low, high = window.center - window.width / 2, window.center + window.width / 2
    return min(low, float(np.nanmin(values))), max(high, float(np.nanmax(values)))


def _label(name: str) -> str:
    """A score's name in 16 bytes, whose kind is cut before the output that it is of: legends show no more."""
    kind, _, of = name.partition(":")
    if not of:
        return _text(kind, 16)
    of = _text(of, 12)
    return f"{_text(kind, 64)[: 15 - len(of.encode())]}:{of}"


def _uid(table: ScoreTable, image: Dataset, name: str, *values: NDArray[np.float32]) -> str:
    """The same for the same scores of the same image, so that an archive that is given them again keeps one."""
    about = (image.SOPInstanceUID, name, __version__, canonical_json(dict(table.model)))
    digest = sha256("\n".join(about).encode())
    for array in (table.xy0, table.scores, table.logits, *values):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"2.25.{uuid.UUID(bytes=digest.digest()[:16], version=5).int}"


def _series(table: ScoreTable, image: Dataset, name: str) -> str:
    """What the series is called: an id is often that of a patient, which has no place in a study without identities."""
    named = is_pseudonym(table.slide_id) or image.get("PatientIdentityRemoved") != "YES"
    return f"wsimil {name} of {table.slide_id}" if named else f"wsimil {name}"


def _series_number(image: Dataset) -> int:
    return int(image.get("SeriesNumber") or 0) + 1000


def _text(text: str, most: int) -> str:
    """As a long string may be: no control characters, no backslash, which would part it in two, not more bytes than `most`."""
    clean = "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in text).strip()
    data = clean.encode("utf-8")
    return clean if len(data) <= most else data[: most - 3].decode("utf-8", "ignore") + "..."
