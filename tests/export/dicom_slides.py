"""DICOM slides of any picture, uncompressed, with what a map of them must share."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

FRAME_PX = 128


def write_dicom_slide(
    folder: Path, levels: Sequence[NDArray[np.uint8] | tuple[int, int]], *, mpp: float, **attributes: object
) -> Path:
    """One file for each level, uint8 [h, w, 3], the largest first; returns the first. `attributes` go into every header.

    A level that is only a size (w, h) has one white frame: enough for whoever reads headers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uids = generate_uid(), generate_uid(), generate_uid()
    sizes = [level if isinstance(level, tuple) else level.shape[1::-1] for level in levels]
    paths = []
    for number, (level, size_px) in enumerate(zip(levels, sizes, strict=True)):
        image = _header(size_px, mpp / 1000 * sizes[0][0] / size_px[0], number, uids)
        for name, value in attributes.items():
            setattr(image, name, value)
        frames = [b"\xff" * (FRAME_PX**2 * 3)] if isinstance(level, tuple) else _frames(level)
        image.NumberOfFrames = len(frames)
        image.PixelData = b"".join(frames)
        path = folder / f"level-{number}.dcm"
        image.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths[0]


def dicom_errors(path: Path) -> list[str]:
    """What dciodvfy of dicom3tools finds; it knows no map of a quantity by its newer term, and warns of it."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy of Debian's dicom3tools")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert "ParametricMap" in lines
    return [line for line in lines if line.startswith("Error")]


def _frames(picture: NDArray[np.uint8]) -> list[bytes]:
    height, width = picture.shape[:2]
    rows, columns = -(-height // FRAME_PX), -(-width // FRAME_PX)
    padded = np.zeros((rows * FRAME_PX, columns * FRAME_PX, 3), np.uint8)
    padded[:height, :width] = picture
    return [
        padded[y : y + FRAME_PX, x : x + FRAME_PX].tobytes()
        for y in range(0, rows * FRAME_PX, FRAME_PX)
        for x in range(0, columns * FRAME_PX, FRAME_PX)
    ]


def _header(size_px: tuple[int, ...], spacing_mm: float, number: int, uids: tuple[UID, UID, UID]) -> Dataset:
    image, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta = meta
    image.SOPClassUID = meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = uids
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Test^Slide", "T1", "19570101", "O"
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20260101", "120000", "1", "A1"
    image.ReferringPhysicianName = ""
    image.Modality, image.SeriesNumber, image.InstanceNumber = "SM", 1, number + 1
    image.Manufacturer = image.ManufacturerModelName = image.DeviceSerialNumber = image.SoftwareVersions = "none"
    image.PositionReferenceIndicator = "SLIDE_CORNER"
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if number == 0 else "RESAMPLED"]
    image.ContentDate, image.ContentTime = "20260101", "120000"
    image.AcquisitionDateTime = "20260101120000"
    image.Columns = image.Rows = FRAME_PX
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.LossyImageCompression, image.BurnedInAnnotation = "00", "NO"
    image.VolumetricProperties, image.SpecimenLabelInImage, image.FocusMethod = "VOLUME", "NO", "AUTO"
    image.ExtendedDepthOfField = "NO"
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = size_px
    image.TotalPixelMatrixFocalPlanes = image.NumberOfOpticalPaths = 1
    image.ImagedVolumeWidth, image.ImagedVolumeHeight = (side * spacing_mm for side in size_px)
    image.ImagedVolumeDepth = 1.0
    image.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 20.0, 40.0
    image.TotalPixelMatrixOriginSequence = [origin]
    image.DimensionOrganizationType = "TILED_FULL"
    image.ContainerIdentifier = "C1"
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "C1-A", "2.25.17"
    specimen.IssuerOfTheSpecimenIdentifierSequence = specimen.SpecimenPreparationSequence = []
    image.IssuerOfTheContainerIdentifierSequence = image.ContainerTypeCodeSequence = []
    image.SpecimenDescriptionSequence = [specimen]
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing_mm, spacing_mm], 0.001
    shared.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    path = Dataset()
    path.OpticalPathIdentifier, path.IlluminationColorCodeSequence = "1", []
    image.OpticalPathSequence = [path]
    return image
