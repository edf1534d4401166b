"""inspect: what a slide is, where its mpp came from, and how it would be tiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsimil.errors import SlideError
from wsimil.extraction.config import TileConfig
from wsimil.geometry import SlideInfo, TileGrid, TissueMask
from wsimil.slides import open_slide
from wsimil.tiling import tile
from wsimil.tissue import TissueConfig, segment


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideReport:
    """A slide as wsimil sees it; `grid` is None where it cannot be tiled as asked, `refusal` says why."""

    info: SlideInfo
    tissue: TissueMask
    grid: TileGrid | None
    refusal: str


def inspect(
    path: Path,
    *,
    tiles: TileConfig,
    input_px: int,
    trained_mpp: tuple[float, ...],
    mpp_override: float | None = None,
    tissue: TissueConfig | None = None,
) -> SlideReport:
    """Open a slide, find its tissue and lay the tiles that an encoder of `input_px` px would get. Raises SlideError."""
    spec = tiles.spec(input_px=input_px, trained_mpp=trained_mpp)
    with open_slide(path, mpp_override=mpp_override) as slide:
        mask = segment(slide, tissue or TissueConfig())
        try:
            return SlideReport(info=slide.info, tissue=mask, grid=tile(slide.info, mask, spec), refusal="")
        except SlideError as error:
            return SlideReport(info=slide.info, tissue=mask, grid=None, refusal=str(error))
