"""Readers held against each other: the same slide, the same px, whoever reads."""

from __future__ import annotations

import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from wsimil.errors import SlideError
from wsimil.geometry import TileGrid, TileSpec, grid_positions
from wsimil.slides import Reader, Slide, open_slide
from wsimil.slides.jpeg import decode_jpeg, stream_head
from wsimil.slides.stored_tiles import StoredTiles

MPP = 0.5
READERS: tuple[Reader, ...] = ("auto", "openslide", "tiff")
RECORDED = {
    "CMU-1-Small-Region.svs": "tiff",
    "TCGA-CR-7395-01A-01-TS1.svs": "tiff",
    "test3-DAPI-2-387.ndpi": "openslide",
    "camelyon-lowres-jpeg.dcm": "dicom",
    "highdicom_sm_image.dcm": "dicom",
    "derived/IDC-14082-reassembled.tiff": "tiff",
    "edge/small.svs": "tiff",
    "yb10kx5k.zstd.tiff": "tiff",
    "edge/boxes.tiff": "tiff",
}


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def shrunk(image: np.ndarray, by: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((image.shape[1] // by, image.shape[0] // by), Image.Resampling.BOX))


def write_slide(path: Path, levels: list[np.ndarray], *, description: str | None = None, **options: Any) -> Path:
    """A tiled TIFF; with a description as Aperio's, OpenSlide takes it for an SVS."""
    options = {"tile": (240, 240), "compression": "jpeg", "photometric": "rgb", **options}
    with tifffile.TiffWriter(path, bigtiff=False) as file:
        for number, level in enumerate(levels):
            file.write(
                level, metadata=None, resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER",
                subfiletype=int(number > 0 and description is None), description=description, **options,
            )  # fmt: skip
    return path


TILED = {"tile": (240, 240), "compression": "zlib", "byteorder": "<"}
APERIO = "Aperio Image Library v11.2.1 \r\n1000x1000 [0,0 1000x1000] (240x240) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"


def grid_of(slide: Slide, *, side: int, stride: int, level: int = 0, start: int = 0, limit: int = 400) -> TileGrid:
    """Tiles over the whole of a level, also across its edges."""
    down = slide.info.level_downsamples[level]
    spec = TileSpec(size_px=side, mpp=slide.info.mpp * down, stride_px=stride, min_tissue=0.0)
    x, y = (grid_positions(extent - start, stride * down) + start for extent in slide.info.size0_px)
    xy0 = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)[:limit]
    return TileGrid(
        slide=slide.info, spec=spec, xy0=xy0, tissue=np.ones(len(xy0), np.float32), read_level=level, read_px=side
    )


def both(path: Path) -> tuple[Slide, Slide]:
    return open_slide(path, mpp_override=MPP), open_slide(path, mpp_override=MPP, reader="openslide")


def assert_same_pixels(path: Path, *, level: int = 0, tolerance: int = 0) -> None:
    direct, reference = both(path)
    with direct, reference:
        for side, stride, start in ((240, 240, 0), (256, 256, 0), (101, 57, -30)):
            grid = grid_of(direct, side=side, stride=stride, start=start, level=level)
            rows = np.arange(len(grid))
            found, wanted = (slide.read_tiles(grid, rows).astype(np.int16) for slide in (direct, reference))
            assert np.abs(found - wanted).max() <= tolerance


def test_every_recorded_slide_has_its_reader_and_the_same_pixels_with_each(shared_dir: Path) -> None:
    for name, reader in RECORDED.items():
        path = shared_dir / "data" / "slides" / name
        with open_slide(path, mpp_override=MPP) as slide:
            assert (name, slide.reader) == (name, reader)
        assert_same_pixels(path)


def test_what_a_slide_is_does_not_depend_on_who_reads_it(shared_dir: Path) -> None:
    for name in RECORDED:
        direct, reference = both(shared_dir / "data" / "slides" / name)
        with direct, reference:
            assert direct.info == reference.info
            assert np.abs(direct.thumbnail(300).astype(int) - reference.thumbnail(300)).mean() < 4


def test_levels_of_whole_downsamples_are_read_alike(shared_dir: Path) -> None:
    with open_slide(shared_dir / "data" / "slides" / "TCGA-CR-7395-01A-01-TS1.svs", mpp_override=MPP) as slide:
        whole = [i for i, down in enumerate(slide.info.level_downsamples) if down == int(down) and i]
    for level in whole:
        assert_same_pixels(shared_dir / "data" / "slides" / "TCGA-CR-7395-01A-01-TS1.svs", level=level)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg", "photometric": "rgb"},
        {"compression": "jpeg", "photometric": "rgb", "subsampling": (1, 1)},
        {"compression": "jpeg", "photometric": "rgb", "compressionargs": {"outcolorspace": "rgb"}},
        {"compression": "zlib", "photometric": "rgb"},
        {"compression": "zlib", "photometric": "rgb", "predictor": True},
        {"compression": "lzw", "photometric": "rgb"},
        {"compression": "zstd", "photometric": "rgb"},
        {"compression": None, "photometric": "rgb", "tile": (256, 256)},
        {"compression": "jpeg", "photometric": "rgb", "tile": (256, 512)},
    ],
    ids=str,
)
def test_each_compression_gives_the_pixels_that_openslide_gives(tmp_path: Path, options: dict[str, Any]) -> None:
    image = texture(1003, 1501)
    path = write_slide(tmp_path / "slide.tiff", [image, shrunk(image, 2)], **options)
    with open_slide(path, mpp_override=MPP) as slide:
        assert slide.reader == "tiff"
    assert_same_pixels(path)


def test_regions_across_and_beyond_every_edge_are_those_of_openslide(tmp_path: Path) -> None:
    """Beyond the right and lower edge, as far as the last stored tile reaches, they were called damaged."""
    path = write_slide(tmp_path / "slide.tiff", [texture(481, 700)])
    direct, reference = both(path)
    with direct, reference:
        for x in (-700.0, -25.0, 0.0, 690.0, 701.0, 715.0, 719.5, 720.0, 1400.0):
            for y in (-25.0, 0.0, 470.0, 482.0, 490.0, 1000.0):
                ours, theirs = (slide.read_region((x, y), (20, 20), MPP) for slide in (direct, reference))
                assert (ours == theirs).all(), (x, y)
                assert (ours == 255).all() == (x <= -20 or y <= -20 or x >= 700 or y >= 481), (x, y)


