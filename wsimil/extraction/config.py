"""What a user may choose about extraction, and how it becomes one exact tiling."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from pydantic import Field, model_validator

from wsimil.config import FrozenConfig
from wsimil.errors import ConfigError
from wsimil.geometry import TileSpec, round_half_up
from wsimil.provenance import HALF_SCALE, Json, Provenance
from wsimil.quality import QualityConfig
from wsimil.slides import Reader
from wsimil.tissue import TissueConfig

RESAMPLING = "bilinear, antialiased, on uint8"
ICC_TO_SRGB = "ICC profile to sRGB, relative colorimetric"
DEFAULT_TILE_UM = 128.0
_MOST_OVERLAP = 0.99


class TileConfig(FrozenConfig):
    """A tiling as a person asks for it; what is left open follows from the encoder.

    `tile_um`: side of a tile in µm. `size_px`: side as the encoder sees it; the encoder's own input size if null.
    `mpp`: µm per px as the encoder sees it. Two of the three fix the third. With one of `tile_um` and `mpp` the side in px is
    the encoder's. With neither, a tile is as wide as the encoder's own at its trained mpp, or 128 µm for an encoder without one:
    twice the `size_px` is half the mpp.
    `overlap`: share of the side that neighbors share. `min_tissue`: smallest share of tissue that keeps a tile.
    """

    tile_um: float | None = Field(None, gt=0)
    size_px: int | None = Field(None, ge=8)
    mpp: float | None = Field(None, gt=0)
    overlap: float = Field(0.0, ge=0, le=_MOST_OVERLAP)
    min_tissue: float = Field(0.25, ge=0, le=1)

    @model_validator(mode="after")
    def _not_overdetermined(self) -> TileConfig:
        if self.tile_um is not None and self.size_px is not None and self.mpp is not None:
            raise ValueError("tile_um, size_px and mpp are given together; give two of them, the third follows")
        return self

    def spec(self, *, input_px: int, trained_mpp: tuple[float, ...]) -> TileSpec:
        """The exact tiling for an encoder of `input_px` px, trained at `trained_mpp` µm per px.

        Raises ConfigError where the three sizes do not give whole px.
        """
        size_px, mpp = self.size_px or input_px, self.mpp
        if self.tile_um is not None and mpp is not None:
            size_px = round_half_up(self.tile_um / mpp)
            if abs(size_px * mpp / self.tile_um - 1) > 1e-6:
                raise ConfigError(
                    f"tile: {self.tile_um:g} µm at {mpp:g} µm/px are {self.tile_um / mpp:.2f} px, wanted a whole number;"
                    f" {size_px * mpp:g} µm would be {size_px} px"
                )
        elif self.tile_um is not None:
            mpp = self.tile_um / size_px
        elif mpp is None:
            mpp = trained_mpp[0] * input_px / size_px if trained_mpp else DEFAULT_TILE_UM / size_px
        stride_px = max(1, round_half_up(size_px * (1 - self.overlap)))
        try:
            return TileSpec(size_px=size_px, mpp=mpp, stride_px=stride_px, min_tissue=self.min_tissue)
        except ValueError as error:
            raise ConfigError(f"tile: {error}") from None


_STAIN_NUMBERS = {"macenko": 8, "reinhard": 6}


class StainConfig(FrozenConfig):
    """How tiles are brought to one stain. `reference` is an image of the stain that is wanted; Macenko's has a built-in one.

    `target` are the numbers that were fitted on a reference, as provenance keeps them, in place of the image.
    """

    method: Literal["macenko", "reinhard"] | None = None
    reference: Path | None = None
    target: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _complete(self) -> StainConfig:
        if self.method is None and (self.reference is not None or self.target is not None):
            raise ValueError("a reference is given and no method; choose method macenko or reinhard")
        if self.reference is not None and self.target is not None:
            raise ValueError("reference and target are given together; give one of them")
        if self.method == "reinhard" and self.reference is None and self.target is None:
            raise ValueError("reinhard needs a reference: give an image of the stain that you want")
        if self.method is not None and self.target is not None and len(self.target) != _STAIN_NUMBERS[self.method]:
            raise ValueError(
                f"target of {self.method} has {_STAIN_NUMBERS[self.method]} numbers, got {len(self.target)}"
            )
        return self


class ExtractConfig(FrozenConfig):
    """Everything about an extraction but the slides and the output folder.

    `device`: "auto" takes CUDA where there is one; several, such as "cuda:0,cuda:1", or "cuda:all", share the slides.
    `compile`: the encoder by torch.compile. `precision`: of the encoder; "auto" is bf16 on CUDA, fp32 on a CPU.
    `dtype`: in which features are stored. `mpp_override`: µm per level-0 px for every slide, for slides that do not say.
    `readers`: threads that read tiles. `masks`: a folder of <slide_id>.geojson, used instead of the segmenter where present;
    `mask_origin`: whether their coordinates count from the slide's corner ("level0") or, as QuPath does, from its scanned
    bounds; null takes what a file of ours says, and "bounds" for others.
    `slide_reader`: who reads the pixels, "auto" or a name; see `wsimil.slides.Reader`. `half_scale_jpeg`: decode JPEG tiles at
    half scale where that is enough, quicker and with another filter; it makes features of another kind.
    `icc_to_srgb`: bring colours to sRGB by the ICC profile in the slide, which must have one; `stain`: bring all slides to one
    stain, after that. Both make features of another kind. `quality`: limits of blur, pen, dark and empty tiles.
    `thumbnail_px`: longest side of the picture that overlays are drawn on.
    """

    encoder: str = "efficientnet_lite0_trunc"
    encoder_weights: Path | None = None
    tile: TileConfig = TileConfig()
    tissue: TissueConfig = TissueConfig()
    quality: QualityConfig = QualityConfig()
    stain: StainConfig = StainConfig()
    icc_to_srgb: bool = False
    masks: Path | None = None
    mask_origin: Literal["level0", "bounds"] | None = None
    mpp_override: float | None = Field(None, gt=0)
    device: str = "auto"
    compile: bool = False
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    store: Literal["hdf5", "zarr"] = "hdf5"
    batch_size: int = Field(32, ge=1)
    readers: int = Field(2, ge=1)
    slide_reader: Reader = "auto"
    half_scale_jpeg: bool = False
    thumbnail_px: int = Field(1600, ge=64, le=8192)


def tiling_recipe(spec: TileSpec, config: ExtractConfig) -> dict[str, Json]:
    """What a provenance says of a tiling: all that decides which tiles there are, and of which pixels."""
    limits, stain = config.quality.limits, config.stain
    return {
        "size_px": spec.size_px,
        "mpp": spec.mpp,
        "stride_px": spec.stride_px,
        "min_tissue": spec.min_tissue,
        "resampling": HALF_SCALE + RESAMPLING if config.half_scale_jpeg else RESAMPLING,
        **({"quality": limits} if limits else {}),
        **({"color": ICC_TO_SRGB} if config.icc_to_srgb else {}),
        **({"stain": {"method": stain.method, "target": list(stain.target or ())}} if stain.method else {}),
    }


def config_from_provenance(provenance: Provenance) -> ExtractConfig:
    """The extraction that makes features of the same kind as `provenance` describes, its tissue settings included."""
    tiling = provenance.tiling
    size_px, stride_px = cast("int", tiling["size_px"]), cast("int", tiling["stride_px"])
    return ExtractConfig.model_validate(
        {
            "encoder": provenance.encoder["name"],
            "tile": {
                "size_px": size_px,
                "mpp": tiling["mpp"],
                # A stride of whole px may be a little less than the share that was asked for; that share gives it again.
                "overlap": min(1 - stride_px / size_px, _MOST_OVERLAP),
                "min_tissue": tiling["min_tissue"],
            },
            "tissue": provenance.pixels["tissue"],
            "dtype": provenance.pixels["dtype"],
            "quality": tiling.get("quality", {}),
            "stain": tiling.get("stain", {}),
            "icc_to_srgb": "color" in tiling,
            "half_scale_jpeg": provenance.half_scale,
        }
    )


def refuse_lost_masks(config: ExtractConfig) -> None:
    """Raises ConfigError where the folder of masks is not there, as every slide would go without."""
    if config.masks is not None and not config.masks.is_dir():
        raise ConfigError(f"masks: {config.masks} is not a folder; give the folder that holds <slide_id>.geojson")
