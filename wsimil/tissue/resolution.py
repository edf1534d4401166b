"""How fine a tissue mask is, and so how large."""

from __future__ import annotations

import math

from wsimil.geometry import SlideInfo
from wsimil.tissue.config import TissueConfig

_MIN_LONG_SIDE_PX = 256


def mask_mpp(info: SlideInfo, config: TissueConfig) -> float:
    """µm per mask pixel on one slide: the configured one, finer on small slides, never finer than the slide."""
    return max(info.mpp, min(config.mpp, max(info.size_um) / _MIN_LONG_SIDE_PX))


def mask_size_px(info: SlideInfo, mpp: float) -> tuple[int, int]:
    """Width and height of a mask that covers the slide."""
    # The tolerance keeps a quotient of 256.0000001 from adding a column.
    width, height = (max(1, math.ceil(side * info.mpp / mpp - 1e-6)) for side in info.size0_px)
    return width, height
