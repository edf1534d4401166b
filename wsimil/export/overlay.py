"""The colors of a heatmap, laid over the picture of its slide, px by px and without interpolation of scores.

Blue #2166ac, transparent, orange #e66101 for signed scores, viridis for others: both keep away from the colors of H&E, rise
evenly in lightness or in opacity, and read with color-blind eyes (Crameri et al. 2020, doi:10.1038/s41467-020-19160-7).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsimil.export.heatmap import Heatmap, rasterize
from wsimil.export.shown import Kind

_AGAINST = np.array([0x21, 0x66, 0xAC], np.float32)
_FOR = np.array([0xE6, 0x61, 0x01], np.float32)
_SIGNED_OPACITY = 0.72
_SEQUENTIAL_OPACITY = (0.25, 0.68)
_NEUTRAL = 250
_GREY = (0.299, 0.587, 0.114)
_HATCH_PX = 9
_EDGE = np.array([40, 40, 40], np.float32)


def overlay(heatmap: Heatmap, thumbnail: NDArray[np.uint8] | None, *, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The slide's whole level-0 frame with the map on it, uint8 [h, w, 3].

    `thumbnail` uint8 [., ., 3] covers that frame exactly, in any size; without it the ground is neutral. What is not scored is
    grey and hatched, so that it cannot pass for a low score, and parted from the rest by a thin line.
    """
    ground = _ground(thumbnail, shape)
    raster = rasterize(heatmap, shape=shape)
    scored = ~np.isnan(raster)
    picture = _unscored(ground)
    picture[scored] = tint(raster[scored], heatmap.range, heatmap.kind, ground[scored])
    edge = _edge(scored)
    picture[edge] = 0.55 * picture[edge] + 0.45 * _EDGE
    return np.asarray(np.round(picture), np.uint8)


def tint(
    values: NDArray[np.float32], value_range: tuple[float, float], kind: Kind, ground: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`ground` float32 [..., 3] in 0 to 255 with the colors of `values` [...] laid over it."""
    low, high = value_range
    share = np.clip((values.astype(np.float32) - low) / (high - low), 0, 1)[..., None]
    if kind == "signed":
        opacity = _SIGNED_OPACITY * np.abs(2 * share - 1)
        color = np.where(share < 0.5, _AGAINST, _FOR)
    else:
        least, most = _SEQUENTIAL_OPACITY
        opacity = least + (most - least) * share
        color = _viridis()[np.round(share[..., 0] * 255).astype(np.int64)]
    return np.asarray(ground * (1 - opacity) + color * opacity, np.float32)


def unscored_swatch(shape: tuple[int, int]) -> NDArray[np.uint8]:
    """How area looks that was not scored, uint8 [h, w, 3], for a legend."""
    return np.asarray(np.round(_unscored(np.full((*shape, 3), _NEUTRAL, np.float32))), np.uint8)


def _ground(thumbnail: NDArray[np.uint8] | None, shape: tuple[int, int]) -> NDArray[np.float32]:
    if thumbnail is None:
        return np.full((*shape, 3), _NEUTRAL, np.float32)
    if thumbnail.dtype != np.uint8 or thumbnail.ndim != 3 or thumbnail.shape[2] != 3:
        raise ValueError(f"a thumbnail is uint8 [h, w, 3], got {thumbnail.dtype} {thumbnail.shape}")
    image = Image.fromarray(np.ascontiguousarray(thumbnail)).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)


def _unscored(ground: NDArray[np.float32]) -> NDArray[np.float32]:
    grey = 110 + 0.5 * (ground @ np.array(_GREY, np.float32))
    y, x = np.ogrid[: ground.shape[0], : ground.shape[1]]
    grey -= np.float32(20) * ((x + y) % _HATCH_PX == 0)
    return np.repeat(grey[..., None], 3, axis=2)


def _edge(scored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Px that are not scored and touch one that is."""
    near = np.zeros_like(scored)
    near[1:] |= scored[:-1]
    near[:-1] |= scored[1:]
    near[:, 1:] |= scored[:, :-1]
    near[:, :-1] |= scored[:, 1:]
    return near & ~scored


def _viridis() -> NDArray[np.float32]:
    from matplotlib import colormaps  # matplotlib takes longer to load than all else here

    return np.asarray(colormaps["viridis"](np.arange(256))[:, :3] * 255, np.float32)
