"""Truth files: frames, classes, cells, and lesions that are connected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from wsimil.errors import SlideError
from wsimil.evaluation.truth import connected, find_truth, grown, read_truth


def feature(box: tuple[float, ...], name: str | None = None, **metadata: str) -> dict[str, object]:
    properties = {"classification": {"name": name} if name else None, "metadata": metadata}
    return {"type": "Feature", "geometry": shapely.geometry.mapping(shapely.box(*box)), "properties": properties}


def write(path: Path, *features: dict[str, object]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def test_outlines_count_from_the_declared_area_unless_they_say_otherwise(tmp_path: Path) -> None:
    drawn = write(tmp_path / "a.geojson", feature((0, 0, 10, 10)))
    assert read_truth(drawn, bounds0_xy=(100, 50)).polygons.bounds == (100, 50, 110, 60)
    placed = write(tmp_path / "b.geojson", feature((0, 0, 10, 10), **{"wsimil.origin": "level0"}))
    assert read_truth(placed, bounds0_xy=(100, 50)).polygons.bounds == (0, 0, 10, 10)
    mixed = write(tmp_path / "c.geojson", feature((0, 0, 1, 1)), feature((2, 2, 3, 3), **{"wsimil.origin": "level0"}))
    with pytest.raises(SlideError, match="bounds', 'level0"):
        read_truth(mixed)


def test_outlines_that_count_from_where_nobody_knows_are_refused(tmp_path: Path) -> None:
    drawn = write(tmp_path / "s.geojson", feature((0, 0, 10, 10), "Tumor"))
    with pytest.raises(SlideError, match=r"begins, which is not known.* convert them with --slides"):
        read_truth(drawn, bounds0_xy=None)
    placed = write(tmp_path / "t.geojson", feature((0, 0, 10, 10), "Tumor", **{"wsimil.origin": "level0"}))
    assert read_truth(placed, bounds0_xy=None).polygons.bounds == (0, 0, 10, 10)


def test_outlines_of_another_class_are_not_taken_for_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.geojson", feature((0, 0, 1, 1), "Tumour"), feature((2, 0, 3, 1), "Stroma"), feature((4, 0, 5, 1))
    )
    truth = read_truth(path)
    assert truth.names == ("Tumour", "Stroma", "")
    assert [one.bounds[0] for one in truth.of("tumor").geoms] == [0, 4]


def test_cells_become_outlines(tmp_path: Path) -> None:
    xy0 = np.array([[0, 0], [256, 0], [0, 256], [512, 512]])
    tumor = np.array([True, True, False, True])
    np.savez(tmp_path / "a.npz", xy0=xy0, tumour=tumor, cell0=256, mpp=0.5)
    lesions = connected(read_truth(tmp_path / "a.npz").of("tumor"))
    assert sorted(one.bounds for one in lesions.geoms) == [(0, 0, 512, 256), (512, 512, 768, 768)]


def test_what_overlaps_or_shares_an_edge_is_one_lesion(tmp_path: Path) -> None:
    boxes = [(0, 0, 2, 2), (1, 1, 3, 3), (3, 1, 4, 2), (4, 2, 5, 3)]
    found = connected(shapely.MultiPolygon([shapely.box(*box) for box in boxes]))
    assert sorted(one.bounds for one in found.geoms) == [(0, 0, 4, 3), (4, 2, 5, 3)]


def test_grown_lesions_that_meet_are_one_and_have_no_holes() -> None:
    ring = shapely.box(1000, 0, 1400, 400).difference(shapely.box(1100, 100, 1300, 300))
    drawn = [shapely.box(0, 0, 100, 100), shapely.box(170, 0, 270, 100), shapely.box(350, 0, 450, 100), ring]
    lesions = connected(shapely.MultiPolygon(drawn))
    found = sorted(grown(lesions, 37.5).geoms, key=lambda one: one.bounds)
    assert [one.bounds for one in found] == [
        (-37.5, -37.5, 307.5, 137.5), (312.5, -37.5, 487.5, 137.5), (962.5, -37.5, 1437.5, 437.5),
    ]  # fmt: skip
    assert found[2].contains(shapely.Point(1200, 200))
    assert grown(lesions, 0.0).equals(lesions)
    assert grown(shapely.MultiPolygon(), 37.5).is_empty


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"features": [{"geometry": {"type": "Point", "coordinates": [0, 0]}}]}']
)
def test_a_file_that_cannot_be_meant_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(SlideError, match=r"truth file .*a\.geojson"):
        read_truth(tmp_path / "a.geojson")
    (tmp_path / "b.npz").write_text(text)
    with pytest.raises(SlideError, match=r"truth file .*b\.npz"):
        read_truth(tmp_path / "b.npz")


def test_a_slide_without_a_file_has_no_truth(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson")
    assert find_truth(tmp_path, "a") == path
    assert len(read_truth(path).polygons.geoms) == 0
    assert find_truth(tmp_path, "b") is None
