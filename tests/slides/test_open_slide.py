from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsimil.errors import SlideError
from wsimil.geometry import TileGrid, TileSpec
from wsimil.slides import Reader, Slide, content, find_slides, open_slide, pyramid
from wsimil.slides import openslide as reader
from wsimil.slides.content import content_digest

MPP = 0.5


def write_tiff(path: Path, levels: list[np.ndarray], *, mpp: float = MPP) -> Path:
    """Lossless, so that pixels can be compared."""
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(levels):
            file.write(
                level, tile=(256, 256), compression="zlib", photometric="rgb", metadata=None, subfiletype=int(i > 0),
                resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def shrunk(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def tiles_at(slide: Slide, xy0: list[tuple[int, int]], *, level: int, read_px: int) -> TileGrid:
    mpp = slide.info.mpp * slide.info.level_downsamples[level]
    spec = TileSpec(size_px=read_px, mpp=mpp, stride_px=read_px, min_tissue=0.0)
    return TileGrid(
        slide=slide.info, spec=spec, xy0=np.array(xy0, dtype=np.int64), tissue=np.ones(len(xy0), dtype=np.float32),
        read_level=level, read_px=read_px,
    )  # fmt: skip


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return texture(1000, 1301)


@pytest.fixture(scope="module")
def slide(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Slide:
    levels = [image, shrunk(image, 650, 500), shrunk(image, 321, 247)]
    return open_slide(write_tiff(tmp_path_factory.mktemp("slide") / "texture.tiff", levels))


def test_importing_the_package_loads_no_decoder() -> None:
    code = "import sys, wsimil.slides; sys.exit(any(m in sys.modules for m in ('openslide', 'torch', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_slide_states_its_size_mpp_and_pyramid(slide: Slide) -> None:
    info = slide.info
    assert info.slide_id == "texture"
    assert info.size0_px == (1301, 1000)
    assert (info.mpp, info.mpp_source, info.mpp_detail) == (pytest.approx(MPP), "metadata", "openslide.mpp-x")
    assert info.level_downsamples == pytest.approx((1.0, (1301 / 650 + 2) / 2, (1301 / 321 + 1000 / 247) / 2))
    assert info.bounds0_px == (0, 0, 1301, 1000)
    assert slide.reader == "tiff"


def test_tiles_at_level_0_are_the_stored_pixels_in_the_order_asked_for(slide: Slide, image: np.ndarray) -> None:
    xy0 = [(0, 0), (63, 0), (1000, 63), (17, 500)]
    tiles = slide.read_tiles(tiles_at(slide, xy0, level=0, read_px=63), np.array([3, 0, 2]))
    assert tiles.dtype == np.uint8
    for tile, (x, y) in zip(tiles, [xy0[3], xy0[0], xy0[2]], strict=True):
        np.testing.assert_array_equal(tile, image[y : y + 63, x : x + 63])


def test_no_tiles_are_an_array_of_no_tiles(slide: Slide) -> None:
    assert slide.read_tiles(tiles_at(slide, [(0, 0)], level=0, read_px=63), []).shape == (0, 63, 63, 3)


def test_tiles_at_a_whole_downsample_are_the_stored_pixels(tmp_path: Path, image: np.ndarray) -> None:
    level = shrunk(image[:, :1300], 650, 500)
    with open_slide(write_tiff(tmp_path / "s.tiff", [image[:, :1300], level])) as slide:
        tiles = slide.read_tiles(tiles_at(slide, [(101, 0), (203, 300)], level=1, read_px=63), [0, 1])
    # 101 / 2 = 50.5 goes up to 51, 203 / 2 = 101.5 to 102: one rounding rule, no interpolation.
    np.testing.assert_array_equal(tiles[0], level[0:63, 51:114])
    np.testing.assert_array_equal(tiles[1], level[150:213, 102:165])


def test_tiles_at_a_fractional_downsample_are_nearer_to_the_stored_pixels_than_a_plain_read(
    tmp_path: Path, image: np.ndarray
) -> None:
    level = shrunk(image, 650, 500)
    path = write_tiff(tmp_path / "s.tiff", [image, level])
    rng = np.random.default_rng(1)
    xy0 = sorted({(int(x), int(y)) for x, y in rng.integers(0, 800, (40, 2))}, key=lambda at: (at[1], at[0]))
    with open_slide(path) as slide:
        downsample = slide.info.level_downsamples[1]
        tiles = slide.read_tiles(tiles_at(slide, xy0, level=1, read_px=63), np.arange(len(xy0)))
    ours, plain = [], []
    with reader.openslide.OpenSlide(path) as handle:
        for tile, (x0, y0) in zip(tiles.astype(int), xy0, strict=True):
            x, y = int(x0 / downsample + 0.5), int(y0 / downsample + 0.5)
            stored = level[y : y + 63, x : x + 63].astype(int)
            read = np.asarray(handle.read_region((x0, y0), 1, (63, 63)))[..., :3].astype(int)
            ours.append(np.abs(tile - stored).mean())
            plain.append(np.abs(read - stored).mean())
    assert np.mean(ours) < 0.8 * np.mean(plain)


def test_a_whole_pixel_of_a_level_is_asked_for_at_the_nearest_level_0_pixel() -> None:
    assert [reader._level0_of(position, 4.0017) for position in (0, 1, 500, 1000)] == [0, 4, 2001, 4002]
    assert [reader._level0_of(position, 2.0) for position in (-1, 63, 1000)] == [-2, 126, 2000]


def test_outside_the_slide_is_white(slide: Slide, image: np.ndarray) -> None:
    tile = slide.read_tiles(tiles_at(slide, [(1280, 980)], level=0, read_px=63), [0])[0]
    np.testing.assert_array_equal(tile[:20, :21], image[980:, 1280:])
    assert (tile[20:] == 255).all()
    assert (tile[:, 21:] == 255).all()
    assert (slide.read_region((-500.0, -500.0), (63, 63), MPP) == 255).all()


def test_a_region_at_the_slides_own_mpp_is_the_stored_pixels(slide: Slide, image: np.ndarray) -> None:
    for width, height in ((200, 50), (1, 1)):
        region = slide.read_region((63.0, 100.0), (width, height), slide.info.mpp)
        np.testing.assert_array_equal(region, image[100 : 100 + height, 63 : 63 + width])


@pytest.mark.parametrize(
    ("size_px", "mpp"), [((0, 5), MPP), ((5, -1), MPP), ((5, 5), 0.0), ((5, 5), -MPP), ((5, 5), float("nan"))]
)
def test_a_region_without_pixels_or_scale_is_refused(slide: Slide, size_px: tuple[int, int], mpp: float) -> None:
    with pytest.raises(ValueError, match="a region has at least 1 x 1 px and a positive mpp, got"):
        slide.read_region((0.0, 0.0), size_px, mpp)


@pytest.mark.parametrize("mpp", [0.3, 1.0, 1.7, 4.0, 23.0])
@pytest.mark.parametrize("corner", [(301.0, 203.5), (-101.1, -77.4)])
@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_a_region_is_in_its_place_at_any_mpp(
    slide: Slide, image: np.ndarray, mpp: float, corner: tuple[float, float], reader: Reader
) -> None:
    """Left and above of the slide OpenSlide shows a level by up to a px aside, and some corners ended in an error of Pillow."""
    size_px = (max(1, int(600 * MPP / mpp)), max(1, int(400 * MPP / mpp)))
    scale = mpp / slide.info.mpp
    x, y = (at + 200 for at in corner)
    padded = Image.fromarray(np.pad(image, ((200, 0), (200, 0), (0, 0)), constant_values=255))
    box = (x, y, x + size_px[0] * scale, y + size_px[1] * scale)
    wanted = np.asarray(padded.resize(size_px, Image.Resampling.BILINEAR, box=box)).astype(int)
    with open_slide(slide.info.path, reader=reader) as opened:
        region = opened.read_region(corner, size_px, mpp).astype(int)
    assert region.shape == (size_px[1], size_px[0], 3)
    # A shift by half an output pixel differs by several times this.
    assert np.abs(region - wanted).mean() < 6.0


def test_chunks_join_without_a_seam(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = slide.read_region((11.3, 7.0), (300, 250), 0.83)
    monkeypatch.setattr(pyramid, "_CHUNK_PX", 64)
    assert np.abs(slide.read_region((11.3, 7.0), (300, 250), 0.83).astype(int) - whole).max() <= 1


def test_shrinking_a_slide_without_levels_to_one_pixel_gives_its_mean(
    tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "_CHUNK_PX", 256)
    with open_slide(write_tiff(tmp_path / "s.tiff", [image])) as slide:
        pixel = slide.thumbnail(1)
    assert pixel.shape == (1, 1, 3)
    assert np.abs(pixel[0, 0] - image.mean(axis=(0, 1))).max() < 2


@pytest.mark.parametrize(("max_px", "shape"), [(100, (77, 100, 3)), (1, (1, 1, 3)), (5000, (1000, 1301, 3))])
def test_a_thumbnail_is_the_whole_frame_and_never_larger(slide: Slide, max_px: int, shape: tuple[int, ...]) -> None:
    assert slide.thumbnail(max_px).shape == shape


def test_a_thumbnail_shows_the_frame_and_no_white_beyond_it(tmp_path: Path) -> None:
    dark = np.full((700, 1001, 3), 10, dtype=np.uint8)
    with open_slide(write_tiff(tmp_path / "s.tiff", [dark, shrunk(dark, 250, 175)])) as slide:
        assert slide.thumbnail(63).max() == 10


def test_threads_read_what_one_thread_reads(slide: Slide) -> None:
    xy0 = [(x, y) for y in range(0, 900, 150) for x in range(0, 1200, 150)]
    grid = tiles_at(slide, xy0, level=0, read_px=150)
    alone = slide.read_tiles(grid, np.arange(len(xy0)))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: slide.read_tiles(grid, [i])[0], range(len(xy0))))
    np.testing.assert_array_equal(np.stack(together), alone)


def test_a_closed_slide_says_that_it_is_closed(tmp_path: Path, make_slide: Callable[..., Path]) -> None:
    with open_slide(make_slide(tmp_path / "s.tiff")) as slide:
        pass
    with pytest.raises(SlideError, match="slide 's' is closed"):
        slide.thumbnail(63)


def test_a_digest_follows_the_content_and_not_the_name(tmp_path: Path, make_slide: Callable[..., Path]) -> None:
    first = make_slide(tmp_path / "a.tiff", seed=1)
    copy = tmp_path / "elsewhere" / "b.tiff"
    copy.parent.mkdir()
    copy.write_bytes(first.read_bytes())
    other = make_slide(tmp_path / "c.tiff", seed=2)
    digests = [open_slide(path).info.digest for path in (first, copy, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_an_override_gives_a_slide_without_mpp_its_scale(tmp_path: Path, make_slide: Callable[..., Path]) -> None:
    path = make_slide(tmp_path / "s.tiff", mpp=None)
    with pytest.raises(SlideError, match=r"slide 'x': .*--mpp-override"):
        open_slide(path, slide_id="x")
    assert open_slide(path, mpp_override=0.25).info.mpp == 0.25


def test_what_is_not_a_slide_says_so_and_what_to_do(tmp_path: Path) -> None:
    text, empty = tmp_path / "text.svs", tmp_path / "empty.svs"
    text.write_text("not a slide")
    empty.touch()
    with pytest.raises(
        SlideError, match=r"slide 'text': .* is not a slide that OpenSlide .* reads; convert it to a pyramidal"
    ):
        open_slide(text)
    with pytest.raises(SlideError, match=r"is empty \(0 bytes\); copy it again"):
        open_slide(empty)
    with pytest.raises(SlideError, match="is a folder; give a slide file"):
        open_slide(tmp_path)
    with pytest.raises(SlideError, match="does not exist; check the path"):
        open_slide(tmp_path / "missing.svs")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.995])
def test_a_slide_cut_short_fails_when_opened_or_read(tmp_path: Path, image: np.ndarray, share: float) -> None:
    data = write_tiff(tmp_path / "whole.tiff", [image]).read_bytes()
    path = tmp_path / "cut.tiff"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match=r"slide 'cut'.*cut short"), open_slide(path) as slide:
        slide.read_region((0.0, 0.0), slide.info.size0_px, slide.info.mpp)


def test_slides_are_found_below_a_folder_in_order_and_companions_are_not(tmp_path: Path) -> None:
    for name in (
        "b/2.SVS",
        "a.tiff",
        "b/1.ndpi",
        "m.mrxs",
        "m/Dat0001.tif",
        "notes.csv",
        ".hidden.svs",
        ".cache/x.svs",
        "m2/3.dcm",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_slides(tmp_path)]
    assert found == ["a.tiff", "b/1.ndpi", "b/2.SVS", "m.mrxs", "m2/3.dcm"]


@pytest.mark.parametrize("change", [{"quickhash": "r"}, {"head": b"h"}, {"tail": b"t"}, {"size": 5}])
def test_each_part_of_a_digest_counts(change: dict[str, Any]) -> None:
    same: dict[str, Any] = {"quickhash": "q", "head": b"head", "tail": b"tail", "size": 4}
    assert content_digest(Path("s.svs"), "s", **same) != content_digest(Path("s.svs"), "s", **(same | change))


def test_a_digest_follows_the_pixels_of_one_uncompressed_level(tmp_path: Path) -> None:
    # OpenSlide gives a slide no quickhash whose smallest level is of more than 5 MB.
    digests = []
    for name, at in (("a", 300), ("b", 600)):
        pixels = np.full((2048, 2048, 3), 243, np.uint8)
        pixels[at : at + 250, at : at + 250] = 120
        facts: dict[str, Any] = {"metadata": None, "resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / f"{name}.tiff", pixels, tile=(256, 256), photometric="rgb", **facts)
        digests.append(open_slide(tmp_path / f"{name}.tiff").info.digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize("rows", [16, 64, 256, 1000])
def test_a_digest_without_a_quickhash_looks_into_every_column_of_tiles(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_BLOCK_BYTES", 64)
    path, digests = tmp_path / "s.tiff", set()
    for column in range(8):
        tiles = np.zeros((rows, 8, 2**19 // rows // 8), np.uint8)
        tiles[:, column] = 1
        path.write_bytes(tiles.tobytes())
        digests.add(content_digest(path, "s", quickhash="", head=b"", tail=b"", size=tiles.nbytes))
    assert len(digests) == 8


@pytest.mark.parametrize("size", [5, 5 * 2**20])
def test_a_file_that_cannot_be_read_to_its_middle_is_no_slide(tmp_path: Path, size: int) -> None:
    with pytest.raises(SlideError, match=r"slide 's': .* does not exist; check the path"):
        content_digest(tmp_path / "s.tiff", "s", quickhash="", head=b"head", tail=b"tail", size=size)


def test_an_mrxs_digest_follows_the_files_of_its_data_folder(tmp_path: Path) -> None:
    path = tmp_path / "s.mrxs"
    (tmp_path / "s").mkdir()
    known: dict[str, Any] = {"quickhash": "q", "head": b"head", "tail": b"tail", "size": 4}
    before = content_digest(path, "s", **known)
    assert before == content_digest(path, "s", **known)
    (tmp_path / "s" / "Data0001.dat").write_bytes(b"12345")
    after = content_digest(path, "s", **known)
    assert before != after


@pytest.mark.parametrize(
    ("declared", "bounds"),
    [
        (("10", "20", "100", "50"), (10, 20, 100, 50)),
        (("-5", "0", "2000", "50"), (0, 0, 1000, 50)),
        (("1200", "0", "10", "10"), (0, 0, 1000, 630)),
        (("x", "0", "10", "10"), (0, 0, 1000, 630)),
    ],
)
def test_declared_bounds_are_cut_to_the_slide(declared: tuple[str, ...], bounds: tuple[int, ...]) -> None:
    properties = {f"openslide.bounds-{k}": v for k, v in zip(("x", "y", "width", "height"), declared, strict=True)}
    assert reader._bounds0_px(properties, (1000, 630)) == bounds
    assert reader._bounds0_px({}, (1000, 630)) == (0, 0, 1000, 630)


CLOSED_UNDER_READERS = """
import sys, threading
from pathlib import Path
from wsimil.errors import SlideError
from wsimil.slides import open_slide

said = []
for _ in range(2):
    slide = open_slide(Path(sys.argv[1]))
    started = threading.Barrier(4)

    def read():
        started.wait()
        try:
            while True:
                slide.read_region((0.0, 0.0), slide.info.size0_px, slide.info.mpp)
        except SlideError as error:
            said.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    slide.read_region((0.0, 0.0), slide.info.size0_px, slide.info.mpp)  # the others are in the midst of theirs
    slide.close()
    for thread in threads:
        thread.join()
assert len(said) == 6 and all("is closed" in text for text in said), said
"""


def test_closing_waits_for_readers_which_are_then_refused(make_slide: Callable[..., Path], tmp_path: Path) -> None:
    path = make_slide(tmp_path / "a.tiff", size_px=(5000, 4000))  # more than OpenSlide's cache holds
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_UNDER_READERS, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
