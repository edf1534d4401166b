from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsimil.tissue.outline import Outline, fill, outlines


def polygon(outline: Outline) -> shapely.Polygon:
    return shapely.Polygon(outline.exterior, outline.holes)


def refilled(found: list[Outline], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.bool_)
    for outline in found:
        mask |= fill([ring.astype(np.float64) for ring in (outline.exterior, *outline.holes)], shape)
    return mask


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 23), width=st.integers(1, 23), share=st.floats(0.0, 1.0))
def test_outlines_are_valid_polygons_that_fill_to_the_same_mask(
    seed: int, height: int, width: int, share: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    found = outlines(mask)
    assert len(found) == ndimage.label(mask)[1]
    np.testing.assert_array_equal(refilled(found, mask.shape), mask)
    shapes = [polygon(outline) for outline in found]
    assert all(shape.is_valid for shape in shapes)
    assert sum(shape.area for shape in shapes) == mask.sum()
    assert all(shape.exterior.is_ccw for shape in shapes) or not shapes  # clockwise where y points down
    assert not any(ring.is_ccw for shape in shapes for ring in shape.interiors)


def test_an_empty_mask_has_no_outline_and_a_full_one_has_its_frame() -> None:
    assert outlines(np.zeros((63, 5), dtype=np.bool_)) == []
    (frame,) = outlines(np.ones((63, 5), dtype=np.bool_))
    assert frame.exterior.tolist() == [[0, 0], [5, 0], [5, 63], [0, 63]]
    assert frame.holes == ()


def test_pixels_that_touch_at_a_corner_are_two_pieces() -> None:
    assert len(outlines(np.eye(2, dtype=np.bool_))) == 2


def test_a_ring_that_closes_at_a_corner_only_encloses_a_hole() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=np.bool_)
    (outline,) = outlines(mask)
    assert len(outline.holes) == 1
    assert polygon(outline).is_valid


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), corners=st.integers(3, 12))
def test_a_polygon_fills_the_pixels_whose_centre_it_contains(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    ring = np.stack(
        [15 + rng.uniform(3, 20, corners) * np.cos(angle), 12 + rng.uniform(3, 20, corners) * np.sin(angle)], axis=1
    )
    shape = shapely.Polygon(ring)
    if not shape.is_valid:
        return
    y, x = np.mgrid[:25, :31] + 0.5
    np.testing.assert_array_equal(fill([ring], (25, 31)), shapely.contains_xy(shape, x, y))


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("step", [1, -1])
def test_direction_and_closing_point_of_a_ring_change_nothing(closed: bool, step: int) -> None:
    ring = np.array([(1.0, 1.0), (5.0, 1.0), (5.0, 4.0), (1.0, 4.0)])[::step]
    ring = np.concatenate([ring, ring[:1]]) if closed else ring
    wanted = np.zeros((6, 7), dtype=np.bool_)
    wanted[1:4, 1:5] = True
    np.testing.assert_array_equal(fill([ring], (6, 7)), wanted)


def test_what_lies_beyond_the_mask_is_cut_off() -> None:
    far = np.array([(-1e6, -1e6), (1e6, -1e6), (1e6, 1e6), (-1e6, 1e6)])
    assert fill([far], (63, 5)).all()
    assert not fill([far + 3e6], (63, 5)).any()
    assert not fill([far - 3e6], (63, 5)).any()
