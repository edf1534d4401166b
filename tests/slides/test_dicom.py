"""DICOM slides read from their frames: as OpenSlide reads them, and where it does not, as they were written."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
import simplejpeg
from PIL import Image, ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import VLWholeSlideMicroscopyImageStorage, generate_uid

from wsimil.errors import SlideError
from wsimil.geometry import TileGrid, TileSpec, grid_positions
from wsimil.slides import Slide, find_slides, open_slide
from wsimil.slides.dicom_codec import frame_decoder
from wsimil.slides.dicom_header import read_header
from wsimil.slides.jpeg import stated_space

MPP = 0.5
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
JPEG, JPEG_LS, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"
J2K_LOSSLESS, J2K = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
NATIVE = {EXPLICIT, IMPLICIT}
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
TILE = (64, 48)
SIZE = (301, 203)
Encode = Callable[[np.ndarray], bytes]


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def half(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2), Image.Resampling.BOX))


def jpeg(subsampling: str = "422") -> Encode:
    return lambda frame: simplejpeg.encode_jpeg(frame, quality=95, colorsubsampling=subsampling)


def rgb_jpeg(frame: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(frame, level=95, colorspace="RGB", outcolorspace="RGB")


def unmarked(encode: Encode) -> Encode:
    """Without the JFIF or Adobe marker, as Aperio writes."""

    def strip(frame: np.ndarray) -> bytes:
        data = encode(frame)
        assert data[2:4] in (b"\xff\xe0", b"\xff\xee")
        return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]

    return strip


def j2k(*, transform: bool, reversible: bool) -> Encode:
    def encode(frame: np.ndarray) -> bytes:
        level = 0 if reversible else 45
        return imagecodecs.jpeg2k_encode(frame, level=level, codecformat="J2K", mct=transform, reversible=reversible)

    return encode


def rle(frame: np.ndarray) -> bytes:
    return RLELosslessEncoder.encode(
        frame, rows=TILE[1], columns=TILE[0], samples_per_pixel=3, bits_allocated=8, bits_stored=8, pixel_representation=0,
        photometric_interpretation="RGB", number_of_frames=1, planar_configuration=0,
    )  # fmt: skip


def corners_of(image: np.ndarray) -> list[tuple[int, int]]:
    return [(x, y) for y in range(0, image.shape[0], TILE[1]) for x in range(0, image.shape[1], TILE[0])]


def frames_of(image: np.ndarray, encode: Encode) -> list[bytes]:
    """Row by row, those at the edges padded with black."""
    padded = np.zeros((-(-image.shape[0] // TILE[1]) * TILE[1], -(-image.shape[1] // TILE[0]) * TILE[0], 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return [encode(np.ascontiguousarray(padded[y : y + TILE[1], x : x + TILE[0]])) for x, y in corners_of(image)]


def item(data: bytes) -> bytes:
    data += b"\0" * (len(data) % 2)
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data


def encapsulated(image: Dataset, frames: Sequence[bytes], table: str, fragments: int) -> bytes:
    pieces = [
        b"".join(item(frame[start : start + step]) for start in range(0, len(frame), step))
        for frame in frames
        for step in [-(-len(frame) // fragments // 2) * 2 + 2 * (fragments > 1)]
    ] if fragments > 1 else [item(frame) for frame in frames]  # fmt: skip
    starts = np.cumsum([0] + [len(piece) for piece in pieces])[:-1]
    if table == "extended":
        image.ExtendedOffsetTable = starts.astype("<u8").tobytes()
        image.ExtendedOffsetTableLengths = np.array([len(frame) for frame in frames], "<u8").tobytes()
    basic = {"basic": starts, "run over": np.roll(starts, 3)}.get(table, starts[:0])
    return item(basic.astype("<u4").tobytes()) + b"".join(pieces) + b"\xfe\xff\xdd\xe0\0\0\0\0"


def write_dicom(
    path: Path,
    frames: Sequence[bytes],
    *,
    size: tuple[int, int] = SIZE,
    syntax: str = JPEG,
    photometric: str = "YBR_FULL_422",
    corners: Sequence[tuple[int, int]] | None = None,
    kind: str = "VOLUME",
    table: str = "none",
    fragments: int = 1,
    defined_lengths: bool = True,
    **attributes: Any,
) -> Path:
    """TILED_FULL, or TILED_SPARSE where corners are given; an attribute of None is left out."""
    image, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    image.SOPClassUID = meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    image.SeriesInstanceUID = generate_uid()
    image.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    image.Columns, image.Rows = TILE
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, photometric, 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = size
    image.NumberOfFrames = len(frames)
    image.DimensionOrganizationType = "TILED_FULL" if corners is None else "TILED_SPARSE"
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [MPP / 1000, MPP / 1000]
    shared.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    if corners is not None:
        image.PerFrameFunctionalGroupsSequence = [positioned(*corner) for corner in corners]
        if not defined_lengths:
            undefine(image["PerFrameFunctionalGroupsSequence"])
    for name, value in attributes.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    image.file_meta = meta
    native = syntax in NATIVE
    image.PixelData = b"".join(frames) if native else encapsulated(image, frames, table, fragments)
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OW" if syntax == IMPLICIT else "OB", not native
    pydicom.dcmwrite(path, image, enforce_file_format=True)
    return path


def positioned(x: int, y: int) -> Dataset:
    """Functional groups of one frame, other things among them."""
    groups, content, position = Dataset(), Dataset(), Dataset()
    content.DimensionIndexValues = [x // TILE[0] + 1, y // TILE[1] + 1]
    groups.FrameContentSequence = [content]
    position.XOffsetInSlideCoordinateSystem = position.YOffsetInSlideCoordinateSystem = "1.5"
    position.ZOffsetInSlideCoordinateSystem = "0"
    position.ColumnPositionInTotalImagePixelMatrix, position.RowPositionInTotalImagePixelMatrix = x + 1, y + 1
    groups.PlanePositionSlideSequence = [position]
    return groups


def undefine(sequence: Any) -> None:
    sequence.is_undefined_length = True
    for entry in sequence.value:
        entry.is_undefined_length_sequence_item = True
        for element in entry:
            if element.VR == "SQ":
                undefine(element)


def whole(slide: Slide, level: int = 0) -> np.ndarray:
    """All px of a level."""
    down = slide.info.level_downsamples[level]
    side = 2**9
    spec = TileSpec(size_px=side, mpp=slide.info.mpp * down, stride_px=side, min_tissue=0.0)
    grid = TileGrid(
        slide=slide.info, spec=spec, xy0=np.zeros((1, 2), np.int64), tissue=np.ones(1, np.float32), read_level=level,
        read_px=side,
    )  # fmt: skip
    width, height = (round(extent / down) for extent in slide.info.size0_px)
    return slide.read_tiles(grid, [0])[0, :height, :width]


def tiles_of(slide: Slide, *, side: int, stride: int, start: int) -> np.ndarray:
    spec = TileSpec(size_px=side, mpp=slide.info.mpp, stride_px=stride, min_tissue=0.0)
    x, y = (grid_positions(extent - start, stride) + start for extent in slide.info.size0_px)
    xy0 = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    grid = TileGrid(
        slide=slide.info, spec=spec, xy0=xy0, tissue=np.ones(len(xy0), np.float32), read_level=0, read_px=side
    )
    return slide.read_tiles(grid, np.arange(len(grid)))


def assert_as_openslide(path: Path) -> None:
    with open_slide(path) as direct, open_slide(path, reader="openslide") as reference:
        assert (direct.reader, reference.reader) == ("dicom", "openslide")
        assert direct.info == reference.info
        for side, stride, start in ((48, 48, 0), (101, 57, -30)):
            found, wanted = (tiles_of(slide, side=side, stride=stride, start=start) for slide in (direct, reference))
            assert (found == wanted).all()
        for level in range(len(direct.info.level_downsamples)):
            assert (whole(direct, level) == whole(reference, level)).all()


IMAGE = texture(*SIZE)
EXTENDED = {"table": "extended"}


@pytest.mark.parametrize(
    ("encode", "options"),
    [
        (jpeg("422"), {}),
        (jpeg("420"), {"table": "basic"}),
        (jpeg("444"), EXTENDED),
        (unmarked(jpeg("422")), {}),
        (rgb_jpeg, {"photometric": "RGB"}),
        (unmarked(rgb_jpeg), {"photometric": "RGB"}),
        (jpeg(), {"table": "basic", "fragments": 3}),
        (jpeg(), {"SOPInstanceUID": "1." + "9" * 66}),
        (np.ndarray.tobytes, {"syntax": EXPLICIT, "photometric": "RGB"}),
        (j2k(transform=False, reversible=False), {"syntax": J2K, "photometric": "RGB"}),
        (j2k(transform=True, reversible=False), {"syntax": J2K, "photometric": "YBR_ICT"}),
        (j2k(transform=True, reversible=True), {"syntax": J2K_LOSSLESS, "photometric": "YBR_RCT"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore:The value length:UserWarning:pydicom.valuerep")
def test_frames_are_read_as_openslide_reads_them(tmp_path: Path, encode: Encode, options: dict[str, Any]) -> None:
    path = write_dicom(tmp_path / "slide.dcm", frames_of(IMAGE, encode), **options)
    assert_as_openslide(path)
    with open_slide(path) as slide:
        assert np.abs(whole(slide).astype(int) - IMAGE).mean() < 5


def test_a_table_of_offsets_that_ran_over_is_passed_by(tmp_path: Path) -> None:
    # OpenSlide is not asked: it may crash on such a file.
    path = write_dicom(tmp_path / "slide.dcm", frames_of(IMAGE, jpeg()), table="run over")
    with open_slide(path, reader="dicom") as slide:
        assert np.abs(whole(slide).astype(int) - IMAGE).mean() < 3


@pytest.mark.parametrize(
    ("encode", "options"), [(jpeg(), {}), (imagecodecs.jpegls_encode, {"syntax": JPEG_LS, "photometric": "RGB"})]
)
def test_the_icc_profile_of_the_optical_path_is_kept(tmp_path: Path, encode: Encode, options: dict[str, Any]) -> None:
    profile, optical_path = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), Dataset()
    optical_path.ICCProfile = profile
    frames = frames_of(IMAGE, encode)
    path = write_dicom(tmp_path / "with.dcm", frames, OpticalPathSequence=[optical_path], **options)
    without = write_dicom(tmp_path / "without.dcm", frames, **options)
    with open_slide(path) as slide, open_slide(without) as other:
        assert (slide.reader, other.reader) == ("dicom", "dicom")
        assert slide.icc_profile == profile
        assert other.icc_profile is None


@pytest.mark.parametrize("defined_lengths", [True, False])
def test_sparse_frames_lie_where_they_say_and_white_is_where_there_are_none(
    tmp_path: Path, defined_lengths: bool
) -> None:
    corners, frames = corners_of(IMAGE)[::-1], frames_of(IMAGE, jpeg())[::-1]
    del corners[7], frames[7]
    path = write_dicom(tmp_path / "slide.dcm", frames, corners=corners, defined_lengths=defined_lengths)
    assert_as_openslide(path)
    with open_slide(path) as slide:
        x, y = corners_of(IMAGE)[::-1][7]
        assert (whole(slide)[y : y + TILE[1], x : x + TILE[0]] == 255).all()


@pytest.mark.parametrize(
    ("encode", "options"),
    [
        (imagecodecs.jpegls_encode, {"syntax": JPEG_LS}),
        (rle, {"syntax": RLE}),
        (rle, {"syntax": RLE, "PlanarConfiguration": 1, "table": "basic"}),
        (np.ndarray.tobytes, {"syntax": IMPLICIT}),
        (np.ndarray.tobytes, {"syntax": IMPLICIT, "corners": corners_of(IMAGE)}),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_openslide_refuses_is_read_as_it_was_written(
    tmp_path: Path, encode: Encode, options: dict[str, Any]
) -> None:
    path = write_dicom(tmp_path / "slide.dcm", frames_of(IMAGE, encode), photometric="RGB", **options)
    with pytest.raises(SlideError, match=r"OpenSlide|Unsupported|libdicom"):
        open_slide(path, reader="openslide")
    with open_slide(path) as slide:
        assert slide.reader == "dicom"
        assert (slide.info.vendor, slide.info.size0_px, slide.info.bounds0_px) == ("dicom", SIZE, (0, 0, *SIZE))
        assert slide.info.mpp == pytest.approx(MPP)
        assert slide.info.mpp_source == "metadata"
        assert (whole(slide) == IMAGE).all()


@pytest.mark.parametrize(
    ("encode", "options"),
    [
        (jpeg(), {"photometric": "RGB"}),
        (rgb_jpeg, {"photometric": "YBR_FULL_422"}),
        (
            lambda frame: j2k(transform=False, reversible=False)(np.asarray(Image.fromarray(frame).convert("YCbCr"))),
            {"syntax": J2K, "photometric": "YBR_ICT"},
        ),
    ],
)
def test_a_header_that_belies_the_colors_of_its_frames_does_not_make_them_false(
    tmp_path: Path, encode: Encode, options: dict[str, Any]
) -> None:
    path = write_dicom(tmp_path / "slide.dcm", frames_of(IMAGE, encode), **options)
    with open_slide(path, reader="openslide") as slide:
        assert np.abs(whole(slide).astype(int) - IMAGE).mean() > 40
    with open_slide(path) as slide:
        assert np.abs(whole(slide).astype(int) - IMAGE).mean() < 3


@pytest.mark.shared
def test_a_real_frame_of_ycbcr_under_a_header_of_rgb_is_pink_tissue_and_not_green(shared_dir: Path) -> None:
    file = pydicom.dcmread(shared_dir / "data" / "slides" / "small_dicom_pathml.dcm")
    frame = next(pydicom.encaps.generate_frames(file.PixelData, number_of_frames=42))
    assert (file.PhotometricInterpretation, stated_space(frame)) == ("RGB", "YCbCr")
    output = np.empty((500, 500, 3), np.uint8)
    frame_decoder("JPEG", "RGB", frame).decode(frame, output)
    # Glass is white on this slide.
    assert np.median(output, axis=(0, 1)).min() > 230


def write_series(folder: Path) -> dict[str, Path]:
    """Two levels, a label, and a file of another slide, in one folder."""
    uid, label = generate_uid(), frames_of(texture(*TILE), jpeg())
    small = half(IMAGE)
    folder.mkdir()
    return {
        "level 1": write_dicom(
            folder / "a.dcm", frames_of(small, jpeg()), size=small.shape[1::-1], SeriesInstanceUID=uid,
            ImageType=["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"],
        ),
        "label": write_dicom(folder / "b.dcm", label, size=TILE, kind="LABEL", SeriesInstanceUID=uid),
        "level 0": write_dicom(folder / "c", frames_of(IMAGE, jpeg()), SeriesInstanceUID=uid),
        "other": write_dicom(folder / "d.dcm", frames_of(texture(*SIZE, 1), jpeg())),
    }  # fmt: skip


def test_a_slide_is_all_files_of_its_series_whichever_of_them_is_named(tmp_path: Path) -> None:
    files = write_series(tmp_path / "slides")
    digests = set()
    for name in ("level 0", "level 1", "label"):
        assert_as_openslide(files[name])
        with open_slide(files[name]) as slide:
            assert (slide.info.size0_px, len(slide.info.level_downsamples)) == (SIZE, 2)
            digests.add(slide.info.digest)
    assert len(digests) == 1
    with open_slide(files["other"]) as slide:
        assert len(slide.info.level_downsamples) == 1
        assert slide.info.digest not in digests


def test_a_file_that_is_replaced_by_one_of_another_slide_is_a_level_no_more(tmp_path: Path) -> None:
    files = write_series(tmp_path / "slides")
    with open_slide(files["level 0"], reader="dicom") as slide:
        assert len(slide.info.level_downsamples) == 2
    files["other"].replace(files["level 1"])
    with open_slide(files["level 0"], reader="dicom") as slide:
        assert len(slide.info.level_downsamples) == 1


def test_a_file_that_could_not_be_read_for_once_is_a_level_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_series(tmp_path / "slides")
    opened = Path.open

    def stale(path: Path, *arguments: Any, **named: Any) -> Any:
        if path == files["level 1"]:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return opened(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", stale)
        with pytest.raises(SlideError, match="no image of its series is 150 x 101 px"):
            open_slide(files["level 0"], reader="dicom")
    with open_slide(files["level 0"], reader="dicom") as slide:
        assert len(slide.info.level_downsamples) == 2


def test_a_series_in_a_folder_is_one_slide_by_the_file_of_its_largest_image(tmp_path: Path) -> None:
    files = write_series(tmp_path / "slides")
    level0 = files["level 0"].rename(tmp_path / "slides" / "c.dcm")
    assert find_slides(tmp_path) == [level0, files["other"]]
    # Further levels that lie elsewhere are not read with it, and stand for themselves.
    (tmp_path / "elsewhere").mkdir()
    moved = files["level 1"].rename(tmp_path / "elsewhere" / "a.dcm")
    assert find_slides(tmp_path) == [moved, level0, files["other"]]


def test_no_file_that_another_does_not_stand_for_is_left_out_of_a_folder(tmp_path: Path) -> None:
    first, *others = concatenation(tmp_path, sparse=False)
    assert find_slides(tmp_path) == [first]
    first.unlink()
    assert find_slides(tmp_path) == others[:1]
    # A second image of that size, one of no series, a label alone, another class, and what is no DICOM.
    series = read_header(others[0]).series_uid
    lone = [
        write_dicom(tmp_path / "second.dcm", frames_of(IMAGE, jpeg()), SeriesInstanceUID=series),
        write_dicom(tmp_path / "unnamed1.dcm", frames_of(IMAGE, jpeg()), SeriesInstanceUID=None),
        write_dicom(tmp_path / "unnamed2.dcm", frames_of(IMAGE, jpeg()), SeriesInstanceUID=None),
        write_dicom(tmp_path / "label.dcm", frames_of(texture(*TILE), jpeg()), size=TILE, kind="LABEL"),
        write_dicom(tmp_path / "x.dcm", frames_of(IMAGE, jpeg()), SOPClassUID=CAPTURE, SeriesInstanceUID=series),
        tmp_path / "y.dcm",
    ]  # fmt: skip
    lone[-1].write_bytes(b"no DICOM")
    assert find_slides(tmp_path) == sorted(lone)


def test_a_series_that_openslide_refuses_has_its_levels_too(tmp_path: Path) -> None:
    uid, small = generate_uid(), half(IMAGE)
    options: dict[str, Any] = {"syntax": JPEG_LS, "photometric": "RGB", "SeriesInstanceUID": uid}
    paths = [
        write_dicom(tmp_path / f"{name}.dcm", frames_of(of, imagecodecs.jpegls_encode), size=of.shape[1::-1], **options)
        for name, of in (("b", small), ("a", IMAGE))
    ]
    with open_slide(paths[0]) as one, open_slide(paths[1]) as other:
        assert (
            one.info.level_downsamples
            == other.info.level_downsamples
            == (1.0, pytest.approx((301 / 150 + 203 / 101) / 2))
        )
        assert (whole(one, 1)[:101, :150] == small).all()
        assert (whole(other) == IMAGE).all()
        assert one.info.digest == other.info.digest


def write_levels(folder: Path, images: Sequence[np.ndarray], spacings: Sequence[str | None] = ()) -> Path:
    """In one series; `spacings` are the same for both axes."""
    uid = generate_uid()
    for number, image in enumerate(images):
        path = folder / f"{number}.dcm"
        about = {} if not spacings else {"SharedFunctionalGroupsSequence": spaced(spacings[number])}
        write_dicom(path, frames_of(image, jpeg("444")), size=image.shape[1::-1], SeriesInstanceUID=uid, **about)
    return folder / "0.dcm"


def spaced(spacing: str | None) -> list[Dataset]:
    measures, shared = Dataset(), Dataset()
    if spacing is not None:
        measures.PixelSpacing = [spacing, spacing]
    shared.PixelMeasuresSequence = [measures]
    return [shared]


def test_levels_that_are_padded_to_whole_frames_are_left_out(tmp_path: Path) -> None:
    """As Philips writes them: what lay to the right in them lay aside, and then the whole slide was refused."""
    image = texture(17 * TILE[0], 13 * TILE[1])
    levels = [image, half(image), half(half(image)), half(half(half(image)))]
    for number, (columns, rows) in ((1, (9, 7)), (3, (3, 2))):
        padded = np.full((rows * TILE[1], columns * TILE[0], 3), 255, np.uint8)
        padded[: levels[number].shape[0], : levels[number].shape[1]] = levels[number]
        levels[number] = padded
    path = write_levels(tmp_path, levels)
    with pytest.raises(SlideError, match="takes an image of 576 x 336 px for a level of"):
        open_slide(path, reader="openslide")
    for other in (path, tmp_path / "3.dcm"):
        with open_slide(other) as slide:
            assert (slide.reader, slide.info.size0_px) == ("dicom", (1088, 624))
            assert slide.info.level_downsamples == (1.0, 4.0)
            for level in (0, 2):
                found = slide.read_region((0.0, 0.0), levels[level].shape[1::-1], MPP * 2**level)
                assert np.abs(found.astype(int) - levels[level]).mean() < 3


def test_padded_levels_that_keep_the_shape_are_left_out_too(tmp_path: Path) -> None:
    """As of a slide that is nearly square: what lay to the right in them lay a tenth aside, and nothing told."""
    image = texture(9 * TILE[0], 9 * TILE[1])
    padded = np.full((5 * TILE[1], 5 * TILE[0], 3), 255, np.uint8)
    padded[: image.shape[0] // 2, : image.shape[1] // 2] = half(image)
    path = write_levels(tmp_path, [image, padded, half(half(image))])
    with pytest.raises(SlideError, match="takes an image of 320 x 240 px for a level of"):
        open_slide(path, reader="openslide")
    with open_slide(path) as slide:
        assert (slide.reader, slide.info.level_downsamples) == ("dicom", (1.0, 4.0))


@pytest.mark.parametrize(
    ("spacings", "is_left_out"),
    [
        (("0.0005", "0.001", "0.008"), True),
        (("0.0005", "0.001", "0.0005000001"), False),
        (("0.00050", "0.0005", "5E-4"), False),
        (("0.0005", "0.001", "0.004"), False),
        (("0.0003", "0.0005", "0.002"), False),
        (("0.0005", "0.0005", "0.0005"), False),
        (("0.0005", None, None), False),
        (("0.0005", "0.001", "-0.008"), False),
    ],
    ids=str,
)
def test_an_image_that_states_that_it_shows_more_or_less_than_the_slide_is_no_level(
    tmp_path: Path, spacings: tuple[str | None, ...], is_left_out: bool
) -> None:
    """Padded to one frame, or of the whole glass, it may have the shape of the slide and half of a half of its size."""
    image = texture(8 * TILE[0], 8 * TILE[1])
    last = np.full((TILE[1], TILE[0], 3), 255, np.uint8)
    last[: TILE[1] // 2, : TILE[0] // 2] = half(half(half(half(image))))
    path = write_levels(tmp_path, [image, half(image), last], spacings)
    wanted = (1.0, 2.0) if is_left_out else (1.0, 2.0, 8.0)
    for reader in ("auto", "dicom"):
        with open_slide(path, reader=reader) as slide:
            assert (slide.reader, slide.info.level_downsamples) == ("dicom", wanted)
    with pytest.raises(SlideError, match="an image of 64 x 48 px for a level of") if is_left_out else nullcontext():
        open_slide(path, reader="openslide").close()


def test_levels_of_whole_frames_that_are_not_padded_are_levels(tmp_path: Path) -> None:
    image = texture(8 * TILE[0], 4 * TILE[1])
    path = write_levels(tmp_path, [image, half(image), half(half(image))])
    for reader in ("dicom", "openslide"):
        with open_slide(path, reader=reader) as slide:
            assert slide.info.level_downsamples == (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("size", "is_refused"), [((101, 101), False), ((151, 151), False), ((155, 155), True), ((192, 100), True)], ids=str
)
def test_an_image_of_another_shape_in_the_series_is_no_level(
    tmp_path: Path, size: tuple[int, int], is_refused: bool
) -> None:
    """Of another piece of tissue, which would not be there, or the whole glass."""
    path = write_levels(tmp_path, [IMAGE, texture(*size)])
    with pytest.raises(SlideError, match=f"takes an image of {size[0]} x {size[1]} px for a level of"):
        open_slide(path, reader="openslide")
    for reader in ("auto", "dicom"):
        if is_refused:
            with pytest.raises(SlideError, match=rf"301 x 203 and {size[0]} x {size[1]} px .* of two pieces of tissue"):
                open_slide(path, reader=reader)
        else:
            with open_slide(path, reader=reader) as slide:
                assert (slide.reader, slide.info.level_downsamples) == ("dicom", (1.0,))
                assert np.abs(whole(slide).astype(int) - IMAGE).mean() < 3


def concatenation(folder: Path, *, sparse: bool, total: int | None = None) -> list[Path]:
    """One image in three files."""
    frames, corners, at = frames_of(IMAGE, jpeg()), corners_of(IMAGE), (0, 9, 10, 25)
    common = {"SeriesInstanceUID": generate_uid(), "SOPInstanceUIDOfConcatenationSource": generate_uid()}
    if total is not None:
        common["InConcatenationTotalNumber"] = total
    return [
        write_dicom(
            folder / f"{number}.dcm", frames[start:end], corners=corners[start:end] if sparse else None,
            ConcatenationFrameOffsetNumber=start, InConcatenationNumber=number + 1, **common,
        )
        for number, (start, end) in enumerate(itertools.pairwise(at))
    ]  # fmt: skip


@pytest.mark.parametrize("sparse", [True, False])
def test_an_image_in_several_files_is_one_level(tmp_path: Path, sparse: bool) -> None:
    digests = set()
    for path in concatenation(tmp_path, sparse=sparse):
        with pytest.raises(SlideError, match="Slide contains unexpected image"):
            open_slide(path, reader="openslide")
        with open_slide(path) as slide:
            digests.add(slide.info.digest)
            assert len(slide.info.level_downsamples) == 1
            assert np.abs(whole(slide).astype(int) - IMAGE).mean() < 3
    assert len(digests) == 1


@pytest.mark.parametrize("sparse", [True, False])
def test_an_image_of_which_a_file_is_missing_is_refused_and_not_filled_up_with_white(
    tmp_path: Path, sparse: bool
) -> None:
    paths = concatenation(tmp_path, sparse=sparse, total=3)
    paths[1].unlink()
    with pytest.raises(SlideError, match="copy all files of its series again"):
        open_slide(paths[0])


def test_parts_of_two_images_of_one_size_are_not_put_together(tmp_path: Path) -> None:
    paths = concatenation(tmp_path, sparse=True)
    source = str(pydicom.dcmread(paths[1]).SOPInstanceUIDOfConcatenationSource)
    other = source[:-1] + str((int(source[-1]) + 1) % 10)
    paths[1].write_bytes(paths[1].read_bytes().replace(source.encode(), other.encode()))
    with pytest.raises(SlideError, match=r"3 of its images are 301 x 203 px"):
        open_slide(paths[0])


def test_a_copy_of_a_file_beside_it_changes_nothing(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "slide.dcm", frames_of(IMAGE, jpeg()))
    (tmp_path / "copy.dcm").write_bytes(path.read_bytes())
    assert_as_openslide(path)


GREY = {"photometric": "MONOCHROME2", "SamplesPerPixel": 1, "PlanarConfiguration": None}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (GREY, "its pixels are MONOCHROME2 of 1 sample, wanted color"),
        ({"photometric": "PALETTE COLOR"}, "its pixels are PALETTE COLOR, wanted color"),
        ({"syntax": JPEG_LS}, "its JPEG-LS pixels are YBR_FULL_422, wanted RGB"),
        ({"syntax": "1.2.840.10008.1.2.4.51"}, "its transfer syntax is 1.2.840.10008.1.2.4.51, wanted one of"),
        ({"BitsAllocated": 16}, "its BitsAllocated is 16, wanted 8"),
        ({"PlanarConfiguration": 1}, "its PlanarConfiguration is 1, wanted 0"),
        ({"NumberOfOpticalPaths": 2}, "its NumberOfOpticalPaths is 2, wanted 1"),
        ({"TotalPixelMatrixFocalPlanes": 3}, "its TotalPixelMatrixFocalPlanes is 3, wanted 1"),
        ({"NumberOfFrames": 0}, "its NumberOfFrames is '0'"),
        ({"Rows": 0}, "its Rows is 0"),
        ({"ImageType": None}, "it does not state its ImageType"),
        ({"kind": "LABEL"}, "its series holds labels and overviews"),
        ({"DimensionOrganizationType": None}, "states neither TILED_FULL nor positions"),
        ({"size": (100, 100)}, "it has more frames than its 2 x 3 places"),
        ({"corners": [(x + 1, y) for x, y in corners_of(IMAGE)]}, "lies at x=1, y=0, which is not on the grid"),
        ({"corners": [(x + 640, y) for x, y in corners_of(IMAGE)]}, "lies at x=640, y=0, which is not on the grid"),
        ({"corners": [(0, 0), *corners_of(IMAGE)[:-1]]}, "two of its frames lie at x=0, y=0"),
        ({"corners": corners_of(IMAGE)[:-1]}, "states 24 columns and 24 rows for the positions of 25 frames"),
        ({"fragments": 2}, "no table of offsets, and 50 fragments for 25 frames"),
        ({"size": (301, 500)}, "30 of the 55 frames of 301 x 500 px are not there"),
        ({"SOPClassUID": CAPTURE}, "of the DICOM class Secondary Capture Image Storage"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_is_no_slide_or_cannot_be_read_rightly_is_refused_in_words(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    path = write_dicom(tmp_path / "slide.dcm", frames_of(IMAGE, jpeg()), **options)
    with pytest.raises(SlideError, match=r"^slide 'slide': ") as caught:
        open_slide(path, reader="dicom")
    assert reason in str(caught.value)
