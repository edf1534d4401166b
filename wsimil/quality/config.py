"""Which tiles are not good enough."""

from __future__ import annotations

from pydantic import Field

from wsimil.config import FrozenConfig


class QualityConfig(FrozenConfig):
    """Limits of what `wsimil.quality.measure` measures; a tile beyond one is not encoded. Without limits none is dropped."""

    measure: bool = True
    """Measure at all; it takes about a tenth of a millisecond a tile."""
    min_sharpness: float | None = Field(default=None, ge=0)
    """Variance of the Laplacian, grey values squared; blurred tissue has the least."""
    max_pen: float | None = Field(default=None, ge=0, le=1)
    """Share of the tile that has the colour of a pen."""
    max_dark: float | None = Field(default=None, ge=0, le=1)
    """Share of the tile that is dark in every colour, as folds and dirt are."""
    max_background: float | None = Field(default=None, ge=0, le=1)
    """Share of the tile that is bright and without colour, as glass is."""

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set: they decide which tiles there are."""
        return {name: value for name, value in self.model_dump(exclude={"measure"}).items() if value is not None}
