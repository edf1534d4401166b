from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsimil.errors import SlideError
from wsimil.geometry import (
    SlideInfo,
    TileGrid,
    TileSpec,
    TissueMask,
    box_means,
    grid_positions,
    level_position,
    round_half_up,
)


def slide(
    *, mpp: float = 0.5, size0_px: tuple[int, int] = (1000, 630), downsamples: tuple[float, ...] = (1.0, 4.0)
) -> SlideInfo:
    return SlideInfo(
        slide_id="s", path=Path("s.svs"), size0_px=size0_px, mpp=mpp, mpp_source="metadata", mpp_detail="openslide.mpp-x",
        level_downsamples=downsamples, bounds0_px=(0, 0, *size0_px), vendor="test", digest="0" * 64,
    )  # fmt: skip


def grid(
    xy0: list[tuple[int, int]], *, read_level: int = 0, read_px: int = 63, size_px: int = 63, mpp: float = 0.5
) -> TileGrid:
    return TileGrid(
        slide=slide(), spec=TileSpec(size_px=size_px, mpp=mpp, stride_px=size_px, min_tissue=0.0),
        xy0=np.array(xy0, dtype=np.int64).reshape(-1, 2), tissue=np.ones(len(xy0), dtype=np.float32),
        read_level=read_level, read_px=read_px,
    )  # fmt: skip


@pytest.mark.parametrize("mpp", [0.05, 0.0, -1.0, 50.0, 352.8, float("nan")])
def test_a_slide_with_an_impossible_mpp_says_what_to_do(mpp: float) -> None:
    with pytest.raises(SlideError, match=r"slide 's': .* wanted a value between 0.05 and 50; .*--mpp-override"):
        slide(mpp=mpp)


@pytest.mark.parametrize(("size", "downsamples"), [((0, 5), (1.0,)), ((5, 5), ()), ((5, 5), (2.0, 4.0))])
def test_a_slide_without_pixels_or_full_resolution_is_refused(
    size: tuple[int, int], downsamples: tuple[float, ...]
) -> None:
    with pytest.raises(SlideError, match="no usable pyramid"):
        slide(size0_px=size, downsamples=downsamples)


def test_a_slide_knows_its_size_in_micrometres() -> None:
    assert slide(mpp=0.25, size0_px=(1000, 63)).size_um == (250.0, 15.75)


def test_a_mask_is_boolean_flat_and_cannot_be_written() -> None:
    mask = TissueMask(mask=np.ones((3, 5), dtype=np.bool_), mpp=10.0, method="test")
    assert mask.area_mm2 == pytest.approx(15 * 1e-4)
    with pytest.raises(ValueError, match="read-only"):
        mask.mask[0, 0] = False
    with pytest.raises(ValueError, match=r"bool \[h, w\]"):
        TissueMask(mask=np.ones((3, 5), dtype=np.uint8), mpp=10.0, method="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive mpp"):
        TissueMask(mask=np.ones((3, 5), dtype=np.bool_), mpp=0.0, method="test")


@pytest.mark.parametrize(
    "wrong", [{"size_px": 7}, {"stride_px": 0}, {"mpp": 0.05}, {"mpp": 50.0}, {"min_tissue": -0.1}, {"min_tissue": 1.1}]
)
def test_a_tiling_that_cannot_be_meant_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        TileSpec(**({"size_px": 63, "mpp": 0.5, "stride_px": 63, "min_tissue": 0.0} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("xy0", [[(0, 0), (0, 0)], [(63, 0), (0, 0)], [(0, 63), (0, 0)]])
def test_tiles_out_of_order_or_twice_are_refused(xy0: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="row-major order"):
        grid(xy0)


def test_a_grid_may_be_empty_or_hold_one_tile() -> None:
    assert len(grid([])) == 0
    assert len(grid([(5, 7)])) == 1


def test_a_grid_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        grid([(0, 0)]).xy0[0, 0] = 1


def test_a_grid_on_a_level_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="read level 2"):
        grid([(0, 0)], read_level=2)


def test_a_tile_whose_side_is_off_by_more_than_half_a_percent_is_refused() -> None:
    assert grid([(0, 0)], size_px=1000, read_px=1005).effective_mpp == pytest.approx(0.5025)
    with pytest.raises(SlideError, match=r"wanted within 0\.5%: use larger tiles"):
        grid([(0, 0)], size_px=1000, read_px=1006)


def test_the_side_of_a_tile_stays_fractional_and_files_state_it_rounded() -> None:
    exact = grid([(0, 0)], size_px=1001, mpp=0.5004, read_px=1002)
    assert exact.size0 == pytest.approx(1001.8008)
    assert exact.size0_px == 1002


@pytest.mark.parametrize(("value", "rounded"), [(0.5, 1), (1.5, 2), (2.5, 3), (-0.5, 0), (-0.6, -1), (2.4999, 2)])
def test_halves_round_up(value: float, rounded: int) -> None:
    assert round_half_up(value) == rounded


def test_a_level_position_is_the_nearest_whole_pixel_of_the_level() -> None:
    assert [level_position(x, 4.0) for x in (0, 1, 2, 5, 6)] == [0, 0, 1, 1, 2]
    assert level_position(1000, 2.0005) == 500


@settings(deadline=None, max_examples=200)
@given(extent=st.floats(0.0, 1e6), stride=st.floats(1.0, 1e4))
def test_grid_positions_never_drift_by_more_than_half_a_pixel(extent: float, stride: float) -> None:
    positions = grid_positions(extent, max(stride, extent / 5000))
    exact = np.arange(len(positions)) * max(stride, extent / 5000)
    assert np.all(np.abs(positions - exact) <= 0.5 + 1e-6)
    assert np.all(np.diff(positions) >= 1)
    assert np.all(exact < extent)
    assert len(positions) == 0 or extent > 0


def test_no_position_is_rounded_up_to_the_end() -> None:
    assert grid_positions(21, 10.4).tolist() == [0, 10]
    assert grid_positions(21.5, 10.4).tolist() == [0, 10, 21]


def test_box_means_cut_pixels_at_fractional_edges() -> None:
    mask = np.zeros((4, 4), dtype=np.bool_)
    mask[1, 1] = True
    means = box_means(mask, np.array([0.0, 1.25, 3.0]), np.array([0.5, 1.0]), 1.5)
    np.testing.assert_allclose(means * 2.25, [[0.5, 0.75, 0.0], [0.5, 0.75, 0.0]], atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.floats(0.3, 12.0),
    x=st.lists(st.floats(-3.0, 20.0), min_size=1, max_size=4),
    y=st.lists(st.floats(-3.0, 20.0), min_size=1, max_size=4),
)
def test_box_means_equal_the_sum_of_overlaps(seed: int, side: float, x: list[float], y: list[float]) -> None:
    mask = np.random.default_rng(seed).random((11, 13)) < 0.5

    def overlap(start: float, length: int) -> np.ndarray:
        at = np.arange(length)
        return np.clip(np.minimum(at + 1, start + side) - np.maximum(at, start), 0, None)

    wanted = [[overlap(b, 11) @ mask @ overlap(a, 13) / side**2 for a in x] for b in y]
    np.testing.assert_allclose(box_means(mask, np.array(x), np.array(y), side), wanted, atol=2e-6)
