from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsimil.geometry import SlideInfo, TileGrid, TileSpec, TissueMask
from wsimil.slides import open_slide
from wsimil.tiling import tile

MPPS = (0.2281, 0.2527, 0.312, 0.499)


def slide(
    *, mpp: float = 0.5, size: tuple[int, int] = (10_000, 8_000), bounds: tuple[int, int, int, int] | None = None
) -> SlideInfo:
    return SlideInfo(
        slide_id="s", path=Path("s.svs"), size0_px=size, mpp=mpp, mpp_source="metadata", mpp_detail="test",
        level_downsamples=(1.0, 4.0), bounds0_px=bounds or (0, 0, *size), vendor="test", digest="0" * 64,
    )  # fmt: skip


def full(info: SlideInfo, mpp: float = 8.0, *, value: bool = True) -> TissueMask:
    width, height = (int(np.ceil(side * info.mpp / mpp)) for side in info.size0_px)
    return TissueMask(mask=np.full((height, width), value, dtype=np.bool_), mpp=mpp, method="test")


def spec(tile_um: float, *, stride: float = 1.0, size_px: int = 224, min_tissue: float = 0.0) -> TileSpec:
    return TileSpec(size_px=size_px, mpp=tile_um / size_px, stride_px=round(size_px * stride), min_tissue=min_tissue)


@pytest.mark.parametrize("mpp", MPPS)
@pytest.mark.parametrize("tile_um", [256.0, 128.0])
@pytest.mark.parametrize("stride", [1.0, 0.5])
def test_a_request_in_micrometres_is_met_on_every_slide(mpp: float, tile_um: float, stride: float) -> None:
    info = slide(mpp=mpp)
    grid = tile(info, full(info), spec(tile_um, stride=stride))
    assert grid.effective_mpp * grid.spec.size_px == pytest.approx(tile_um, rel=0.005)
    assert grid.size0 * mpp == pytest.approx(tile_um, rel=1e-12)
    steps = np.unique(grid.xy0[:, 0]) * mpp / (tile_um * stride)
    np.testing.assert_allclose(steps, np.arange(len(steps)), atol=0.51 * mpp / (tile_um * stride))
    assert len(grid) == np.prod([np.ceil(side * mpp / (tile_um * stride)) for side in info.size0_px])


def test_a_slide_without_tissue_has_a_valid_grid_of_no_tiles() -> None:
    info = slide()
    grid = tile(info, full(info, value=False), spec(256.0))
    assert len(grid) == 0
    assert grid.xy0.shape == (0, 2)
    assert grid.effective_mpp == pytest.approx(256 / 224, rel=0.005)


def test_a_slide_smaller_than_a_tile_has_one_tile_whose_rest_counts_as_no_tissue() -> None:
    info = slide(size=(100, 50))
    grid = tile(info, full(info, 0.5), spec(112.0))
    assert grid.xy0.tolist() == [[0, 0]]
    assert grid.tissue[0] == pytest.approx(100 * 50 / 224**2, abs=1e-6)
    assert len(tile(info, full(info, 0.5), spec(112.0, min_tissue=0.1))) == 0


def test_tiles_across_the_edge_are_kept_if_their_tissue_suffices() -> None:
    info = slide(size=(320, 320))
    kept = {
        min_tissue: len(tile(info, full(info, 0.5), spec(100.0, size_px=200, min_tissue=min_tissue)))
        for min_tissue in (0.0, 0.3, 0.5, 0.7, 1.0)
    }
    # Of four tiles one is all tissue, two have 0.6 of it, one 0.36.
    assert kept == {0.0: 4, 0.3: 4, 0.5: 3, 0.7: 1, 1.0: 1}


