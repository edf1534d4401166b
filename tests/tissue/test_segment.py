from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from wsimil.config import parse_config
from wsimil.errors import ConfigError
from wsimil.geometry import TissueMask
from wsimil.slides import open_slide
from wsimil.tissue import TissueConfig, classical, segment

HEMATOXYLIN, EOSIN, DAB = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11]), np.array([0.27, 0.57, 0.78])
UM_PER_PX = 2.0
USUAL = TissueConfig()


def stained(
    stain: np.ndarray, strength: np.ndarray, glass: tuple[int, int, int] = (243, 243, 243), seed: int = 0
) -> np.ndarray:
    """Beer-Lambert: glass times exp(-strength * stain), with camera noise."""
    noise = np.random.default_rng(seed).normal(0, 2, (*strength.shape, 3))
    return np.clip(np.array(glass) * np.exp(-strength[..., None] * stain) + noise, 0, 255).astype(np.uint8)


def disc(height: int = 900, width: int = 1100, radius: float = 300) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    return np.asarray((y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2)


def write(path: Path, image: np.ndarray, *, levels: tuple[int, ...] = (1,), mpp: float = UM_PER_PX) -> Path:
    with tifffile.TiffWriter(path) as file:
        for by in levels:
            size = image.shape[1] // by, image.shape[0] // by
            level = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
            file.write(
                level, tile=(256, 256), photometric="rgb", metadata=None, subfiletype=int(by > 1),
                resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def found(path: Path, config: TissueConfig = USUAL) -> TissueMask:
    with open_slide(path) as slide:
        return segment(slide, config)


def agreement(mask: TissueMask, truth: np.ndarray, mpp: float = UM_PER_PX) -> float:
    """Intersection over union at the size of the mask."""
    y, x = ((np.arange(n) + 0.5) * mask.mpp / mpp for n in mask.mask.shape)
    true = truth[np.minimum(y.astype(int), truth.shape[0] - 1)][:, np.minimum(x.astype(int), truth.shape[1] - 1)]
    return float((mask.mask & true).sum() / (mask.mask | true).sum())


def test_a_config_is_checked_without_loading_scipy_or_a_decoder() -> None:
    code = (
        "import sys; from wsimil.tissue import TissueConfig; sys.exit(bool({'scipy', 'openslide'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("stain", "strength"),
    [(HEMATOXYLIN, 1.0), (EOSIN, 0.8), (DAB, 1.5), (DAB, 0.3), (HEMATOXYLIN, 0.2), (EOSIN, 0.1)],
    ids=["hematoxylin", "eosin", "brown", "pale brown", "pale hematoxylin", "very pale eosin"],
)
@pytest.mark.parametrize("glass", [(243, 243, 243), (225, 222, 233), (250, 247, 238)], ids=["white", "blue", "yellow"])
def test_stained_tissue_is_found_on_any_glass(
    tmp_path: Path, stain: np.ndarray, strength: float, glass: tuple[int, int, int]
) -> None:
    truth = disc()
    mask = found(write(tmp_path / "s.tiff", stained(stain, truth * strength, glass)))
    assert agreement(mask, truth) > 0.94
    assert mask.method == "classical"


@pytest.mark.parametrize("glass", [(255, 255, 255), (243, 243, 243), (210, 205, 215), (128, 128, 128)])
def test_an_empty_slide_has_no_tissue(tmp_path: Path, glass: tuple[int, int, int]) -> None:
    assert not found(write(tmp_path / "s.tiff", stained(EOSIN, np.zeros((900, 1100)), glass))).mask.any()


def test_a_slide_of_nothing_but_tissue_is_all_tissue(tmp_path: Path) -> None:
    grain = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(900, 1100)), 10)
    mask = found(write(tmp_path / "s.tiff", stained(HEMATOXYLIN + EOSIN, 0.5 + 3 * grain.clip(-0.1, 0.1))))
    assert mask.mask.all()


