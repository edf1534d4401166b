"""Where tissue is on a slide, found in its pixels or read from a file, and masks as files.

Everything but the config is loaded when first used: a config can be checked without scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from wsimil.tissue.config import TissueConfig

if TYPE_CHECKING:
    from wsimil.tissue.classical import segment as segment
    from wsimil.tissue.geojson import read_geojson as read_geojson
    from wsimil.tissue.geojson import to_geojson as to_geojson
    from wsimil.tissue.png import to_png as to_png

_HOMES = {
    "read_geojson": "wsimil.tissue.geojson",
    "segment": "wsimil.tissue.classical",
    "to_geojson": "wsimil.tissue.geojson",
    "to_png": "wsimil.tissue.png",
}

__all__ = ["TissueConfig", "read_geojson", "segment", "to_geojson", "to_png"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsimil.tissue' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
