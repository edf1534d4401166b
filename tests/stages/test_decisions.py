"""What training froze on the validation split is what prediction decides by."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.stages.conftest import replace_features
from wsimil.config import load_config
from wsimil.errors import TrainingError
from wsimil.stages.evaluate import EvaluateOptions, evaluate
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store
from wsimil.testing.store_laws import make_bag

Study = Callable[..., tuple[Path, Path]]


def test_prediction_decides_as_training_froze_it(feature_study: Study, tmp_path: Path) -> None:
    features, cohort = feature_study(slides=120, gap=0.7)
    given = {
        "device": "cpu", "fit.epochs": 8, "split.val_fraction": 0.35, "fit.label_smoothing": 0.0, "decision.conformal": "lac",
        "decision.threshold": "sensitivity", "decision.at_least": 0.95,
    }  # fmt: skip
    summary = train(load_config(TrainConfig, given=given), features, cohort, tmp_path / "run")  # type: ignore[arg-type]
    threshold = summary.decision.threshold
    assert threshold is not None
    assert summary.decision.calibration is not None
    assert abs(threshold.value - 0.5) > 0.02
    ours = pd.read_parquet(tmp_path / "run" / "predictions.parquet").set_index("slide_id")
    val = ours[ours["split"] == "val"]
    positive = val[val["label"] == "t"]
    assert (positive["predicted"] == "t").mean() == pytest.approx(threshold.sensitivity)
    assert threshold.sensitivity >= 0.95
    assert ((ours["prob_t"] >= threshold.value) == (ours["predicted"] == "t")).all()
    written = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert written["val"]["sensitivity"]["value"] == pytest.approx(threshold.sensitivity)

    odd = make_bag("odd", n=12, dim=6, dtype="float32", seed=999)
    store = open_store(features, mode="w")
    store.write(
        replace(odd, features=np.array(odd.features) + 30, provenance=replace(odd.provenance, slide_digest="f" * 64))
    )
    options = PredictOptions(device="cpu", heatmaps=False)
    answered = predict(tmp_path / "run", features, tmp_path / "out", options=options, cohort_csv=cohort)
    theirs = pd.read_parquet(tmp_path / "out" / "predictions.parquet").set_index("slide_id")
    columns = ["prob_n", "prob_t", "predicted", "plausible", "distance", "unusual"]
    pd.testing.assert_frame_equal(theirs.loc[ours.index, columns], ours[columns])
    assert theirs.loc["odd", "unusual"] == "yes"
    assert any("odd" in note and "far from what the model learned from" in note for note in answered.notes)
    assert (theirs["unusual"] == "yes").mean() < 0.25


def test_a_run_is_not_answered_for_anew_with_features_that_were_replaced(feature_study: Study, tmp_path: Path) -> None:
    features, cohort = feature_study()
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 2})
    train(config, features, cohort, tmp_path / "run")
    table = pd.read_parquet(tmp_path / "run/predictions.parquet")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    replace_features(features, table[table["split"] == "test"]["slide_id"][:1])
    with pytest.raises(TrainingError, match="what the features of its slides hold"):
        train(config, features, cohort, tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before
    assert train(config, features, cohort, tmp_path / "run", overwrite=True).fit.kept_epoch > 0


def test_labels_are_said_and_judged_at_the_thresholds_that_training_froze_for_each(
    feature_study: Study, tmp_path: Path
) -> None:
    features, cohort = feature_study(slides=120, gap=0.7)
    rng = np.random.default_rng(0)
    table = pd.read_csv(cohort)
    table["er"] = (table["label"] == "t").astype(int)
    table["pr"] = np.where(rng.random(len(table)) < 0.2, 1 - table["er"], table["er"])
    table.drop(columns="label").to_csv(cohort, index=False)
    given = {
        "device": "cpu", "fit.epochs": 8, "split.val_fraction": 0.35, "task.kind": "multilabel", "task.columns": ["er", "pr"],
        "decision.threshold": "sensitivity", "decision.at_least": 0.95,
    }  # fmt: skip
    summary = train(load_config(TrainConfig, given=given), features, cohort, tmp_path / "run")  # type: ignore[arg-type]
    labels = summary.decision.labels
    assert set(labels) == {"er", "pr"}
    at = {name: one.threshold.value for name, one in labels.items() if one.threshold is not None}
    assert any(abs(value - 0.5) > 0.02 for value in at.values())
    predict(
        tmp_path / "run",
        features,
        tmp_path / "out",
        options=PredictOptions(device="cpu", heatmaps=False),
        cohort_csv=cohort,
    )
    for folder in (tmp_path / "run", tmp_path / "out"):
        rows = pd.read_parquet(folder / "predictions.parquet")
        said = ["er;pr", "er", "pr", "-"]
        for row in rows.itertuples():
            expected = ";".join(name for name in at if getattr(row, f"prob_{name}") >= at[name]) or "-"
            assert row.predicted == expected
            assert expected in said
    evaluate([tmp_path / "run"], cohort, tmp_path / "report", options=EvaluateOptions(replicates=100, groups=()))
    tree = json.loads((tmp_path / "report/metrics.json").read_text(encoding="utf-8"))
    assert tree["models"][0]["thresholds"] == pytest.approx([at["er"], at["pr"]])
    assert "er by sensitivity" in tree["models"][0]["threshold_origin"]
    written = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    threshold = labels["er"].threshold
    assert threshold is not None
    assert written["val"]["sensitivity:er"]["value"] == pytest.approx(threshold.sensitivity)