def test_grey_dirt_shadows_and_black_borders_are_not_tissue(tmp_path: Path) -> None:
    truth = disc()
    image = stained(EOSIN, truth * 0.8)
    image[:60] = 3
    image[:, :80] = np.random.default_rng(0).integers(0, 20, (900, 80, 3))
    image[700:880, 100:300] = 90
    image[100:300, 900:1000] = 200
    assert agreement(found(write(tmp_path / "s.tiff", image)), truth) > 0.94


def test_tissue_so_deeply_stained_that_one_channel_is_black_is_tissue(tmp_path: Path) -> None:
    truth = disc()
    image = stained(HEMATOXYLIN, truth * 3.0)
    assert np.median(image[truth].min(axis=1)) < 40 < np.median(image[truth].max(axis=1))
    assert agreement(found(write(tmp_path / "s.tiff", image)), truth) > 0.94


def test_fluorescence_has_no_tissue_and_the_mask_says_why(tmp_path: Path) -> None:
    image = np.zeros((900, 1100, 3), dtype=np.uint8)
    image[disc(radius=200), 2] = 220
    mask = found(write(tmp_path / "s.tiff", image))
    assert not mask.mask.any()
    assert mask.method == "classical: dark background, no brightfield"


def test_a_brightfield_slide_padded_with_black_keeps_its_tissue(tmp_path: Path) -> None:
    truth = disc(radius=150)
    image = np.where(disc(radius=250)[..., None], stained(EOSIN, truth * 0.8), 0).astype(np.uint8)
    assert agreement(found(write(tmp_path / "s.tiff", image)), truth) > 0.9


def test_white_that_was_never_scanned_does_not_pass_for_glass(tmp_path: Path) -> None:
    truth = disc(radius=200)
    image = stained(EOSIN, truth * 0.15, (226, 220, 238))
    image[:, 800:] = 255
    image[:200] = 255
    assert agreement(found(write(tmp_path / "s.tiff", image)), truth) > 0.94


def test_specks_and_holes_go_by_area_in_square_micrometres(tmp_path: Path) -> None:
    # Squares of 40 px are 80 µm wide: 6400 µm².
    strength = np.zeros((900, 1100))
    strength[100:500, 100:500] = 1.0
    strength[280:320, 280:320] = 0.0
    strength[700:740, 700:740] = 1.0
    path = write(tmp_path / "s.tiff", stained(EOSIN, strength))
    mask = found(path)
    assert ndimage.label(mask.mask)[1] == 1
    assert agreement(mask, np.pad(np.ones((400, 400), dtype=np.bool_), ((100, 400), (100, 600)))) > 0.95
    kept = found(path, TissueConfig(min_tissue_um2=3000.0, max_hole_um2=3000.0)).mask
    assert ndimage.label(kept)[1] == 2
    assert not kept[75, 75]


@pytest.mark.parametrize("corner", [(0, 4), (4, 0), (7, 4), (4, 7)], ids=["top", "left", "bottom", "right"])
def test_glass_that_reaches_any_border_is_no_hole(corner: tuple[int, int]) -> None:
    mask = np.ones((8, 8), dtype=np.bool_)
    mask[corner] = False
    assert (classical.clean(mask, 1.0, TissueConfig(min_tissue_um2=0, max_hole_um2=9)) == mask).all()


def test_glass_that_touches_glass_at_a_corner_is_one_and_tissue_that_does_is_two() -> None:
    mask = np.ones((7, 7), dtype=np.bool_)
    mask[[0, 1], [2, 3]] = False
    config = TissueConfig(min_tissue_um2=2, max_hole_um2=9)
    assert (classical.clean(mask, 1.0, config) == mask).all()
    assert not classical.clean(np.eye(7, dtype=np.bool_), 1.0, config).any()


def test_a_piece_as_large_as_the_least_and_a_hole_as_large_as_the_most_stay() -> None:
    filled = np.zeros((9, 9), dtype=np.bool_)
    filled[2:7, 2:7] = True
    mask = filled.copy()
    mask[4, 3:5] = False
    # At 2 µm a px the piece has 92 µm², and its hole 8.
    for least, most, wanted in ((92, 8, mask), (92, 9, filled), (93, 8, np.zeros_like(mask))):
        found = classical.clean(mask, 2.0, TissueConfig(min_tissue_um2=least, max_hole_um2=most))
        np.testing.assert_array_equal(found, wanted)


