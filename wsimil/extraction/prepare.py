"""One slide made ready for the encoder: opened, its tissue found, its tiles laid."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import wsimil
from wsimil.encoders import Encoder
from wsimil.errors import SlideError
from wsimil.extraction.config import ExtractConfig, tiling_recipe
from wsimil.extraction.quality_picture import draw_tiles
from wsimil.extraction.sources import SlideSource
from wsimil.extraction.stain import SAMPLE_TILES, Recolour, fit_stain
from wsimil.files import write_bytes, write_text
from wsimil.geometry import SlideInfo, TileGrid, TileSpec, TissueMask
from wsimil.provenance import Json, Provenance
from wsimil.slides import Slide, open_slide
from wsimil.slides.icc import IccToSrgb
from wsimil.tiling import tile
from wsimil.tissue import read_geojson, segment, to_geojson, to_png
from wsimil.tissue.geojson import is_geojson


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSlide:
    """An open slide, its tissue, its tiles and the recipe that its features will carry. Whoever holds it closes `slide`.

    `to_srgb` is for tiles as they are read, `restain` for tiles as the encoder sees them; None where nothing is to be done.
    """

    slide: Slide
    tissue: TissueMask
    grid: TileGrid
    provenance: Provenance
    to_srgb: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    restain: Recolour | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteSlide:
    """A slide whose recipe is done already; `digest` is of its content."""

    digest: str


def prepare(
    source: SlideSource,
    *,
    encoder: Encoder,
    spec: TileSpec,
    config: ExtractConfig,
    is_done: Callable[[SlideInfo, Provenance], bool] = lambda _slide, _recipe: False,
) -> PreparedSlide | CompleteSlide:
    """Open `source`, find its tissue and lay its tiles, unless `is_done` knows it by its recipe already. Raises SlideError."""
    mpp = config.mpp_override if source.mpp is None else source.mpp
    slide = open_slide(
        source.path, slide_id=source.slide_id, mpp_override=mpp, reader=config.slide_reader,
        half_scale_jpeg=config.half_scale_jpeg,
    )  # fmt: skip
    try:
        mask_file = _mask_file(source, config)
        provenance = _recipe(source, slide, mask_file, encoder, spec, config)
        if is_done(slide.info, provenance):
            slide.close()
            return CompleteSlide(digest=slide.info.digest)
        if mask_file is None:
            tissue = segment(slide, config.tissue)
        else:
            tissue = read_geojson(mask_file, slide.info, origin=config.mask_origin, config=config.tissue)
        grid = tile(slide.info, tissue, spec)
        to_srgb = IccToSrgb(slide.icc_profile, slide_id=source.slide_id) if config.icc_to_srgb else None
        restain = _restain(slide, grid, config, to_srgb) if config.stain.method and len(grid) else None
        return PreparedSlide(
            slide=slide, tissue=tissue, grid=grid, provenance=provenance, to_srgb=to_srgb, restain=restain
        )
    except BaseException:
        slide.close()
        raise


def _restain(slide: Slide, grid: TileGrid, config: ExtractConfig, to_srgb: IccToSrgb | None) -> Recolour:
    """Fitted on tiles from all over the slide."""
    rows = np.unique(np.linspace(0, len(grid) - 1, SAMPLE_TILES).round().astype(np.int64))
    sample = slide.read_tiles(grid, rows)
    return fit_stain(config.stain, sample if to_srgb is None else to_srgb(sample), slide_id=grid.slide.slide_id)


def write_pictures(
    prepared: PreparedSlide, folder: Path, *, thumbnail_px: int, beyond: Mapping[str, NDArray[np.bool_]]
) -> None:
    """Write tissue/<slide_id>.geojson and .png, thumbnails/<slide_id>.jpg and quality/<slide_id>.jpg.

    The thumbnail shows the whole level-0 frame; on the last, its tiles are drawn, those that are `beyond` a limit as dropped.
    """
    slide_id = prepared.slide.info.slide_id
    tissue = to_geojson(prepared.tissue, prepared.slide.info)
    write_text(folder / "tissue" / f"{slide_id}.geojson", json.dumps(tissue, separators=(",", ":")))
    write_bytes(folder / "tissue" / f"{slide_id}.png", to_png(prepared.tissue))
    thumbnail = prepared.slide.thumbnail(thumbnail_px)
    write_bytes(folder / "thumbnails" / f"{slide_id}.jpg", _jpeg(thumbnail))
    write_bytes(folder / "quality" / f"{slide_id}.jpg", _jpeg(draw_tiles(thumbnail, prepared.grid, beyond)))


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=85)
    return file.getvalue()


def _mask_file(source: SlideSource, config: ExtractConfig) -> Path | None:
    if source.mask is not None:
        return source.mask
    if config.masks is None:
        return None
    wanted = config.masks / f"{source.slide_id}.geojson"
    if wanted.is_file():
        return wanted
    # As scripts of QuPath name them: passed by, the tissue would be found in place of what was drawn.
    names = (source.slide_id, source.path.stem, source.path.name)
    for other in (config.masks / f"{name}{suffix}" for name in names for suffix in (".geojson", ".json")):
        if other.is_file() and (other.suffix == ".geojson" or is_geojson(other)):
            raise SlideError(
                f"slide {source.slide_id!r}: tissue mask {other} is not named for the slide; rename it"
                f" {wanted.name}, name it in the manifest's mask column, or move it away"
            )
    return None


def _recipe(
    source: SlideSource, slide: Slide, mask_file: Path | None, encoder: Encoder, spec: TileSpec, config: ExtractConfig
) -> Provenance:
    about: dict[str, Json] = {
        "mpp": slide.info.mpp,
        "mpp_source": slide.info.mpp_source,
        "mpp_detail": slide.info.mpp_detail,
    }
    if mask_file is not None:
        try:
            digest = hashlib.sha256(mask_file.read_bytes()).hexdigest()
        except OSError as error:
            raise SlideError(
                f"slide {source.slide_id!r}: tissue mask {mask_file} cannot be read: {error.strerror or error}; correct its path"
                " in the manifest, or leave it out to have the tissue found"
            ) from None
        about |= {"mask_sha256": digest, "mask_origin": config.mask_origin}
    return Provenance(
        encoder=encoder.provenance,
        tiling=tiling_recipe(spec, config),
        pixels={
            "reader": slide.reader,
            "tissue": config.tissue.model_dump(mode="json"),
            "precision": encoder.precision,
            "dtype": config.dtype,
            **({"compiled": True} if encoder.compiled else {}),
            # 1, which no file states, drew stored tiles that are missing from another level, and up to 2 those of a slide whose
            # last column is 1 px wide lay in wrong places: a rerun makes those anew.
            **({"half_scale_version": 3} if config.half_scale_jpeg else {}),
        },
        slide=about,
        slide_digest=slide.info.digest,
        version=wsimil.__version__,
    )
