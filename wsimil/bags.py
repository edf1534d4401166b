"""The features of one slide and where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import FeatureError
from wsimil.geometry import TileGrid
from wsimil.provenance import Provenance

_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBag:
    """One slide as a bag: row i of `features` [N, D], float16 or float32 and finite, belongs to `grid.xy0[i]`; N >= 0.

    `quality` is what was measured on the tiles, float32 [N] each by its name (see `wsimil.quality.measure`); empty where
    nothing was.
    """

    grid: TileGrid
    features: NDArray[np.float16] | NDArray[np.float32]
    provenance: Provenance
    quality: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        features = self.features
        for name, values in self.quality.items():
            if values.dtype != np.float32 or values.shape != (len(features),):
                raise ValueError(f"quality {name!r} is float32 [{len(features)}], got {values.dtype} {values.shape}")
            values.setflags(write=False)
        if features.ndim != 2 or features.dtype not in (np.float16, np.float32) or features.shape[1] < 1:
            raise ValueError(f"features are float16 or float32 [N, D], got {features.dtype} {features.shape}")
        if len(features) != len(self.grid):
            raise ValueError(f"{len(features)} rows of features for {len(self.grid)} tiles of {self.slide_id!r}")
        bad = _not_finite(features)
        if len(bad):
            x, y = self.grid.xy0[bad[0]]
            raise FeatureError(
                f"slide {self.slide_id!r}: {len(bad)} of {len(features)} feature rows hold NaN or infinity, the first at"
                f" level-0 x={x}, y={y}; extract the slide again, in float32 if it was a narrower type"
            )
        features.setflags(write=False)

    @property
    def slide_id(self) -> str:
        """Id of the slide that the bag was made from."""
        return self.grid.slide.slide_id

    @property
    def size_known(self) -> bool:
        """Whether the slide is as large as is said; of features of another tool it may be as large as tiles reach."""
        return self.provenance.slide.get("size_known", True) is not False

    @property
    def bounds_known(self) -> bool:
        """Whether the scan begins where is said; of features of another tool nobody may have looked."""
        return self.provenance.slide.get("bounds_known", True) is not False

    @property
    def dim(self) -> int:
        """Features per instance, D."""
        return int(self.features.shape[1])

    def __len__(self) -> int:
        return len(self.features)


def _not_finite(features: NDArray[np.float16] | NDArray[np.float32]) -> NDArray[np.intp]:
    """Numbers of rows that hold NaN or infinity; some rows at a time, for of all of them the answers take as much as they do."""
    parts = (
        begin + np.flatnonzero(~np.isfinite(features[begin : begin + _ROWS]).all(axis=1))
        for begin in range(0, len(features), _ROWS)
    )
    return np.concatenate([np.empty(0, np.intp), *parts])
