"""Weakly supervised learning on whole-slide images: slides, features, bags, models, heatmaps."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wsimil.bags import FeatureBag as FeatureBag
    from wsimil.cohort import Cohort as Cohort
    from wsimil.errors import WsimilError as WsimilError
    from wsimil.geometry import SlideInfo as SlideInfo
    from wsimil.geometry import TileGrid as TileGrid
    from wsimil.geometry import TileSpec as TileSpec
    from wsimil.geometry import TissueMask as TissueMask
    from wsimil.provenance import Provenance as Provenance
    from wsimil.slides import open_slide as open_slide
    from wsimil.store import open_store as open_store
    from wsimil.tiling import tile as tile
    from wsimil.tissue import segment as segment

_HOMES = {
    "Cohort": "wsimil.cohort",
    "FeatureBag": "wsimil.bags",
    "Provenance": "wsimil.provenance",
    "SlideInfo": "wsimil.geometry",
    "TileGrid": "wsimil.geometry",
    "TileSpec": "wsimil.geometry",
    "TissueMask": "wsimil.geometry",
    "WsimilError": "wsimil.errors",
    "open_slide": "wsimil.slides",
    "open_store": "wsimil.store",
    "segment": "wsimil.tissue",
    "tile": "wsimil.tiling",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsimil' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
