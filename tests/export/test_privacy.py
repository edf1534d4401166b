"""No export holds anything of a slide but its id and its geometry."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from tests.export.dicom_slides import dicom_errors, write_dicom_slide
from wsimil.errors import SlideError
from wsimil.export.formats import FORMATS, Beside
from wsimil.export.scores import read_scores, write_scores
from wsimil.pseudonyms import Pseudonyms
from wsimil.slides import open_slide

PLANTED = b"MRS-JANE-DOE-1957"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _check(folder: Path, planted: bytes = PLANTED) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        for text in (planted, planted.decode().encode("utf-16-le"), b"/archive", str(folder).encode()):
            assert text not in content, file.name


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "dicom"])
def test_a_name_in_path_digest_and_properties_is_in_no_output(form: str, make_prediction, tmp_path: Path) -> None:
    prediction = make_prediction(n=63)
    slide = prediction.grid.slide
    assert PLANTED in f"{slide.path}{slide.mpp_detail}{slide.digest}".encode()
    write_scores(tmp_path / "s.parquet", prediction)
    table = read_scores(tmp_path / "s.parquet")
    FORMATS[form].write(tmp_path / f"s{FORMATS[form].suffix}", table, Beside(now=NOW))
    if (once := FORMATS[form].once) is not None:
        once(tmp_path)
    _check(tmp_path)


def _dicom_slide(folder: Path, **attributes: object) -> Path:
    """A slide whose header speaks of the patient wherever a map must not repeat it."""
    planted = {
        name: PLANTED.decode()
        for name in (
            "InstitutionName", "StudyDescription", "PatientComments", "OperatorsName", "PerformingPhysicianName",
            "SeriesDescription", "ProtocolName", "BarcodeValue", "LabelText", "ContainerDescription",
            "ImageComments", "RequestingPhysician",
        )
    }  # fmt: skip
    issuer, specimen = Dataset(), Dataset()
    issuer.LocalNamespaceEntityID = PLANTED.decode()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "C1-A", "2.25.17"
    specimen.SpecimenShortDescription = specimen.SpecimenDetailedDescription = PLANTED.decode()
    specimen.IssuerOfTheSpecimenIdentifierSequence = [issuer]
    specimen.SpecimenPreparationSequence = []
    attributes |= {"IssuerOfTheContainerIdentifierSequence": [issuer], "SpecimenDescriptionSequence": [specimen]}
    white = np.full((1536, 2048, 3), 255, np.uint8)
    levels = [white, np.ascontiguousarray(white[::16, ::16])]
    return write_dicom_slide(folder / PLANTED.decode(), levels, mpp=0.5, **planted, **attributes)


def test_a_dicom_map_takes_of_its_slide_only_who_it_is_which_study_and_which_glass(
    make_prediction, tmp_path: Path
) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom, which the extra 'dicom' brings")
    import pydicom

    source = _dicom_slide(tmp_path)
    with open_slide(source) as opened:
        prediction = make_prediction(size0_px=(2048, 1536), digest=opened.info.digest)
    write_scores(tmp_path / "s.parquet", prediction)
    table = read_scores(tmp_path / "s.parquet")
    FORMATS["dicom"].write(tmp_path / "maps", table, Beside(now=NOW, slide=source))
    _check(tmp_path / "maps")
    slide, made = pydicom.dcmread(source), pydicom.dcmread(tmp_path / "maps/01.dcm")
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "AccessionNumber"):
        assert made[name].value == slide[name].value
    assert made.ContainerIdentifier == slide.ContainerIdentifier
    assert made.SpecimenDescriptionSequence[0].SpecimenIdentifier == "C1-A"


def test_under_a_pseudonym_a_dicom_map_is_made_on_a_de_identified_slide_alone(make_prediction, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom, which the extra 'dicom' brings")
    import pydicom

    name = Pseudonyms(bytes(32)).name(PLANTED.decode())
    prediction = make_prediction(size0_px=(2048, 1536), slide_id=name)
    write_scores(tmp_path / "s.parquet", prediction)
    table = read_scores(tmp_path / "s.parquet")
    with pytest.raises(SlideError, match="a manifest of de-identified DICOM slides, whose slide_id are these names,"):
        FORMATS["dicom"].write(tmp_path / "maps", table, Beside(now=NOW))
    for number, said in enumerate(({}, {"PatientIdentityRemoved": "NO"})):
        identified = _dicom_slide(tmp_path / f"identified-{number}", PatientName=f"{PLANTED.decode()}^", **said)
        with pytest.raises(SlideError, match="does not say that it was de-identified") as refused:
            FORMATS["dicom"].write(tmp_path / "maps", table, Beside(now=NOW, slide=identified))
        assert PLANTED.decode() not in str(refused.value)
        assert not (tmp_path / "maps").exists()
    source = _dicom_slide(
        tmp_path / "clean",
        PatientIdentityRemoved="YES",
        DeidentificationMethod="by hand",
        PatientName="",
        PatientID="P-17",
    )
    FORMATS["dicom"].write(tmp_path / "maps", table, Beside(now=NOW, slide=source))
    _check(tmp_path / "maps")
    slide = pydicom.dcmread(source.with_name("level-1.dcm"))
    for path in (tmp_path / "maps").iterdir():
        made = pydicom.dcmread(path)
        for shared in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert made[shared].value == slide[shared].value, "or no viewer would find the slide"
        assert (made.PatientIdentityRemoved, made.DeidentificationMethod) == ("YES", "by hand")
        assert made.SeriesDescription.endswith(f" of {name}")
        assert dicom_errors(path) == []


def test_a_dicom_map_on_a_de_identified_slide_does_not_tell_the_id_of_the_slide(
    make_prediction, tmp_path: Path
) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom, which the extra 'dicom' brings")
    prediction = make_prediction(size0_px=(2048, 1536), slide_id=PLANTED.decode())
    write_scores(tmp_path / "s.parquet", prediction)
    source = _dicom_slide(
        tmp_path / "clean", PatientIdentityRemoved="YES", DeidentificationMethod="by hand", PatientName=""
    )
    table = replace(read_scores(tmp_path / "s.parquet"), slide_content="")  # the prediction is made up, and of no file
    FORMATS["dicom"].write(tmp_path / "maps", table, Beside(now=NOW, slide=source))
    _check(tmp_path / "maps")
