"""Parametric Maps: as highdicom and dciodvfy see them, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from tests.export.dicom_slides import dicom_errors, write_dicom_slide
from wsimil.errors import SlideError
from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.prediction import Prediction
from wsimil.export import scores
from wsimil.export.heatmap import display_range
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import shown
from wsimil.slides import open_slide

hd = pytest.importorskip("highdicom", reason="needs highdicom, which the extra 'dicom' brings")

from wsimil.export.dicom import write_parametric_maps  # noqa: E402  # as above

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SIZE = (4096, 3072)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [SIZE, (1024, 768), (256, 192), (64, 48)]
    return write_dicom_slide(tmp_path_factory.mktemp("slide"), sizes, mpp=0.5)


def score_table(prediction: Prediction) -> ScoreTable:
    """Scores of any file of their size: predictions here are made up, and no file is the one that they are of."""
    return dataclasses.replace(scores.score_table(prediction), slide_content="")


def _maps(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def _some(table: ScoreTable) -> ScoreTable:
    scores = table.scores.copy()
    scores[table.xy0[:, 0] > 700] = np.nan
    return dataclasses.replace(table, scores=scores)


def test_dciodvfy_finds_no_error(make_prediction, slide: Path, tmp_path: Path) -> None:
    names = ("normal", 'a\\b^=\n"<script>日本語' + "x" * 300)
    table = score_table(make_prediction(size0_px=SIZE, classes=names, slide_id="../" + "y" * 300))
    write_parametric_maps(tmp_path / "maps", table, slide, now=NOW)
    paths = sorted((tmp_path / "maps").iterdir())
    assert [path.name for path in paths] == ["01.dcm", "02.dcm", "03.dcm"]
    assert [dicom_errors(path) for path in paths] == [[], [], []]


def test_a_map_shares_the_study_and_the_geometry_of_the_image_near_64(make_prediction, slide, tmp_path: Path) -> None:
    write_parametric_maps(tmp_path / "maps", score_table(make_prediction(size0_px=SIZE)), slide, now=NOW)
    image = pydicom.dcmread(slide.with_name("level-3.dcm"))
    for made in _maps(tmp_path / "maps"):
        for name in (
            "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "TotalPixelMatrixColumns", "TotalPixelMatrixRows",
            "TotalPixelMatrixOriginSequence", "ImageOrientationSlide", "ContainerIdentifier",
        ):  # fmt: skip
            assert made[name].value == image[name].value
        groups, theirs = made.SharedFunctionalGroupsSequence[0], image.SharedFunctionalGroupsSequence[0]
        assert groups.PixelMeasuresSequence[0].PixelSpacing == theirs.PixelMeasuresSequence[0].PixelSpacing
        assert groups.FrameVOILUTSequence[0].WindowWidth > 0
        assert groups.RealWorldValueMappingSequence[0].RealWorldValueSlope == 1
        assert groups.RealWorldValueMappingSequence[0].RealWorldValueIntercept == 0
        assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert (made.ContentLabel, made.ContentQualification) == ("HEATMAP", "RESEARCH")
        assert made.DimensionOrganizationType == "TILED_SPARSE"


def test_each_map_is_a_series_of_its_own(make_prediction, slide, tmp_path: Path) -> None:
    """Slim refused a series of several maps, for it takes instances of one size for parts of one image."""
    write_parametric_maps(tmp_path / "maps", score_table(make_prediction(size0_px=SIZE)), slide, now=NOW)
    maps, image = _maps(tmp_path / "maps"), pydicom.dcmread(slide)
    for name in ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription"):
        assert len({made[name].value for made in maps} | {image.get(name)}) == 4
    assert maps[0].SeriesDescription == "wsimil attention of slide-001"


def test_a_map_names_the_glass_and_its_specimens_or_leaves_both_out(make_prediction, tmp_path: Path) -> None:
    """Slim skips a map whose container is not that of the slide; the standard has no container without its specimens."""
    for name, specimens in (("named", None), ("bare", [])):
        source = write_dicom_slide(tmp_path / name, [SIZE, (64, 48)], mpp=0.5)
        image = pydicom.dcmread(source.with_name("level-1.dcm"))
        if specimens is not None:
            image.SpecimenDescriptionSequence = specimens
            image.save_as(source.with_name("level-1.dcm"))
        maps = tmp_path / f"maps-{name}"
        write_parametric_maps(maps, score_table(make_prediction(size0_px=SIZE)), source, now=NOW, scores=("attention",))
        (made,) = _maps(maps)
        assert made.get("ContainerIdentifier") == (None if name == "bare" else "C1")
        found = [(one.SpecimenIdentifier, one.SpecimenUID) for one in made.get("SpecimenDescriptionSequence", ())]
        assert found == ([] if name == "bare" else [("C1-A", "2.25.17")])
        assert dicom_errors(maps / "01.dcm") == []


def test_a_px_is_what_is_shown_of_the_tile_on_its_middle_and_nan_elsewhere(make_prediction, slide, tmp_path) -> None:
    table = _some(score_table(make_prediction(size0_px=SIZE, mpp=0.5, size_px=256)))
    write_parametric_maps(tmp_path / "maps", table, slide, now=NOW)
    for number, name in enumerate(table.score_names, start=1):
        matrix = hd.imread(tmp_path / "maps" / f"{number:02}.dcm").get_total_pixel_matrix(dtype=np.float64)
        there = np.full((48, 64), np.nan)
        for (x, y), value in zip(table.xy0 // 64, shown(table, name).values, strict=True):
            there[y : y + 4, x : x + 4] = value
        assert np.array_equal(matrix, there, equal_nan=True)


def test_a_px_has_the_tile_on_its_middle_where_sides_are_rounded_and_tiles_end_within_it(
    make_prediction, tmp_path: Path
) -> None:
    source = write_dicom_slide(tmp_path / "slide", [SIZE, (64, 47)], mpp=0.5)
    table = _some(score_table(make_prediction(size0_px=SIZE, size_px=100)))
    write_parametric_maps(tmp_path / "maps", table, source, now=NOW, scores=("attention",))
    matrix = hd.imread(tmp_path / "maps/01.dcm").get_total_pixel_matrix(dtype=np.float64)
    board = np.full((3100, 4100), np.nan)
    for (x, y), value in zip(table.xy0, shown(table, "attention").values, strict=True):
        board[y : y + 100, x : x + 100] = value
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in ((47, 3072), (64, 4096)))
    assert np.array_equal(matrix, board[np.ix_(rows, columns)], equal_nan=True)


def test_a_px_is_the_mean_of_the_tiles_on_it_where_they_are_smaller(make_prediction, slide, tmp_path: Path) -> None:
    table = score_table(make_prediction(size0_px=SIZE, size_px=16))
    write_parametric_maps(tmp_path / "maps", table, slide, now=NOW, scores=("attention",))
    matrix = hd.imread(tmp_path / "maps/01.dcm").get_total_pixel_matrix(dtype=np.float64)
    values = shown(table, "attention").values.reshape(48, 4, 64, 4)
    np.testing.assert_allclose(matrix, values.mean(axis=(1, 3), dtype=np.float64), rtol=1e-6)


def test_frames_lie_as_far_along_rows_and_columns_as_the_image_says(make_prediction, tmp_path: Path) -> None:
    source = write_dicom_slide(tmp_path / "slide", [(40_960, 20_480), (640, 320)], mpp=0.5)
    image = pydicom.dcmread(source.with_name("level-1.dcm"))
    # Rows are as far apart as the first number says, columns as the second.
    image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.0320, 0.0322]
    image.SeriesNumber = 7
    image.save_as(source.with_name("level-1.dcm"))
    table = score_table(make_prediction(size0_px=(40_960, 20_480), size_px=512))
    write_parametric_maps(tmp_path / "maps", table, source, now=NOW, scores=("attention",))
    (made,) = _maps(tmp_path / "maps")
    assert made.SeriesNumber == 1008
    for frame in made.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSlideSequence[0]
        column, row = place.ColumnPositionInTotalImagePixelMatrix, place.RowPositionInTotalImagePixelMatrix
        assert place.YOffsetInSlideCoordinateSystem == pytest.approx(40 - (column - 1) * 0.0322, abs=1e-6)
        assert place.XOffsetInSlideCoordinateSystem == pytest.approx(20 - (row - 1) * 0.0320, abs=1e-6)


def test_windows_end_where_the_colors_of_pictures_do(make_prediction, slide, tmp_path) -> None:
    table = _some(score_table(make_prediction(size0_px=SIZE)))
    spans = {"attention": (0.0, 3.0), "contribution:normal": (-2.5, 2.5)}
    write_parametric_maps(tmp_path / "maps", table, slide, now=NOW, spans=spans)
    for made, name in zip(_maps(tmp_path / "maps"), table.score_names, strict=True):
        window = made.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
        low, high = (window.WindowCenter + half * window.WindowWidth / 2 for half in (-1, 1))
        values = shown(table, name).values
        assert (low, high) == pytest.approx(spans.get(name) or display_range(values, "signed"))
        said = "one range for all slides" if name in spans else "this slide's own range"
        assert window.WindowCenterWidthExplanation == said
        (meaning,) = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
        of = name.partition(":")[2]
        wanted = (
            f"log-odds: contribution to {of}"
            if of
            else "attention (not evidence), uniform = 1: share of all attention..."
        )
        assert meaning.LUTExplanation == wanted
        px = hd.imread(tmp_path / "maps" / f"{made.InstanceNumber:02}.dcm").get_total_pixel_matrix(dtype=np.float64)
        assert np.nanmax(px) == np.nanmax(values)
        assert dicom_errors(tmp_path / "maps" / f"{made.InstanceNumber:02}.dcm") == []


def test_a_legend_shows_which_score_it_is_of_and_no_narrower_range_than_the_colors(
    make_prediction, slide, tmp_path
) -> None:
    """Slim writes the label and the ends of the mapping on the bar of colors, and no more; every map was a "score"."""
    names = ("normal", "a\\b of 日本語", "x" * 99)
    table = score_table(make_prediction(size0_px=SIZE, classes=names))
    spans = {"attention": (0.0, 99.0), "contribution:normal": (-1e-3, 1e-3)}
    write_parametric_maps(tmp_path / "maps", table, slide, now=NOW, spans=spans)
    labels = []
    for made, name in zip(_maps(tmp_path / "maps"), table.score_names, strict=True):
        groups = made.SharedFunctionalGroupsSequence[0]
        window, (meaning,) = groups.FrameVOILUTSequence[0], groups.RealWorldValueMappingSequence
        low, high = (window.WindowCenter + half * window.WindowWidth / 2 for half in (-1, 1))
        values = shown(table, name).values
        ends = meaning.DoubleFloatRealWorldValueFirstValueMapped, meaning.DoubleFloatRealWorldValueLastValueMapped
        assert ends == pytest.approx((min(low, values.min()), max(high, values.max())))
        labels.append(meaning.LUTLabel)
        assert dicom_errors(tmp_path / "maps" / f"{made.InstanceNumber:02}.dcm") == []
    assert labels[:2] == ["attention", "contribut:normal"]
    assert labels[2:] == ["contr:a b of ...", "con:xxxxxxxxx..."]


def test_frames_without_a_scored_px_are_left_out_and_the_others_lie_where_they_belong(
    make_prediction, tmp_path
) -> None:
    large = write_dicom_slide(tmp_path / "large", [(40_960, 20_480), (640, 320)], mpp=0.5)
    table = score_table(make_prediction(size0_px=(40_960, 20_480), size_px=512))
    scores = table.scores.copy()
    scores[(table.xy0[:, 0] < 20_480) | (table.xy0[:, 1] < 10_240)] = np.nan
    write_parametric_maps(
        tmp_path / "maps", dataclasses.replace(table, scores=scores), large, now=NOW, scores=("attention",)
    )
    (made,) = _maps(tmp_path / "maps")
    assert (made.NumberOfFrames, made.Rows, made.Columns) == (6, 128, 128)
    step = 0.5 / 1000 * 64
    for frame in made.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSlideSequence[0]
        column, row = place.ColumnPositionInTotalImagePixelMatrix, place.RowPositionInTotalImagePixelMatrix
        assert column > 128
        assert row > 128
        # ImageOrientationSlide is (0, -1, 0, -1, 0, 0): rows run along -y of the glass, columns along -x.
        assert place.YOffsetInSlideCoordinateSystem == pytest.approx(40 - (column - 1) * step, abs=1e-6)
        assert place.XOffsetInSlideCoordinateSystem == pytest.approx(20 - (row - 1) * step, abs=1e-6)
    assert dicom_errors(tmp_path / "maps/01.dcm") == []


def test_the_same_scores_give_the_same_bytes_and_ids_and_others_give_others(make_prediction, slide, tmp_path) -> None:
    table = score_table(make_prediction(size0_px=SIZE))
    for name in ("a", "b"):
        write_parametric_maps(tmp_path / name, table, slide, now=NOW)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    temperature = Calibration(kind="temperature", classes=2, fitted_on="val", rows=9, temperature=2.0)
    others = {
        "c": {"scores": table.scores * 2},
        "d": {"model": {**table.model, "calibration": temperature.to_json()}},  # shown as half of it
        "e": {"logits": table.logits + 1},
    }
    for name, facts in others.items():
        write_parametric_maps(tmp_path / name, dataclasses.replace(table, **facts), slide, now=NOW)
    uids = [made.SOPInstanceUID for name in ("a", *others) for made in _maps(tmp_path / name)]
    assert len(set(uids)) == 3 * 4


def test_a_slide_that_is_no_dicom_or_another_one_is_refused(make_prediction, make_slide, slide, tmp_path: Path) -> None:
    table = score_table(make_prediction(size0_px=SIZE))
    tiff = make_slide(tmp_path / "slide.tiff")
    with pytest.raises(SlideError, match=r"slide that is DICOM itself.*wsidicomizer"):
        write_parametric_maps(tmp_path / "maps", table, tiff, now=NOW)
    other = score_table(make_prediction(size0_px=(4000, 3072)))
    with pytest.raises(SlideError, match="4096 x 3072 px, the scores are of one of 4000 x 3072 px"):
        write_parametric_maps(tmp_path / "maps", other, slide, now=NOW)
    flat = write_dicom_slide(tmp_path / "flat", [(40_000, 30_000)], mpp=0.5)
    with pytest.raises(SlideError, match="wanted a pyramid"):
        write_parametric_maps(tmp_path / "maps", score_table(make_prediction(size0_px=(40_000, 30_000))), flat, now=NOW)
    nothing = dataclasses.replace(table, scores=np.full_like(table.scores, np.nan))
    with pytest.raises(SlideError, match="no tile has the score"):
        write_parametric_maps(tmp_path / "maps", nothing, slide, now=NOW, scores=("contribution:tumor",))
    assert not (tmp_path / "maps").exists()


def test_text_of_any_script_is_kept_also_that_of_the_slide(make_prediction, tmp_path: Path) -> None:
    source = write_dicom_slide(
        tmp_path / "slide", [SIZE, (64, 48)], mpp=0.5, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"
    )
    table = score_table(make_prediction(size0_px=SIZE, slide_id="日本語"))
    write_parametric_maps(tmp_path / "maps", table, source, now=NOW, scores=("attention",))
    (made,) = _maps(tmp_path / "maps")
    assert made.PatientName == "Müller^Jörg"
    assert made.SeriesDescription == "wsimil attention of 日本語"


def test_a_slide_whose_header_lacks_what_a_map_must_share_is_refused_by_name(make_prediction, tmp_path: Path) -> None:
    source = write_dicom_slide(tmp_path / "slide", [SIZE, (64, 48)], mpp=0.5)
    image = pydicom.dcmread(source.with_name("level-1.dcm"))
    # Patients may be unknown, frames may not.
    del image.FrameOfReferenceUID, image.PatientID
    image.save_as(source.with_name("level-1.dcm"))
    with pytest.raises(SlideError, match="does not state FrameOfReferenceUID, which a map must share"):
        write_parametric_maps(tmp_path / "maps", score_table(make_prediction(size0_px=SIZE)), source, now=NOW)


def _groups(*measures: Dataset) -> list[Dataset]:
    groups = Dataset()
    groups.PixelMeasuresSequence = list(measures)
    return [groups]


def _thickness_alone() -> Dataset:
    measures = Dataset()
    measures.SliceThickness = 0.001
    return measures


@pytest.mark.parametrize(
    "groups",
    [[], [Dataset()], _groups(), _groups(_thickness_alone())],
    ids=["no groups", "groups without measures", "no measures", "thickness alone"],
)
def test_a_slide_without_a_spacing_is_refused_by_name(groups: list[Dataset], make_prediction, tmp_path: Path) -> None:
    """It may be scored with an mpp from the user; it ended the export of all slides."""
    levels = [SIZE, (64, 48)]
    source = write_dicom_slide(tmp_path / "slide", levels, mpp=0.5, SharedFunctionalGroupsSequence=groups)
    with pytest.raises(SlideError, match="does not state PixelSpacing, which a map must share"):
        write_parametric_maps(tmp_path / "maps", score_table(make_prediction(size0_px=SIZE)), source, now=NOW)


@pytest.mark.parametrize("name", ["highdicom_sm_image.dcm", "highdicom_sm_image_jpegls.dcm"])
@pytest.mark.shared
def test_slides_of_other_programs_get_maps_that_dciodvfy_passes(
    name: str, shared_dir, make_prediction, tmp_path
) -> None:
    source = tmp_path / name
    shutil.copy(shared_dir / "data/slides" / name, source)
    header = pydicom.dcmread(source, stop_before_pixels=True)
    size = (header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows)
    mpp = float(header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]) * 1000
    table = score_table(make_prediction(size0_px=size, mpp=mpp, size_px=8, tile_mpp=mpp))
    write_parametric_maps(tmp_path / "maps", table, source, now=NOW, scores=("attention",))
    assert dicom_errors(tmp_path / "maps/01.dcm") == []
    matrix = hd.imread(tmp_path / "maps/01.dcm").get_total_pixel_matrix(dtype=np.float64)
    assert matrix.shape == size[::-1]
    assert np.isfinite(matrix).all()


@pytest.mark.shared
def test_a_slide_without_an_origin_on_the_glass_is_refused(shared_dir, make_prediction, tmp_path: Path) -> None:
    source = shared_dir / "data/slides/camelyon-lowres-jpeg.dcm"
    header = pydicom.dcmread(source, stop_before_pixels=True)
    size = (header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows)
    with pytest.raises(SlideError, match="does not state TotalPixelMatrixOriginSequence, which a map must share"):
        write_parametric_maps(tmp_path / "maps", score_table(make_prediction(size0_px=size)), source, now=NOW)


def test_no_map_is_laid_on_an_image_of_another_shape(make_prediction, tmp_path: Path) -> None:
    """Where no content is known, as under a pseudonym, the slide itself is not opened."""
    source = write_dicom_slide(tmp_path / "slide", [SIZE, (256, 192), (64, 64)], mpp=0.5)
    write_parametric_maps(tmp_path / "maps", score_table(make_prediction(size0_px=SIZE)), source, now=NOW)
    for made in _maps(tmp_path / "maps"):
        assert (made.TotalPixelMatrixColumns, made.TotalPixelMatrixRows) == (256, 192)


def test_a_slide_of_two_pieces_of_tissue_gets_no_map(make_prediction, tmp_path: Path) -> None:
    source = write_dicom_slide(tmp_path / "slide", [(1024, 768), (64, 48), (600, 600)], mpp=0.5)
    table = score_table(make_prediction(size0_px=(1024, 768)))
    with pytest.raises(SlideError, match="images of 1024 x 768 and 600 x 600 px are not of one shape"):
        write_parametric_maps(tmp_path / "maps", table, source, now=NOW)


def test_another_slide_of_the_same_size_is_refused(make_prediction, tmp_path: Path) -> None:
    """In the study of another patient a map would pass for theirs."""
    pictures = [np.full((1536, 2048, 3), shade, np.uint8) for shade in (200, 210)]
    scored, other = (
        write_dicom_slide(tmp_path / f"{number}", [picture, np.ascontiguousarray(picture[::16, ::16])], mpp=0.5)
        for number, picture in enumerate(pictures)
    )
    with open_slide(scored) as opened:
        content = scores.hashed_content(opened.info.digest)
    table = dataclasses.replace(score_table(make_prediction(size0_px=(2048, 1536))), slide_content=content)
    write_parametric_maps(tmp_path / "right", table, scored, now=NOW)
    with pytest.raises(SlideError, match=f"scores are of one of {content[:12]}; it is another slide"):
        write_parametric_maps(tmp_path / "wrong", table, other, now=NOW)
    assert not (tmp_path / "wrong").exists()
