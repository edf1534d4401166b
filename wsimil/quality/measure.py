"""Four numbers a tile, out of its pixels as they are read.

    sharpness   >= 0     variance of the Laplacian of the green channel at 1 µm per px, grey values squared
    pen         [0, 1]   share of px in the colours of green, blue, red and black pens
    dark        [0, 1]   share of px at most 80 of 255 bright in every channel: folds, dirt, thick places
    background  [0, 1]   share of px at least 200 of 255 bright in every channel that differ by at most 20: glass

The shares are of every px nearest to 2 µm apart. Green is the channel in which hematoxylin and eosin both absorb.

Pens. Hematoxylin and eosin let red through better than green, so px in which green is ahead of red are ink: green ink where green
is the highest, blue ink where blue is far above red. Red ink keeps a fifth of its red at most in the other two, which
blood does not; black ink is dark and has no colour. Faint ink over tissue is missed.

Sources: variance of the Laplacian: Pech-Pacheco et al. 2000 (ICPR); shares of pen, dark and bright px by colour: HistoQC,
Janowczyk et al. 2019 (JCO Clinical Cancer Informatics 3). The thresholds here are our own, chosen on real tiles of five sources.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from wsimil.quality.config import QualityConfig

_SHARE_UM, _SHARPNESS_UM = 2.0, 1.0
_GLASS_LEAST, _GLASS_MOST_COLOUR = 200, 20
_DARK_MOST = 80

Shares = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileQuality:
    """Quality of n tiles, float32 [n] each; see the module."""

    sharpness: Shares
    pen: Shares
    dark: Shares
    background: Shares

    def by_name(self) -> dict[str, Shares]:
        """The arrays by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def measure(tiles: NDArray[np.uint8], *, mpp: float) -> TileQuality:
    """Quality of `tiles`, RGB [n, h, w, 3], of `mpp` µm per px."""
    step = max(1, round(_SHARE_UM / mpp))
    part = tiles[:, step // 2 :: step, step // 2 :: step] if min(tiles.shape[1:3]) > step // 2 else tiles
    red, green, blue = (part[..., channel].astype(np.int16) for channel in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    colour = high - low
    pen = (green >= red + 12) & (green >= blue - 8) & (colour >= 40)
    pen |= (blue >= red + 70) & (green >= red + 20)
    pen |= (red >= 110) & (5 * colour >= 4 * high) & (np.abs(green - blue) <= 40)
    pen |= (high <= _DARK_MOST) & (colour <= 25)
    return TileQuality(
        sharpness=_sharpness(tiles, mpp),
        pen=_share(pen),
        dark=_share(high <= _DARK_MOST),
        background=_share((low >= _GLASS_LEAST) & (colour <= _GLASS_MOST_COLOUR)),
    )


def refusals(quality: TileQuality, config: QualityConfig) -> dict[str, NDArray[np.bool_]]:
    """Which tiles lie beyond each limit that is set, bool [n] by the name of the limit."""
    found: dict[str, NDArray[np.bool_]] = {}
    for limit, value in config.limits.items():
        side, _, name = limit.partition("_")
        measured = quality.by_name()[name]
        found[limit] = measured < value if side == "min" else measured > value
    return found


def _share(where: NDArray[np.bool_]) -> Shares:
    return np.asarray(where.reshape(len(where), -1).mean(axis=1), dtype=np.float32)


def _sharpness(tiles: NDArray[np.uint8], mpp: float) -> Shares:
    """Of box means of whole px, so that the scale is a physical one and noise of single px counts little."""
    step = min(max(1, round(_SHARPNESS_UM / mpp)), max(1, min(tiles.shape[1:3]) // 3))
    height, width = (side // step * step for side in tiles.shape[1:3])
    grey = np.zeros((len(tiles), height // step, width // step), dtype=np.float32)
    for y in range(step):
        for x in range(step):
            grey += tiles[:, y:height:step, x:width:step, 1]
    grey /= step * step
    inner = 4 * grey[:, 1:-1, 1:-1]
    inner -= grey[:, :-2, 1:-1]
    inner -= grey[:, 2:, 1:-1]
    inner -= grey[:, 1:-1, :-2]
    inner -= grey[:, 1:-1, 2:]
    flat = inner.reshape(len(tiles), -1)
    return np.asarray(flat.var(axis=1) if flat.shape[1] else np.zeros(len(tiles)), dtype=np.float32)
