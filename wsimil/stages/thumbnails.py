"""Thumbnails of slides, small enough that a page can hold many."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from wsimil.store.base import is_slide_id

_SIDE_PX = 224
_MOST_BYTES = 40_000


def thumbnail(features: Path, slide_id: str) -> bytes:
    """The slide's thumbnail beside its features as a JPEG without metadata, of at most 224 px a side; empty without one.

    A name that is no name of a slide is never looked for: it might lead out of the folder.
    """
    if not is_slide_id(slide_id):
        return b""
    for folder in (features, features.parent):
        with suppress(OSError, UnidentifiedImageError, Image.DecompressionBombError):
            with Image.open(folder / "thumbnails" / f"{slide_id}.jpg") as found:
                picture = found.convert("RGB")
            picture.thumbnail((_SIDE_PX, _SIDE_PX))
            # Pixels alone: whatever else the file held stays behind.
            clean = Image.frombytes("RGB", picture.size, picture.tobytes())
            for quality in (80, 60, 40):
                buffer = io.BytesIO()
                clean.save(buffer, "JPEG", quality=quality, optimize=True)
                if buffer.tell() <= _MOST_BYTES:
                    return buffer.getvalue()
    return b""
