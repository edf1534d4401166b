"""Generated cohorts: what is said of them is true of their pixels."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely

from wsimil.errors import OutputError
from wsimil.evaluation.truth import read_truth, tile_truth
from wsimil.geometry import SlideInfo, TileGrid, TileSpec, grid_positions
from wsimil.testing.synthetic import SyntheticCohort, make_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> SyntheticCohort:
    return make_cohort(tmp_path_factory.mktemp("cohort"), slides=8, side_um=640, seed=3)


def _grid(*, mpp: float = 0.5, size_px: int = 100, size0_px: tuple[int, int] = (1000, 1000)) -> TileGrid:
    info = SlideInfo(
        slide_id="s",
        path=Path("s.tiff"),
        size0_px=size0_px,
        mpp=mpp,
        mpp_source="metadata",
        mpp_detail="test",
        level_downsamples=(1.0,),
        bounds0_px=(0, 0, *size0_px),
        vendor="test",
        digest="0",
    )
    spec = TileSpec(size_px=size_px, mpp=0.5, stride_px=size_px, min_tissue=0.0)
    positions = [grid_positions(side, size_px * 0.5 / mpp) for side in size0_px]
    xy0 = np.stack(np.meshgrid(*positions), axis=-1).reshape(-1, 2)
    read_px = round(size_px * 0.5 / mpp)
    return TileGrid(slide=info, spec=spec, xy0=xy0, tissue=np.ones(len(xy0), np.float32), read_level=0, read_px=read_px)


def test_the_cohort_file_lists_the_slides_that_are_there(cohort: SyntheticCohort) -> None:
    with cohort.cohort_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == [slide.slide_id for slide in cohort.slides]
    assert sorted(path.stem for path in cohort.slides_folder.iterdir()) == sorted(row["slide_id"] for row in rows)
    assert sorted(path.stem for path in cohort.truth_folder.iterdir()) == sorted(row["slide_id"] for row in rows)
    assert [(row["label"], row["split"], row["patient_id"]) for row in rows] == [
        (slide.label, slide.split, slide.patient_id) for slide in cohort.slides
    ]


@pytest.mark.parametrize("slides", [8, 24, 63])
def test_no_patient_is_in_two_splits_and_no_split_lacks_a_class(slides: int, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wsimil.testing.synthetic.draw", lambda scene, palette, rng: np.zeros((64, 64, 3), np.uint8))
    made = make_cohort(tmp_path, slides=slides, side_um=256).slides
    assert len(made) == slides
    splits, labels, sizes = defaultdict(set), defaultdict(set), defaultdict(set)
    for slide in made:
        splits[slide.patient_id].add(slide.split)
        labels[slide.split].add(slide.label)
        sizes[slide.label].add(slide.mpp)
    assert all(len(of_patient) == 1 for of_patient in splits.values())
    assert dict(labels) == {split: {"normal", "tumor"} for split in ("train", "val", "test")}
    assert dict(sizes) == {label: {0.5, 0.25} for label in ("normal", "tumor")}
    assert len(splits) < slides


def test_a_slide_is_a_tiled_pyramid_with_its_mpp(cohort: SyntheticCohort) -> None:
    for made in cohort.slides:
        with openslide.OpenSlide(made.path) as slide:
            assert [round(d, 3) for d in slide.level_downsamples] == [1, 4, 16]
            assert slide.properties["openslide.level[0].tile-width"] == "256"
            assert 1e4 / float(slide.properties["tiff.XResolution"]) == pytest.approx(made.mpp, rel=1e-6)
            assert slide.properties["tiff.ResolutionUnit"] == "centimeter"


def test_tumor_is_where_the_label_says_and_in_the_truth_file(cohort: SyntheticCohort) -> None:
    for made in cohort.slides:
        written = read_truth(cohort.truth_folder / f"{made.slide_id}.geojson").polygons
        assert written.equals(made.tumor)
        assert made.tumor.is_valid
        assert (made.tumor.area > 0) == (made.label == "tumor")


def test_tumor_lies_on_tissue_and_holds_larger_nuclei(cohort: SyntheticCohort) -> None:
    """Blue runs are longer there: the truth is of these pixels, not shifted and not of another slide."""
    for made in cohort.slides:
        if made.label == "normal":
            continue
        with openslide.OpenSlide(made.path) as slide:
            level = slide.get_best_level_for_downsample(4 if made.mpp == 0.25 else 1)
            shrink = slide.level_downsamples[level]
            pixels = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"), int)
        dark = (pixels[..., 0] < 140) & (pixels[..., 2] > pixels[..., 0])
        side = round(8 / made.mpp / shrink)
        blocks = dark[: len(dark) // side * side, : dark.shape[1] // side * side]
        share = blocks.reshape(len(blocks) // side, side, -1, side).mean(axis=(1, 3))
        y, x = (np.indices(share.shape) + 0.5) * side * shrink
        inside = shapely.contains_xy(made.tumor, x.ravel(), y.ravel()).reshape(share.shape)
        assert share[inside].mean() > 2 * share[~inside].mean()


def test_the_background_is_nearly_white(cohort: SyntheticCohort) -> None:
    for made in cohort.slides:
        with openslide.OpenSlide(made.path) as slide:
            corner = np.asarray(slide.read_region((0, 0), 0, (40, 40)).convert("RGB"))
        assert corner.mean() > 225
        assert 0 < corner.std() < 12


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(cohort: SyntheticCohort, tmp_path: Path) -> None:
    first = _digest(cohort.cohort_csv.parent)
    assert _digest(make_cohort(tmp_path / "again", slides=8, side_um=640, seed=3).cohort_csv.parent) == first
    other = _digest(make_cohort(tmp_path / "other", slides=8, side_um=640, seed=4).cohort_csv.parent)
    assert all(other[name] != first[name] for name in first if name.startswith("slides/"))


def test_a_cohort_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 8"):
        make_cohort(tmp_path, slides=7)
    with pytest.raises(ValueError, match="at least 256"):
        make_cohort(tmp_path, side_um=255)


def test_an_output_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError):
        make_cohort(tmp_path / "out", slides=8)


@pytest.mark.parametrize("mpp", [0.5, 0.2527])
def test_the_truth_of_a_tile_is_the_exact_share_of_its_area(mpp: float) -> None:
    grid = _grid(mpp=mpp)
    side = grid.size0
    x, y = grid.xy0[12]
    island = shapely.box(x + side / 4, y, x + side, y + side / 2)
    truth = tile_truth(grid, shapely.MultiPolygon([island]))
    assert truth.dtype == np.float32
    assert truth[12] == pytest.approx(0.375)
    assert truth.sum() == pytest.approx(0.375, abs=0.01)


def test_the_truth_of_a_slide_without_tumor_is_zero() -> None:
    grid = _grid()
    assert tile_truth(grid, shapely.MultiPolygon()).tolist() == [0.0] * len(grid)


def test_several_islands_add_up() -> None:
    grid = _grid(size0_px=(100, 100))
    islands = shapely.MultiPolygon([shapely.box(0, 0, 10, 100), shapely.box(50, 0, 100, 50)])
    assert tile_truth(grid, islands) == pytest.approx([0.35])


def test_the_truth_of_all_tiles_of_a_full_grid_adds_up_to_the_area(cohort: SyntheticCohort) -> None:
    for made in cohort.slides:
        grid = _grid(size0_px=(2600, 2600))
        total = tile_truth(grid, made.tumor).sum(dtype=np.float64) * grid.size0**2
        assert total == pytest.approx(made.tumor.area, rel=1e-6)
