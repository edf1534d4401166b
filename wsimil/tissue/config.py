"""What decides which part of a slide is tissue."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from wsimil.config import FrozenConfig


class TissueConfig(FrozenConfig):
    """How tissue is told from glass."""

    mpp: float = Field(default=8.0, ge=0.25, le=64.0)
    """µm per pixel of the mask; smaller on small slides, so that their longer side has 256 px if they have so many."""
    min_od: float = Field(default=0.03, gt=0.0, lt=1.0)
    """Least colour, as a difference of optical density between channels, that can be tissue; lower it for very pale stains."""
    max_od: float = Field(default=0.08, gt=0.0, lt=1.0)
    """Colour above which everything is tissue."""
    min_tissue_um2: float = Field(default=10_000.0, ge=0.0)
    """Smaller pieces of tissue are dropped, µm²."""
    max_hole_um2: float = Field(default=20_000.0, ge=0.0)
    """Smaller holes in tissue are filled, µm²."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.max_od < self.min_od:
            raise ValueError(f"max_od {self.max_od:g} is below min_od {self.min_od:g}")
        return self
