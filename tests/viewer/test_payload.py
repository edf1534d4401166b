"""What the page is told is what the score table holds."""

from __future__ import annotations

import base64
import json
import math
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.viewer.conftest import Serve
from tests.viewer.made_study import MadeStudy, make_run
from wsimil.errors import ConfigError
from wsimil.evaluation.table import Row, read_table, write_table
from wsimil.export.answers import AnswerRule
from wsimil.export.scores import ScoreTable, read_scores
from wsimil.export.shown import effective_tiles
from wsimil.export.viewer.payload import ListedCase, case_json, index_json, uncertainty
from wsimil.export.viewer.ranges import MOST_SLIDES, cohort_scores, sampled
from wsimil.stages.export import ExportOptions, export
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.viewing.study import open_study
from wsimil.stages.viewing.tissue import with_tissue
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def tables(study: MadeStudy) -> list[ScoreTable]:
    return [read_scores(study.predictions / "scores" / f"s{number}.parquet") for number in range(4)]


def test_a_slides_numbers_are_the_tables(study: MadeStudy, serve: Serve) -> None:
    client = serve(study.predictions)
    for index, table in enumerate(tables(study)):
        case = client.get(f"cases/{index}.json").json()
        assert (case["slide_id"], case["index"]) == (table.slide_id, index)
        assert tuple(case["size0_px"]) == table.slide_size0_px
        assert tuple(case["bounds0_px"]) == table.bounds0_px
        assert case["mpp"] == table.mpp
        assert case["tile"] == {"size0": table.size0, "stride0": table.stride0, "mpp": table.tile_mpp}
        xy0 = np.frombuffer(base64.b64decode(case["xy0"]), "<i4").reshape(-1, 2)
        np.testing.assert_array_equal(xy0, table.xy0)
        for_tumor = table.score("contribution:tumor").astype(np.float64) - table.score("contribution:normal")
        for name, sign in (("contribution:normal", -1), ("contribution:tumor", 1)):
            np.testing.assert_array_equal(floats(case["scores"][name]), (sign * for_tumor).astype(np.float32))
        share = table.score("attention").astype(np.float64)
        np.testing.assert_array_equal(
            floats(case["scores"]["attention"]), (share / share.sum() * len(table)).astype(np.float32)
        )
        for name in ("values", "logits", "bias"):
            assert case[name] == getattr(table, name).tolist()
        assert case["main_score"] == f"contribution:{table.predicted}"
        assert case["predicted"] == table.predicted
        tiles = case["effective_tiles"]
        for name in ("attention", "contribution:tumor"):
            assert tiles[name] == effective_tiles(np.abs(floats(case["scores"][name])))
        assert tiles["attention"] == pytest.approx(effective_tiles(table.score("attention")), rel=1e-8)
        np.testing.assert_array_equal(floats(case["whatif"]["attention"][0]), table.score("attention"))
        np.testing.assert_array_equal(floats(case["whatif"]["logit_parts"]["tumor"]), table.score("contribution:tumor"))


def test_effective_tiles_are_told_of_no_slide_of_a_patient_with_others(study: MadeStudy) -> None:
    table = tables(study)[0]
    for more, told in ((0, True), (1, False)):
        model = {**table.model, "patient": "p", "patient_tiles": len(table) + more}
        case = case_json(0, replace(table, model=model), what_if={})
        assert bool(case["effective_tiles"]) == told


def test_tissue_is_that_of_the_predictions_or_else_of_the_features(study: MadeStudy, serve: Serve) -> None:
    table = tables(study)[0]
    outer = table.tissue[0][0]
    drawn = serve(study.predictions).get("cases/0.json").json()["tissue"]
    assert len(drawn["coordinates"]) == len(table.tissue)
    assert drawn["coordinates"][0][0] == outer.tolist()
    assert outer[0].tolist() == outer[-1].tolist()
    silent = replace(table, tissue=())
    assert case_json(0, silent, what_if={})["tissue"] is None
    assert case_json(0, with_tissue(silent, study.features), what_if={})["tissue"] == drawn
    assert with_tissue(silent, study.slides).tissue == ()
    opened = replace(table, tissue=((outer[:-1],),))
    assert case_json(0, opened, what_if={})["tissue"]["coordinates"] == [drawn["coordinates"][0][:1]]