def test_tiles_as_large_as_stored_ones_are_white_before_the_slide_and_not_what_is_stored_last(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.tiff", [texture(480, 720)])
    with open_slide(path) as slide:
        grid = grid_of(slide, side=240, stride=240, start=-240)
        outside = (grid.xy0 < 0).any(axis=1)
        tiles = slide.read_tiles(grid, np.arange(len(grid)))
    assert outside.sum() == 6
    assert (tiles == 255).all(axis=(1, 2, 3)).tolist() == outside.tolist()


@pytest.mark.parametrize("start", [(0, 100), (100, 0), (240, 240)])
def test_tiles_as_large_as_stored_ones_lie_where_they_are_asked_for(start: tuple[int, int], tmp_path: Path) -> None:
    """Where both begin at one place a stored tile is the tile; one axis alone says nothing."""
    image = texture(720, 960)
    path = write_slide(tmp_path / "slide.tiff", [image], compression="zlib")
    with open_slide(path) as slide:
        whole = grid_of(slide, side=240, stride=240)
        xy0 = whole.xy0[(whole.xy0 + start + 240 <= (960, 720)).all(axis=1)] + start
        grid = replace(whole, xy0=xy0, tissue=np.ones(len(xy0), np.float32))
        tiles = slide.read_tiles(grid, np.arange(len(grid)))
    assert len(tiles) >= 2 * 3
    for tile, (x, y) in zip(tiles, xy0.tolist(), strict=True):
        assert (tile == image[y : y + 240, x : x + 240]).all()


def test_aperio_jpeg_of_rgb_without_a_marker_is_not_taken_for_ycbcr(tmp_path: Path) -> None:
    image = texture(481, 700)
    path = write_slide(
        tmp_path / "slide.svs", [image], photometric="rgb", compressionargs={"outcolorspace": "rgb"}, description=APERIO
    )
    with tifffile.TiffFile(path) as file:
        tile = path.read_bytes()[file.pages[0].dataoffsets[0] :][: file.pages[0].databytecounts[0]]
        tables = file.pages[0].jpegtables
    unmarked = tile.replace(tile[2 : 4 + int.from_bytes(tile[4:6], "big")], b"") if tile[2:4] == b"\xff\xee" else tile
    assert b"Adobe" not in unmarked
    output = np.empty((240, 240, 3), np.uint8)
    decode_jpeg(stream_head("RGB", tables), unmarked, output)
    assert np.abs(output.astype(int) - image[:240, :240]).mean() < 12
    guessed = imagecodecs.jpeg8_decode(unmarked, tables=tables, colorspace="YCBCR", outcolorspace="RGB")
    assert np.abs(guessed.astype(int) - image[:240, :240]).mean() > 40
    assert_same_pixels(path)


def write_jfif(path: Path, image: np.ndarray, *, byteorder: Literal["<", ">"]) -> Path:
    """As Bio-Formats 6 writes: the page says RGB, each of its tiles is a JFIF and so YCbCr."""
    starts = [(y, x) for y in range(0, image.shape[0], 240) for x in range(0, image.shape[1], 240)]
    tiles = (imagecodecs.jpeg8_encode(image[y : y + 240, x : x + 240].copy(), level=95) for y, x in starts)
    write = {"photometric": "rgb", "compression": "jpeg", "tile": (240, 240), "dtype": np.uint8, "shape": image.shape}
    with tifffile.TiffWriter(path, ome=True, byteorder=byteorder) as file:
        file.write(tiles, metadata={"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}, **write)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(int(tifffile.PHOTOMETRIC.RGB))
    return path


@pytest.mark.parametrize(("byteorder", "vendor"), [("<", "generic-tiff"), (">", "ome-tiff")])
def test_a_jfif_in_a_page_that_says_rgb_is_shown_in_its_own_colors(
    tmp_path: Path, byteorder: Literal["<", ">"], vendor: str
) -> None:
    image = texture(480, 720)
    with open_slide(write_jfif(tmp_path / "slide.ome.tif", image, byteorder=byteorder)) as slide:
        assert (slide.reader, slide.info.vendor) == ("tiff-jfif", vendor)
        read = slide.read_region((0.0, 0.0), (720, 480), slide.info.mpp)
    assert np.abs(read.astype(int) - image).mean() < 8


def test_openslide_is_not_left_to_show_them_in_false_colors(tmp_path: Path) -> None:
    path = write_jfif(tmp_path / "slide.ome.tif", texture(480, 720), byteorder="<")
    with pytest.raises(
        SlideError, match=r"slide 'slide.ome': OpenSlide would read .* \(it was asked to\).* false colors"
    ):
        open_slide(path, reader="openslide")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["SamplesPerPixel"].overwrite(1)
    with pytest.raises(SlideError, match=r"\(an image is not tiled RGB of 8 bits\).* false colors"):
        open_slide(path)


def write_oriented(path: Path, image: np.ndarray, orientation: int, **options: Any) -> Path:
    return write_slide(path, [image], extratags=[(274, "H", 1, orientation, True)], **options)


TURNS = "turn each of its stored tiles in its place: its Orientation is {}, wanted 1"


@pytest.mark.parametrize(
    ("pixels", "options", "orientation", "is_turned"),
    [
        ("color", {"compression": "zlib"}, 2, True),
        ("color", {"compression": "zlib"}, 3, True),
        ("color", {"compression": "zlib"}, 8, True),
        ("alpha", {"compression": "zlib", "extrasamples": ["unassalpha"]}, 3, True),
        ("grey", {"photometric": "minisblack"}, 3, True),
        ("apart", {"planarconfig": "separate"}, 3, True),
        ("color", {}, 3, False),
        ("color", {"compression": "zlib"}, 0, False),
        ("color", {"compression": "zlib"}, 5, False),
        ("color", {"compression": "zlib"}, 9, False),
    ],
    ids=str,
)
def test_openslide_is_not_left_to_turn_stored_tiles_in_their_places(
    tmp_path: Path, pixels: str, options: dict[str, Any], orientation: int, is_turned: bool
) -> None:
    """It turns none of interleaved JPEGs, nor for 5, and takes numbers that say nothing for upright."""
    image = texture(481, 700)
    images = {
        "color": image, "alpha": np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]), "grey": image[..., 0],
        "apart": np.ascontiguousarray(image.transpose(2, 0, 1)),
    }  # fmt: skip
    paths = [
        write_oriented(tmp_path / f"{number}.tiff", images[pixels], number, **options) for number in (1, orientation)
    ]
    read = []
    for path in paths:
        with openslide.OpenSlide(path) as handle:
            read.append(np.asarray(handle.read_region((0, 0), 0, (700, 481))))
    assert np.array_equal(*read) != is_turned
    refused = pytest.raises(SlideError, match=TURNS.format(orientation))
    with refused if is_turned else nullcontext():
        open_slide(paths[1], reader="openslide").close()
    with nullcontext() if pixels == "color" else refused, open_slide(paths[1]) as slide:
        assert slide.reader == "tiff"
        with open_slide(paths[0]) as upright:
            found, wanted = (one.read_region((0, 0), (700, 481), MPP) for one in (slide, upright))
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("is_level", [False, True])
def test_stored_tiles_are_turned_of_levels_alone(tmp_path: Path, is_level: bool) -> None:
    """A macro of another shape that lies on its side is shown to nobody."""
    image = texture(480, 720)
    path = write_slide(tmp_path / "slide.tiff", [image], compression="zlib")
    tifffile.imwrite(
        path, image[::2, ::2] if is_level else texture(300, 200), append=True, metadata=None, photometric="rgb",
        subfiletype=int(is_level), extratags=[(274, "H", 1, 6, True)], tile=(240, 240), compression="zlib",
    )  # fmt: skip
    with pytest.raises(SlideError, match=TURNS.format(6)) if is_level else nullcontext():
        open_slide(path, reader="openslide").close()


def test_colors_that_are_stored_apart_are_not_taken_for_false_ones(tmp_path: Path) -> None:
    image = texture(480, 720)
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    # Each tile is a JPEG of one color, and as such JFIF.
    path = write_slide(tmp_path / "slide.tiff", [planes], planarconfig="separate", compressionargs={"level": 95})
    readers: tuple[Reader, ...] = ("auto", "openslide")
    for reader in readers:
        with open_slide(path, reader=reader) as slide:
            assert slide.reader == "openslide"
            read = slide.read_region((0.0, 0.0), (720, 480), slide.info.mpp)
        assert np.abs(read.astype(int) - image).mean() < 8


def test_false_colors_of_an_image_that_is_no_level_do_no_harm(tmp_path: Path) -> None:
    image, macro = texture(480, 720), texture(120, 180, seed=1)
    path = write_slide(tmp_path / "slide.svs", [image], description=APERIO, compression="zlib")
    stored = imagecodecs.jpeg8_encode(macro, level=95)
    with tifffile.TiffWriter(path, append=True) as file:
        file.write(
            iter([stored]), shape=macro.shape, dtype=np.uint8, photometric="rgb", compression="jpeg", rowsperstrip=120,
            metadata=None, description=APERIO.partition("\n")[0] + "macro", subfiletype=9,
        )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[1].tags["PhotometricInterpretation"].overwrite(int(tifffile.PHOTOMETRIC.RGB))
    with open_slide(path, reader="openslide") as slide:
        assert np.array_equal(slide.read_region((0.0, 0.0), (720, 480), slide.info.mpp), image)


def test_recorded_slides_of_bio_formats_are_pink_and_blue(shared_dir: Path) -> None:
    for name in ("OS-1-detail.ome.tif", "OS-2-ndpi.ome.tif"):
        path = shared_dir / "data" / "slides" / name
        with open_slide(path) as slide:
            read = slide.read_region((200.0, 100.0), (300, 200), slide.info.mpp)
        assert np.abs(read.astype(int) - tifffile.imread(path)[100:300, 200:500]).max() <= 3


def test_a_level_with_a_fractional_downsample_is_read_without_blur(tmp_path: Path) -> None:
    image = texture(1003, 1501)
    path = write_slide(tmp_path / "slide.tiff", [image, shrunk(image, 4)], compression="zlib", photometric="rgb")
    with open_slide(path) as slide:
        assert slide.info.level_downsamples[1] != 4
        grid = grid_of(slide, side=64, stride=64, level=1)
        tiles = slide.read_tiles(grid, np.arange(len(grid)))
        down = slide.info.level_downsamples[1]
    stored = np.full((512, 512, 3), 255, np.uint8)
    stored[:250, :375] = shrunk(image, 4)
    for tile, (x0, y0) in zip(tiles, grid.xy0, strict=True):
        x, y = int(np.floor(x0 / down + 0.5)), int(np.floor(y0 / down + 0.5))
        assert (tile == stored[y : y + 64, x : x + 64]).all()


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_what_lies_at_the_far_end_of_a_narrow_slide_is_in_its_place_on_every_level(
    tmp_path: Path, reader: Reader
) -> None:
    """The mean of both axes, of which the short one was rounded, put it 400 px aside, and a tile was 6 % too wide."""
    image = np.full((127, 7200, 3), 230, np.uint8)
    image[:, 7040:7104] = (120, 20, 120)
    path = write_slide(tmp_path / "slide.tiff", [image, shrunk(image, 4), shrunk(image, 16)], compression="zlib")
    with open_slide(path, reader=reader) as slide:
        assert slide.info.level_downsamples == (1.0, 4.0, 16.0)
        for mpp in (MPP, 4 * MPP, 16 * MPP):
            step = mpp / MPP
            shown = slide.read_region((6880.0, 0.0), (int(320 / step), int(112 / step)), mpp)
            found = 6880 + (np.flatnonzero(shown[2, :, 1] < 125) + 0.5) * step
            assert abs(found.mean() - 7072) < step
        for level in (1, 2):
            grid = grid_of(slide, side=8, stride=8, level=level, limit=7200)
            columns = np.flatnonzero(grid.xy0[:, 1] == 0)
            row = np.hstack([*slide.read_tiles(grid, columns)])[2, :, 1]
            found = (np.flatnonzero(row < 125) + 0.5) * slide.info.level_downsamples[level]
            assert abs(found.mean() - 7072) < slide.info.level_downsamples[level]


def without_tiles(path: Path, page: int, indices: list[int]) -> None:
    """Set byte counts of stored tiles to 0 in place."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[page].tags["TileByteCounts"]
        kind, size = {3: ("H", 2), 4: ("I", 4)}[tag.dtype]
        where = tag.valueoffset
    data = bytearray(path.read_bytes())
    for index in indices:
        struct.pack_into(f"<{kind}", data, where + size * index, 0)
    path.write_bytes(data)


def test_a_stored_tile_that_is_not_there_is_white_in_a_plain_tiff(tmp_path: Path) -> None:
    image = texture(1000, 1000)
    path = write_slide(tmp_path / "slide.tiff", [image])
    without_tiles(path, 0, [6])
    with open_slide(path) as slide:
        assert slide.reader == "tiff"
        assert (slide.read_region((240.0, 240.0), (240, 240), MPP) == 255).all()
        assert slide.read_region((0.0, 240.0), (240, 240), MPP).std() > 10
    assert_same_pixels(path)


def test_a_stored_tile_missing_from_an_aperio_slide_is_white_on_level_0_and_drawn_from_there_on_others(
    tmp_path: Path,
) -> None:
    image = texture(960, 960)
    path = write_slide(tmp_path / "slide.svs", [image, shrunk(image, 2), shrunk(image, 4)], description=APERIO)
    without_tiles(path, 0, [5])
    without_tiles(path, 1, [2])
    direct, reference = both(path)
    with direct, reference:
        assert (direct.reader, reference.info.vendor) == ("tiff", "aperio")
        grid = grid_of(direct, side=240, stride=240, level=1)
        missing = direct.read_tiles(grid, [2])[0]
    # Level 1 is filled from level 0, level 0 from nowhere.
    assert np.abs(missing.astype(int) - shrunk(image, 2)[240:480, :240]).mean() < 20
    assert_same_pixels(path)
    assert_same_pixels(path, level=1)


def test_thumbnail_label_and_macro_are_no_levels(tmp_path: Path) -> None:
    image = texture(960, 960)
    path = tmp_path / "slide.svs"
    with tifffile.TiffWriter(path) as file:
        common = {"metadata": None, "photometric": "rgb", "compression": "jpeg"}
        file.write(image, tile=(240, 240), description=APERIO, **common)
        file.write(shrunk(image, 8), rowsperstrip=120, description=APERIO, **common)
        file.write(shrunk(image, 4), tile=(240, 240), description=APERIO, **common)
        file.write(
            shrunk(image, 6), rowsperstrip=160, description=APERIO + "\r\nlabel 160x160", subfiletype=1, **common
        )
    direct, reference = both(path)
    with direct, reference:
        assert direct.reader == "tiff"
        assert direct.info == reference.info
        assert len(direct.info.level_downsamples) == 2
    assert_same_pixels(path, level=1)


def test_the_mpp_of_an_ome_tiff_is_that_of_the_image_that_is_read(tmp_path: Path) -> None:
    """A first image at 0.25 µm per pixel was taken for the slide at 0.5: tiles were half as wide as asked."""
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for image, mpp in ((texture(300, 400), 0.25), (texture(1000, 1400), 0.5)):
            file.write(
                image, photometric="rgb", tile=(240, 240) if mpp == 0.5 else None, compression="zlib",
                metadata={"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp},
            )  # fmt: skip
    with open_slide(path) as slide:
        assert (slide.info.vendor, slide.info.size0_px, slide.info.mpp) == ("ome-tiff", (1400, 1000), 0.5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"planarconfig": "separate", "metadata": {"axes": "SYX"}},
            "has the axes SYX, wanted one plane of interleaved RGB",
        ),
        ({"tile": None, "metadata": {"axes": "YXS"}}, "an image is not tiled RGB of 8 bits"),
    ],
    ids=["planes", "strips"],
)
def test_an_ome_tiff_that_no_reader_reads_says_what_was_wanted(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    """It was said to be cut short, or to need the conversion that had made it."""
    image = texture(300, 400)
    data = np.moveaxis(image, -1, 0) if "planarconfig" in options else image
    tifffile.imwrite(tmp_path / "s.ome.tif", data, photometric="rgb", **{**TILED, "byteorder": ">", **options})
    with pytest.raises(SlideError, match=f"drop it; nor is it read straight: .*{reason}"):
        open_slide(tmp_path / "s.ome.tif", mpp_override=MPP)


SPACING = {"PhysicalSizeX": MPP, "PhysicalSizeY": MPP}


@pytest.mark.parametrize("suffix", [".ome.tif", ".tif"])
@pytest.mark.parametrize(
    ("image", "axes", "photometric"),
    [
        (np.moveaxis(texture(300, 400), -1, 0), "CYX", "minisblack"),
        (np.stack([texture(300, 400), texture(300, 400, seed=1)]), "ZYXS", "rgb"),
        (np.stack([texture(300, 400), texture(300, 400, seed=1)]), "TYXS", "rgb"),
    ],
    ids=["channels", "focus", "times"],
)
def test_a_tiff_of_several_planes_is_not_taken_for_the_first(
    tmp_path: Path, image: np.ndarray, axes: str, photometric: str, suffix: str
) -> None:
    """Colors in a plane each were read as the red one in grey, which holds no tissue."""
    path = tmp_path / f"slide{suffix}"
    tifffile.imwrite(path, image, photometric=photometric, metadata={"axes": axes, **SPACING}, **TILED)
    for reader in ("auto", "openslide"):
        with pytest.raises(SlideError, match=rf"slide 'x': .*there are {len(image)} of 400 x 300 px .*drop it"):
            open_slide(path, slide_id="x", mpp_override=MPP, reader=reader)


def write_smallest_first(path: Path, mpps: tuple[float, ...]) -> Path:
    """Levels of 1440 x 960 px by 4, 1 and 2, of which the later ones are marked as reduced, with these µm per px."""
    image = texture(960, 1440)
    with tifffile.TiffWriter(path) as file:
        for by, mpp in zip((4, 1, 2), mpps, strict=True):
            file.write(
                shrunk(image, by), photometric="rgb", tile=(240, 240), compression="zlib", metadata=None,
                subfiletype=int(by < 4), resolution=(1e4 / mpp,) * 2, resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


@pytest.mark.parametrize("reader", READERS)
def test_the_resolution_of_a_smaller_image_that_comes_first_is_not_taken_for_the_slides(
    tmp_path: Path, reader: Reader
) -> None:
    """Tiles were four times too small."""
    path = write_smallest_first(tmp_path / "slide.tiff", (4 * MPP, MPP, 2 * MPP))
    with openslide.OpenSlide(path) as handle:
        assert (handle.dimensions, float(handle.properties["openslide.mpp-x"])) == ((1440, 960), 4 * MPP)
    with pytest.raises(SlideError, match=r"first, of 360 x 240 px, where the slide has 1440 x 960 px.*--mpp-override"):
        open_slide(path, reader=reader)
    with open_slide(path, mpp_override=MPP, reader=reader) as slide:
        assert (slide.info.mpp, slide.info.level_downsamples) == (MPP, (1.0, 2.0, 4.0))
    path = write_smallest_first(tmp_path / "alike.tiff", (MPP, MPP, MPP))
    with open_slide(path, reader=reader) as slide:
        assert (slide.info.mpp, slide.info.level_downsamples) == (MPP, (1.0, 2.0, 4.0))


def test_a_mask_of_one_sample_beside_the_slide_does_no_harm(tmp_path: Path) -> None:
    image = texture(480, 720)
    path = write_slide(tmp_path / "slide.tiff", [image], compression="zlib")
    with tifffile.TiffWriter(path, append=True) as file:
        file.write(image[..., 0], photometric="minisblack", tile=(240, 240), compression="zlib", metadata=None)
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_region((0.0, 0.0), (720, 480), MPP), image)


@pytest.mark.parametrize("quote", ['"', "'"], ids=["double", "single"])
def test_channels_in_a_file_each_are_not_taken_for_slides(quote: str, tmp_path: Path) -> None:
    planes = np.moveaxis(texture(300, 400), -1, 0)
    files = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="c{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>'
        for c in range(3)
    )
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0"'
        ' DimensionOrder="XYCZT" Type="uint8" SizeX="400" SizeY="300" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.5"'
        f' PhysicalSizeY="0.5">{files}</Pixels></Image></OME>'
    ).replace('"', quote)
    for c, plane in enumerate(planes):
        tifffile.imwrite(
            tmp_path / f"c{c}.ome.tif", plane, photometric="minisblack", description=xml, metadata=None, **TILED
        )
    for c in range(3):
        with pytest.raises(SlideError, match="there are 3 of 400 x 300 px"):
            open_slide(tmp_path / f"c{c}.ome.tif", mpp_override=MPP)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data": texture(300, 400).astype(np.uint16) * 16, "photometric": "rgb"}, "have 16 bits; wanted"),
        ({"data": texture(300, 400)[..., 0].astype(np.float32), "photometric": "minisblack"}, "have 32 bits; wanted"),
        (
            {"data": np.moveaxis(texture(300, 400), -1, 0), "photometric": "ycbcr", "planarconfig": "separate"},
            "Y, Cb and Cr are stored apart",
        ),
    ],
    ids=["12 of 16 bits", "float", "YCbCr apart"],
)
def test_samples_that_openslide_does_not_show_as_they_are_are_refused_at_once(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    """12 of 16 bits were nearly black, and the others called damaged."""
    tifffile.imwrite(tmp_path / "slide.tif", metadata=None, **options, **TILED)
    with pytest.raises(SlideError, match=rf"slide 'slide': .*{reason}.*the slide in color.*drop it"):
        open_slide(tmp_path / "slide.tif", mpp_override=MPP)


def test_samples_of_fewer_bits_are_shown_as_they_are(tmp_path: Path) -> None:
    image = texture(512, 512)[..., 0] // 16
    tiles = (
        (image[y : y + 256, x : x + 256 : 2] << 4 | image[y : y + 256, x + 1 : x + 256 : 2]).tobytes()
        for y in (0, 256)
        for x in (0, 256)
    )
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(
            tiles, shape=image.shape, dtype=np.uint8, bitspersample=4, photometric="minisblack", tile=(256, 256),
            metadata=None,
        )  # fmt: skip
    with open_slide(tmp_path / "slide.tif", mpp_override=MPP) as slide:
        assert np.array_equal(slide.read_region((0.0, 0.0), (512, 512), MPP)[..., 0], image * 17)


def write_macro_first(path: Path, slide: np.ndarray, **options: Any) -> Path:
    with tifffile.TiffWriter(path, byteorder="<") as file:
        for image in (texture(300, 400), slide):
            file.write(
                image,
                photometric="rgb",
                tile=(240, 240),
                compression="zlib",
                metadata={"axes": "YXS", **SPACING},
                **options,
            )
    return path


@pytest.mark.parametrize("stored", [(1, 2), (2, 1)], ids=["largest first", "smallest first"])
def test_levels_in_subifds_are_levels(tmp_path: Path, stored: tuple[int, int]) -> None:
    """As Bio-Formats and QuPath write them: OpenSlide shows level 0 alone, of which every overview would be made."""
    image = texture(960, 1440)
    levels = [image, image[::4, ::4], image[::16, ::16]]
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True, byteorder="<") as file:
        write = {"photometric": "rgb", "tile": (240, 240), "compression": "zlib"}
        file.write(image, subifds=2, metadata={"axes": "YXS", **SPACING}, **write)
        for number in stored:
            file.write(levels[number], subfiletype=1, **write)
    with open_slide(tmp_path / "slide.ome.tif", reader="openslide") as slide:
        assert slide.info.level_downsamples == (1.0,)
    with open_slide(tmp_path / "slide.ome.tif") as slide:
        assert (slide.info.mpp, slide.info.size0_px) == (MPP, (1440, 960))
        assert slide.info.level_downsamples == (1.0, 4.0, 16.0)
        # Another name than that of what was read of level 0 alone, or a rerun would keep these features.
        assert slide.reader == "tiff-ome"
        for level, downsample in zip(levels, (1, 4, 16), strict=True):
            size = (1440 // downsample, 960 // downsample)
            assert np.array_equal(slide.read_region((0.0, 0.0), size, MPP * downsample), level)


@pytest.mark.parametrize("other_levels", [False, True], ids=["alone", "among others"])
def test_a_subifd_of_another_shape_is_no_level(tmp_path: Path, other_levels: bool) -> None:
    """Padded to whole stored tiles, it was taken for a level of the downsample 3.3, and what lay to the right lay aside."""
    image = texture(960, 1440)
    wider = np.zeros((16, 1600, 3), np.uint8)
    others = [np.pad(image[::4, ::4], ((0, 0), (0, 120), (0, 0))), *([image[::8, ::8], wider] if other_levels else [])]
    downsamples = (1.0, 8.0) if other_levels else (1.0,)
    for name, byteorder, reader in (
        ("opened", "<", "tiff-ome" if other_levels else "tiff"),
        ("not opened", ">", "tiff"),
    ):
        with tifffile.TiffWriter(tmp_path / f"{name}.ome.tif", ome=True, byteorder=byteorder) as file:
            write = {"photometric": "rgb", "tile": (240, 240), "compression": "zlib"}
            file.write(image, subifds=len(others), metadata={"axes": "YXS", **SPACING}, **write)
            for other in others:
                file.write(other, subfiletype=1, **write)
        with open_slide(tmp_path / f"{name}.ome.tif") as slide:
            assert (slide.reader, slide.info.level_downsamples) == (reader, downsamples)
            for by in (1, 8)[: len(downsamples)]:
                assert np.array_equal(
                    slide.read_region((0.0, 0.0), (1440 // by, 960 // by), MPP * by), image[::by, ::by]
                )


def test_the_slide_is_the_largest_image_of_an_ome_tiff_whichever_comes_first(tmp_path: Path) -> None:
    """The macro, or the label with the patient's name, was cut into tiles."""
    image = texture(1000, 1400, seed=1)
    with open_slide(write_macro_first(tmp_path / "slide.ome.tif", image)) as slide:
        assert (slide.info.vendor, slide.reader, slide.info.size0_px) == ("ome-tiff", "tiff-ome", (1400, 1000))
        assert np.array_equal(slide.read_region((0.0, 0.0), (1400, 1000), MPP), image)


def test_a_region_that_is_smaller_than_the_macro_after_it_is_not_taken_for_the_macro(tmp_path: Path) -> None:
    path = write_macro_first(tmp_path / "slide.ome.tif", texture(431, 1280))
    with pytest.raises(SlideError, match="several images of about one size"):
        open_slide(path, mpp_override=MPP)


@pytest.mark.parametrize("subifds", [0, 1], ids=["one level", "levels in SubIFDs"])
@pytest.mark.parametrize("byteorder", ["<", ">"], ids=["as OpenSlide reads", "as OpenSlide does not read"])
def test_an_ome_tiff_of_two_pieces_of_tissue_is_not_taken_for_the_larger_one(
    tmp_path: Path, subifds: int, byteorder: Literal["<", ">"]
) -> None:
    """As Bio-Formats writes slides of scanners that scan each piece by itself: the other piece was not there."""
    pieces = [texture(960, 1440), texture(960, 960)]
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True, byteorder=byteorder) as file:
        write = {"photometric": "rgb", "tile": (240, 240), "compression": "zlib"}
        for image in pieces:
            file.write(image, subifds=subifds, metadata={"axes": "YXS", **SPACING}, **write)
            for _ in range(subifds):
                file.write(image[::4, ::4], subfiletype=1, **write)
    with pytest.raises(SlideError, match="it holds several images of about one size"):
        open_slide(tmp_path / "slide.ome.tif")


