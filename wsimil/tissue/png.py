"""A mask as a picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from wsimil.geometry import TissueMask


def to_png(mask: TissueMask) -> bytes:
    """An 8-bit grey PNG of the mask's own size, 255 where tissue is and 0 elsewhere."""
    file = io.BytesIO()
    Image.fromarray(mask.mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()
