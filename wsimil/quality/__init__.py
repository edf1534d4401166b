"""How good the tiles are: blur, pen, dark places, empty glass; measured on every tile, and dropped by it if asked to."""

from __future__ import annotations

from wsimil.quality.config import QualityConfig

__all__ = ["QualityConfig"]
