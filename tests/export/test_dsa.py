"""Annotations of large_image, by its documented schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from wsimil.export.dsa import UNSCORED, write_dsa
from wsimil.export.heatmap import display_range
from wsimil.export.scores import ScoreTable, score_table
from wsimil.export.shown import shown

HOSTILE = '"}]<img src=x onerror=alert(1)>\n\u2028'

_COLOR = {"type": "string", "pattern": r"^(#[0-9a-fA-F]{3,6}|rgba?\(\d+,\s*\d+,\s*\d+(,\s*(\d?\.|)\d+)?\))$"}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
# What the annotation schema of large_image 1.35 says of griddata, in the words of its documentation.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
        "attributes": {"type": "object"},
        "elements": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "values", "gridWidth"],
                "properties": {
                    "type": {"const": "griddata"},
                    "id": {"type": "string", "pattern": "^[0-9a-f]{24}$"},
                    "label": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["value"],
                        "properties": {"value": {"type": "string"}},
                    },
                    "group": {"type": "string"},
                    "user": {"type": "object"},
                    "interpretation": {"enum": ["heatmap", "contour", "choropleth"]},
                    "gridWidth": {"type": "integer", "minimum": 1},
                    "origin": {**_NUMBERS, "minItems": 3, "maxItems": 3},
                    "dx": {"type": "number"},
                    "dy": {"type": "number"},
                    "radius": {"type": "number", "exclusiveMinimum": 0},
                    "colorRange": {"type": "array", "items": _COLOR},
                    "rangeValues": _NUMBERS,
                    "normalizeRange": {"type": "boolean"},
                    "stepped": {"type": "boolean"},
                    "minColor": _COLOR,
                    "maxColor": _COLOR,
                    "values": _NUMBERS,
                },
            },
        },
    },
}


def _write(table: ScoreTable, path: Path, **options: Any) -> list[dict[str, Any]]:
    write_dsa(path, table, **options)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    for annotation in found:
        jsonschema.validate(annotation, SCHEMA)
        for element in annotation["elements"]:
            assert len(element["values"]) % element["gridWidth"] == 0
            assert len(element["rangeValues"]) == len(element["colorRange"])
            assert element["rangeValues"] == sorted(element["rangeValues"])
    assert isinstance(found, list)
    return found


def test_every_score_is_an_annotation_that_the_schema_allows(make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(n=63, classes=("normal", HOSTILE), slide_id=HOSTILE))
    found = _write(table, tmp_path / "a.json")
    assert list(dict.fromkeys(one["attributes"]["score"] for one in found)) == list(table.score_names)
    assert {one["attributes"]["slide"] for one in found} == {HOSTILE}
    assert [one["attributes"]["score"] for one in _write(table, tmp_path / "b.json", scores=("attention",))] == [
        "attention"
    ]


def test_an_annotation_has_one_element_and_a_name_of_its_own(make_prediction, tmp_path: Path) -> None:
    """The viewer of large_image 1.35 remembers one griddata feature of an annotation: a second one stays when all is hidden."""
    found = _write(score_table(make_prediction(n=63)), tmp_path / "a.json")
    assert {len(one["elements"]) for one in found} == {1}
    assert [one["name"] for one in found] == [
        "wsimil: attention",
        "wsimil: contribution:normal, for",
        "wsimil: contribution:normal, against",
        "wsimil: contribution:tumor, for",
        "wsimil: contribution:tumor, against",
    ]


def test_it_is_said_whether_the_answer_is_for_the_slide_or_its_patient(make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(n=63, slide_id="s"))
    for model, wanted in ((table.model, "slide s"), ({**table.model, "patient": "p7"}, "patient p7")):
        found = _write(dataclasses.replace(table, model=model), tmp_path / "a.json")
        assert {one["attributes"]["answer_of"] for one in found} == {wanted}


def test_evidence_for_and_against_add_up_to_what_is_shown_and_unscored_is_neither(make_prediction, tmp_path) -> None:
    table = score_table(make_prediction(n=63))
    scores = table.scores.copy()
    scores[7] = np.nan
    table = dataclasses.replace(table, scores=scores)
    found = _write(table, tmp_path / "a.json", spans=dict.fromkeys(table.score_names, (-100.0, 100.0)))
    for name in table.score_names:
        of = [one for one in found if one["attributes"]["score"] == name]
        assert [one["attributes"]["evidence"] for one in of] == ([None] if name == "attention" else ["for", "against"])
        parts = [np.array(one["elements"][0]["values"]) for one in of]
        width = of[0]["elements"][0]["gridWidth"]
        column, row = (table.xy0 // 224 + 1).T
        for part in parts:
            assert part[(row * width + column)[7]] == UNSCORED
            assert (part == UNSCORED).sum() == len(part) - 62
        raw = (parts[0] - (parts[1] if len(parts) > 1 else 0))[row * width + column]
        keep = np.arange(63) != 7
        np.testing.assert_allclose(raw[keep], shown(table, name).values[keep], rtol=1e-5)


def test_colors_end_at_the_range_of_all_slides_where_it_is_given(make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(n=63))
    name = table.main_score
    own, given = (
        _write(table, tmp_path / "a.json", scores=(name,), spans=spans) for spans in ({}, {name: (-7.5, 7.5)})
    )
    assert {one["elements"][0]["rangeValues"][-1] for one in given} == {7.5}
    assert {one["elements"][0]["rangeValues"][-1] for one in own} == {
        display_range(shown(table, name).values, "signed")[1]
    }
    assert "one range for all slides" in given[0]["description"]
    assert "this slide's own range" in own[0]["description"]


def _drawn(element: dict[str, Any], value: float) -> NDArray[np.float64]:
    """The color (red, green, blue, alpha) that large_image 1.35 gives a value at or above 0.

    `convertGridToContour` passes on neither `rangeValues` nor `colorRange`: it runs from transparent black at 0 to `maxColor`
    at the greatest of the values.
    """
    end = np.array([float(part) for part in element["maxColor"][len("rgba(") : -1].split(",")])
    return end * min(max(value, 0.0) / max(element["values"]), 1.0)


def test_a_color_means_the_same_score_on_every_slide_and_for_as_much_as_against(make_prediction, tmp_path) -> None:
    """It was the greatest value of each element that had the full color: an outlier dimmed all other tiles of its slide."""
    made = score_table(make_prediction(n=63))
    name, end = "contribution:tumor", 0.5
    at = made.score_names.index(name)
    column, row = (made.xy0 // 224 + 1).T
    for greatest, least in ((0.3, -0.01), (0.5, -0.5), (40.0, -0.2)):
        scores = np.zeros_like(made.scores)
        scores[:, at] = np.linspace(-0.005, 0.25, 63)
        scores[7, at], scores[8, at] = greatest, least
        table = dataclasses.replace(made, scores=scores)
        found = _write(table, tmp_path / "a.json", scores=(name,), spans={name: (-end, end)})
        for one, sign, full in zip(found, (1, -1), ((230, 97, 1), (33, 102, 172)), strict=True):
            (element,) = one["elements"]
            values = np.array(element["values"])[row * element["gridWidth"] + column]
            for value, score in zip(values, sign * scores[:, at].astype(np.float64), strict=True):
                share = min(max(score, 0.0), end) / end
                # A share of 8-bit colors is rounded.
                np.testing.assert_allclose(_drawn(element, value)[:3], share * np.array(full), atol=0.51)
                np.testing.assert_allclose(_drawn(element, value)[3], share * 0.7, atol=1e-3)


def test_nothing_for_a_class_is_drawn_in_no_color(make_prediction, tmp_path: Path) -> None:
    made = score_table(make_prediction(n=63))
    scores = np.zeros_like(made.scores)
    scores[:, made.score_names.index("contribution:tumor")] = -1
    table = dataclasses.replace(made, scores=scores)
    pro, _ = _write(table, tmp_path / "a.json", scores=("contribution:tumor",))
    assert pro["elements"][0]["maxColor"] == "rgba(0, 0, 0, 0.0000)"


def test_single_is_for_a_class_where_the_tile_alone_would_rather_be_of_it(make_prediction, tmp_path: Path) -> None:
    """Both raw logits are above 0 on every tile: by them all would be for both classes."""
    single = np.stack([np.linspace(3, 2, 63), np.linspace(1, 2.5, 63)], axis=1).astype(np.float32)
    made = score_table(make_prediction(n=63))
    table = dataclasses.replace(made, score_names=("single:normal", "single:tumor"), scores=single)
    found = _write(table, tmp_path / "a.json", scores=("single:tumor",), spans={"single:tumor": (-3.0, 3.0)})
    pro, contra = (np.array(one["elements"][0]["values"]) for one in found)
    column, row = (table.xy0 // 224 + 1).T
    at = row * found[0]["elements"][0]["gridWidth"] + column
    np.testing.assert_allclose((pro - contra)[at], single[:, 1] - single[:, 0], rtol=1e-4, atol=1e-5)
    assert "log-odds; 0 = as likely as not" in found[0]["description"]


def test_a_table_without_scores_gives_an_empty_list(make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(n=63))
    bare = dataclasses.replace(table, score_names=(), scores=np.empty((63, 0), np.float32))
    assert _write(bare, tmp_path / "a.json") == []


def test_the_values_are_points_in_the_middle_of_tiles_with_a_margin_that_is_not_scored(
    make_prediction, tmp_path
) -> None:
    table = score_table(make_prediction(n=63, bounds0_px=(301, 207, 3000, 2500)))
    (element,) = _write(table, tmp_path / "a.json", scores=("attention",))[0]["elements"]
    assert element["origin"] == [301 + 112 - 224, 207 + 112 - 224, 0]
    values = np.array(element["values"]).reshape(-1, element["gridWidth"])
    assert (values[[0, -1]] == UNSCORED).all()
    assert (values[:, [0, -1]] == UNSCORED).all()
    assert values[1, 1] == pytest.approx(float(shown(table, "attention").values[0]), rel=1e-5)


@pytest.mark.parametrize(("size_px", "n"), [(8, 1), (60, 1), (64, 2), (90, 1), (120, 1), (179, 1), (224, 1)])
def test_a_grid_is_never_taken_for_longitudes(make_prediction, tmp_path: Path, size_px: int, n: int) -> None:
    """geojs 1.19 takes x for degrees where a grid is that small, and wraps it: a tile at 500 px was drawn at 140."""
    made = make_prediction(n=n, size_px=size_px, bounds0_px=(500, 400, 500, 400))
    (annotation,) = _write(score_table(made), tmp_path / "a.json", scores=("attention",))
    (element,) = annotation["elements"]
    assert element["dx"] >= 180 or element["dx"] * (element["gridWidth"] - 1) > 360.0001
    values = np.array(element["values"]).reshape(-1, element["gridWidth"])
    assert (values[1, 1 : n + 1] != UNSCORED).all()
    assert (values != UNSCORED).sum() == n
    assert size_px < 180 or values.shape == (3, 3)