def test_an_unscored_tile_stays_nan_and_no_json_holds_nan(study: MadeStudy) -> None:
    table = tables(study)[0]
    scores = table.scores.copy()
    scores[2] = np.nan
    tree = case_json(0, replace(table, scores=scores), what_if={"form": None, "reason": ""})
    json.dumps(tree, allow_nan=False)
    assert np.flatnonzero(np.isnan(floats(tree["scores"]["contribution:tumor"]))).tolist() == [2]


def test_the_list_says_what_is_known_of_every_slide(study: MadeStudy, serve: Serve) -> None:
    index = serve(study.predictions).get("index.json").json()
    rows = read_table(study.predictions, task=Classification(classes=("normal", "tumor")))
    for case, row, table in zip(index["cases"], rows, tables(study), strict=True):
        assert case["values"] == row.values.tolist()
        assert case["predicted"] == table.predicted
        assert case["label"] == row.label
        assert case["right"] == (table.predicted == row.label)
        assert case["tiles"] == len(table)
        assert case["scored"] is True
        shares = row.values
        assert case["uncertainty"] == pytest.approx(-(shares * np.log(shares)).sum() / math.log(2), abs=1e-12)
    assert index["task"]["outputs"] == ["normal", "tumor"]
    assert index["task"]["raises"] == ["against", "for"]
    assert index["model"]["method"] == "abmil"
    assert "Research use only" in index["notice"]


def test_ranges_are_those_of_pictures_and_annotations(study: MadeStudy, serve: Serve, tmp_path: Path) -> None:
    scores = {one["name"]: one for one in serve(study.predictions).get("index.json").json()["scores"]}
    answered = [
        np.abs(table.score("contribution:tumor") - table.score("contribution:normal")) for table in tables(study)
    ]
    high = float(np.quantile(np.concatenate(answered), 0.99, method="inverted_cdf"))
    assert scores["contribution:tumor"]["kind"] == "signed"
    assert scores["contribution:tumor"]["range"] == scores["contribution:normal"]["range"] == [-high, high]
    assert scores["attention"]["kind"] == "sequential"
    assert scores["attention"]["range"][0] == 0
    assert "all 4 slides" in scores["attention"]["normalization"]
    assert "not evidence" in scores["attention"]["label"]
    for score in (None, "attention"):
        options = ExportOptions(formats=("png", "dsa"), score=score)
        assert export(study.predictions, tmp_path, options=options, now=datetime(2026, 1, 1, tzinfo=UTC)).failures == ()
        for table in tables(study):
            wanted = scores[score or table.main_score]["range"]
            with Image.open(tmp_path / "overlays" / f"{table.slide_id}.png") as picture:
                assert json.loads(picture.text["wsimil"])["range"] == wanted  # type: ignore[attr-defined]  # of PNG
            for one in json.loads((tmp_path / "dsa" / f"{table.slide_id}.json").read_text(encoding="utf-8")):
                assert one["elements"][0]["rangeValues"][-1] == scores[one["attributes"]["score"]]["range"][1]


