"""Colours to sRGB by the slide's own profile."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from wsimil.config import load_config
from wsimil.errors import SlideError
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.sources import list_sources
from wsimil.slides import open_slide
from wsimil.slides.icc import IccToSrgb
from wsimil.stages.extract import extract
from wsimil.store import open_store

Make = Callable[..., Path]


def wide_gamut() -> bytes:
    """sRGB with the red and the green colorant exchanged in part: a matrix profile that changes every colour."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for entry in range(count):
        at = 132 + 12 * entry
        if data[at : at + 4] in (b"rXYZ", b"gXYZ"):
            offset = int.from_bytes(data[at + 4 : at + 8], "big") + 8
            for value in range(3):
                place = offset + 4 * value
                number = int.from_bytes(data[place : place + 4], "big", signed=True)
                factor = 1.1 if data[at : at + 4] == b"rXYZ" else 0.95
                data[place : place + 4] = int(number * factor).to_bytes(4, "big", signed=True)
    return bytes(data)


def by_hand(tiles: np.ndarray, profile: bytes) -> np.ndarray:
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), "RGB", "RGB", renderingIntent=1
    )
    return np.stack([np.asarray(ImageCms.applyTransform(Image.fromarray(tile), transform)) for tile in tiles])


def test_tiles_are_what_littlecms_makes_of_each_from_any_threads() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
    profile = wide_gamut()
    wanted, to_srgb = by_hand(tiles, profile), IccToSrgb(profile, slide_id="a")
    assert np.abs(wanted.astype(int) - tiles).mean() > 1
    assert np.array_equal(to_srgb(tiles), wanted)
    with ThreadPoolExecutor(4) as pool:
        for row, found in enumerate(pool.map(lambda row: to_srgb(tiles[row : row + 1]), range(12))):
            assert np.array_equal(found[0], wanted[row])
    assert to_srgb(tiles[:0]).shape == (0, 40, 40, 3)


@pytest.mark.parametrize(
    "profile", [b"", b"not a profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_a_profile_that_is_none_for_rgb_is_refused(profile: bytes) -> None:
    with pytest.raises(SlideError, match="slide 'a': its ICC profile cannot be used"):
        IccToSrgb(profile, slide_id="a")


@pytest.mark.shared
def test_profiles_of_recorded_slides_are_found(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "slides"
    with open_slide(folder / "TCGA-CR-7395-01A-01-TS1.svs", mpp_override=0.5) as slide:
        profile = slide.icc_profile
    assert profile is not None
    assert profile[36:40] == b"acsp"
    with open_slide(folder / "CMU-1-Small-Region.svs") as slide:
        assert slide.icc_profile is None


def test_features_are_of_srgb_where_asked_and_slides_without_a_profile_are_refused(
    make_slide: Make, tmp_path: Path
) -> None:
    make_slide(tmp_path / "in/plain.tiff", seed=1)
    with tifffile.TiffFile(tmp_path / "in/plain.tiff") as file:
        image = file.pages[0].asarray()
    tifffile.imwrite(
        tmp_path / "in/profiled.tiff", image, tile=(256, 256), compression="zlib", photometric="rgb", metadata=None,
        resolution=(20000, 20000), resolutionunit="CENTIMETER", iccprofile=wide_gamut(),
    )  # fmt: skip
    bags = {}
    for icc in (False, True):
        config = load_config(ExtractConfig, given={"device": "cpu", "icc_to_srgb": icc, "quality.measure": not icc})
        summary = extract(config, list_sources(tmp_path / "in"), tmp_path / str(icc))
        bags[icc] = open_store(tmp_path / str(icc), mode="r").read("profiled")
    assert [(failure.slide_id, "no ICC profile" in failure.reason) for failure in summary.failures] == [("plain", True)]
    assert bags[True].provenance.tiling["color"] == "ICC profile to sRGB, relative colorimetric"
    assert bags[True].provenance.feature_digest != bags[False].provenance.feature_digest
    assert np.array_equal(bags[True].grid.xy0, bags[False].grid.xy0)
    assert np.abs(bags[True].features.astype(float) - bags[False].features).mean() > 0.01
