"""Tissue by its stain: colour in optical density against the slide's own background, cut by a bounded Otsu threshold.

Works on brightfield stains such as H&E and IHC. Absorbance is linear in stain (Beer-Lambert), so its spread over the three
channels is large for any dye and near zero for glass, dust, shadow and black borders, however bright the lamp was.
Otsu 1979, IEEE Trans. Syst. Man Cybern. 9:62, finds the cut between glass and tissue; its bounds keep it from cutting through
an empty slide or one that is tissue throughout. The physical scale is fixed, so neither the machine nor the pyramid decides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsimil.geometry import TissueMask
from wsimil.slides import Slide
from wsimil.tissue.config import TissueConfig
from wsimil.tissue.resolution import mask_mpp, mask_size_px

_BLUR_UM = 8.0
_STRIP_PX = 4_000_000
_BLACK = 50
_GLASS_MIN, _GLASS_SPREAD, _GLASS_SHARE = 200, 20, 0.002
_FLUORESCENT_MIN = 40
_OTSU_BINS, _OTSU_TOP = 256, 0.64


def segment(slide: Slide, config: TissueConfig = TissueConfig()) -> TissueMask:  # noqa: B008  # frozen
    """Where tissue is; nothing on an empty slide and on one with a dark background, which is fluorescence.

    `method` of the result says which. Raises SlideError where pixels cannot be read.
    """
    info = slide.info
    mpp = mask_mpp(info, config)
    rgb = _read(slide, mpp)
    if _is_fluorescence(rgb):
        return TissueMask(
            mask=np.zeros(rgb.shape[:2], dtype=np.bool_), mpp=mpp, method="classical: dark background, no brightfield"
        )
    colour = _stain(rgb, _glass(rgb))
    # In near-black pixels a grey value more or less is a large optical density, so their colour means nothing.
    colour[rgb.max(axis=2) < _BLACK] = 0
    ndimage.gaussian_filter(colour, _BLUR_UM / mpp, output=colour, mode="nearest", truncate=3.0)
    threshold = min(max(_otsu(colour), config.min_od), config.max_od)
    return TissueMask(mask=clean(colour > threshold, mpp, config), mpp=mpp, method="classical")


def clean(mask: NDArray[np.bool_], mpp: float, config: TissueConfig) -> NDArray[np.bool_]:
    """Drop small pieces (4-connected), then fill small holes (8-connected); both by area in µm²."""
    px_um2 = mpp * mpp
    pieces, _ = ndimage.label(mask)
    mask = mask & ~_small(pieces, config.min_tissue_um2 / px_um2)
    gaps, count = ndimage.label(~mask, structure=np.ones((3, 3)))
    # Glass that reaches the border of the slide goes on beyond it and is no hole.
    is_hole = np.ones(count + 1, dtype=np.bool_)
    is_hole[np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]])] = False
    return np.asarray(mask | (_small(gaps, config.max_hole_um2 / px_um2) & is_hole[gaps]), dtype=np.bool_)


def _read(slide: Slide, mpp: float) -> NDArray[np.uint8]:
    width, height = mask_size_px(slide.info, mpp)
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _STRIP_PX // width)
    for top in range(0, height, rows):
        count = min(rows, height - top)
        rgb[top : top + count] = slide.read_region((0.0, top * mpp / slide.info.mpp), (width, count), mpp)
    return rgb


def _is_fluorescence(rgb: NDArray[np.uint8]) -> bool:
    """Mostly black, and what is not black lacks at least one channel, which no absorbing stain on white light does."""
    dark = rgb.max(axis=2) < _BLACK
    if 2 * np.count_nonzero(dark) <= dark.size:
        return False
    return bool(dark.all() or np.median(rgb.min(axis=2)[~dark]) < _FLUORESCENT_MIN)


def _glass(rgb: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Most frequent value of each channel among bright and colourless pixels, white where there are hardly any.

    Pure white is left out: scanners and readers fill with it what was never scanned.
    """
    low, high = rgb.min(axis=2), rgb.max(axis=2)
    candidates = rgb[(low >= _GLASS_MIN) & (high - low <= _GLASS_SPREAD) & (low < 255)]
    if len(candidates) < max(1, _GLASS_SHARE * low.size):
        return 255, 255, 255
    red, green, blue = (int(np.bincount(candidates[:, channel], minlength=256).argmax()) for channel in range(3))
    return red, green, blue


def _stain(rgb: NDArray[np.uint8], glass: tuple[int, int, int]) -> NDArray[np.float32]:
    """Spread over the channels of the optical density against glass, float32 [h, w], at least 0.

    What is brighter than glass absorbs nothing: white fill beside tinted glass has no colour.
    """
    grey = np.arange(256, dtype=np.float64)
    tables = [np.maximum(np.log((white + 1) / (grey + 1)), 0.0).astype(np.float32) for white in glass]
    red, green, blue = (table[rgb[..., channel]] for channel, table in enumerate(tables))
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return np.asarray(highest - lowest, dtype=np.float32)


def _otsu(values: NDArray[np.float32]) -> float:
    """The cut that maximizes variance between the classes below and above it, from a histogram over [0, 0.64]."""
    counts, edges = np.histogram(np.minimum(values, _OTSU_TOP), bins=_OTSU_BINS, range=(0.0, _OTSU_TOP))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    mass = np.cumsum(counts * centres)
    valid = (below > 0) & (above > 0)
    if not valid.any():
        return 0.0
    gap = mass[:-1] / np.maximum(below, 1) - (mass[-1] - mass[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(np.where(valid, below * above * gap**2, -1.0))])


def _small(labels: NDArray[np.integer], area_px: float) -> NDArray[np.bool_]:
    """Where a labelled region, label 0 aside, has less than `area_px` pixels."""
    small = np.bincount(labels.ravel()) < area_px
    small[0] = False
    return np.asarray(small[labels], dtype=np.bool_)
