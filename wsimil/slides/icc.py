"""Colours as a scanner recorded them, to sRGB, by the ICC profile in the slide."""

from __future__ import annotations

import io
import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from wsimil.errors import SlideError


class IccToSrgb:
    """Maps tiles to sRGB in 8 bits, by littleCMS, relative colorimetric; from any threads.

    Raises SlideError where `profile` is none, or is not one for RGB.
    """

    def __init__(self, profile: bytes | None, *, slide_id: str) -> None:
        if profile is None:
            raise SlideError(
                f"slide {slide_id!r} has no ICC profile, so its colours cannot be brought to sRGB: leave icc_to_srgb off, or"
                " extract slides with and without a profile apart"
            )
        self._profile, self._slide_id = profile, slide_id
        self._local = threading.local()
        self._transform()

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map uint8 [n, h, w, 3] to the same shape."""
        if not len(tiles):
            return tiles
        image = Image.fromarray(np.ascontiguousarray(tiles).reshape(-1, tiles.shape[2], 3))
        ImageCms.applyTransform(image, self._transform(), inPlace=True)
        return np.asarray(image).reshape(tiles.shape)

    def _transform(self) -> ImageCms.ImageCmsTransform:
        """One for each thread: whether littleCMS shares one safely depends on how it was built."""
        found: ImageCms.ImageCmsTransform | None = getattr(self._local, "transform", None)
        if found is None:
            try:
                source = ImageCms.getOpenProfile(io.BytesIO(self._profile))
                found = ImageCms.buildTransform(
                    source, ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
                )
            except (ImageCms.PyCMSError, OSError, ValueError) as error:
                raise SlideError(
                    f"slide {self._slide_id!r}: its ICC profile cannot be used ({error}): leave icc_to_srgb off for it"
                ) from None
            self._local.transform = found
        return found