def test_a_tile_full_of_tissue_has_exactly_1_and_passes_any_minimum() -> None:
    info = slide(mpp=0.2527)
    grid = tile(info, full(info, 8.0), spec(128.0, min_tissue=1.0))
    assert (grid.tissue == 1).all()
    assert len(grid) == (10_000 * 0.2527 // 128) * (8_000 * 0.2527 // 128)


@pytest.mark.parametrize("min_tissue", [0.1, 0.3, 0.5, 0.7])
def test_a_share_that_equals_the_minimum_is_enough(min_tissue: float) -> None:
    info = slide(size=(100, 100))
    mask = np.zeros((100, 100), dtype=np.bool_)
    mask[: round(min_tissue * 100)] = True
    grid = tile(info, TissueMask(mask=mask, mpp=0.5, method="test"), spec(50.0, size_px=100, min_tissue=min_tissue))
    assert len(grid) == 1


def test_a_tile_that_only_touches_tissue_is_not_kept() -> None:
    info = slide(size=(400, 100))
    mask = np.zeros((100, 400), dtype=np.bool_)
    mask[:, 200:300] = True
    grid = tile(info, TissueMask(mask=mask, mpp=0.5, method="test"), spec(50.0, size_px=100))
    assert grid.xy0.tolist() == [[200, 0]]


def test_the_grid_starts_and_ends_with_the_declared_bounds() -> None:
    info = slide(size=(5000, 4000), bounds=(1003, 507, 1000, 700))
    grid = tile(info, full(info), spec(112.0))
    assert grid.xy0[0].tolist() == [1003, 507]
    assert np.unique(grid.xy0[:, 0]).tolist() == [1003 + 224 * i for i in range(5)]
    assert np.unique(grid.xy0[:, 1]).tolist() == [507 + 224 * i for i in range(4)]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    mpp=st.sampled_from(MPPS),
    mask_mpp=st.floats(1.0, 20.0),
    tile_um=st.floats(64.0, 200.0),
    stride=st.sampled_from([1.0, 0.5, 0.33]),
)
def test_tiles_cover_all_tissue_once_in_row_major_order(
    seed: int, mpp: float, mask_mpp: float, tile_um: float, stride: float
) -> None:
    info = slide(mpp=mpp, size=(1501, 1003))
    shape = full(info, mask_mpp).mask.shape
    mask = TissueMask(mask=np.random.default_rng(seed).random(shape) < 0.01, mpp=mask_mpp, method="test")
    grid = tile(info, mask, spec(tile_um, stride=stride, size_px=63))
    order = grid.xy0[:, 1] * 10_000 + grid.xy0[:, 0]
    assert (np.diff(order) > 0).all()
    assert ((grid.tissue > 0) & (grid.tissue <= 1)).all()
    # The centre of every tissue px on the slide lies in a tile, but for the half px by which tiles are rounded apart.
    y, x = ((index + 0.5) * mask_mpp / mpp for index in np.nonzero(mask.mask))
    inside = (x < 1501) & (y < 1003)
    for px, py in zip(x[inside], y[inside], strict=True):
        near = (grid.xy0 - 1 <= (px, py)).all(axis=1) & (grid.xy0 + grid.size0 + 1 >= (px, py)).all(axis=1)
        assert near.any()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), mask_mpp=st.floats(1.0, 20.0), tile_um=st.floats(64.0, 300.0))
def test_the_tissue_of_a_tile_is_the_exact_share_of_its_area(seed: int, mask_mpp: float, tile_um: float) -> None:
    info = slide(mpp=0.2527, size=(1501, 1003))
    shape = full(info, mask_mpp).mask.shape
    mask = np.random.default_rng(seed).random(shape) < 0.4
    grid = tile(info, TissueMask(mask=mask, mpp=mask_mpp, method="test"), spec(tile_um, size_px=63))

    def overlap(start0: int, length: int) -> np.ndarray:
        start, side, at = start0 * info.mpp / mask_mpp, tile_um / mask_mpp, np.arange(length)
        return np.clip(np.minimum(at + 1, start + side) - np.maximum(at, start), 0, None) / side

    wanted = [overlap(y, shape[0]) @ mask @ overlap(x, shape[1]) for x, y in grid.xy0]
    np.testing.assert_allclose(grid.tissue, wanted, atol=2e-6)