@pytest.mark.parametrize("byteorder", ["<", ">"], ids=["as OpenSlide reads", "as OpenSlide does not read"])
def test_a_level_that_is_an_image_of_its_own_is_no_second_piece_of_tissue(
    tmp_path: Path, byteorder: Literal["<", ">"]
) -> None:
    """Half of 1441 px may be rounded up to 721."""
    image = texture(961, 1441)
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True, byteorder=byteorder) as file:
        for level in (image, texture(481, 721)):
            file.write(
                level, photometric="rgb", tile=(240, 240), compression="zlib", metadata={"axes": "YXS", **SPACING}
            )
    with open_slide(tmp_path / "slide.ome.tif") as slide:
        assert np.array_equal(slide.read_region((0.0, 0.0), (1441, 961), MPP), image)


def test_a_slide_that_comes_after_another_image_is_refused_where_nothing_says_which_it_is(tmp_path: Path) -> None:
    path = write_macro_first(tmp_path / "slide.tif", texture(1000, 1400))
    with pytest.raises(
        SlideError, match=r"alone, and that is 400 x 300 px, a later one 1400 x 1000 px; wanted the slide"
    ):
        open_slide(path, mpp_override=MPP)


@pytest.mark.parametrize(
    ("byteorder", "whole", "broken", "reads"),
    [
        ("<", b'SizeC="3"', b'SizeV="3"', True),
        (">", b'SizeC="3"', b'SizeV="3"', False),
        (">", b'SizeX="400"', b'SizeX="4W0"', False),
        ("<", b'encoding="UTF-8"', b'encoding="UgF-8"', True),
        (">", b'encoding="UTF-8"', b'encoding="UgF-8"', True),
    ],
    ids=str,
)
def test_broken_ome_xml_ends_in_words_or_does_no_harm(
    tmp_path: Path, byteorder: str, whole: bytes, broken: bytes, reads: bool
) -> None:
    """It ended in KeyError, ValueError or LookupError where OpenSlide does not open the file, as with this byte order."""
    path = tmp_path / "slide.ome.tif"
    options = {**TILED, "byteorder": byteorder}
    tifffile.imwrite(path, texture(300, 400), photometric="rgb", metadata={"axes": "YXS", **SPACING}, **options)
    data = path.read_bytes()
    assert whole in data
    path.write_bytes(data.replace(whole, broken))
    refused = pytest.raises(SlideError, match=r"slide 'slide.ome': .*drop it")
    with nullcontext() if reads else refused, open_slide(path, mpp_override=MPP) as slide:
        assert slide.info.size0_px == (400, 300)


