"""OME-TIFF: as independent readers see it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from wsimil.evaluation.calibration import Calibration
from wsimil.export import ome_tiff
from wsimil.export.ome_tiff import NAMESPACE, write_ome_tiff
from wsimil.export.raster import area_mean, cells_of_tiles, cells_over, halved, point_mean
from wsimil.export.scores import ScoreTable, score_table
from wsimil.export.shown import shown
from wsimil.geometry import Origin

HOSTILE = '"/><script>alert(1)</script>&\n\x00 %s 日本語'


def _with_holes(table: ScoreTable, share: float = 0.4) -> ScoreTable:
    scores = table.scores.copy()
    scores[np.random.default_rng(0).random(len(scores)) < share] = np.nan
    return dataclasses.replace(table, scores=scores)


@pytest.mark.parametrize("n", [1, 63, 1000])
def test_channels_are_what_pictures_show_and_what_was_not_scored_is_nan(
    n: int, make_prediction, tmp_path: Path
) -> None:
    table = _with_holes(score_table(make_prediction(n=n, mpp=0.2527, size_px=63, size0_px=(9000, 7000))))
    write_ome_tiff(tmp_path / "a.ome.tiff", table)
    image = tifffile.imread(tmp_path / "a.ome.tiff")
    assert image.dtype == np.float32
    column, row = np.rint(table.xy0 / table.stride0).astype(int).T
    for channel, name in enumerate(table.score_names):
        assert np.array_equal(image[channel, row, column], shown(table, name).values, equal_nan=True)
        assert np.isfinite(image[channel]).sum() == np.isfinite(table.score(name)).sum()


def test_a_level_is_the_mean_of_the_scored_area_below_it(make_prediction, tmp_path: Path) -> None:
    table = _with_holes(score_table(make_prediction(size_px=8, size0_px=(4200, 800))), share=0.9)
    write_ome_tiff(tmp_path / "a.ome.tiff", table)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        # Bio-Formats reads no pixel of floats with a predictor.
        assert {level.keyframe.predictor for level in file.series[0].levels} == {tifffile.PREDICTOR.NONE}
        levels = [level.asarray() for level in file.series[0].levels]
    assert [level.shape for level in levels] == [(3, 100, 528), (3, 50, 264), (3, 25, 132)]
    for number, level in enumerate(levels[1:], start=1):
        side = 2**number
        blocks = levels[0].reshape(3, level.shape[1], side, level.shape[2], side).astype(np.float64)
        count = np.isfinite(blocks).sum(axis=(2, 4))
        mean = np.where(count > 0, np.nansum(blocks, axis=(2, 4)) / np.maximum(count, 1), np.nan)
        assert np.isnan(level).any()
        np.testing.assert_allclose(level, mean, rtol=1e-5, atol=1e-9)


def test_ome_types_reads_sizes_units_channels_and_the_map_annotation(make_prediction, tmp_path: Path) -> None:
    ome_types = pytest.importorskip("ome_types", reason="needs ome-types, which the extra 'dev' brings")
    table = score_table(make_prediction(n=63, mpp=0.2527, bounds0_px=(301, 207, 3000, 2500), slide_id=HOSTILE))
    write_ome_tiff(tmp_path / "a.ome.tiff", dataclasses.replace(table, model={**table.model, "patient": "p7"}))
    ome = ome_types.from_tiff(tmp_path / "a.ome.tiff", validate=True)
    (image,) = ome.images
    pixels = image.pixels
    assert (pixels.type.value, pixels.size_c, pixels.size_z, pixels.size_t) == ("float", 3, 1, 1)
    assert pixels.physical_size_x == pixels.physical_size_y == pytest.approx(112.0)
    assert pixels.physical_size_x_unit.value == "µm"
    assert [channel.name for channel in pixels.channels] == list(table.score_names)
    (note,) = ome.structured_annotations
    assert note.namespace == NAMESPACE
    facts = {pair.k: pair.value for pair in note.value.ms}
    assert facts["origin_level0_px"] == "301,207"
    assert (float(facts["level0_mpp"]), float(facts["cell_level0_px"])) == (0.2527, pytest.approx(112 / 0.2527))
    assert facts["answer"] == f"prob_normal={table.values[0]:.6g}, prob_tumor={table.values[1]:.6g}"
    assert facts["nodata"] == "NaN"
    assert facts["answer_of"] == "patient p7"
    assert facts["shown.contribution:tumor"] == "contribution to tumor; log-odds; 0 = adds nothing"
    assert (facts["level0_width"], facts["level0_height"]) == ("4000", "3000")
    assert facts["slide"] == HOSTILE.replace("\n", "\ufffd").replace("\x00", "\ufffd")


@pytest.mark.parametrize(("origin", "shape"), [("bounds", (12, 14)), ("level0", (108, 143))])
def test_the_image_is_as_large_as_what_it_begins_with(
    origin: Origin, shape: tuple[int, int], make_prediction, tmp_path: Path
) -> None:
    table = score_table(make_prediction(bounds0_px=(301, 207, 3000, 2500)))
    write_ome_tiff(tmp_path / "a.ome.tiff", table, origin=origin)
    assert tifffile.imread(tmp_path / "a.ome.tiff").shape == (3, *shape)


def test_every_level_says_its_own_resolution_and_that_it_is_reduced(make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(size_px=8, size0_px=(4200, 800)))
    write_ome_tiff(tmp_path / "a.ome.tiff", table)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        pages = [level.keyframe for level in file.series[0].levels]
        assert [page.is_reduced for page in pages] == [False, True, True]
        um = [1e4 * page.tags["XResolution"].value[1] / page.tags["XResolution"].value[0] for page in pages]
    np.testing.assert_allclose(um, [4, 8, 16])


@pytest.mark.parametrize("short_by", [0, 1])
def test_all_channels_together_decide_whether_offsets_need_64_bits(
    short_by: int, make_prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = score_table(make_prediction(size0_px=(2240, 2240)))
    monkeypatch.setattr(ome_tiff, "_BIG_BYTES", 3 * 10 * 10 * 4 - short_by)
    write_ome_tiff(tmp_path / "a.ome.tiff", table)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        assert file.is_bigtiff == bool(short_by)


def test_libvips_reads_the_same_levels(make_prediction, tmp_path: Path) -> None:
    pyvips = pytest.importorskip("pyvips", reason="needs pyvips, which the extra 'dev' brings")
    table = _with_holes(score_table(make_prediction(size_px=8, size0_px=(4200, 800))))
    path = tmp_path / "a.ome.tiff"
    write_ome_tiff(path, table)
    with tifffile.TiffFile(path) as file:
        levels = [level.asarray() for level in file.series[0].levels]
    for channel in range(3):
        whole = pyvips.Image.tiffload(str(path), page=channel)
        assert np.array_equal(whole.numpy(), levels[0][channel], equal_nan=True)
        for number, level in enumerate(levels[1:]):
            part = pyvips.Image.tiffload(str(path), page=channel, subifd=number)
            assert np.array_equal(part.numpy(), level[channel], equal_nan=True)


def test_the_same_table_gives_the_same_bytes_and_another_one_another_id(make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(n=63))
    for name in ("a", "b"):
        write_ome_tiff(tmp_path / f"{name}.ome.tiff", table)
    assert (tmp_path / "a.ome.tiff").read_bytes() == (tmp_path / "b.ome.tiff").read_bytes()
    temperature = Calibration(kind="temperature", classes=2, fitted_on="val", rows=9, temperature=2.0)
    others = {
        "c": {"scores": table.scores * 2},
        "d": {"model": {**table.model, "calibration": temperature.to_json()}},  # shown as half of it
        "e": {"logits": table.logits + 1},
    }
    ids = set()
    for name, facts in {"a": {}, **others}.items():
        write_ome_tiff(tmp_path / f"{name}.ome.tiff", dataclasses.replace(table, **facts))
        with tifffile.TiffFile(tmp_path / f"{name}.ome.tiff") as file:
            ids.add(ElementTree.fromstring(file.ome_metadata or "").attrib["UUID"])
    assert len(ids) == 4


def test_one_score_can_be_asked_for_and_an_unknown_one_is_refused(make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(n=63))
    write_ome_tiff(tmp_path / "a.ome.tiff", table, scores=("attention",))
    assert tifffile.imread(tmp_path / "a.ome.tiff").ndim == 2
    with pytest.raises(KeyError, match="has no score"):
        write_ome_tiff(tmp_path / "b.ome.tiff", table, scores=("nothing",))
    bare = dataclasses.replace(table, score_names=(), scores=np.empty((63, 0), np.float32))
    with pytest.raises(ValueError, match="no scores"):
        write_ome_tiff(tmp_path / "b.ome.tiff", bare)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ome.tiff"]


def test_cells_are_strides_of_a_fraction_of_px_too(make_prediction) -> None:
    table = score_table(make_prediction(bounds0_px=(301, 207, 3000, 2500), mpp=0.2527))
    assert cells_over(table, table.bounds0_px).cell0 == table.stride0 == 224 * 0.5 / 0.2527
    assert cells_of_tiles(table).cell0 == table.stride0
    assert cells_over(table, table.bounds0_px).side == 1


def test_cells_are_strides_on_one_grid_wherever_it_begins(make_prediction) -> None:
    table = score_table(make_prediction(bounds0_px=(301, 207, 3000, 2500), stride_px=112))
    assert cells_over(table, table.bounds0_px).cell0 == 112
    assert cells_over(table, (0, 0, *table.slide_size0_px)).cell0 == 14
    assert cells_of_tiles(table).cell0 == 112
    assert cells_of_tiles(table).origin0 == (301, 207)


def test_a_cell_is_the_mean_of_the_tiles_that_overlap_on_it(make_prediction) -> None:
    table = score_table(make_prediction(size0_px=(500, 400), stride_px=112))
    values = np.arange(len(table), dtype=np.float32)
    columns, rows = ((table.xy0 // 112).max(axis=0) + 1).tolist()
    wide = np.full((rows + 2, columns + 2), np.nan)
    wide[1:-1, 1:-1] = values.reshape(rows, columns)
    wanted = np.nanmean([wide[:-1, :-1], wide[:-1, 1:], wide[1:, :-1], wide[1:, 1:]], axis=0)
    np.testing.assert_allclose(cells_of_tiles(table).raster(values), wanted, rtol=1e-6)
    # Of a slide is shown what lies within it.
    np.testing.assert_allclose(cells_over(table, (0, 0, 500, 400)).raster(values), wanted[:rows, :columns], rtol=1e-6)


def test_of_two_tiles_a_pixel_apart_both_count(make_prediction) -> None:
    table = score_table(make_prediction(n=2))
    table = dataclasses.replace(table, xy0=np.array([[0, 0], [1, 0]]))
    raster = cells_over(table, (0, 0, 4000, 3000)).raster(np.array([1, 3], np.float32))
    assert raster[0, 1] == 2


def test_tiles_of_several_grids_are_laid_on_cells_that_divide_their_offsets(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    xy0 = table.xy0.copy()
    xy0[30:] += [56, 112]
    cells = cells_over(dataclasses.replace(table, xy0=xy0), (0, 0, 4000, 3000))
    assert cells.cell0 == 56
    assert np.array_equal(cells.at, xy0 / 56)
    xy0 = xy0.copy()
    xy0[30:] += [3, 0]
    assert cells_over(dataclasses.replace(table, xy0=xy0), (0, 0, 4000, 3000)).cell0 == 224 / 8


def test_tiles_of_several_grids_lie_in_their_places_wherever_the_frame_begins(make_prediction) -> None:
    table = score_table(make_prediction(n=3))
    places = np.array([[0, 0], [5, 0], [0, 6]])  # in cells of 56 px, four of which are a tile
    table = dataclasses.replace(table, xy0=np.array([301, 207]) + 56 * places)
    values = np.array([1, 2, 3], np.float32)
    wanted = np.full((10, 9), np.nan)
    for value, (x, y) in zip(values, places, strict=True):
        wanted[y : y + 4, x : x + 4] = value
    own, framed = cells_of_tiles(table), cells_over(table, (301 - 2 * 56, 207 - 56, 11 * 56, 11 * 56))
    assert (own.cell0, own.origin0, framed.cell0, framed.origin0) == (56, (301, 207), 56, (189, 151))
    np.testing.assert_array_equal(own.raster(values), wanted)
    np.testing.assert_array_equal(framed.raster(values), np.pad(wanted, ((1, 0), (2, 0)), constant_values=np.nan))


@pytest.mark.parametrize(("by", "cell0"), [(1, 224), (2, 28)])
def test_tiles_that_lie_on_one_grid_but_for_rounding_have_cells_of_a_stride(
    by: int, cell0: float, make_prediction
) -> None:
    table = score_table(make_prediction(n=63))
    xy0 = table.xy0.copy()
    xy0[30:] += [by, 0]
    moved = dataclasses.replace(table, xy0=xy0)
    assert cells_over(moved, (0, 0, 4000, 3000)).cell0 == cells_of_tiles(moved).cell0 == cell0


def test_a_raster_never_has_more_cells_than_memory_allows(make_prediction) -> None:
    table = score_table(make_prediction(n=63, size_px=16))
    xy0 = table.xy0.copy()
    xy0[30:] += 3
    for tiles in (table, dataclasses.replace(table, xy0=xy0)):
        cells = cells_over(tiles, (0, 0, 100_000, 100_000))
        height, width = cells.shape
        assert 2**23 < height * width <= 2**24 + height + width
        assert cells.cell0 > table.stride0
        assert np.isfinite(cells.raster(table.scores[:, 0])).any()


def test_tiles_beyond_the_frame_are_cut_off_on_the_left_and_kept_on_the_right(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    beyond = dataclasses.replace(table, xy0=table.xy0 + 2240)
    assert np.isfinite(cells_over(beyond, (0, 0, 300, 300)).raster(table.scores[:, 0])).sum() == 63
    for by in (224, 112):
        before = dataclasses.replace(table, xy0=table.xy0 - [by, 0])
        cells = cells_over(before, (0, 0, 4000, 3000))
        raster = cells.raster(table.scores[:, 0])
        # Of the four tiles on the left edge nothing is left, or a half.
        assert np.isfinite(raster).sum() * cells.cell0**2 == (63 - 4) * 224**2 + 4 * (224 - by) * 224
        assert np.isnan(raster[:, -1]).all()


def test_nearest_cells_hold_the_score_of_the_tile_on_their_middle() -> None:
    at = np.array([[0.4, 0.0], [2.6, 0.0]])
    values = np.array([1.0, 3.0], np.float32)
    row = point_mean(at, (2.2, 1.0), values, (1, 6))[0]
    np.testing.assert_array_equal(row, [1, 1, 1, 3, 3, np.nan])
    mixed = area_mean(at, (2.2, 1.0), values, (1, 6))[0]
    assert mixed[2] == pytest.approx(0.6 * 1 + 0.4 * 3)


def test_halving_weighs_by_what_was_scored() -> None:
    raster = np.array([[1, np.nan, 5, 5], [np.nan, np.nan, 5, 5]], np.float32)
    half, weight = halved(raster, np.ones((2, 4)))
    assert half.tolist() == [[1, 5]]
    pair, _ = halved(np.concatenate([half, half]), np.concatenate([weight, weight]))
    assert pair.tolist() == [[pytest.approx((1 + 4 * 5) / 5)]]
