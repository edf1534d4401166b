"""The picture of kept and dropped tiles: each where it lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsimil.extraction.quality_picture import draw_tiles
from wsimil.geometry import SlideInfo, TileGrid, TileSpec

SLIDE = SlideInfo(
    slide_id="a", path=Path("a"), size0_px=(1000, 800), mpp=0.5, mpp_source="metadata", mpp_detail="", vendor="x",
    level_downsamples=(1.0,), bounds0_px=(0, 0, 1000, 800), digest="d",
)  # fmt: skip


def grid(xy0: list[tuple[int, int]], *, size_px: int = 200, mpp: float = 0.5) -> TileGrid:
    return TileGrid(
        slide=SLIDE, spec=TileSpec(size_px=size_px, mpp=mpp, stride_px=size_px, min_tissue=0), xy0=np.array(xy0, np.int64),
        tissue=np.ones(len(xy0), np.float32), read_level=0, read_px=round(size_px * mpp / SLIDE.mpp),
    )  # fmt: skip


def test_tiles_are_drawn_at_their_place_to_the_pixel() -> None:
    thumbnail = np.full((400, 500, 3), 250, np.uint8)
    beyond = {"max_pen": np.array([False, True, True]), "max_dark": np.array([False, False, True])}
    picture = draw_tiles(thumbnail, grid([(0, 0), (200, 0), (800, 600)]), beyond)
    drawn = (picture[:400] != thumbnail).any(axis=2)
    wanted = np.zeros((400, 500), bool)
    wanted[0:100, 0:100] = True
    wanted[1:99, 1:99] = False
    wanted[0:100, 100:200] = True
    wanted[300:400, 400:500] = True
    assert (drawn == wanted).all()
    # A tile beyond two limits has the colour of the first, and what is under it shows through.
    assert (picture[350, 450] == picture[50, 150]).all()
    assert picture.shape == (424, 500, 3)
    assert (picture[400:] != 255).any()


@pytest.mark.parametrize(
    ("tiles", "place"),
    [
        (grid([(200, 100)], mpp=1.0), (1, 5, 2, 6)),
        (grid([(500, 400)], size_px=20), (4, 5, 5, 6)),
        (grid([(990, 790)], size_px=20), (7, 8, 9, 10)),
    ],
    ids=["of twice the slide's mpp", "of less than a px", "of less than a px in the corner"],
)
def test_a_tile_is_as_large_as_it_is_on_the_slide_and_at_least_one_px(
    tiles: TileGrid, place: tuple[int, int, int, int]
) -> None:
    thumbnail = np.full((8, 10, 3), 250, np.uint8)
    drawn = (draw_tiles(thumbnail, tiles, {"max_pen": np.array([True])})[:8, :10] != 250).any(axis=2)
    top, bottom, left, right = place
    wanted = np.zeros((8, 10), np.bool_)
    wanted[top:bottom, left:right] = True
    np.testing.assert_array_equal(drawn, wanted)


def test_tiles_across_the_edge_of_the_slide_end_with_it() -> None:
    thumbnail = np.full((80, 100, 3), 250, np.uint8)
    picture = draw_tiles(thumbnail, grid([(900, 700)]), {})
    ys, xs = np.nonzero((picture[:80] != 250).any(axis=2))
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (70, 79, 90, 99)


def test_a_slide_without_tiles_has_a_picture_too() -> None:
    thumbnail = np.full((80, 100, 3), 250, np.uint8)
    one = grid([(0, 0)])
    assert (draw_tiles(thumbnail, replace(one, xy0=one.xy0[:0], tissue=one.tissue[:0]), {})[:80] == 250).all()
