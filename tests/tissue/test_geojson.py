from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geojson as geojson_standard
import numpy as np
import pytest
import shapely
from scipy import ndimage

from wsimil.errors import SlideError
from wsimil.geometry import SlideInfo, TissueMask
from wsimil.tissue import read_geojson, to_geojson, to_png
from wsimil.tissue.config import TissueConfig
from wsimil.tissue.geojson import read_polygons
from wsimil.tissue.resolution import mask_mpp, mask_size_px

SQUARE = [[100, 200], [900.5, 200], [900.5, 700.25], [100, 700.25], [100, 200]]


def slide(
    *, mpp: float = 0.499, bounds: tuple[int, int, int, int] | None = None, size: tuple[int, int] = (1234, 987)
) -> SlideInfo:
    return SlideInfo(
        slide_id="s", path=Path("s.mrxs"), size0_px=size, mpp=mpp, mpp_source="metadata", mpp_detail="test",
        level_downsamples=(1.0,), bounds0_px=bounds or (0, 0, *size), vendor="test", digest="0" * 64,
    )  # fmt: skip


def blobs(info: SlideInfo, seed: int = 0) -> TissueMask:
    mpp = mask_mpp(info, TissueConfig())
    width, height = mask_size_px(info, mpp)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 2.5)
    return TissueMask(mask=noise > 0.02, mpp=mpp, method="test")


def write(path: Path, tree: Any) -> Path:
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("mpp", [0.2281, 0.499, 3.0, 7.9, 8.0, 28.97])
@pytest.mark.parametrize("origin", ["bounds", "level0"])
def test_a_mask_written_and_read_is_the_same_mask(tmp_path: Path, mpp: float, origin: Any) -> None:
    # A mask of about 310 x 250 px, whatever the mpp.
    size = max(63, round(2500 / mpp)) + 1, max(63, round(2000 / mpp))
    info = slide(mpp=mpp, bounds=(10, 20, 50, 40), size=size)
    mask = blobs(info)
    back = read_geojson(write(tmp_path / "s.geojson", to_geojson(mask, info, origin=origin)), info)
    np.testing.assert_array_equal(back.mask, mask.mask)
    assert (back.mpp, back.method) == (mask.mpp, "geojson")


def test_the_file_is_what_qupath_takes() -> None:
    info = slide()
    tree: Any = to_geojson(blobs(info), info)
    assert geojson_standard.loads(json.dumps(tree)).is_valid
    assert len(tree["features"]) > 3
    for feature in tree["features"]:
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["classification"] == {"name": "Tissue", "color": [120, 120, 120]}
        assert all(isinstance(value, str) for value in properties["metadata"].values())
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert all(isinstance(value, int) for ring in feature["geometry"]["coordinates"] for at in ring for value in at)


def test_coordinates_count_from_the_scanned_area_unless_level_0_is_asked_for() -> None:
    info = slide(mpp=8.0, bounds=(10, 20, 500, 400))
    mask = np.zeros((987, 1234), dtype=np.bool_)
    mask[30:33, 15:19] = True
    tissue = TissueMask(mask=mask, mpp=8.0, method="test")
    corner = {
        origin: to_geojson(tissue, info, origin=origin)["features"][0]["geometry"]["coordinates"][0][0]  # type: ignore
        for origin in ("bounds", "level0")
    }
    assert corner == {"bounds": [5, 10], "level0": [15, 30]}


def test_a_file_without_a_stated_frame_is_in_qupaths_and_the_caller_can_overrule_it(tmp_path: Path) -> None:
    info = slide(mpp=8.0, bounds=(10, 20, 500, 400))
    path = write(tmp_path / "q.geojson", {"type": "Polygon", "coordinates": [[[0, 0], [3, 0], [3, 2], [0, 2], [0, 0]]]})
    assert np.argwhere(read_geojson(path, info).mask)[0].tolist() == [20, 10]
    assert np.argwhere(read_geojson(path, info, origin="level0").mask)[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda g: g,
        lambda g: {"type": "Feature", "geometry": g, "properties": {}},
        lambda g: [{"type": "Feature", "geometry": g}],
        lambda g: {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": g, "properties": None}]},
        lambda g: {"type": "MultiPolygon", "coordinates": [g["coordinates"]]},
        lambda g: {"type": "GeometryCollection", "geometries": [g]},
    ],
)
def test_every_shape_of_file_that_holds_polygons_is_read(tmp_path: Path, wrap: Any) -> None:
    info = slide()
    mask = read_geojson(write(tmp_path / "q.geojson", wrap({"type": "Polygon", "coordinates": [SQUARE]})), info)
    assert mask.area_mm2 == pytest.approx(800.5 * 500.25 * 0.499**2 * 1e-6, rel=0.05)


