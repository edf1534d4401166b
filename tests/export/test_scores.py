"""The score table: written, read back, refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zlib
from base64 import b64encode
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsimil.errors import OutputError, StoreError
from wsimil.evaluation.calibration import Calibration
from wsimil.export.scores import ScoreTable, read_scores, score_table, write_scores


def _same(a: ScoreTable, b: ScoreTable) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(ScoreTable)]
    return all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f") and x.dtype == y.dtype
        if isinstance(x, np.ndarray)
        else x == y
        for x, y in pairs
    )


@pytest.mark.parametrize("n", [1, 63, 1000])
def test_what_is_read_is_what_was_predicted(n: int, make_prediction, tmp_path: Path) -> None:
    prediction = make_prediction(n=n, size_px=63, mpp=0.2527, bounds0_px=(100, 50, 3500, 2900))
    write_scores(tmp_path / "scores.parquet", prediction)
    assert _same(read_scores(tmp_path / "scores.parquet"), score_table(prediction))


WRITE = """
import sys
from pathlib import Path
import numpy as np
from wsimil.evaluation.prediction import Prediction
from wsimil.export.scores import write_scores
from wsimil.targets import Classification
from wsimil.testing.store_laws import make_bag
prediction = Prediction(
    slide_id="s", task=Classification(classes=("n", "t")), values=np.full(2, 0.5), logits=np.zeros(2), bias=np.zeros(2),
    score_names=("attention",), score_rules={"attention": "softmax over the bag"}, scores=np.ones((63, 1), np.float32),
    grid=make_bag("s", n=63).grid, model={},
)
write_scores(Path(sys.argv[1]), prediction)
print("pandas" in sys.modules)
"""


def test_scores_are_written_without_pandas(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE, tmp_path / "s.parquet"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert np.array_equal(read_scores(tmp_path / "s.parquet").score("attention"), np.ones(63, np.float32))


def test_tissue_comes_back_ring_by_ring(make_prediction, tmp_path: Path) -> None:
    rings = tuple(np.array(ring, np.int64) for ring in ([[0, 0], [90, 0], [90, 80]], [[5, 5], [6, 5], [6, 6]]))
    write_scores(tmp_path / "s.parquet", make_prediction(n=63), tissue=(rings, rings[:1]))
    read = read_scores(tmp_path / "s.parquet").tissue
    assert [len(polygon) for polygon in read] == [2, 1]
    assert all(np.array_equal(a, b) for a, b in zip(read[0], rings, strict=True))
    assert read[0][0].dtype == np.int64


def test_a_tile_that_was_not_scored_stays_nan(make_prediction, tmp_path: Path) -> None:
    prediction = make_prediction(n=63)
    scores = prediction.scores.copy()
    scores[7, 0] = np.nan
    write_scores(tmp_path / "s.parquet", dataclasses.replace(prediction, scores=scores))
    assert np.flatnonzero(np.isnan(read_scores(tmp_path / "s.parquet").score("attention"))).tolist() == [7]


def test_columns_and_types_are_those_of_the_contract(make_prediction, tmp_path: Path) -> None:
    prediction = make_prediction(mpp=0.2527, n=63)
    write_scores(tmp_path / "s.parquet", prediction)
    table = pq.read_table(tmp_path / "s.parquet")
    assert {f.name: str(f.type) for f in table.schema} == {
        "tile_id": "int32",
        "x": "int64",
        "y": "int64",
        "w": "int32",
        "h": "int32",
        "attention": "float",
        "contribution:normal": "float",
        "contribution:tumor": "float",
    }
    assert set(table["w"].to_pylist()) == set(table["h"].to_pylist()) == {prediction.grid.size0_px} == {443}
    header = json.loads(table.schema.metadata[b"wsimil"])
    assert header["tiles"]["size0"] == 224 * 0.5 / 0.2527
    assert header["scores"][2] == {
        "column": "contribution:tumor",
        "kind": "contribution",
        "of": "tumor",
        "rule": "exact",
    }


def test_the_same_prediction_gives_the_same_bytes(make_prediction, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_scores(tmp_path / name, make_prediction(n=63))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_prediction_without_scores_is_a_table_without_scores(make_prediction, tmp_path: Path) -> None:
    bare = dataclasses.replace(make_prediction(n=63), score_names=(), scores=np.empty((63, 0), np.float32))
    write_scores(tmp_path / "s.parquet", bare)
    table = read_scores(tmp_path / "s.parquet")
    assert len(table) == 63
    with pytest.raises(KeyError, match="no heatmap"):
        _ = table.main_score


def test_the_main_score_is_the_contribution_to_the_predicted_class(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    assert table.main_score == f"contribution:{table.predicted}"
    only = dataclasses.replace(table, score_names=("attention",), scores=table.scores[:, :1].copy())
    assert only.main_score == "attention"


def test_a_score_cannot_take_the_name_of_a_place(make_prediction, tmp_path: Path) -> None:
    prediction = dataclasses.replace(make_prediction(n=63), score_names=("x", "b", "c"))
    with pytest.raises(ValueError, match="tile_id, x, y"):
        write_scores(tmp_path / "s.parquet", prediction)
    assert not list(tmp_path.iterdir())


def test_what_is_known_of_the_slide_comes_back_and_tables_that_do_not_say_it_are_taken_as_before(
    make_prediction, tmp_path: Path
) -> None:
    prediction = dataclasses.replace(make_prediction(n=63), size_known=False, bounds_known=False)
    write_scores(tmp_path / "s.parquet", prediction)
    found = read_scores(tmp_path / "s.parquet")
    assert (found.size_known, found.bounds_known, len(found.slide_content)) == (False, False, 64)
    assert found.other_content(prediction.grid.slide.digest) is None
    assert found.other_content("d") is not None
    arrow = pq.read_table(tmp_path / "s.parquet")
    header = json.loads(arrow.schema.metadata[b"wsimil"])
    for name in ("size_known", "bounds_known", "content"):
        del header["slide"][name]
    pq.write_table(arrow.replace_schema_metadata({b"wsimil": json.dumps(header)}), tmp_path / "old.parquet")
    old = read_scores(tmp_path / "old.parquet")
    assert (old.size_known, old.bounds_known, old.other_content("d")) == (True, True, None)
    assert old.origin0_px("bounds") == old.bounds0_px[:2]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere\.parquet does not exist"):
        read_scores(tmp_path / "nowhere.parquet")


def test_a_truncated_file_is_refused(make_prediction, tmp_path: Path) -> None:
    write_scores(tmp_path / "s.parquet", make_prediction(n=63))
    (tmp_path / "s.parquet").write_bytes((tmp_path / "s.parquet").read_bytes()[:-100])
    with pytest.raises(StoreError, match="cannot be read"):
        read_scores(tmp_path / "s.parquet")


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "s.parquet")
    with pytest.raises(StoreError, match="not one with tile scores"):
        read_scores(tmp_path / "s.parquet")


CALIBRATION = Calibration(kind="temperature", classes=2, fitted_on="val", rows=9, temperature=2.0).to_json()
ONE_POINT = b64encode(zlib.compress(bytes(8))).decode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.update(schema="wsimil/scores/9"), "wanted 'wsimil/scores/3'"),
        (lambda h: h.pop("task"), "task"),
        (lambda h: h.update(values=[1.0]), "float64"),
        (lambda h: h["scores"].append({"column": "ghost", "rule": "exact"}), "ghost"),
        (lambda h: h["scores"][0].pop("rule"), "rule"),
        (lambda h: h.update(slide=[]), "not whole"),
        (lambda h: h["model"].update(calibration={"kind": "new"}), "not whole"),
        (lambda h: h["model"].update(calibration="temperature"), "is a mapping of its facts, got 'temperature'"),
        (lambda h: h["model"].update(calibrations=[CALIBRATION]), "are by label"),
        (lambda h: h["model"].update(calibrations={"er": CALIBRATION | {"classes": 3}}), "of 3 classes"),
        (lambda h: h["model"].update(calibration=CALIBRATION | {"fitted_on": "test"}), "the split 'test'"),
        (lambda h: h["model"].update(calibration=CALIBRATION | {"kind": "new"}), "update wsimil"),
        (lambda h: h["model"].update(calibration=CALIBRATION | {"prior": 1}), "prior"),
        (
            lambda h: h["model"].update(calibration=CALIBRATION | {"classes": 3}),
            "of 3 classes stands where there are 2",
        ),
        *((lambda h, name=name: h["tiles"].update({name: 0}), "are positive") for name in ("size0", "size0_px", "mpp")),
        (lambda h: h["tiles"].update(stride0=float("nan")), "are positive"),
        (lambda h: h["slide"].update(mpp=-0.5), "are positive"),
        (lambda h: h["scores"].append(h["scores"][0]), "are unique"),
        (lambda h: h.update(logits=[1.0]), r"logits are float64 \[2\]"),
        (lambda h: h.update(bias=[1.0]), r"bias are float64 \[2\]"),
        (lambda h: h.update(tissue=[[[0, 1, 2]]]), "no mapping of rings"),
        (lambda h: h.update(tissue={"rings": [[3]], "steps": ""}), "not whole"),
        *(
            (lambda h, rings=rings: h.update(tissue={"rings": rings, "steps": ONE_POINT}), "1 points for rings of")
            for rings in ([[3]], [[0, 1]], [[], [1]], [[2, -1]])
        ),
    ],
)
def test_a_header_that_does_not_fit_is_refused(change, says: str, make_prediction, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_scores(path, make_prediction(n=63))
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"wsimil"])
    change(header)
    pq.write_table(table.replace_schema_metadata({b"wsimil": json.dumps(header)}), path)
    with pytest.raises(StoreError, match=says):
        read_scores(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.set_column(1, "x", t["x"].cast("double")), r"xy0 is int64 \[N, 2\]"),
        (lambda t: t.set_column(1, "x", pa.array([None, *range(62)], "int64")), r"xy0 is int64 \[N, 2\]"),
        (lambda t: t.set_column(5, "attention", t["attention"].cast("double")), "scores are float32"),
        (lambda t: t.slice(0, 0), "N >= 1"),
    ],
    ids=["x as floats", "x lacking", "scores as doubles", "no tiles"],
)
def test_columns_that_another_program_changed_are_refused(change, says: str, make_prediction, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_scores(path, make_prediction(n=63))
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(StoreError, match=says):
        read_scores(path)


@pytest.mark.parametrize("schema", ["wsimil/scores/1", "wsimil/scores/2"])
def test_tables_of_earlier_schemas_are_read_and_say_what_they_did_not_record(
    schema: str, make_prediction, tmp_path: Path
) -> None:
    prediction = make_prediction(n=63)
    write_scores(tmp_path / "s.parquet", prediction)
    table = pq.read_table(tmp_path / "s.parquet")
    header = json.loads(table.schema.metadata[b"wsimil"]) | {"schema": schema}
    for column in header["scores"]:
        del column["rule"]
    if schema.endswith("1"):
        header |= {"classes": list(prediction.task.outputs), "probabilities": header.pop("values")}
        del header["task"]
    pq.write_table(table.replace_schema_metadata({b"wsimil": json.dumps(header)}), tmp_path / "s.parquet")
    found = read_scores(tmp_path / "s.parquet")
    assert np.array_equal(found.scores, prediction.scores)
    assert found.task == prediction.task
    assert found.rule("contribution:tumor") == "exact"
    assert found.rule("attention") == "not recorded"


def test_without_contributions_the_main_score_is_of_the_answer_still_and_attention_comes_last(make_prediction) -> None:
    table = score_table(make_prediction(n=63))
    names = ("attention", *(f"single:{name}" for name in table.task.outputs))
    assert dataclasses.replace(table, score_names=names).main_score == f"single:{table.predicted}"


def test_an_output_place_that_is_a_file_is_refused(make_prediction, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="a file stands where"):
        write_scores(tmp_path / "out" / "s.parquet", make_prediction(n=63))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_a_table_of_infinite_scores_is_refused(value: float, make_prediction, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write_scores(path, make_prediction(n=63))
    arrow = pq.read_table(path)
    scores = arrow.column("attention").to_numpy().copy()
    scores[3] = value
    place = arrow.column_names.index("attention")
    pq.write_table(arrow.set_column(place, "attention", pa.array(scores)), path)
    with pytest.raises(StoreError, match="scores are finite, or NaN where there is none; 1 are not; make it anew"):
        read_scores(path)
