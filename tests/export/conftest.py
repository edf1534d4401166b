"""Slides and predictions made up for the tests of the exporters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wsimil.evaluation.prediction import Prediction
from wsimil.geometry import SlideInfo, TileGrid, TileSpec, grid_positions
from wsimil.targets import Classification

PLANTED = "MRS-JANE-DOE-1957"

MakePrediction = Callable[..., Prediction]


def _grid(
    *,
    size0_px: tuple[int, int] = (4000, 3000),
    mpp: float = 0.5,
    size_px: int = 224,
    tile_mpp: float = 0.5,
    stride_px: int | None = None,
    bounds0_px: tuple[int, int, int, int] | None = None,
    slide_id: str = "slide-001",
    digest: str = PLANTED,
) -> TileGrid:
    bounds = bounds0_px or (0, 0, *size0_px)
    info = SlideInfo(
        slide_id=slide_id,
        path=Path(f"/archive/{PLANTED}/{PLANTED}.mrxs"),
        size0_px=size0_px,
        mpp=mpp,
        mpp_source="metadata",
        mpp_detail=f"property of {PLANTED}",
        level_downsamples=(1.0, 4.0),
        bounds0_px=bounds,
        vendor="mirax",
        digest=digest,
    )
    stride = stride_px or size_px
    spec = TileSpec(size_px=size_px, mpp=tile_mpp, stride_px=stride, min_tissue=0.0)
    x = bounds[0] + grid_positions(bounds[2], stride * tile_mpp / mpp)
    y = bounds[1] + grid_positions(bounds[3], stride * tile_mpp / mpp)
    xy0 = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return TileGrid(
        slide=info,
        spec=spec,
        xy0=xy0,
        tissue=np.ones(len(xy0), np.float32),
        read_level=0,
        read_px=round(size_px * tile_mpp / mpp),
    )


@pytest.fixture(scope="session")
def make_grid() -> Callable[..., TileGrid]:
    """A full grid of tiles on a slide that lies under a name that must not leak."""
    return _grid


@pytest.fixture(scope="session")
def make_prediction() -> MakePrediction:
    """A prediction on the first `n` tiles of such a grid; contributions add up to the logits."""

    def make(
        *,
        n: int | None = None,
        classes: tuple[str, ...] = ("normal", "tumor"),
        tumor: NDArray[np.float32] | None = None,
        seed: int = 0,
        **grid_facts: object,
    ) -> Prediction:
        rng = np.random.default_rng(seed)
        full = _grid(**grid_facts)  # type: ignore[arg-type]
        grid = TileGrid(
            slide=full.slide,
            spec=full.spec,
            xy0=full.xy0[:n].copy(),
            tissue=full.tissue[:n].copy(),
            read_level=full.read_level,
            read_px=full.read_px,
        )
        attention = rng.random(len(grid)).astype(np.float32)
        attention /= attention.sum()
        parts = rng.normal(size=(len(grid), len(classes))).astype(np.float32) * attention[:, None]
        if tumor is not None:
            parts[:, :-1], parts[:, -1] = 0, tumor
        bias = rng.normal(size=len(classes))
        logits = parts.astype(np.float64).sum(axis=0) + bias
        odds = np.exp(logits - logits.max())
        return Prediction(
            slide_id=grid.slide.slide_id,
            task=Classification(classes=classes),
            values=odds / odds.sum(),
            logits=logits,
            bias=bias,
            score_names=("attention", *(f"contribution:{name}" for name in classes)),
            scores=np.concatenate([attention[:, None], parts], axis=1),
            grid=grid,
            model={"method": "gated_abmil", "digest": "a3f5c0de", "version": "0.1.0"},
            score_rules={"attention": "softmax over the bag", **{f"contribution:{name}": "exact" for name in classes}},
        )

    return make