def test_polygons_that_overlap_are_joined_and_holes_stay_holes(tmp_path: Path) -> None:
    def box(left: float, top: float, side: float) -> list[list[float]]:
        return [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]

    tree = [
        {"type": "Polygon", "coordinates": [box(0, 0, 100), box(40, 40, 20)]},
        {"type": "Polygon", "coordinates": [box(50, 0, 100)]},
    ]
    info = slide(mpp=8.0)
    mask = read_geojson(write(tmp_path / "q.geojson", tree), info).mask
    assert mask[:100, :150].sum() == 15_000 - 10 * 20
    assert mask.sum() == mask[:100, :150].sum()


@pytest.mark.parametrize("origin", ["bounds", "level0"])
def test_polygons_are_read_as_they_are_in_level_0_px(tmp_path: Path, origin: Any) -> None:
    info = slide(bounds=(10, 20, 50, 40))
    mask = blobs(info)
    path = write(tmp_path / "s.geojson", to_geojson(mask, info, origin=origin))
    polygons = read_polygons(path, slide_id="s", bounds0_px=info.bounds0_px)
    tree: Any = to_geojson(mask, info, origin="level0")
    assert [[ring.tolist() for ring in polygon] for polygon in polygons] == [
        feature["geometry"]["coordinates"] for feature in tree["features"]
    ]
    with pytest.raises(SlideError, match="slide 's': tissue file"):
        read_polygons(tmp_path / "absent.geojson", slide_id="s", bounds0_px=info.bounds0_px)


def test_fractions_of_a_px_are_rounded_half_up(tmp_path: Path) -> None:
    path = write(tmp_path / "s.geojson", {"type": "Polygon", "coordinates": [[[0.4, 0.5], [8.5, 0.6], [8.4, 9.7]]]})
    ((ring,),) = read_polygons(path, slide_id="s", bounds0_px=(0, 0, 50, 40))
    assert ring.tolist() == [[0, 1], [9, 1], [8, 10]]


def test_features_in_two_frames_are_refused(tmp_path: Path) -> None:
    info = slide(bounds=(10, 20, 500, 400))
    one, other = (to_geojson(blobs(info), info, origin=origin) for origin in ("bounds", "level0"))
    path = write(tmp_path / "q.geojson", [one, other])
    with pytest.raises(SlideError, match=r"name the frames \['bounds', 'level0'\], wanted one of"):
        read_geojson(path, info)


def test_no_polygon_is_no_tissue(tmp_path: Path) -> None:
    path = write(tmp_path / "q.geojson", {"type": "FeatureCollection", "features": []})
    assert not read_geojson(path, slide()).mask.any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not GeoJSON"),
        ("5", "wanted a GeoJSON object"),
        ('{"type": "FeatureCollection"}', "a FeatureCollection without features"),
        (
            '{"type": "Feature", "geometry": {"type": "LineString", "coordinates": []}}',
            r"geometry: got a LineString, wanted",
        ),
        ('{"type": "Polygon", "coordinates": []}', "needs a list of rings"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "at least 3 points"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, "a"]]]}', "a point is"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, NaN]]]}', "a point is"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, true]]]}', "a point is"),
        (
            '{"type": "Polygon", "coordinates": [[[-9, -9], [-5, -9], [-5, -5]]]}',
            "none of its 1 polygons covers the slide",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[-5000, 80], [80, -5000], [-5000, -5000]]]}',
            "none of its 1 polygons covers the slide",
        ),
        (
            '{"type": "Polygon", "coordinates": [[[9, 9], [9.5, 9], [9.5, 9.5]]]}',
            r"none of its 1 polygons holds the middle of a pixel of the mask, which is 2\.405\d* µm wide; .* tissue\.mpp",
        ),
        (
            '[{"type": "Feature", "geometry": null, "properties": {"metadata": {"wsimil.origin": "x"}}}]',
            "wanted a GeoJSON object",
        ),
        (
            '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [99, 0], [99, 99]]]},'
            ' "properties": {"metadata": {"wsimil.origin": "x"}}}]',
            "name the frames",
        ),
    ],
)
def test_a_file_that_cannot_be_meant_names_slide_file_and_fault(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "q.geojson"
    path.write_text(content)
    with pytest.raises(SlideError, match=rf"slide 's': tissue file .*q\.geojson.*{message}"):
        read_geojson(path, slide())


def test_a_missing_file_or_one_that_is_no_text_is_a_slide_error(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="does not exist"):
        read_geojson(tmp_path / "none.geojson", slide())
    with pytest.raises(SlideError, match="cannot be read"):
        read_geojson(tmp_path, slide())
    (tmp_path / "b.geojson").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SlideError, match="is not GeoJSON"):
        read_geojson(tmp_path / "b.geojson", slide())


def test_a_png_is_the_mask_and_always_the_same_bytes(tmp_path: Path) -> None:
    from PIL import Image

    mask = blobs(slide(mpp=8.0))
    data = to_png(mask)
    assert data == to_png(mask)
    path = tmp_path / "m.png"
    path.write_bytes(data)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), mask.mask.astype(np.uint8) * 255)
