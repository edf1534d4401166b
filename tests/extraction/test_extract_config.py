"""What a person asks for becomes one exact tiling, or a message."""

from __future__ import annotations

import pytest

from wsimil.config import parse_config
from wsimil.errors import ConfigError
from wsimil.extraction.config import ExtractConfig, TileConfig, config_from_provenance, tiling_recipe
from wsimil.provenance import Provenance


@pytest.mark.parametrize(
    ("asked", "trained", "size_px", "mpp"),
    [
        ({}, (), 224, 128 / 224),
        ({}, (0.5,), 224, 0.5),
        ({"tile_um": 256.0}, (0.5,), 224, 256 / 224),
        ({"mpp": 0.25}, (0.5,), 224, 0.25),
        ({"tile_um": 128.0, "mpp": 0.5}, (), 256, 0.5),
        ({"tile_um": 200.0, "size_px": 50}, (), 50, 4.0),
        ({"size_px": 448}, (0.5,), 448, 0.25),
    ],
)
def test_two_of_three_sizes_fix_the_third(
    asked: dict[str, float], trained: tuple[float, ...], size_px: int, mpp: float
) -> None:
    spec = TileConfig.model_validate(asked).spec(input_px=224, trained_mpp=trained)
    assert (spec.size_px, spec.stride_px) == (size_px, size_px)
    assert spec.mpp == pytest.approx(mpp, rel=1e-12)


def test_overlap_shortens_the_stride_only() -> None:
    spec = TileConfig(tile_um=128.0, overlap=0.5).spec(input_px=224, trained_mpp=())
    assert (spec.size_px, spec.stride_px) == (224, 112)


def test_three_sizes_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="give two of them"):
        parse_config(ExtractConfig, {"tile": {"tile_um": 128, "size_px": 224, "mpp": 0.5}}, source="x.yaml")


def test_a_side_of_broken_pixels_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"128 µm at 0.3 µm/px are 426.67 px, wanted a whole number; 128.1 µm would be 427 px"
    ):
        TileConfig(tile_um=128, mpp=0.3).spec(input_px=224, trained_mpp=())


def test_an_impossible_mpp_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="tile: the mpp of a tile lies between"):
        TileConfig(mpp=80).spec(input_px=224, trained_mpp=())


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"tile_um": 100.0, "overlap": 0.3},
        {"size_px": 50, "mpp": 4.0, "min_tissue": 0.6},
        {"overlap": 0.95},
        {"overlap": 0.99},
        {"size_px": 149, "overlap": 0.99},
    ],
)
def test_an_extraction_can_be_repeated_from_its_provenance(asked: dict[str, float]) -> None:
    quality = {"max_pen": 0.1, "min_sharpness": 40.0}
    config = ExtractConfig.model_validate(
        {
            "tile": asked, "tissue": {"min_tissue_um2": 12_345.0}, "quality": quality, "half_scale_jpeg": True,
            "icc_to_srgb": True, "stain": {"method": "reinhard", "target": [1, 2, 3, 4, 5, 6]},
        }
    )  # fmt: skip
    spec = config.tile.spec(input_px=224, trained_mpp=())
    provenance = Provenance(
        encoder={"name": "some"},
        tiling=tiling_recipe(spec, config),
        pixels={"tissue": config.tissue.model_dump(mode="json"), "dtype": "float32"},
        slide={},
        slide_digest="x",
        version="0",
    )
    again = config_from_provenance(provenance)
    assert again.encoder == "some"
    assert again.tissue == config.tissue
    assert again.dtype == "float32"
    assert again.quality == config.quality
    assert again.half_scale_jpeg
    assert again.icc_to_srgb
    assert again.stain == config.stain
    assert again.tile.spec(input_px=999, trained_mpp=(9.0,)) == spec


def test_limits_that_are_not_set_stay_out_of_the_recipe() -> None:
    spec = TileConfig().spec(input_px=224, trained_mpp=())
    plain, limited = ExtractConfig(), ExtractConfig.model_validate({"quality": {"max_dark": 0.2}})
    assert "quality" not in tiling_recipe(spec, plain)
    assert tiling_recipe(spec, plain) == tiling_recipe(
        spec, ExtractConfig.model_validate({"quality": {"measure": False}})
    )
    assert tiling_recipe(spec, limited)["quality"] == {"max_dark": 0.2}