def test_a_bay_of_glass_at_the_border_is_no_hole(tmp_path: Path) -> None:
    strength = np.ones((900, 1100))
    strength[:60, 500:560] = 0.0
    assert not found(write(tmp_path / "s.tiff", stained(EOSIN, strength))).mask[2, 132]


def test_the_mask_hardly_depends_on_the_pyramid(tmp_path: Path) -> None:
    grain = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(900, 1100)), 15)
    image = stained(HEMATOXYLIN + EOSIN, np.where(grain > 0, 0.6, 0.0))
    flat = found(write(tmp_path / "flat.tiff", image)).mask
    deep = found(write(tmp_path / "deep.tiff", image, levels=(1, 2, 4))).mask
    assert flat.shape == deep.shape
    assert (flat != deep).mean() < 0.01


def test_strips_of_any_height_give_the_same_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s.tiff", stained(EOSIN, disc() * 0.5))
    whole = found(path).mask
    monkeypatch.setattr(classical, "_STRIP_PX", 5000)
    np.testing.assert_array_equal(found(path).mask, whole)


@pytest.mark.parametrize(
    ("size", "mpp", "mask_mpp", "shape"),
    [
        ((1100, 900), 2.0, 8.0, (225, 275)),
        ((63, 63), 0.5, 0.5, (63, 63)),
        ((1000, 63), 1.0, 1000 / 256, (17, 256)),
        ((300, 200), 30.0, 30.0, (200, 300)),
        ((1, 1), 0.5, 0.5, (1, 1)),
    ],
)
def test_a_mask_covers_the_slide_and_is_finer_on_small_slides(
    tmp_path: Path, size: tuple[int, int], mpp: float, mask_mpp: float, shape: tuple[int, int]
) -> None:
    mask = found(write(tmp_path / "s.tiff", np.full((size[1], size[0], 3), 243, dtype=np.uint8), mpp=mpp))
    assert mask.mpp == pytest.approx(mask_mpp)
    assert mask.mask.shape == shape


def test_every_field_of_the_config_changes_the_mask(tmp_path: Path) -> None:
    strength = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(900, 1100)), 12).clip(0, None) * 4
    path = write(tmp_path / "s.tiff", stained(EOSIN, strength))
    usual = found(path)
    for change in (
        {"mpp": 16.0},
        {"min_od": 0.3, "max_od": 0.4},
        {"max_od": 0.035},
        {"min_tissue_um2": 1e5},
        {"max_hole_um2": 0.0},
    ):
        changed = found(path, TissueConfig(**change))
        assert not np.array_equal(changed.mask, usual.mask), change


def test_limits_that_contradict_each_other_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="max_od"):
        parse_config(TissueConfig, {"min_od": 0.2, "max_od": 0.1}, source="x.yaml")


def test_the_tissue_of_a_generated_slide_is_found(tmp_path: Path, make_slide: Callable[..., Path]) -> None:
    # 512 x 384 µm; smoothing at 8 µm may widen the ellipse by 12 µm, and never narrows it.
    share = found(make_slide(tmp_path / "s.tiff")).mask.mean()
    assert np.pi * 0.42 * 0.4 < share < np.pi * (0.42 + 12 / 512) * (0.4 + 12 / 384)
    assert not found(make_slide(tmp_path / "e.tiff", tissue=False)).mask.any()


@pytest.mark.shared
def test_tissue_of_real_slides_is_found(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "slides"
    # Shares as seen in the overlays, which were looked at.
    for name, share, mpp in (("CMU-1-Small-Region.svs", 0.41, None), ("TCGA-CR-7395-01A-01-TS1.svs", 0.65, 0.5)):
        with open_slide(folder / name, mpp_override=mpp) as slide:
            assert segment(slide).mask.mean() == pytest.approx(share, abs=0.03)
