from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from wsimil.errors import SlideError
from wsimil.geometry import SlideInfo, TileSpec
from wsimil.tiling import plan_read


def slide(mpp: float, downsamples: tuple[float, ...] = (1.0,)) -> SlideInfo:
    return SlideInfo(
        slide_id="s", path=Path("s.svs"), size0_px=(50_000, 40_000), mpp=mpp, mpp_source="metadata", mpp_detail="test",
        level_downsamples=downsamples, bounds0_px=(0, 0, 50_000, 40_000), vendor="test", digest="0" * 64,
    )  # fmt: skip


def spec(tile_um: float, size_px: int = 224) -> TileSpec:
    return TileSpec(size_px=size_px, mpp=tile_um / size_px, stride_px=size_px, min_tissue=0.0)


@pytest.mark.parametrize(
    ("mpp", "downsamples", "tile_um", "level", "read_px"),
    [
        (0.25, (1.0, 4.0, 16.0), 256.0, 1, 256),
        (0.25, (1.0, 4.0, 16.0), 112.0, 0, 448),
        (0.25, (1.0, 2.0, 4.0), 112.0, 1, 224),
        (0.25, (1.0, 2.0005, 4.001), 112.0, 1, 224),
        (0.25, (1.0, 2.02, 4.04), 112.0, 0, 448),
        (0.499, (1.0,), 112.0, 0, 224),
        (0.5, (1.0, 4.0), 112.0, 0, 224),
        (0.2281, (1.0, 2.0, 4.0, 8.0), 256.0, 2, 281),
        (0.25, (1.0, 4.0, 2.0), 112.0, 2, 224),
    ],
)
def test_the_coarsest_level_that_needs_no_enlarging_is_read(
    mpp: float, downsamples: tuple[float, ...], tile_um: float, level: int, read_px: int
) -> None:
    plan = plan_read(slide(mpp, downsamples), spec(tile_um))
    assert (plan.read_level, plan.read_px) == (level, read_px)


def test_a_level_where_rounding_would_miss_the_side_is_left_for_a_finer_one() -> None:
    # 63.4 px of level 1 would be 63: 0.63 % off.
    plan = plan_read(slide(0.5, (1.0, 2.0)), TileSpec(size_px=32, mpp=63.4 / 32, stride_px=32, min_tissue=0.0))
    assert (plan.read_level, plan.read_px) == (0, 127)


def test_a_tile_too_small_for_whole_pixels_is_refused() -> None:
    with pytest.raises(SlideError, match=r"10\.40 px wide .* 10 whole px are off by 3\.8%, .*use larger tiles"):
        plan_read(slide(1.0), TileSpec(size_px=10, mpp=1.04, stride_px=10, min_tissue=0.0))


def test_a_slide_coarser_than_the_request_by_more_than_a_tenth_is_refused() -> None:
    assert plan_read(slide(0.549), spec(112.0)).read_px == 204
    with pytest.raises(
        SlideError, match=r"0\.551 µm per pixel \(from test\), coarser than the 0\.5 .*--mpp \(at least 0\.501\)"
    ):
        plan_read(slide(0.551), spec(112.0))


@settings(deadline=None, max_examples=300)
@example(mpp=1.8, step=2.0, levels=1, size_px=8, tile_mpp=15.0)
@given(
    mpp=st.floats(0.1, 2.0),
    step=st.floats(1.8, 4.4),
    levels=st.integers(1, 5),
    size_px=st.integers(8, 1000),
    tile_mpp=st.floats(0.1, 16.0),
)
def test_every_plan_is_right_within_half_a_percent_and_never_enlarges_without_need(
    mpp: float, step: float, levels: int, size_px: int, tile_mpp: float
) -> None:
    info = slide(mpp, tuple(step**i for i in range(levels)))
    try:
        plan = plan_read(info, TileSpec(size_px=size_px, mpp=tile_mpp, stride_px=size_px, min_tissue=0.0))
    except SlideError:
        assume(False)
    side_um = plan.read_px * info.level_downsamples[plan.read_level] * mpp
    # The plan divides in another order: at 67 px in place of 66 2/3, what rounding leaves is on the other side of the limit.
    assert abs(side_um / (size_px * tile_mpp) - 1) <= 0.005 + 1e-12
    assert plan.read_px >= size_px or plan.read_level == 0
    assert plan.read_px * 1.11 >= size_px
