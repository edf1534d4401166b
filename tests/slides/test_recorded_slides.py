"""What becomes of every file in the recorded material: the tiles it gives, or the words that tell a user what to do."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsimil.errors import SlideError
from wsimil.geometry import TileSpec
from wsimil.slides import find_slides, open_slide
from wsimil.tiling import tile
from wsimil.tissue import segment

pytestmark = pytest.mark.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Opens:
    """A slide that is read; tiles are `size_px` px of `mpp_asked` µm, and `tiles` says whether there are any."""

    mpp: float
    mpp_asked: float
    size_px: int = 224
    level: int = 0
    tiles: bool = True
    override: float | None = None


OPENS = {
    "CMU-1-Small-Region.svs": Opens(mpp=0.499, mpp_asked=0.5),
    "TCGA-CR-7395-01A-01-TS1.svs": Opens(mpp=0.5, mpp_asked=1.01, level=1, override=0.5),
    "test3-DAPI-2-387.ndpi": Opens(mpp=0.228175, mpp_asked=256 / 224, level=2, tiles=False),
    "camelyon-lowres-jpeg.dcm": Opens(mpp=28.9685, mpp_asked=29.0, size_px=63),
    "highdicom_sm_image.dcm": Opens(mpp=0.499, mpp_asked=0.5, tiles=False),
    "highdicom_sm_image_control.dcm": Opens(mpp=0.499, mpp_asked=0.5, tiles=False),
    "highdicom_sm_image_dots.dcm": Opens(mpp=0.499, mpp_asked=0.5, tiles=False),
    "highdicom_sm_image_jpegls.dcm": Opens(mpp=0.499, mpp_asked=0.5, tiles=False),
    "derived/IDC-14082-reassembled.tiff": Opens(mpp=4.0, mpp_asked=4.0, size_px=50),
    "edge/small.svs": Opens(mpp=0.499, mpp_asked=0.5, tiles=False),
    "yb10kx5k.zstd.tiff": Opens(mpp=0.5, mpp_asked=8.0, level=4, size_px=63, override=0.5),
    "OS-1-detail.ome.tif": Opens(mpp=0.2271, mpp_asked=0.5),
    "OS-2-ndpi.ome.tif": Opens(mpp=0.2271, mpp_asked=0.5),
    "edge/boxes.tiff": Opens(mpp=2.0, mpp_asked=4.0, level=1, size_px=63, override=2.0),
}
CONVERT = "convert it to a pyramidal TIFF"
FAILS = {
    "TCGA-CR-7395-01A-01-TS1.svs": (
        "no mpp in metadata",
        "manifest's mpp column or with --mpp-override, or drop the slide",
    ),
    "yb10kx5k.zstd.tiff": (
        "352.858 µm per pixel (from openslide.mpp-x: 72 dpi, likely a placeholder",
        "--mpp-override",
    ),
    "edge/boxes.tiff": ("352.778 µm per pixel (from openslide.mpp-x: 72 dpi, likely a placeholder", "--mpp-override"),
    # Its frames lie column by column, which nothing in the file states.
    "small_dicom_pathml.dcm": ("it does not state its ImageType", CONVERT),
    "highdicom_sm_annotations.dcm": (
        "it is no whole-slide image but of the DICOM class Microscopy Bulk Simple Annotations Storage",
        "or drop it",
    ),
    "edge/broken.svs": ("is not a slide that OpenSlide", CONVERT),
    "edge/unopenable.tiff": ("Unsupported TIFF compression: 52479", CONVERT),
    "edge/unreadable.svs": (
        "cannot read pixels at level-0 x=0, y=0: ",
        "copy it again from its source",
    ),
}


def test_no_recorded_slide_is_without_an_expected_outcome(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "slides"
    assert {path.relative_to(folder).as_posix() for path in find_slides(folder)} == OPENS.keys() | FAILS.keys()


@pytest.mark.parametrize("name", OPENS)
def test_a_recorded_slide_gives_its_tiles(shared_dir: Path, name: str) -> None:
    expected = OPENS[name]
    spec = TileSpec(size_px=expected.size_px, mpp=expected.mpp_asked, stride_px=expected.size_px, min_tissue=0.25)
    with open_slide(shared_dir / "data" / "slides" / name, mpp_override=expected.override) as slide:
        assert slide.info.mpp == pytest.approx(expected.mpp, rel=1e-5)
        grid = tile(slide.info, segment(slide), spec)
        tiles = slide.read_tiles(grid, np.arange(len(grid))[:20])
    assert grid.read_level == expected.level
    assert grid.effective_mpp == pytest.approx(expected.mpp_asked, rel=0.005)
    assert bool(len(grid)) == expected.tiles
    # A tile of tissue is neither blank nor white.
    assert all(one.std() > 0 and one.mean() < 250 for one in tiles)


@pytest.mark.parametrize("name", FAILS)
def test_a_recorded_file_that_fails_says_why_and_what_to_do(shared_dir: Path, name: str) -> None:
    path = shared_dir / "data" / "slides" / name
    with pytest.raises(SlideError) as caught, open_slide(path) as slide:
        segment(slide)
    message = str(caught.value)
    assert message.startswith(f"slide {path.stem!r}")
    for part in FAILS[name]:
        assert part in message


def test_a_slide_that_failed_once_stays_failed_and_names_the_first_place(shared_dir: Path) -> None:
    with open_slide(shared_dir / "data" / "slides" / "edge" / "unreadable.svs") as slide:
        for xy0 in ((0.0, 0.0), (5.0, 5.0)):
            with pytest.raises(SlideError, match="level-0 x=0, y=0"):
                slide.read_region(xy0, (8, 8), slide.info.mpp)


def test_a_slide_coarser_than_the_request_is_refused_with_both_resolutions(shared_dir: Path) -> None:
    spec = TileSpec(size_px=224, mpp=0.5, stride_px=224, min_tissue=0.0)
    with open_slide(shared_dir / "data" / "slides" / "derived" / "IDC-14082-reassembled.tiff") as slide:
        mask = segment(slide)
        with pytest.raises(SlideError, match=r"4 µm per pixel .*0\.5 µm per pixel asked .*--mpp \(at least 3\.637\)"):
            tile(slide.info, mask, spec)


def test_the_tiles_of_a_real_slide_are_the_ones_its_pathologist_got(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "slides" / "derived"
    spec = TileSpec(size_px=50, mpp=4.0, stride_px=50, min_tissue=0.05)
    with open_slide(folder / "IDC-14082-reassembled.tiff") as slide:
        mask = segment(slide)
        grid = tile(slide.info, mask, spec)
    with (folder / "IDC-14082-tiles.csv").open() as file:
        truth = {(int(row["x"]), int(row["y"])) for row in csv.DictReader(file)}
    found = {(int(x), int(y)) for x, y in grid.xy0}
    recall, precision = len(found & truth) / len(truth), len(found & truth) / len(found)
    stored = np.asarray(Image.open(folder / "IDC-14082-tissue-mask.png").convert("L")) > 0
    ours = np.asarray(Image.fromarray(mask.mask).resize((stored.shape[1], stored.shape[0]), Image.Resampling.NEAREST))
    iou = (ours & stored).sum() / (ours | stored).sum()
    assert recall > 0.9
    assert precision > 0.9
    # The stored mask is made of whole tiles, glass in them included, so it is larger than tissue.
    assert iou > 0.75
