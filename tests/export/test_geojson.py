"""GeoJSON by the rules that QuPath's reader was seen to have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import geojson
import numpy as np
import pytest
import shapely

from wsimil.errors import OutputError
from wsimil.export.geojson import geojson_chunks, write_geojson
from wsimil.export.scores import ScoreTable, score_table
from wsimil.export.shown import shown

HOSTILE = '"}]<img src=x onerror=alert(1)> %s %d\n\u2028 100 %'


def _parse(table: ScoreTable, **options: Any) -> dict[str, Any]:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    tree = json.loads("".join(geojson_chunks(table, **options)), parse_constant=refuse)
    assert isinstance(tree, dict)
    return tree


def _objects(tree: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [f for f in tree["features"] if f["properties"]["objectType"] == kind]


def _box(feature: dict[str, Any]) -> list[int]:
    ring = feature["geometry"]["coordinates"][0]
    return [*ring[0], ring[2][0] - ring[0][0], ring[2][1] - ring[0][1]]


def _hold_the_contract(tree: dict[str, Any]) -> None:
    assert tree["type"] == "FeatureCollection"
    assert geojson.loads(json.dumps(tree)).is_valid
    for feature in tree["features"]:
        assert feature["type"] == "Feature"
        geometry, properties = feature["geometry"], feature["properties"]
        assert geometry["type"] in ("Polygon", "MultiPolygon")
        assert shapely.is_valid(shapely.geometry.shape(geometry))
        parts = geometry["coordinates"]
        for ring in (ring for part in ([parts] if geometry["type"] == "Polygon" else parts) for ring in part):
            assert ring[0] == ring[-1]
            assert all(type(value) is int for point in ring for value in point)
        assert properties["objectType"] in ("tile", "annotation")
        assert "id" not in feature
        classification = properties.get("classification")
        assert classification is None or (classification["name"] and _is_color(classification["color"]))
        assert "color" not in properties or _is_color(properties["color"])
        assert all(_is_measurement(value) for value in properties["measurements"].values())
        assert all(isinstance(value, str) for value in properties.get("metadata", {}).values())


def _is_color(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)


def _is_measurement(value: object) -> bool:
    return value == "NaN" or (type(value) in (int, float) and np.isfinite(float(value)))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 63, 1000])
def test_every_rule_of_the_contract_holds(n: int, make_prediction) -> None:
    table = score_table(make_prediction(n=n, size_px=63, mpp=0.2527))
    tree = _parse(table)
    _hold_the_contract(tree)
    assert len(_objects(tree, "tile")) == len(table)


def test_tiles_lie_where_the_table_says(make_prediction) -> None:
    table = score_table(make_prediction(n=63, mpp=0.2527, stride_px=112))
    boxes = [_box(feature) for feature in _objects(_parse(table), "tile")]
    assert boxes == [[*corner, 443, 443] for corner in table.xy0.tolist()]


def test_the_bounds_offset_is_subtracted_by_default_and_told(make_prediction) -> None:
    table = score_table(make_prediction(n=63, bounds0_px=(301, 207, 3000, 2500)))
    shifted, plain = _parse(table), _parse(table, origin="level0")
    assert [_box(f)[:2] for f in _objects(shifted, "tile")] == (table.xy0 - [301, 207]).tolist()
    assert [_box(f)[:2] for f in _objects(plain, "tile")] == table.xy0.tolist()
    for tree, offset in ((shifted, [301, 207]), (plain, [0, 0])):
        assert tree["wsimil"]["offset_level0_px"] == offset
        slide = _objects(tree, "annotation")[0]["properties"]
        assert slide["metadata"]["wsimil.offset_level0_px"] == f"{offset[0]},{offset[1]}"
        assert slide["metadata"]["wsimil.origin"] == tree["wsimil"]["origin"]


@pytest.mark.parametrize("origin", ["bounds", "level0"])
def test_the_slide_is_drawn_around_all_tiles_and_each_top_tile_where_it_lies(origin: str, make_prediction) -> None:
    table = score_table(make_prediction(n=63, bounds0_px=(301, 207, 3000, 2500)))
    slide, *tops = _objects(_parse(table, origin=origin, score="attention", top=5), "annotation")
    xy = table.xy0 - ([301, 207] if origin == "bounds" else [0, 0])
    assert _box(slide) == [*xy.min(axis=0), *(np.ptp(xy, axis=0) + 224)]
    order = np.argsort(-table.score("attention"), kind="stable")[:5]
    assert [_box(one) for one in tops] == [[*xy[index], 224, 224] for index in order]
    assert [one["properties"]["measurements"] for one in tops] == [{"wsimil: rank": rank} for rank in (1, 2, 3, 4, 5)]


def test_more_tiles_than_are_written_at_once_keep_their_places_and_scores(make_prediction) -> None:
    table = score_table(make_prediction(n=5000, size0_px=(20_000, 20_000)))
    tiles = _objects(_parse(table), "tile")
    assert [_box(feature)[:2] for feature in tiles] == table.xy0.tolist()
    values = shown(table, "attention").values
    found = [tile["properties"]["measurements"]["wsimil: attention (relative to max)"] for tile in tiles]
    np.testing.assert_allclose(found, values / values.max(), rtol=5e-5)


def test_measurements_are_what_pictures_show_relative_to_the_largest_and_say_so(make_prediction) -> None:
    table = score_table(make_prediction(n=63, classes=("normal", "tumor", "other")))
    tiles = _objects(_parse(table), "tile")
    for name in table.score_names:
        values = shown(table, name).values.astype(np.float64)
        found = [t["properties"]["measurements"][f"wsimil: {name.replace(':', ' ')} (relative to max)"] for t in tiles]
        np.testing.assert_allclose(found, values / np.abs(values).max(), rtol=5e-5)
        said = _parse(table)["wsimil"]["scores"][f"wsimil: {name.replace(':', ' ')} (relative to max)"]
        assert said == {
            "shows": shown(table, name).label, "reading": shown(table, name).reading, "rule": table.rule(name)
        }  # fmt: skip
        raw = table.score(name) / np.abs(table.score(name)).max()
        assert np.allclose(found, raw, rtol=5e-5) == (name == "attention")


def test_a_score_that_is_zero_everywhere_stays_zero(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    tiles = _objects(_parse(dataclasses.replace(table, scores=np.zeros_like(table.scores)), score="attention"), "tile")
    assert all(set(t["properties"]["measurements"].values()) == {0} for t in tiles)


def test_a_tile_that_was_not_scored_is_the_string_nan(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    scores = table.scores.copy()
    scores[3] = np.nan
    tree = _parse(dataclasses.replace(table, scores=scores))
    _hold_the_contract(tree)
    assert set(_objects(tree, "tile")[3]["properties"]["measurements"].values()) == {"NaN"}
    assert set(
        _objects(_parse(dataclasses.replace(table, scores=scores * np.nan)), "tile")[0]["properties"][
            "measurements"
        ].values()
    ) == {"NaN"}


def test_the_slide_itself_carries_its_probabilities(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    slide = _objects(_parse(table), "annotation")[0]["properties"]
    assert slide["measurements"]["wsimil: P(tumor)"] == table.values[1]
    assert slide["measurements"]["wsimil: tiles"] == 63
    assert slide["name"] == f"{table.slide_id}: {table.predicted} ({table.values.max():.2f})"
    assert slide["metadata"]["wsimil.model.digest"] == "a3f5c0de"
    answer = dict(zip(("prob_normal", "prob_tumor"), table.values.tolist(), strict=True))
    assert _parse(table)["wsimil"]["answer"] == answer


def test_the_answer_for_a_patient_is_not_called_the_slides(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    of_patient = dataclasses.replace(table, model={**table.model, "patient": "p7"})
    tree = _parse(of_patient)
    slide = _objects(tree, "annotation")[0]["properties"]
    assert slide["name"].startswith(f"{table.slide_id}: patient p7: {table.predicted} (")
    assert slide["classification"]["name"] == "wsimil: Slide", "by which scripts find it"
    assert slide["measurements"]["wsimil: P(tumor) of the patient"] == table.values[1]
    assert "wsimil: P(tumor)" not in slide["measurements"]
    assert (tree["wsimil"]["answer_of"], _parse(table)["wsimil"]["answer_of"]) == (
        "patient p7",
        f"slide {table.slide_id}",
    )


def test_top_tiles_are_the_highest_of_those_that_speak_for_the_class(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    values = table.score("contribution:tumor") - table.score("contribution:normal")
    tops = _objects(_parse(table, score="contribution:tumor", top=5), "annotation")[1:]
    assert [t["properties"]["metadata"]["wsimil.tile_id"] for t in tops] == [str(i) for i in np.argsort(-values)[:5]]
    assert tops[0]["properties"]["name"] == f"Top 1 tumor ({values.max():+.3g})"
    assert table.main_score == f"contribution:{table.predicted}" != table.score_names[0]
    (first,) = _objects(_parse(table, top=1), "annotation")[1:]
    assert first["properties"]["metadata"]["wsimil.score"] == table.main_score
    every = _objects(_parse(table, score="contribution:tumor", top=63), "annotation")[1:]
    assert len(every) == int((values > 0).sum())
    assert len(_objects(_parse(table, score="attention", top=63), "annotation")) == 1 + 63
    assert len(_objects(_parse(table, top=0), "annotation")) == 1


def test_no_tile_that_speaks_against_is_among_the_top_whatever_the_signed_score(make_prediction) -> None:
    made = score_table(make_prediction(n=63))
    single = np.stack([np.linspace(3, 2, 63), np.linspace(0, 2.5, 63)], axis=1).astype(np.float32)
    names = (*(f"leave_one_out:{c}" for c in ("normal", "tumor")), *(f"single:{c}" for c in ("normal", "tumor")))
    scores = np.concatenate([np.linspace(-1, 1, 126, dtype=np.float32).reshape(63, 2), single], axis=1)
    scores[:20, 1] -= 0.1
    scores[5] = 0  # speaks neither for nor against
    table = dataclasses.replace(made, score_names=names, scores=scores)
    loses = scores[:, 1] > scores[:, 0]
    assert 0 < loses.sum() < 63
    for name, speaks in (("leave_one_out:tumor", loses), ("single:tumor", single[:, 1] > single[:, 0])):
        tops = _objects(_parse(table, score=name, top=63), "annotation")[1:]
        found = {int(one["properties"]["metadata"]["wsimil.tile_id"]) for one in tops}
        assert found == set(np.flatnonzero(speaks).tolist()), name


def _ring(*points: tuple[int, int]) -> np.ndarray:
    return np.array(points, np.int64)


def test_tissue_is_outlined_with_its_holes_where_it_lies(make_prediction) -> None:
    outer, hole = _ring((400, 300), (1400, 300), (1400, 900), (400, 900)), _ring((500, 400), (600, 400), (600, 500))
    far = _ring((2000, 2000), (2500, 2000), (2500, 2500), (2000, 2000))
    prediction = make_prediction(n=63, bounds0_px=(301, 207, 3000, 2500))
    tree = _parse(score_table(prediction, tissue=((outer, hole), (far,))))
    _hold_the_contract(tree)
    pieces = [f for f in _objects(tree, "annotation") if f["properties"]["classification"]["name"] == "Tissue"]
    assert [piece["properties"]["name"] for piece in pieces] == ["Tissue 1", "Tissue 2"]
    assert {piece["properties"]["metadata"]["wsimil.origin"] for piece in pieces} == {"bounds"}
    shapes = [shapely.geometry.shape(piece["geometry"]) for piece in pieces]
    assert shapes[0].equals(shapely.Polygon(outer - [301, 207], [hole - [301, 207]]))
    assert shapes[1].equals(shapely.Polygon(far - [301, 207]))


def test_tissue_that_crosses_itself_becomes_polygons_that_do_not(make_prediction) -> None:
    bow_tie = _ring((0, 0), (1000, 1001), (1000, 0), (0, 1000))
    spike = _ring((2000, 0), (2100, 0), (2100, 100), (2500, 100), (2100, 100), (2000, 100))
    line, point = _ring((0, 0), (10, 10), (0, 0)), _ring((5, 5), (6, 6))
    hole_on_edge = (_ring((3000, 0), (3100, 0), (3100, 100), (3000, 100)), _ring((3000, 0), (3100, 50), (3000, 100)))
    tree = _parse(score_table(make_prediction(n=63), tissue=((bow_tie,), (spike,), (line,), (point,), hole_on_edge)))
    _hold_the_contract(tree)
    pieces = [f for f in _objects(tree, "annotation") if f["properties"]["classification"]["name"] == "Tissue"]
    assert [piece["geometry"]["type"] for piece in pieces] == ["MultiPolygon", "Polygon", "MultiPolygon"]


def test_hostile_names_stay_text(make_prediction) -> None:
    table = score_table(make_prediction(n=63, classes=("normal", HOSTILE), slide_id=HOSTILE))
    tree = _parse(table)
    _hold_the_contract(tree)
    assert tree["wsimil"]["slide"] == HOSTILE
    assert (
        f"wsimil: contribution {HOSTILE} (relative to max)" in _objects(tree, "tile")[0]["properties"]["measurements"]
    )
    assert all("\u2028" not in chunk for chunk in geojson_chunks(table))


def test_a_table_without_scores_still_shows_its_tiles(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    bare = dataclasses.replace(table, score_names=(), scores=np.empty((63, 0), np.float32))
    tree = _parse(bare)
    _hold_the_contract(tree)
    assert len(_objects(tree, "tile")) == 63


def test_calls_that_cannot_be_meant_are_refused(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    for options, error in (({"top": -1}, ValueError), ({"origin": "centre"}, ValueError), ({"score": "x"}, KeyError)):
        with pytest.raises(error):
            _parse(table, **options)


def test_a_hundred_thousand_tiles_stay_below_forty_megabytes_and_come_in_pieces(make_prediction) -> None:
    table = score_table(make_prediction(size0_px=(71_000, 71_000), n=100_000))
    sizes = [len(chunk) for chunk in geojson_chunks(table)]
    assert len(table) == 100_000
    assert sum(sizes) < 40_000_000
    assert max(sizes) < 2_000_000


def test_a_written_file_is_what_the_chunks_say(make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(n=63))
    write_geojson(tmp_path / "a.geojson", table)
    assert (tmp_path / "a.geojson").read_text(encoding="utf-8") == "".join(geojson_chunks(table))
    with pytest.raises(OutputError):
        write_geojson(tmp_path / "a.geojson" / "b.geojson", table)
