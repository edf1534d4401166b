"""One stain for all slides: what the library does to a whole image, done to its tiles in any company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchstain.torch.normalizers import TorchMacenkoNormalizer, TorchReinhardNormalizer

from wsimil.config import load_config
from wsimil.encoders import build_encoder
from wsimil.errors import ConfigError, SlideError
from wsimil.extraction.config import ExtractConfig, StainConfig, config_from_provenance
from wsimil.extraction.embedding import resample
from wsimil.extraction.sources import list_sources
from wsimil.extraction.stain import fit_stain, stain_target
from wsimil.slides import open_slide
from wsimil.stages.extract import extract
from wsimil.store import open_store

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def tiles(make_slide: Make, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Drawn tissue, [8, 128, 128, 3]."""
    path = make_slide(tmp_path_factory.mktemp("stain") / "a.tiff", size_px=(1200, 1000), seed=3)
    with open_slide(path) as slide:
        whole = slide.read_region((300.0, 300.0), (512, 256), slide.info.mpp)
    return np.ascontiguousarray(whole.reshape(2, 128, 4, 128, 3).swapaxes(1, 2).reshape(8, 128, 128, 3))


@pytest.fixture(scope="module")
def reference(tiles: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tissue in another stain."""
    path = tmp_path_factory.mktemp("reference") / "reference.png"
    tint = (tiles[:4].astype(np.float32) * np.array([0.8, 0.95, 1.0])).astype(np.uint8)
    Image.fromarray(tint.reshape(-1, 128, 3)).save(path)
    return path


def tall(tiles: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tiles.reshape(-1, tiles.shape[2], 3).copy()).permute(2, 0, 1)


def test_macenko_is_the_librarys_on_the_whole_image(tiles: np.ndarray, reference: Path) -> None:
    for config, fitted in (
        (StainConfig(method="macenko"), None),
        (StainConfig(method="macenko", reference=reference), np.array(Image.open(reference))),
    ):
        normalizer = TorchMacenkoNormalizer()
        if fitted is not None:
            normalizer.fit(tall(fitted[None]))
        wanted = normalizer.normalize(tall(tiles), stains=False)[0].numpy().reshape(tiles.shape)
        found = fit_stain(config, tiles, slide_id="a")(torch.from_numpy(tiles)).numpy()
        assert np.abs(found.astype(int) - wanted).max() <= 1
        assert np.abs(found.astype(int) - tiles).mean() > 2


def test_reinhard_is_the_librarys_on_the_whole_image(tiles: np.ndarray, reference: Path) -> None:
    normalizer = TorchReinhardNormalizer()
    normalizer.fit(tall(np.array(Image.open(reference))[None]))
    wanted = normalizer.normalize(tall(tiles)).numpy().reshape(tiles.shape)
    config = StainConfig(method="reinhard", reference=reference)
    found = fit_stain(config, tiles, slide_id="a")(torch.from_numpy(tiles)).numpy()
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_a_tile_does_not_depend_on_its_company(tiles: np.ndarray, reference: Path, method: str) -> None:
    recolour = fit_stain(StainConfig(method=method, reference=reference), tiles, slide_id="a")  # type: ignore[arg-type]
    whole, glass = recolour(torch.from_numpy(tiles)), np.full((2, 128, 128, 3), 243, np.uint8)
    for row in range(len(tiles)):
        mixed = np.concatenate([glass, tiles[row : row + 1]])
        assert torch.equal(recolour(torch.from_numpy(mixed))[2], whole[row])


def stained(vectors: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    density = np.clip(amounts, 0, None) @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return np.clip(240 * np.exp(-density) - 1, 0, 255).round().astype(np.uint8)


def test_one_tissue_in_two_stains_comes_to_the_same() -> None:
    generator = np.random.default_rng(0)
    amounts = generator.gamma(2.0, (0.5, 0.4), size=(4, 64, 64, 2))
    # Nuclei and stroma: where there is much of one stain there is little of the other.
    amounts[..., 0] *= np.where(generator.random((4, 64, 64)) < 0.5, 1.0, 0.1)
    amounts[..., 1] *= np.where(amounts[..., 0] > 0.6, 0.1, 1.0)
    one = stained(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]), amounts)
    other = stained(np.array([[0.55, 0.78, 0.30], [0.15, 0.95, 0.25]]), amounts * np.array([0.6, 0.8]))
    config = StainConfig(method="macenko")
    first, second = (fit_stain(config, x, slide_id="a")(torch.from_numpy(x)).numpy().astype(int) for x in (one, other))
    assert np.abs(first - second).mean() < np.abs(one.astype(int) - other).mean() / 5


@pytest.mark.parametrize("level", [0, 128, 243, 255])
def test_a_slide_without_stain_is_refused(level: int) -> None:
    blank = np.full((4, 64, 64, 3), level, np.uint8)
    for config in (StainConfig(method="macenko"), StainConfig(method="reinhard", target=(1, 1, 1, 1, 1, 1))):
        with pytest.raises(SlideError, match=r"slide 'a': a sample of 4 tiles shows too little stain.*drop it"):
            fit_stain(config, blank, slide_id="a")


def test_a_config_that_cannot_be_meant_is_refused(tmp_path: Path, reference: Path) -> None:
    for given, words in (
        ({"stain.method": "reinhard"}, "reinhard needs a reference"),
        ({"stain.reference": str(reference)}, "no method"),
        ({"stain.method": "macenko", "stain.target": [1.0, 2.0]}, "has 8 numbers, got 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(ExtractConfig, given=given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be read as an image"):
        stain_target(StainConfig(method="macenko", reference=tmp_path / "absent.png"))
    Image.new("RGB", (64, 64), (243, 243, 243)).save(tmp_path / "blank.png")
    with pytest.raises(ConfigError, match=r"blank\.png shows too little stain"):
        stain_target(StainConfig(method="reinhard", reference=tmp_path / "blank.png"))


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_what_is_transparent_in_a_reference_is_glass_and_not_black(
    tiles: np.ndarray, tmp_path: Path, method: str
) -> None:
    tissue = tiles[:4].reshape(-1, 128, 3)
    cut = np.arange(len(tissue)) % 256 < 100
    for name, fill, alpha in (("white.png", 255, 255), ("clear.png", 0, 0)):
        opacity = np.where(cut, alpha, 255)[:, None, None] * np.ones((1, 128, 1), int)
        colors = np.where(cut[:, None, None], fill, tissue)
        Image.fromarray(np.concatenate([colors, opacity], axis=2).astype(np.uint8)).save(tmp_path / name)
    white, clear = (
        stain_target(StainConfig(method=method, reference=tmp_path / name))  # type: ignore[arg-type]
        for name in ("white.png", "clear.png")
    )
    assert clear == white


def test_a_reference_larger_than_any_is_refused(
    reference: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ConfigError, match="cannot be read as an image: Image size"):
        stain_target(StainConfig(method="macenko", reference=reference))


def test_features_are_of_normalized_tiles_and_their_kind_says_so(
    make_slide: Make, reference: Path, tmp_path: Path
) -> None:
    make_slide(tmp_path / "in/a.tiff", size_px=(1200, 1000), seed=3)
    given = {"device": "cpu", "stain.method": "macenko", "stain.reference": str(reference), "dtype": "float32"}
    config = load_config(ExtractConfig, given=given)  # type: ignore[arg-type]
    assert extract(config, list_sources(tmp_path / "in"), tmp_path / "out").count("done") == 1
    bag = open_store(tmp_path / "out", mode="r").read("a")
    recipe = bag.provenance.tiling["stain"]
    assert recipe == {"method": "macenko", "target": list(stain_target(config.stain))}
    # Whoever predicts with a model of these features has the numbers, and needs no image.
    again = config_from_provenance(bag.provenance)
    assert again.stain.target == stain_target(config.stain)
    with open_slide(tmp_path / "in/a.tiff") as slide:
        rows = np.unique(np.linspace(0, len(bag) - 1, 64).round().astype(int))
        read = slide.read_tiles(bag.grid, np.arange(len(bag)))
        recolour = fit_stain(config.stain, read[rows], slide_id="a")
    seen = recolour(resample(torch.from_numpy(read), 224))
    wanted = build_encoder("efficientnet_lite0_trunc").embed(seen).numpy()
    np.testing.assert_allclose(bag.features, wanted, rtol=1e-3, atol=1e-3)
    assert extract(config, list_sources(tmp_path / "in"), tmp_path / "out").count("skipped") == 1
