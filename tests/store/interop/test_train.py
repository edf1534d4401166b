"""Training takes other tools' folders as they are, and gives what it gives on the converted ones."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsimil.config import load_config
from wsimil.errors import ConfigError, StoreError
from wsimil.evaluation.patient import predict_patient
from wsimil.evaluation.predictor import predict as predict_slides
from wsimil.export.scores import score_table
from wsimil.mil.saved import load_model
from wsimil.stages.convert import ConvertOptions, convert
from wsimil.stages.features import open_features
from wsimil.stages.predict import PredictSummary, predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig

LAYOUTS = ["clam", "trident", "stamp", "atlaspatch", "slide2vec"]
SPLITS = ("train", "train", "val", "test")


def cohort(peers, layout: str, folder: Path) -> tuple[Path, Path]:
    """16 slides of two classes that differ in their mean, and one without tiles."""
    lines = ["slide_id,patient_id,label,split"]
    for number in range(16):
        features = getattr(peers, layout)(f"s{number}", label=number % 2)
        lines.append(f"s{number},p{number},{('low', 'high')[number % 2]},{SPLITS[number // 2 % 4]}")
    getattr(peers, layout)("empty", np.empty((0, 2), np.int64))
    lines.append("empty,p99,low,test")
    table = folder / "cohort.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return features, table


def learn(features: Path, table: Path, out: Path, method: str = "abmil") -> dict[str, np.ndarray]:
    given = {"device": "cpu", "fit.epochs": 2, "method.name": method}
    train(load_config(TrainConfig, given=given), features, table, out)  # type: ignore[arg-type]
    return {name: tensor.numpy() for name, tensor in load_model(out).model.state_dict().items()}


def answers(folder: Path) -> dict[str, dict[str, str]]:
    return {row["slide_id"]: row for row in csv.DictReader((folder / "predictions.csv").read_text().splitlines())}


def ask(run: Path, source: Path, out: Path, **options: object) -> PredictSummary:
    return predict(run, source, out, options=PredictOptions(device="cpu", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_needs_no_more_than_the_folder(layout: str, peers, tmp_path: Path) -> None:
    features, table = cohort(peers, layout, tmp_path)
    learn(features, table, tmp_path / "run")
    assert load_model(tmp_path / "run").features.encoder["stated_by"] == layout
    assert len(answers(tmp_path / "run")) == 8
    summary = ask(tmp_path / "run", features, tmp_path / "answers", heatmaps=False)
    assert not summary.failures
    assert answers(tmp_path / "answers")["empty"]["status"] == "no tissue tile"
    again = answers(tmp_path / "answers")
    assert all(again[s]["prob_high"] == row["prob_high"] for s, row in answers(tmp_path / "run").items())


@pytest.mark.parametrize("method", ["abmil", "dtfd"])
def test_a_converted_folder_gives_the_same_model_to_the_last_bit(method: str, peers, tmp_path: Path) -> None:
    features, table = cohort(peers, "trident", tmp_path)
    convert(features, tmp_path / "ours", options=ConvertOptions(mpp=0.25))
    one = learn(features, table, tmp_path / "run1", method)
    two = learn(tmp_path / "ours", table, tmp_path / "run2", method)
    assert all(np.array_equal(one[name], two[name]) for name in two)


def test_a_model_of_the_folder_answers_for_the_converted_one_with_heatmaps(peers, tmp_path: Path) -> None:
    features, table = cohort(peers, "slide2vec", tmp_path)
    learn(features, table, tmp_path / "run")
    convert(features, tmp_path / "ours", options=ConvertOptions())
    summary = ask(tmp_path / "run", tmp_path / "ours", tmp_path / "maps", origin="level0")
    assert not summary.failures
    assert (tmp_path / "maps/qupath/s0.geojson").is_file()


def test_heatmaps_are_refused_with_the_remedy_where_the_grid_has_no_um(peers, tmp_path: Path) -> None:
    features, table = cohort(peers, "trident", tmp_path)
    learn(features, table, tmp_path / "run")
    summary = ask(tmp_path / "run", features, tmp_path / "maps")
    assert len(summary.failures) == 17
    assert "do not state µm per pixel; give --mpp, or --slides" in summary.failures["s0"]


def test_heatmaps_for_qupath_want_to_know_where_the_scan_begins(peers, tmp_path: Path) -> None:
    features, table = cohort(peers, "trident", tmp_path)
    learn(features, table, tmp_path / "run")
    convert(features, tmp_path / "ours", options=ConvertOptions(mpp=0.25))
    summary = ask(tmp_path / "run", tmp_path / "ours", tmp_path / "maps")
    assert "where its scan begins is not known" in summary.failures["s0"]
    assert not ask(tmp_path / "run", tmp_path / "ours", tmp_path / "maps", origin="level0").failures


def test_scores_say_that_nobody_knows_where_the_scan_begins(peers, tmp_path: Path) -> None:
    """So that what is made of them later refuses what heatmaps were refused."""
    features, table = cohort(peers, "trident", tmp_path)
    learn(features, table, tmp_path / "run")
    convert(features, tmp_path / "ours", options=ConvertOptions(mpp=0.25))
    trained, store = load_model(tmp_path / "run"), open_features(tmp_path / "ours")
    bags = [store.read(name) for name in ("s0", "s1")]
    for prediction in (*predict_slides(trained, bags), *predict_patient(trained, "p", bags)):
        scores = score_table(prediction)
        assert (scores.size_known, scores.bounds_known) == (bags[0].size_known, False)


def test_slides_are_not_prepared_for_a_model_of_another_tools_features(peers, make_slide, tmp_path: Path) -> None:
    features, table = cohort(peers, "stamp", tmp_path)
    learn(features, table, tmp_path / "run")
    make_slide(tmp_path / "slides/a.tiff")
    with pytest.raises(ConfigError, match="features that stamp made, which wsimil does not make anew"):
        ask(tmp_path / "run", tmp_path / "slides", tmp_path / "answers")


def test_features_of_two_runs_of_another_tool_are_not_mixed(peers, tmp_path: Path) -> None:
    features, table = cohort(peers, "trident", tmp_path)
    with h5py.File(features / "s3.h5", "a") as file:
        file["coords"].attrs["target_magnification"] = 10.0
    with pytest.raises(StoreError, match=r"differ in tiling\.target_magnification"):
        learn(features, table, tmp_path / "run")
    with h5py.File(features / "s3.h5", "a") as file:
        file["coords"].attrs["target_magnification"] = 20.0
        file["features"].attrs["encoder"] = "uni_v2"
    with pytest.raises(StoreError, match=r"differ in encoder\.name: 'uni_v1' != 'uni_v2'"):
        learn(features, table, tmp_path / "run2")


def test_empty_files_of_unknown_width_do_not_stop_a_cohort(peers, tmp_path: Path) -> None:
    features, table = cohort(peers, "trident", tmp_path)
    with h5py.File(features / "empty.h5", "a") as file:
        attributes = dict(file["features"].attrs)
        del file["features"]
        file["features"] = np.zeros(0, np.float32)
        file["features"].attrs.update(attributes)
    learn(features, table, tmp_path / "run")
    assert not ask(tmp_path / "run", features, tmp_path / "answers", heatmaps=False).failures
