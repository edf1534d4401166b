"""Each number tells what it is named for from clean tissue, on real tiles of three sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from wsimil.quality import QualityConfig
from wsimil.quality.measure import TileQuality, measure, refusals

MPP = 0.5
INKS = {"green": (20, 140, 60), "blue": (30, 60, 170), "red": (205, 25, 35), "black": (25, 25, 30)}


@pytest.fixture(scope="module")
def tissue(request: pytest.FixtureRequest) -> np.ndarray:
    """Real tiles [n, 256, 256, 3] of which at least half is tissue: colon and lung, lymph node, colorectal."""
    folder: Path = request.getfixturevalue("shared_dir") / "data" / "patches"
    tiles = []
    for source in ("lc25000_768/*", "camelyon16_512/images/*", "crc_val_he_7k_224/*"):
        for path in sorted(folder.glob(source)):
            image = Image.open(path).convert("RGB")
            whole = np.asarray(image if min(image.size) >= 256 else image.resize((256, 256)))
            tiles.append(whole[:256, :256])
    found = np.stack(tiles)
    return found[measure(found, mpp=MPP).background < 0.5]


def separation(clean: np.ndarray, worse: np.ndarray) -> float:
    """AUROC of `worse` being higher."""
    truth = np.repeat([0, 1], [len(clean), len(worse)])
    return float(roc_auc_score(truth, np.concatenate([clean, worse])))


def in_ink(tiles: np.ndarray, ink: tuple[int, int, int]) -> np.ndarray:
    """A stroke over the left half: ink lets through of the light what it lets through of white."""
    marked = tiles.copy()
    marked[:, :, :128] = (marked[:, :, :128] * (np.array(ink) / 255) ** 0.5 * 0.3 + np.array(ink) * 0.7).astype(
        np.uint8
    )
    return marked


@pytest.mark.shared
@pytest.mark.parametrize(("sigma_um", "least"), [(2.0, 0.98), (4.0, 0.995)])
def test_blurred_tissue_is_less_sharp_than_the_same_tissue(tissue: np.ndarray, sigma_um: float, least: float) -> None:
    blurred = np.stack([ndimage.gaussian_filter(tile, (sigma_um / MPP, sigma_um / MPP, 0)) for tile in tissue])
    clean, worse = measure(tissue, mpp=MPP).sharpness, measure(blurred, mpp=MPP).sharpness
    assert separation(-clean, -worse) > least
    assert (worse < clean).all()


@pytest.mark.shared
@pytest.mark.parametrize("name", INKS)
def test_pens_of_four_colours_are_told_from_tissue(tissue: np.ndarray, name: str) -> None:
    clean, marked = measure(tissue, mpp=MPP).pen, measure(in_ink(tissue, INKS[name]), mpp=MPP).pen
    assert separation(clean, marked) > 0.99
    assert np.median(marked) > 0.25


@pytest.mark.shared
def test_clean_tissue_shows_next_to_no_pen_and_little_darkness(tissue: np.ndarray) -> None:
    quality = measure(tissue, mpp=MPP)
    assert len(tissue) > 100
    assert quality.pen.max() < 0.05
    assert np.quantile(quality.pen, 0.95) < 0.02
    assert quality.dark.max() < 0.02


@pytest.mark.shared
def test_tissue_that_lies_double_is_darker(tissue: np.ndarray) -> None:
    density = -np.log((tissue.astype(np.float64) + 1) / 256)
    folded = np.clip(256 * np.exp(-2 * density) - 1, 0, 255).astype(np.uint8)
    clean, worse = measure(tissue, mpp=MPP).dark, measure(folded, mpp=MPP).dark
    assert (worse >= clean).all()
    assert separation(clean, worse) > 0.75


def test_glass_is_all_background_and_ink_is_none() -> None:
    glass = np.full((2, 96, 96, 3), 243, np.uint8)
    glass[1, :48] = INKS["blue"]
    quality = measure(glass, mpp=MPP)
    assert quality.background.tolist() == [1.0, 0.5]
    assert quality.pen.tolist() == [0.0, 0.5]


def test_the_scale_is_a_physical_one() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)
    one, other = measure(coarse, mpp=1.0), measure(fine, mpp=0.25)
    np.testing.assert_allclose(one.sharpness, other.sharpness, rtol=1e-5)
    assert measure(fine, mpp=1.0).sharpness[0] < 0.7 * one.sharpness[0]


@pytest.mark.parametrize(("mpp", "apart"), [(0.25, 8), (0.5, 4), (1.0, 2), (2.0, 1), (8.0, 1)])
def test_shares_are_of_pixels_2_um_apart(mpp: float, apart: int) -> None:
    tiles = np.full((2, 64, 64, 3), 243, np.uint8)
    tiles[0, apart // 2 :: apart, apart // 2 :: apart] = INKS["black"]
    quality = measure(tiles, mpp=mpp)
    assert quality.dark.tolist() == quality.pen.tolist() == [1.0, 0.0]
    assert quality.background.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("side", [8, 9, 10, 63])
@pytest.mark.parametrize("mpp", [0.1, 0.5, 8.0])
def test_small_tiles_of_any_resolution_have_numbers(side: int, mpp: float) -> None:
    quality = measure(np.full((2, side, side, 3), 128, np.uint8), mpp=mpp)
    for values in quality.by_name().values():
        assert values.dtype == np.float32
        assert values.tolist() == [0.0, 0.0]


def test_a_tile_is_refused_beyond_a_limit_and_not_at_it() -> None:
    values = np.array([0.1, 0.2, 0.3], np.float32)
    quality = TileQuality(sharpness=values * 100, pen=values, dark=values, background=values)
    limit = float(np.float32(0.2))
    config = QualityConfig(min_sharpness=float(np.float32(20)), max_pen=limit)
    found = refusals(quality, config)
    assert found.keys() == {"min_sharpness", "max_pen"}
    assert found["min_sharpness"].tolist() == [True, False, False]
    assert found["max_pen"].tolist() == [False, False, True]
