"""What a person says of a slide is kept, in a form that QuPath and spreadsheets open."""

from __future__ import annotations

import csv
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import geojson
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from tests.viewer.conftest import Client, Serve
from tests.viewer.made_study import MadeStudy, make_run
from wsimil.errors import StoreError
from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.decision import Decision, save_decision
from wsimil.export.geojson import write_geojson
from wsimil.export.scores import ScoreTable, read_scores
from wsimil.export.viewer.notes import MOST_TEXT, Notes, notes_geojson, parse_notes
from wsimil.mil.saved import load_model
from wsimil.stages.features import open_features
from wsimil.stages.occupied import occupied
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.store import open_store
from wsimil.targets import Classification

PINS = [
    {"kind": "point", "xy0": [[612.5, 700.25]], "text": "mitosis"},
    {"kind": "rectangle", "xy0": [[900, 800], [500, 400]], "text": ""},
    {"kind": "lasso", "xy0": [[100, 100], [400, 120], [300, 500]], "text": "necrosis"},
    {"kind": "what-if", "xy0": [], "text": "without the fold", "without": [0, 1, 5], "values": [0.25, 0.75]},
]
NOTES = {"verdict": "disagree", "text": '=HYPERLINK("http://x")\nsecond line', "pins": PINS}


@pytest.fixture
def client(serve: Serve, predictions: Path) -> Client:
    return serve(predictions)


@pytest.fixture
def table(study: MadeStudy) -> ScoreTable:
    return read_scores(study.predictions / "scores" / "s0.parquet")


def test_notes_survive_a_restart(serve: Serve, predictions: Path) -> None:
    first = serve(predictions)
    assert first.get("cases/0/notes").json() == {"verdict": None, "text": "", "pins": []}
    assert first.post("cases/0/notes", NOTES).status == 200
    second = serve(predictions)
    assert second.get("cases/0/notes").json() == NOTES
    assert second.get("cases/1/notes").json()["verdict"] is None
    assert second.post("cases/1/notes", {"verdict": "agree", "text": "", "pins": []}).status == 200
    with (predictions / "notes" / "notes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["slide_id"], row["kind"]) for row in rows] == [
        ("s0", "slide"), ("s0", "point"), ("s0", "rectangle"), ("s0", "lasso"), ("s0", "what-if"), ("s1", "slide"),
    ]  # fmt: skip
    assert rows[4]["tiles_left_out"] == "3"
    assert (rows[4]["without_prob_normal"], rows[4]["without_prob_tumor"]) == ("0.25", "0.75")
    assert (rows[2]["x0"], rows[2]["y0"], rows[2]["width0"], rows[2]["height0"]) == ("500", "400", "400", "400")


def test_notes_go_where_they_are_told(serve: Serve, predictions: Path, tmp_path: Path) -> None:
    client = serve(predictions, notes=tmp_path / "mine")
    client.post("cases/0/notes", NOTES)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["notes.csv", "s0.geojson"]
    assert not (predictions / "notes").exists()