@pytest.mark.parametrize("length", [0, 2**30])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_header_with_a_broken_tile_length_ends_in_words(
    tmp_path: Path, byteorder: Literal["<", ">"], length: int
) -> None:
    path = tmp_path / "slide.ome.tif"
    options = {**TILED, "byteorder": byteorder}
    tifffile.imwrite(path, texture(300, 400), photometric="rgb", metadata={"axes": "YXS", **SPACING}, **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["TileLength"].overwrite(length, dtype="I")
    with pytest.raises(SlideError, match=r"slide 'slide.ome'"), open_slide(path) as slide:
        slide.read_region((0.0, 0.0), (64, 64), MPP)


@pytest.mark.parametrize("reader", ["auto", "openslide"])
@pytest.mark.parametrize("description", [None, APERIO])
def test_a_header_with_tiles_larger_than_any_is_refused_whose_ever_the_slide_is(
    tmp_path: Path, description: str | None, reader: Reader
) -> None:
    """OpenSlide ends the process where the first of them is read."""
    path = write_slide(tmp_path / "slide.svs", [texture(300, 400)], description=description, compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["TileLength"].overwrite(2**30, dtype="I")
    with pytest.raises(SlideError, match=r"slide 'slide': OpenSlide .* stored tiles of 240 x 1073741824 px.* damaged"):
        open_slide(path, reader=reader)


def philips(path: Path, image: np.ndarray) -> Path:
    """As Philips' export writes: levels padded to whole tiles, one description in XML, sparse tiles."""
    spacing = [(MPP / 1000) * 2**i for i in range(3)]
    items = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028"'
        f' Element="0x0030" PMSVR="IDoubleArray">&quot;{s:.9f}&quot; &quot;{s:.9f}&quot;</Attribute></DataObject>'
        for s in spacing
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute'
        ' Name="PIM_DP_SCANNED_IMAGES" Group="0x301d" Element="0x1003" PMSVR="IDataObjectArray"><Array><DataObject'
        ' ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301d" Element="0x1004"'
        ' PMSVR="IString">WSI</Attribute><Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001"'
        f' Element="0x8b01" PMSVR="IDataObjectArray"><Array>{items}</Array></Attribute></DataObject></Array></Attribute>'
        "</DataObject>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(3):
            part = shrunk(image, 2**level) if level else image
            height, width = (-(-side // 256) * 256 for side in part.shape[:2])
            padded = np.full((height, width, 3), 255, np.uint8)
            padded[: part.shape[0], : part.shape[1]] = part
            file.write(
                padded, tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None, subfiletype=int(level > 0),
                software="Philips DP v1.0", description=xml if level == 0 else None,
            )  # fmt: skip
    return path


@pytest.mark.parametrize("description", [None, APERIO], ids=["generic", "aperio"])
@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        ([(500, 700), (256, 352)], (1.0, 2.0)),
        ([(500, 700), (256, 352), (125, 175)], (1.0, 2.0)),
        ([(400, 400), (250, 350)], (1.0,)),
        ([(720, 720)], (1.0,)),
        ([(496, 608), (125, 175)], (1.0,)),
    ],
    ids=["padded", "before another", "of something else", "padded to whole tiles", "of another shape"],
)
def test_what_is_no_level_is_left_out(
    tmp_path: Path, description: str | None, stored: list[tuple[int, int]], kept: tuple[float, ...]
) -> None:
    """A macro among the levels was what the tissue, and tiles of that resolution, came from; padded levels lay aside."""
    image = texture(1000, 1400)
    levels = [image if number == 0 else texture(*size, seed=number) for number, size in enumerate([(0, 0), *stored])]
    path = write_slide(tmp_path / "slide.tiff", levels, description=description, compression="zlib")
    sizes = {1000 // height: level for height, level in zip([s for s, _ in stored], levels[1:], strict=True)}
    for reader in READERS:
        with open_slide(path, reader=reader) as slide:
            assert slide.info.level_downsamples == kept
            for down in kept:
                wanted = image if down == 1 else sizes[int(down)]
                size_px = int(1400 / down), int(1000 / down)
                assert (slide.read_region((0.0, 0.0), size_px, MPP * down) == wanted).all()


@pytest.mark.parametrize("reader", READERS)
def test_padded_levels_that_keep_the_shape_are_left_out(tmp_path: Path, reader: Reader) -> None:
    """Of a slide that is nearly square: what lay to the right in them lay a tenth aside, and nothing told."""
    images = [texture(2160, 2160), texture(1200, 1200), texture(540, 540)]
    with open_slide(write_slide(tmp_path / "slide.tiff", images), reader=reader) as slide:
        assert slide.info.level_downsamples == (1.0,)
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True, byteorder=">") as file:
        for number, image in enumerate(images):
            about = {"subfiletype": 1} if number else {"subifds": 2, "metadata": {"axes": "YXS", **SPACING}}
            file.write(image, photometric="rgb", tile=(240, 240), compression="zlib", **about)
    if reader != "openslide":
        with open_slide(tmp_path / "slide.ome.tif", reader=reader) as slide:
            assert slide.info.level_downsamples == (1.0, 4.0)


@pytest.mark.parametrize("description", [None, APERIO], ids=["generic", "aperio"])
@pytest.mark.parametrize("size", [(900, 900), (240, 1200)], ids=str)
def test_another_piece_of_tissue_that_openslide_takes_for_a_level_is_not_left_out(
    tmp_path: Path, description: str | None, size: tuple[int, int]
) -> None:
    path = write_slide(tmp_path / "slide.tiff", [texture(1000, 1400), texture(*size)], description=description)
    for reader in READERS:
        with pytest.raises(SlideError, match=f"takes an image of {size[1]} x {size[0]} px for a level of"):
            open_slide(path, reader=reader)


@pytest.mark.parametrize("size", [(249, 350), (250, 351), (251, 350)], ids=str)
def test_sides_of_levels_are_rounded_as_they_come(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_slide(tmp_path / "slide.tiff", [texture(1000, 1400), texture(*size)])
    with open_slide(path) as slide:
        assert len(slide.info.level_downsamples) == 2


def test_levels_of_a_philips_slide_are_cut_to_their_size(tmp_path: Path) -> None:
    path = philips(tmp_path / "slide.tiff", texture(768, 1280))
    direct, reference = both(path)
    with direct, reference:
        assert (direct.reader, reference.info.vendor) == ("tiff", "philips")
        assert direct.level_sizes_px == reference.level_sizes_px  # type: ignore[attr-defined]
    for level in range(3):
        assert_same_pixels(path, level=level)


def test_a_reader_that_cannot_read_a_slide_says_why(shared_dir: Path) -> None:
    path = shared_dir / "data" / "slides" / "test3-DAPI-2-387.ndpi"
    with pytest.raises(SlideError, match="reader 'tiff': slides of hamamatsu are read by OpenSlide alone"):
        open_slide(path, mpp_override=MPP, reader="tiff")


@pytest.mark.parametrize("cut", [1, 10, 900])
def test_a_stored_tile_cut_short_is_refused_and_not_filled_up(tmp_path: Path, cut: int) -> None:
    path = write_slide(tmp_path / "slide.tiff", [texture(700, 700)])
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[4], file.pages[0].databytecounts[4]
    data = bytearray(path.read_bytes())
    data[offset + count - cut : offset + count] = bytes(cut)
    path.write_bytes(data)
    with open_slide(path) as slide:
        grid = grid_of(slide, side=200, stride=200)
        slide.read_tiles(grid, [0])
        with pytest.raises(SlideError, match=r"level-0 x=200, y=200: .*copy it again"):
            slide.read_tiles(grid, [5])


def test_bytes_left_over_after_the_last_pixel_do_no_harm() -> None:
    image = texture(240, 240)
    data = imagecodecs.jpeg8_encode(image, level=90)
    output, again = np.empty((2, 240, 240, 3), np.uint8)
    decode_jpeg(stream_head("YCbCr"), data, output)
    decode_jpeg(stream_head("YCbCr"), data[:-2] + b"\0abc\0" + data[-2:], again)
    assert (output == again).all()


def test_many_threads_get_what_one_gets_while_memory_for_tiles_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsimil.slides.stored_tiles._LEAST_HELD_BYTES", 3 * 240 * 240 * 3)
    monkeypatch.setattr("wsimil.slides.stored_tiles._MOST_HELD_BYTES", 3 * 240 * 240 * 3)
    path = write_slide(tmp_path / "slide.tiff", [texture(2000, 2000)])
    with open_slide(path) as slide, ThreadPoolExecutor(6) as pool:
        grid = grid_of(slide, side=200, stride=90)
        wanted = slide.read_tiles(grid, np.arange(len(grid)))
        rows = np.random.default_rng(0).permutation(np.tile(np.arange(len(grid)), 3)).reshape(-1, 12)
        for found, batch in zip(pool.map(lambda batch: slide.read_tiles(grid, batch), rows), rows, strict=True):
            assert (found == wanted[batch]).all()


@pytest.mark.parametrize(("side", "stride"), [(200, 100), (200, 200), (320, 320), (310, 290), (500, 500), (130, 130)])
def test_reading_row_by_row_decodes_each_stored_tile_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, stride: int
) -> None:
    monkeypatch.setattr("wsimil.slides.stored_tiles._LEAST_HELD_BYTES", 0)
    decoded: list[int] = []
    decode = StoredTiles._decode

    def counted(self: StoredTiles, level: Any, index: int, output: np.ndarray) -> None:
        decoded.append(index)
        decode(self, level, index, output)

    monkeypatch.setattr(StoredTiles, "_decode", counted)
    path = write_slide(tmp_path / "slide.tiff", [texture(2000, 2000)])
    with open_slide(path) as slide:
        grid = grid_of(slide, side=side, stride=stride)
        slide.read_tiles(grid, np.arange(len(grid)))
    assert sorted(decoded) == list(range(81))


def test_memory_for_tiles_is_bounded_by_two_rows_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsimil.slides.stored_tiles._LEAST_HELD_BYTES", 0)
    path = write_slide(tmp_path / "slide.tiff", [np.zeros((6000, 8000, 3), np.uint8)])
    with open_slide(path) as slide:
        grid = grid_of(slide, side=250, stride=250, limit=10_000)
        out = np.empty((10, 250, 250, 3), np.uint8)
        tracemalloc.start()
        for start in range(0, len(grid), 10):
            slide.read_tiles(grid, np.arange(start, min(start + 10, len(grid))), out=out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 * 34 * 240 * 240 * 3 + (1 << 20)


def test_tiles_come_into_the_memory_that_is_given(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.tiff", [texture(700, 700)])
    with open_slide(path) as slide:
        grid = grid_of(slide, side=200, stride=200)
        out = np.zeros((5, 200, 200, 3), np.uint8)
        found = slide.read_tiles(grid, [1, 2], out=out)
        assert found.base is out
        assert (out[:2] == slide.read_tiles(grid, [1, 2])).all()
        assert not out[2:].any()
        with pytest.raises(ValueError, match="uint8"):
            slide.read_tiles(grid, [1], out=np.zeros((5, 201, 200, 3), np.uint8))


def test_half_scale_adds_the_levels_that_a_jpeg_slide_lacks_and_only_those(tmp_path: Path) -> None:
    image = texture(1000, 1400)
    path = write_slide(tmp_path / "slide.tiff", [image, shrunk(image, 4), shrunk(image, 8)])
    with open_slide(path) as plain, open_slide(path, half_scale_jpeg=True) as slide:
        assert plain.info.level_downsamples == (1, 4, 8)
        assert slide.info.level_downsamples == (1, 2, 4, 8, 16)
        grid = grid_of(slide, side=120, stride=120, level=1)
        inside = np.flatnonzero((grid.xy0 + 240 <= slide.info.size0_px).all(axis=1))
        assert len(inside) == 4 * 5
        for tile, (x0, y0) in zip(slide.read_tiles(grid, inside), grid.xy0[inside].tolist(), strict=True):
            assert np.abs(tile.astype(int) - shrunk(image[y0 : y0 + 240, x0 : x0 + 240], 2)).mean() < 8
    lossless = write_slide(tmp_path / "lossless.tiff", [image], compression="zlib")
    with open_slide(lossless, half_scale_jpeg=True) as slide:
        assert slide.info.level_downsamples == (1,)


def test_half_scale_halves_stored_tiles_that_are_not_square(tmp_path: Path) -> None:
    image = texture(960, 960)
    path = write_slide(tmp_path / "slide.tiff", [image], tile=(240, 480))
    with open_slide(path, half_scale_jpeg=True) as slide:
        found = slide.read_region((100.0, 60.0), (350, 370), 2 * MPP)
    assert np.abs(found.astype(int) - shrunk(image[60:800, 100:800], 2)).mean() < 4


def test_half_scale_keeps_stored_tiles_in_their_places_where_the_last_ones_are_1_px_wide_and_high(
    tmp_path: Path,
) -> None:
    """They were taken for the first of the next row, and every row after it lay in wrong places."""
    image = texture(721, 481)
    path = write_slide(tmp_path / "slide.tiff", [image])
    with open_slide(path, half_scale_jpeg=True) as slide:
        grid = grid_of(slide, side=120, stride=120, level=1)
        inside = np.flatnonzero((grid.xy0 + 240 <= slide.info.size0_px).all(axis=1))
        assert len(inside) == 2 * 3
        for tile, (x0, y0) in zip(slide.read_tiles(grid, inside), grid.xy0[inside].tolist(), strict=True):
            assert np.abs(tile.astype(int) - shrunk(image[y0 : y0 + 240, x0 : x0 + 240], 2)).mean() < 8


@pytest.mark.parametrize("description", [None, APERIO])
def test_half_scale_leaves_a_missing_stored_tile_to_the_level_it_is_missing_from(
    tmp_path: Path, description: str | None
) -> None:
    image = texture(1920, 1920)
    levels = [image, shrunk(image, 4), shrunk(image, 8)]
    path = write_slide(tmp_path / "slide.svs", levels, description=description)
    without_tiles(path, 1, [0])
    with open_slide(path, half_scale_jpeg=True) as slide, open_slide(path, reader="openslide") as reference:
        assert (slide.reader, slide.info.level_downsamples[:4]) == ("tiff", (1, 2, 4, 8))
        for mpp in (4 * MPP, 8 * MPP):
            size = round(1920 * MPP / mpp)
            ours, theirs = (one.read_region((0.0, 0.0), (size, size), mpp) for one in (slide, reference))
            assert (ours == theirs).all()
        for one, level in ((slide, 2), (reference, 1)):
            tile = one.read_tiles(grid_of(one, side=240, stride=240, level=level), [0])
            assert (tile == 255).all() == (description is None)
    without_tiles(path, 0, [1])
    with open_slide(path, half_scale_jpeg=True) as slide:
        assert 2 not in slide.info.level_downsamples[:2], "nobody else has the level to show what is missing"


def test_half_scale_of_a_jpeg_of_another_size_is_refused() -> None:
    data = imagecodecs.jpeg8_encode(texture(256, 256), level=90)
    decode_jpeg(stream_head("YCbCr"), data, np.empty((128, 128, 3), np.uint8), half=True)
    for side in (64, 256):
        with pytest.raises(ValueError, match="a JPEG of 256 x 256 px, wanted"):
            decode_jpeg(stream_head("YCbCr"), data, np.empty((side, side, 3), np.uint8), half=True)