def test_blocks_of_any_height_give_the_same_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    info = slide(mpp=0.499)
    # Of 7.3 µm, so that no row of tiles but the first begins with a whole px of the mask.
    mask = TissueMask(mask=np.random.default_rng(0).random((547, 684)) < 0.2, mpp=7.3, method="test")
    whole = tile(info, mask, spec(128.0, stride=0.5, min_tissue=0.2))
    monkeypatch.setattr("wsimil.tiling._BLOCK_MASK_PX", 1)
    rows = tile(info, mask, spec(128.0, stride=0.5, min_tissue=0.2))
    np.testing.assert_array_equal(rows.xy0, whole.xy0)
    np.testing.assert_array_equal(rows.tissue, whole.tissue)


def test_a_huge_slide_is_tiled_in_little_memory() -> None:
    info = slide(mpp=0.25, size=(200_000, 130_000))
    mask = full(info)
    tracemalloc.start()
    grid = tile(info, mask, spec(64.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(grid) == 782 * 508
    # A block of 4 million mask px makes a few float64 copies; the whole mask of 25 million px would need ten times that.
    assert peak < 300e6


def marked_slide(path: Path, mpp: float, marks_um: np.ndarray, downsamples: tuple[float, ...]) -> Path:
    """White glass with black squares of 8 µm, drawn in µm; levels of whole px, so that downsamples are fractional."""
    width, height = int(620 / mpp), int(510 / mpp)
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    for x, y in marks_um:
        left, right, top, bottom = (round(at / mpp) for at in (x - 4, x + 4, y - 4, y + 4))
        image[top:bottom, left:right] = 0
    with tifffile.TiffWriter(path) as file:
        for by in (1.0, *downsamples):
            level = np.asarray(
                Image.fromarray(image).resize((round(width / by), round(height / by)), Image.Resampling.BOX)
            )
            file.write(
                level, tile=(256, 256), photometric="rgb", metadata=None, subfiletype=int(by > 1),
                resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def centre_px(pixels: np.ndarray) -> np.ndarray:
    """Centre of mass of what is dark, (x, y) in px."""
    dark = 255.0 - pixels.mean(axis=2)
    y, x = np.indices(dark.shape) + 0.5
    return np.array([(dark * x).sum(), (dark * y).sum()]) / dark.sum()


@pytest.mark.parametrize("mpp", MPPS)
@pytest.mark.parametrize(("tile_um", "level"), [(256.0, 1), (128.0, 0)])
def test_what_lies_at_a_known_micrometre_lands_in_the_right_tile_at_the_right_pixel(
    tmp_path: Path, mpp: float, tile_um: float, level: int
) -> None:
    # One mark in every tile, away from its edge.
    columns, rows = int(620 / tile_um), int(510 / tile_um)
    rng = np.random.default_rng(0)
    cells = np.array([(column, row) for row in range(rows) for column in range(columns)])
    marks_um = (cells + rng.uniform(0.1, 0.9, cells.shape)) * tile_um
    path = marked_slide(tmp_path / "s.tiff", mpp, marks_um, (256 / 224 / 1.07 / mpp, 256 / 224 * 1.9 / mpp))
    with open_slide(path) as opened:
        grid = tile(opened.info, full(opened.info), spec(tile_um))
        assert grid.read_level == level
        assert_marks_in_place(grid, opened.read_tiles(grid, np.arange(len(grid))), marks_um, tile_um)


def assert_marks_in_place(grid: TileGrid, tiles: np.ndarray, marks_um: np.ndarray, tile_um: float) -> None:
    columns = len(np.unique(grid.xy0[:, 0]))
    for mark_um in marks_um:
        column, row = (mark_um // tile_um).astype(int)
        within_um = mark_um - np.array([column, row]) * tile_um
        found = centre_px(tiles[row * columns + column])
        assert np.abs(found - within_um / tile_um * grid.read_px).max() < 1.0