def test_a_spreadsheet_runs_nothing(client: Client, predictions: Path) -> None:
    client.post("cases/0/notes", {**NOTES, "pins": [{**PINS[0], "text": "@SUM(1)"}]})
    with (predictions / "notes" / "notes.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert texts[0].startswith("'=HYPERLINK")
    assert texts[1] == "'@SUM(1)"
    path = predictions / "notes" / "s0.geojson"
    tree = json.loads(path.read_text())
    tree["wsimil"]["saved"] = "=1+1"
    path.write_text(json.dumps(tree))
    client.post("cases/1/notes", NOTES)
    with (predictions / "notes" / "notes.csv").open(newline="") as file:
        assert [cell for row in csv.reader(file) for cell in row if cell.startswith("=")] == []


def test_qupath_takes_the_file(client: Client, predictions: Path) -> None:
    """What QuPath's reader was seen to refuse: a class without a list as color, rings that are open or cross themselves."""
    crossing = {"kind": "lasso", "xy0": [[0, 0], [100, 100], [100, 0], [0, 100]], "text": ""}
    flat = {"kind": "lasso", "xy0": [[0, 0], [50, 50], [0, 0]], "text": ""}
    client.post("cases/0/notes", {**NOTES, "pins": [*PINS, crossing, flat]})
    text = (predictions / "notes" / "s0.geojson").read_text()
    collection = geojson.loads(text)
    assert collection.is_valid, collection.errors()
    kinds = [feature["geometry"]["type"] for feature in collection["features"]]
    assert kinds == ["Polygon", "Point", "Polygon", "Polygon", "MultiPolygon", "MultiPolygon", "Point"]
    assert shapely.geometry.shape(collection["features"][5]["geometry"]).area == 5000
    for feature in collection["features"]:
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert feature["geometry"]["type"] in ("Point", "Polygon", "MultiPolygon")
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert len(properties["classification"]["color"]) == 3
        assert all(isinstance(value, str) for value in properties["metadata"].values())
        assert all(isinstance(value, int | float) for value in properties["measurements"].values())


def test_a_scribble_is_areas_that_do_not_cross_themselves_in_hundredths_of_a_px(table: ScoreTable) -> None:
    """Of small ones every fourth crossed itself once its corners were rounded, and QuPath refused all notes of the slide."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        outline = (rng.normal(scale=2, size=(60, 2)).cumsum(axis=0) + 500).round(2)
        pin = {"kind": "lasso", "xy0": outline.tolist(), "text": ""}
        notes = parse_notes({"pins": [pin]}, tiles=len(table), answers=2)
        (feature,) = notes_geojson(notes, table, saved="now")["features"]
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.area == pytest.approx(shapely.make_valid(shapely.Polygon(outline)).area, rel=0.01)


def test_a_note_lies_in_qupaths_frame_as_the_exporters_tiles_do(table: ScoreTable, tmp_path: Path) -> None:
    width, height = table.slide_size0_px
    moved = replace(table, bounds0_px=(130, 70, width - 130, height - 70))
    corner = moved.xy0[3].tolist()
    notes = parse_notes(
        {"pins": [{"kind": "what-if", "xy0": [], "without": [3], "values": []}, {"kind": "point", "xy0": [corner]}]},
        tiles=len(moved),
        answers=2,
    )
    for origin in ("bounds", "level0"):
        write_geojson(tmp_path / "tiles.geojson", moved, origin=origin)
        tiles = [
            one for one in json.loads((tmp_path / "tiles.geojson").read_text())["features"]
            if one["properties"]["objectType"] == "tile"
        ]  # fmt: skip
        area, point = notes_geojson(notes, moved, saved="now", origin=origin)["features"]
        wanted = shapely.geometry.shape(tiles[3]["geometry"])
        assert shapely.geometry.shape(area["geometry"]).equals(wanted)
        assert tuple(point["geometry"]["coordinates"]) == wanted.bounds[:2]


def test_a_what_if_carries_its_answer(client: Client, predictions: Path) -> None:
    client.post("cases/0/notes", NOTES)
    features = json.loads((predictions / "notes" / "s0.geojson").read_text())["features"]
    measured = features[-1]["properties"]["measurements"]
    assert measured == {
        "wsimil: tiles left out": 3, "wsimil: normal without them": 0.25, "wsimil: tumor without them": 0.75,
    }  # fmt: skip


BAD = [
    None, [], "x", {"verdict": "yes"}, {"text": 3}, {"text": "x" * (MOST_TEXT + 1)}, {"pins": {}}, {"more": 1},
    {"pins": [{"kind": "point", "xy0": []}] * 2}, {"pins": [{"kind": "star", "xy0": [[1, 2]]}]},
    {"pins": [{"kind": "point", "xy0": [[1, float("nan")]]}]}, {"pins": [{"kind": "point", "xy0": [[1, float("inf")]]}]},
    {"pins": [{"kind": "point", "xy0": [[1, 2, 3]]}]}, {"pins": [{"kind": "point", "xy0": [["1", "2"]]}]},
    {"pins": [{"kind": "point", "xy0": [[1e300, 0]]}]}, {"pins": [{"kind": "point", "xy0": [[True, 0]]}]},
    {"pins": [{"kind": "lasso", "xy0": [[0, 0], [1, 1]]}]}, {"pins": [{"kind": "lasso", "xy0": [[0, 0]] * 5001}]},
    {"pins": [{"kind": "what-if", "xy0": [], "without": [-1]}]}, {"pins": [{"kind": "what-if", "xy0": [], "without": [10**6]}]},
    {"pins": [{"kind": "what-if", "xy0": [], "without": [0], "values": [1.0]}]},
    {"pins": [{"kind": "point", "xy0": [[1, 2]], "without": [1]}]}, {"pins": [{"kind": "point", "xy0": [[1, 2]], "x": 1}]},
    {"pins": [{"kind": "point", "xy0": [[1, 2]]}] * 501}, {"pins": [{"kind": "point", "xy0": [[10**400, 0]]}]},
    {"pins": [{"kind": "what-if", "xy0": [], "without": [0, 1, 0]}]},
]  # fmt: skip


@pytest.mark.parametrize("tree", BAD, ids=range(len(BAD)))
def test_notes_that_cannot_be_meant_are_refused_and_nothing_is_written(
    tree: object, client: Client, predictions: Path
) -> None:
    assert client.post("cases/0/notes", tree).status == 422
    assert not (predictions / "notes").exists()


def test_text_is_text_whatever_it_holds(client: Client, predictions: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>\u2028\0'\";--"
    client.post("cases/0/notes", {"verdict": None, "text": hostile, "pins": []})
    assert client.get("cases/0/notes").json()["text"] == hostile
    json.loads((predictions / "notes" / "s0.geojson").read_text())


def test_a_lone_surrogate_does_not_break_the_file(client: Client, predictions: Path) -> None:
    assert client.post("cases/0/notes", b'{"text": "a\\ud800b"}').status == 200
    assert client.get("cases/0/notes").json()["text"] == "a?b"


def test_a_file_of_somebody_elses_is_not_replaced(client: Client, predictions: Path) -> None:
    foreign = '{"type": "FeatureCollection", "features": []}'
    (predictions / "notes").mkdir()
    (predictions / "notes" / "s0.geojson").write_text(foreign)
    assert client.post("cases/0/notes", NOTES).status == 409
    assert client.get("cases/0/notes").status == 409
    assert "move it away" in client.heard[-1]
    assert (predictions / "notes" / "s0.geojson").read_text() == foreign


def test_notes_on_the_answer_of_another_model_are_neither_shown_as_of_this_one_nor_replaced(
    client: Client, predictions: Path
) -> None:
    client.post("cases/0/notes", NOTES)
    path = predictions / "notes" / "s0.geojson"
    tree = json.loads(path.read_text())
    tree["wsimil"]["model"]["digest"] = "0" * 64
    path.write_text(json.dumps(tree))
    before = path.read_bytes()
    assert client.get("cases/0/notes").status == 409
    assert "is on the answer of another model (000000000000, not" in client.heard[-1]
    assert client.post("cases/0/notes", {**NOTES, "verdict": "agree"}).status == 409
    assert path.read_bytes() == before


def rows_of(notes: Path) -> list[str]:
    with (notes / "notes.csv").open(newline="") as file:
        return [row["slide_id"] for row in csv.DictReader(file)]


def test_numbers_of_another_model_do_not_stand_below_the_names_of_this_one(
    serve: Serve, study: MadeStudy, predictions: Path, tmp_path: Path
) -> None:
    """A what-if of "tumor" would be read as one of "HER2pos"; and a model of three classes has other columns."""
    notes, options = tmp_path / "notes", PredictOptions(device="cpu")
    assert serve(predictions, notes=notes).post("cases/0/notes", NOTES).status == 200
    for number, classes in enumerate((("HER2neg", "HER2pos"), ("a", "b", "c"))):
        run = make_run(tmp_path / f"run{number}", study.features, method="clam", task=Classification(classes=classes))
        predict(run, study.features, tmp_path / f"other{number}", options=options)
        client = serve(tmp_path / f"other{number}", notes=notes)
        assert "s0.geojson among the notes is on the answer of another model" in client.heard[0]
        assert "none of these is shown, nor in notes.csv" in client.heard[-1]
        assert client.get("cases/0/notes").status == 409
        assert client.post(f"cases/{number + 1}/notes", {"verdict": "unsure", "text": ""}).status == 200
        assert rows_of(notes) == [f"s{number + 1}"]
    assert serve(predictions, notes=notes).post("cases/3/notes", {"text": "x"}).status == 200
    assert rows_of(notes) == ["s0"] * 5 + ["s3"]


def test_whoever_agreed_has_not_agreed_with_another_answer_of_the_same_weights(
    serve: Serve, study: MadeStudy, tmp_path: Path
) -> None:
    """Calibrated anew, the same model decides for the other class."""
    run, predictions = Path(shutil.copytree(study.run, tmp_path / "run")), tmp_path / "predictions"
    options = PredictOptions(device="cpu")
    predict(run, study.features, predictions, options=options)
    client = serve(predictions)
    was = client.get("cases/0.json").json()["predicted"]
    assert client.post("cases/0/notes", {"verdict": "agree", "text": ""}).status == 200
    predict(run, study.features, predictions, options=options)
    assert serve(predictions).get("cases/0/notes").json()["verdict"] == "agree", "the same answer, made again"
    before = (predictions / "notes" / "s0.geojson").read_bytes()
    shifts = (9.0, 0.0) if was == "tumor" else (0.0, 9.0)
    moved = Calibration(kind="bias_corrected", classes=2, fitted_on="val", rows=20, temperature=1.0, shifts=shifts)
    save_decision(run, Decision(model=load_model(run).digest, calibration=moved))
    predict(run, study.features, predictions, options=options)
    client = serve(predictions)
    assert client.get("cases/0.json").json()["predicted"] != was
    assert f"is on another answer of this model ({was}, not" in client.heard[0]
    assert client.get("cases/0/notes").status == 409
    assert client.post("cases/0/notes", {"verdict": "agree", "text": ""}).status == 409
    assert client.post("cases/1/notes", {"verdict": "agree", "text": ""}).status == 200
    assert rows_of(predictions / "notes") == ["s1"]
    assert (predictions / "notes" / "s0.geojson").read_bytes() == before


def leave_out(path: Path, name: str) -> None:
    """Write saved notes anew without what they say of themselves by `name`."""
    tree = json.loads(path.read_text())
    del tree["wsimil"][name]
    path.write_text(json.dumps(tree))


def test_notes_of_earlier_versions_which_do_not_tell_their_answer_are_read(client: Client, predictions: Path) -> None:
    client.post("cases/0/notes", NOTES)
    leave_out(predictions / "notes" / "s0.geojson", "answer")
    assert client.get("cases/0/notes").json() == NOTES


def test_notes_over_another_tiling_are_neither_shown_beside_these_tiles_nor_replaced(
    serve: Serve, study: MadeStudy, tmp_path: Path
) -> None:
    """The same model over half as many tiles: tile 5 of a what-if would be another place, and the answer another one."""
    notes = tmp_path / "notes"
    assert serve(study.predictions, notes=notes).post("cases/0/notes", NOTES).status == 200
    before = (notes / "s0.geojson").read_bytes()
    bag = open_features(study.features).read("s0")
    kept = np.arange(0, len(bag), 2)
    grid = replace(bag.grid, xy0=bag.grid.xy0[kept], tissue=bag.grid.tissue[kept])
    quality = {name: values[kept] for name, values in bag.quality.items()}
    fewer = replace(bag, grid=grid, features=bag.features[kept], quality=quality)
    open_store(tmp_path / "fewer", mode="w").write(fewer)
    predict(study.run, tmp_path / "fewer", tmp_path / "predictions", options=PredictOptions(device="cpu"))
    other = serve(tmp_path / "predictions", notes=notes)
    assert "s0.geojson among the notes is on the answer over another tiling of the slide" in other.heard[0]
    assert "nor in notes.csv" in other.heard[1]
    assert other.get("cases/0/notes").status == 409
    assert "is on the answer over another tiling of the slide" in other.heard[-1]
    assert other.post("cases/0/notes", {"verdict": "agree", "text": "", "pins": []}).status == 409
    assert (notes / "s0.geojson").read_bytes() == before
    assert serve(study.predictions, notes=notes).get("cases/0/notes").json() == NOTES


def test_notes_that_do_not_name_their_tiling_are_refused(client: Client, predictions: Path) -> None:
    client.post("cases/0/notes", NOTES)
    leave_out(predictions / "notes" / "s0.geojson", "tiling")
    assert client.get("cases/0/notes").status == 409
    assert "which it does not name" in client.heard[-1]


def test_a_file_of_somebody_elses_is_told_at_start(serve: Serve, predictions: Path) -> None:
    (predictions / "notes").mkdir()
    (predictions / "notes" / "s0.geojson").write_text("{")
    client = serve(predictions)
    assert any("s0.geojson" in line for line in client.heard)
    assert "nor in notes.csv" in client.heard[-1]
    assert client.post("cases/1/notes", NOTES).status == 200


def test_a_slide_whose_notes_cannot_be_saved_is_told_at_start(serve: Serve, predictions: Path) -> None:
    """Whoever wrote some heard it when they were saved, and lost them to a start with another --origin."""
    path = predictions / "scores" / "s1.parquet"
    arrow = pq.read_table(path)
    metadata = {
        key: value.replace(b'"bounds_known":true', b'"bounds_known":false')
        for key, value in arrow.schema.metadata.items()
    }
    pq.write_table(arrow.replace_schema_metadata(metadata), path)
    client = serve(predictions)
    assert any("notes on slide 's1'" in line and "--origin level0" in line for line in client.heard)
    assert client.post("cases/1/notes", NOTES).status == 409
    client = serve(predictions, origin="level0")
    assert not client.heard
    assert client.post("cases/1/notes", NOTES).status == 200


def test_writers_at_once_leave_whole_files(client: Client, predictions: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(
                lambda number: client.post(f"cases/{number % 4}/notes", {"text": "x" * 5000, "pins": PINS}).status,
                range(16),
            )
        )
    assert set(answers) == {200}
    files = sorted(path.name for path in (predictions / "notes").iterdir())
    assert files == ["notes.csv", "s0.geojson", "s1.geojson", "s2.geojson", "s3.geojson"]
    for name in files[1:]:
        json.loads((predictions / "notes" / name).read_text())
    with (predictions / "notes" / "notes.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 20


def test_notes_that_another_tab_changed_meanwhile_are_not_replaced(client: Client, predictions: Path) -> None:
    """Two pages that were opened one after the other: the later save is told so, and what the earlier one saved stays."""
    seen = client.get("cases/0/notes").headers["ETag"]
    first = client.post("cases/0/notes", NOTES, If_Match=seen)
    assert first.status == 200
    later = {"verdict": "agree", "text": "", "pins": []}
    refused = client.post("cases/0/notes", later, If_Match=seen)
    assert refused.status == 412
    assert "changed elsewhere" in str(refused.json())
    assert client.get("cases/0/notes").json() == NOTES
    assert client.post("cases/0/notes", NOTES, If_Match=seen).status == 200, (
        "said twice, as the answer may have got lost"
    )
    assert client.post("cases/0/notes", later, If_Match=first.headers["ETag"]).status == 200
    assert client.get("cases/0/notes").json() == later
    assert client.heard == []


def test_two_servers_of_a_folder_lose_nothing_of_each_others(serve: Serve, predictions: Path) -> None:
    first, second = serve(predictions), serve(predictions)
    seen = first.get("cases/0/notes").headers["ETag"]
    assert second.post("cases/0/notes", NOTES).status == 200
    assert first.post("cases/0/notes", {"text": "other"}, If_Match=seen).status == 412
    assert first.get("cases/0/notes").json() == NOTES
    assert first.post("cases/2/notes", {"verdict": "unsure", "text": "", "pins": []}).status == 200
    assert second.post("cases/0/notes", {**NOTES, "pins": []}).status == 200
    assert first.post("cases/1/notes", {"text": "last"}).status == 200
    with (predictions / "notes" / "notes.csv").open(newline="") as file:
        rows = [(row["slide_id"], row["kind"], row["text"]) for row in csv.DictReader(file)]
    assert rows == [("s0", "slide", "'" + NOTES["text"]), ("s1", "slide", "last"), ("s2", "slide", "")]


def test_whoever_saves_waits_for_another_server_that_saves_and_then_looks_what_is_there(
    serve: Serve, predictions: Path
) -> None:
    """Between its look and its write the other one's notes came, and were replaced."""
    client, notes = serve(predictions), predictions / "notes"
    first = client.post("cases/0/notes", NOTES)
    saved = (notes / "s0.geojson").read_bytes()
    seen = client.post("cases/0/notes", {"text": "later"}, If_Match=first.headers["ETag"]).headers["ETag"]
    with ThreadPoolExecutor(1) as pool:
        with occupied(notes):
            waiting = pool.submit(client.post, "cases/0/notes", {"text": "last"}, If_Match=seen)
            for _ in range(20):
                client.get("cases/0/notes")
            (notes / "s0.geojson").write_bytes(saved)
        assert waiting.result().status == 412
    assert client.get("cases/0/notes").json() == NOTES


def test_notes_keep_their_numbers_through_json(table: ScoreTable) -> None:
    notes = parse_notes(NOTES, tiles=len(table), answers=2)
    tree = notes_geojson(notes, table, saved="2026-01-01T00:00:00+00:00")
    again = parse_notes(json.loads(json.dumps(tree))["wsimil"]["notes"], tiles=len(table), answers=2)
    assert again == notes
    assert isinstance(again, Notes)
    assert np.isfinite(again.pins[3].values).all()


def test_notes_do_not_count_from_where_nobody_knows_that_the_scan_begins(table: ScoreTable) -> None:
    unknown = replace(table, bounds_known=False)
    with pytest.raises(StoreError, match=r"where its scan begins is not known.* say --origin level0"):
        notes_geojson(Notes(text="x"), unknown, saved="now")
    assert notes_geojson(Notes(text="x"), unknown, saved="now", origin="level0")["wsimil"]["offset_level0_px"] == [0, 0]