def test_scores_that_are_not_shown_decide_no_range(study: MadeStudy, predictions: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", study.features, sharp=900.0)
    options = PredictOptions(device="cpu", scores=("contribution", "attention", "single"))
    predict(run, study.features, tmp_path / "other", options=options)
    shutil.copy(tmp_path / "other/scores/s1.parquet", predictions / "scores/s1.parquet")
    shutil.copy(predictions / "scores/s2.parquet", predictions / "scores/s3.parquet")
    found = open_study(predictions)
    scores = {one.name: one for one in found.cohort.scores}
    shown = [table for table in tables(study) if table.slide_id in ("s0", "s2")]
    answered = [np.abs(table.score("contribution:tumor") - table.score("contribution:normal")) for table in shown]
    high = float(np.quantile(np.concatenate(answered), 0.99, method="inverted_cdf"))
    assert scores["contribution:tumor"].range == (-high, high)
    assert "2 of 4 slides, whose scores can be shown" in scores["contribution:tumor"].normalization
    assert not [name for name in scores if name.startswith("single")]
    assert [note.partition("'s")[2][0] for note in found.notes if "another answer" in note] == ["1", "3"]


def test_a_score_that_is_signed_on_one_slide_is_signed_on_all(study: MadeStudy) -> None:
    first, second = tables(study)[:2]
    positive = replace(first, scores=np.abs(first.scores), score_names=("attention", "score:a", "score:b"))
    mixed = replace(second, score_names=("attention", "score:a", "score:b"))
    kinds = {one.name: one.kind for one in cohort_scores([positive, mixed], slides=2)}
    assert kinds == {"attention": "sequential", "score:a": "signed", "score:b": "signed"}


def test_a_large_cohort_is_sampled_evenly() -> None:
    names = tuple(f"s{number}" for number in range(10_000))
    picked = sampled(names)
    assert len(picked) == MOST_SLIDES
    assert (picked[0], picked[-1]) == ("s0", "s9999")
    assert sampled(names[:MOST_SLIDES]) == names[:MOST_SLIDES]


def test_labels_of_a_cohort_file_win(study: MadeStudy, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort.csv"
    cohort.write_text("slide_id,patient_id,label\ns0,q0,normal\ns1,q1,normal\ns2,q2,tumor\n")
    cases = open_study(study.predictions, cohort_csv=cohort).cohort.cases
    assert [(case.label, case.patient_id) for case in cases[:3]] == [
        ("normal", "q0"),
        ("normal", "q1"),
        ("tumor", "q2"),
    ]
    assert cases[3].label == ""


def test_a_slide_without_scores_is_listed_and_has_no_page_of_its_own(predictions: Path, serve: Serve) -> None:
    (predictions / "scores" / "s1.parquet").unlink()
    client = serve(predictions)
    case = client.get("index.json").json()["cases"][1]
    assert (case["scored"], case["status"]) == (False, "no tile scores")
    assert client.get("cases/1.json").status == 404
    assert client.get("cases/2.json").status == 200


def test_a_broken_score_table_is_said_and_the_rest_is_served(predictions: Path, serve: Serve) -> None:
    (predictions / "scores" / "s1.parquet").write_bytes(b"PAR1")
    client = serve(predictions)
    answered = client.get("cases/1.json")
    assert answered.status == 409
    assert str(predictions) not in answered.body.decode()
    assert "s1.parquet" in client.heard[-1]
    assert client.get("cases/2.json").status == 200


def test_a_trained_run_is_listed_with_the_command_that_makes_scores(
    study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.json").write_bytes((study.run / "model.json").read_bytes())
    rows = read_table(study.predictions, task=Classification(classes=("normal", "tumor")))
    write_table(run, rows, task=Classification(classes=("normal", "tumor")))
    client = serve(run)
    assert any(f"wsimil predict {run}" in line and "no tile scores" in line for line in client.heard)
    assert len(client.get("index.json").json()["cases"]) == 4


def test_a_folder_without_predictions_is_refused_with_the_remedy(study: MadeStudy) -> None:
    with pytest.raises(ConfigError, match="wsimil predict"):
        open_study(study.features)
    with pytest.raises(ConfigError, match=r"wsimil predict .*run FEATURES"):
        open_study(study.run)


def test_another_run_than_the_one_that_answered_is_refused_by_the_option_that_named_it(
    study: MadeStudy, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", study.features, method="pooling")
    with pytest.raises(ConfigError, match=rf"--run {other}: its weights are not those .* leave --run out"):
        open_study(study.predictions, run=other)


def test_a_page_decides_for_the_first_of_equals_unless_a_threshold_was_chosen(study: MadeStudy) -> None:
    """Isotonic calibration ties at a half."""
    cohort = open_study(study.predictions).cohort
    assert index_json(cohort)["thresholds"] == [math.nextafter(0.5, 1)]
    task = Classification(classes=("normal", "tumor"), threshold=0.3)
    chosen = replace(cohort, rule=AnswerRule(task=task), thresholds=(0.3,))
    assert index_json(chosen)["thresholds"] == [0.3]


def listed(label: str, values: np.ndarray | None, task: object) -> dict[str, object]:
    from wsimil.export.viewer.payload import Cohort
    from wsimil.mil.facts import ModelFacts

    case = ListedCase(
        slide_id="s", patient_id="", values=values, label=label, split="", status="failed: /a/path", unusual=None,
        tiles=None, scored=False,
    )  # fmt: skip
    model = ModelFacts(
        method="abmil", config={}, in_dim=1, task=task, bag="slide", features=None, training={}, digest="d", version=""
    )
    cohort = Cohort(model=model, rule=AnswerRule(task=task), thresholds=(), scores=(), cases=(case,))
    return index_json(cohort)["cases"][0]


def test_right_is_known_only_where_the_truth_is() -> None:
    two = Classification(classes=("a", "b"), threshold=0.9)
    likely = np.array([0.2, 0.8])
    assert listed("a", likely, two)["right"] is True  # by the threshold, not by the highest
    assert listed("b", likely, two)["right"] is False
    assert listed("", likely, two)["right"] is None
    assert listed("a", None, two)["predicted"] is None
    labels = MultiLabel(columns=("x", "y"))
    assert listed("y;x", np.array([0.9, 0.9]), labels)["right"] is True
    assert listed("x;y=?", np.array([0.9, 0.1]), labels)["right"] is None
    number = Regression(columns=("n",), mean=(0.0,), scale=(1.0,))
    assert listed("1", np.array([1.0]), number)["right"] is None


def test_the_number_beside_an_answer_is_the_probability_of_what_was_said() -> None:
    two = Classification(classes=("a", "b"), threshold=0.9)
    assert listed("", np.array([0.2, 0.8]), two)["confidence"] == 0.2  # by the threshold, not the highest
    levels = Ordinal(levels=("1", "2", "3"))
    median = listed("", np.array([0.45, 0.19, 0.36]), levels)
    assert (median["predicted"], median["confidence"]) == ("2", 0.19)
    labels = MultiLabel(columns=("x", "y"))
    assert listed("", np.array([0.9, 0.8]), labels)["confidence"] is None
    assert listed("", None, levels)["confidence"] is None


def test_a_reason_with_a_path_is_not_told() -> None:
    assert listed("", None, Classification(classes=("a", "b")))["status"] == "failed; see failures.csv"


def test_uncertainty_is_0_where_one_is_sure_and_1_where_all_are_alike() -> None:
    three = Classification(classes=("a", "b", "c"))
    assert uncertainty(np.array([0.0, 1.0, 0.0]), three) == 0
    assert uncertainty(np.full(3, 1 / 3), three) == pytest.approx(1)
    labels = MultiLabel(columns=("x", "y"))
    assert uncertainty(np.array([0.5, 1.0]), labels) == pytest.approx(0.5)
    assert uncertainty(np.array([3.0]), Regression(columns=("n",), mean=(0.0,), scale=(1.0,))) is None


def test_unusual_slides_are_marked(predictions: Path, serve: Serve) -> None:
    task = Classification(classes=("normal", "tumor"))
    rows = [
        Row(slide_id=f"s{number}", values=np.array([0.5, 0.5]), beside={"distance": 1.0, "unusual": flag})
        for number, flag in enumerate(("no", "yes", "no", "no"))
    ]
    write_table(predictions, rows, task=task)
    cases = serve(predictions).get("index.json").json()["cases"]
    assert [case["unusual"] for case in cases] == [False, True, False, False]
