"""An ensemble is the mean of its members, in one file, and has seen whatever one of them has seen."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from wsimil.cli import app
from wsimil.config import load_config
from wsimil.errors import ConfigError, ModelError
from wsimil.evaluation.attribution.table import attribute
from wsimil.evaluation.decision import DecisionConfig, load_decision
from wsimil.mil.batch import pack
from wsimil.mil.ensemble import Ensemble
from wsimil.mil.saved import load_model
from wsimil.stages.ensemble import ensemble
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store

Study = Callable[..., tuple[Path, Path]]


@pytest.fixture
def runs(feature_study: Study, tmp_path: Path) -> tuple[Path, Path, list[Path]]:
    features, cohort = feature_study(slides=90, gap=1.5)
    made = []
    for fold, method in ((0, "abmil"), (1, "clam")):
        given = {"device": "cpu", "fit.epochs": 2, "method.name": method, "split.folds": 3, "split.fold": fold}
        made.append(tmp_path / f"run{fold}")
        train(load_config(TrainConfig, given=given), features, cohort, made[-1])  # type: ignore[arg-type]
    return features, cohort, made


def test_its_answers_and_contributions_are_the_means(runs: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    _, _, folders = runs
    ensemble(folders, tmp_path / "joined")
    whole = load_model(tmp_path / "joined")
    assert isinstance(whole.model, Ensemble)
    members = [load_model(folder) for folder in folders]
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(n, 6)).astype(np.float32) for n in (7, 1, 30)]
    batch = pack(bags, xy0=[np.arange(2 * len(b)).reshape(-1, 2) for b in bags], slide_ids=["a", "b", "c"])
    with torch.no_grad():
        expected = (members[0].model(batch).logits + members[1].model(batch).logits) / 2
    found = attribute(whole.model, batch, outputs=whole.task.outputs)
    torch.testing.assert_close(found.output.logits, expected)
    columns = [found.names.index(f"contribution:{name}") for name in whole.task.outputs]
    assert found.bias is not None
    sums = torch.stack([part[:, columns].sum(dim=0) for part in found.values.split(list(found.lengths))]) + found.bias
    torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-5)
    attention = found.values[:, found.names.index("attention")].split(list(found.lengths))
    torch.testing.assert_close(torch.stack([part.sum() for part in attention]), torch.ones(3))


def test_what_a_member_has_seen_never_counts(runs: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    features, cohort, folders = runs
    ensemble(folders, tmp_path / "joined", features=features)
    tables = [pd.read_csv(folder / "cohort.csv").set_index("slide_id")["split"] for folder in folders]
    clean = {s for s in tables[0].index if all(table[s] == "test" for table in tables)}
    with (tmp_path / "joined" / "cohort.csv").open(encoding="utf-8") as file:
        told = {row["slide_id"]: row["split"] for row in csv.DictReader(file)}
    assert {s for s, split in told.items() if split == "test"} == clean
    options = PredictOptions(device="cpu", heatmaps=False)
    answered = predict(tmp_path / "joined", features, tmp_path / "out", options=options, cohort_csv=cohort)
    assert len(answered.seen) == 90 - len(clean)
    assert len(answered.answers) == 90


def test_calibration_is_fitted_on_what_each_member_did_not_learn_from(
    runs: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    features, _, folders = runs
    out = CliRunner().invoke(
        app,
        ["ensemble", *map(str, folders), "-o", str(tmp_path / "j"), "--features", str(features), "--set", "fewest=3"],
    )
    assert out.exit_code == 0
    again = ensemble(folders, tmp_path / "k", features=features)
    counts = [pd.read_csv(folder / "cohort.csv")["split"].eq("val").sum() for folder in folders]
    decision = load_decision(tmp_path / "j")
    assert decision is not None
    assert decision.threshold is not None
    assert decision.threshold.rows == sum(counts)
    assert again.seen_patients > 0


def test_nothing_is_fitted_on_features_of_another_kind(runs: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    features, _, folders = runs
    store = open_store(features, mode="w")
    bag = store.read("s5")
    encoder = {**bag.provenance.encoder, "weights": "others"}
    store.write(replace(bag, provenance=replace(bag.provenance, encoder=encoder)))
    says = (
        r"--features: slide 's5': these features do not fit the model.*; give the features that the runs learned from"
    )
    with pytest.raises(ModelError, match=says):
        ensemble(folders, tmp_path / "joined", features=features)
    assert not (tmp_path / "joined").exists()


def test_what_cannot_be_joined_is_refused(
    runs: tuple[Path, Path, list[Path]], feature_study: Study, tmp_path: Path
) -> None:
    features, cohort, folders = runs
    with pytest.raises(ConfigError, match="two runs or more"):
        ensemble([folders[0], folders[0]], tmp_path / "twice")
    renamed = cohort.read_text(encoding="utf-8").replace(",t,", ",u,")
    cohort.write_text(renamed, encoding="utf-8")
    given = {"device": "cpu", "fit.epochs": 1}
    train(load_config(TrainConfig, given=given), features, cohort, tmp_path / "other")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="do not answer one question"):
        ensemble([folders[0], tmp_path / "other"], tmp_path / "mixed")
    table = folders[1] / "cohort.csv"
    kept = table.read_text(encoding="utf-8")
    table.write_text(re.sub("s3,p3,[nt],", "s3,p3,{},".format("nt"["s3,p3,n," in kept]), kept), encoding="utf-8")
    with pytest.raises(ModelError, match=r"slide 's3' is labelled '(n|t)' in .*run0 and '(?!\1)[nt]' in .*run1"):
        ensemble(folders, tmp_path / "blind")
    table.write_text(kept.replace("s3,p3,", "s3,q3,"), encoding="utf-8")
    with pytest.raises(ModelError, match=r"slide 's3' is of patient 'p3' in .*run0 and of 'q3' in .*run1"):
        ensemble(folders, tmp_path / "blind")
    table.unlink()
    with pytest.raises(ModelError, match="nobody can tell which patients"):
        ensemble(folders, tmp_path / "blind")
    assert not (tmp_path / "blind").exists()


def test_an_ensemble_is_no_member_of_another(runs: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    _, _, folders = runs
    ensemble(folders, tmp_path / "joined")
    with pytest.raises(ModelError, match=r"'.*joined' is an ensemble already; give the runs that it was joined of"):
        ensemble([tmp_path / "joined", folders[0]], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_runs_of_two_kinds_of_features_are_told_to_learn_from_one(
    runs: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    _, _, folders = runs
    facts = json.loads((folders[1] / "model.json").read_text(encoding="utf-8"))
    facts["features"]["tiling"]["mpp"] = 2.0
    (folders[1] / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"run0 and .*run1 learned from features of two kinds .*; join runs"
    ) as refused:
        ensemble(folders, tmp_path / "joined")
    assert "wsimil predict" not in str(refused.value)


def test_a_decision_that_means_nothing_for_the_task_is_refused_before_anything_is_written(
    feature_study: Study, tmp_path: Path
) -> None:
    features, cohort = feature_study(slides=60)
    given = {"device": "cpu", "fit.epochs": 8, "task.kind": "ordinal", "task.levels": ["n", "t"], "split.folds": 3}
    folders = [tmp_path / f"run{fold}" for fold in (0, 1)]
    for fold, folder in enumerate(folders):
        train(load_config(TrainConfig, given={**given, "split.fold": fold}), features, cohort, folder)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"decision\.threshold: is for classes, the task is ordinal"):
        ensemble(folders, tmp_path / "joined", features=features, decision=DecisionConfig(threshold="cost"))
    assert not (tmp_path / "joined").exists()


def test_patients_as_bags_are_joined_too(feature_study: Study, tmp_path: Path) -> None:
    features, cohort = feature_study(slides=60)
    folders = []
    for fold in (0, 1):
        given = {"device": "cpu", "fit.epochs": 1, "bag": "patient", "split.folds": 3, "split.fold": fold}
        folders.append(tmp_path / f"run{fold}")
        train(load_config(TrainConfig, given=given), features, cohort, folders[-1])  # type: ignore[arg-type]
    found = ensemble(folders, tmp_path / "joined", features=features, decision=DecisionConfig(fewest=2))
    counts = [pd.read_csv(f / "cohort.csv").query("split == 'val'")["patient_id"].nunique() for f in folders]
    assert found.decision.threshold is not None
    assert found.decision.threshold.rows == sum(counts)
    options = PredictOptions(device="cpu", heatmaps=False)
    answered = predict(tmp_path / "joined", features, tmp_path / "out", options=options, cohort_csv=cohort)
    assert len(answered.answers) == 40


def test_a_run_and_an_ensemble_do_not_mix_in_one_folder(runs: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    features, cohort, folders = runs
    taken = tmp_path / "taken"
    shutil.copytree(folders[0], taken)
    (taken / "done.json").write_text("{}", encoding="utf-8")
    (taken / "model.json").unlink()
    with pytest.raises(ConfigError, match="holds a model already"):  # of a run that can go on
        ensemble(folders, taken)
    with pytest.raises(ConfigError, match="is one of the runs"):
        ensemble([*folders, taken], taken, overwrite=True)
    ensemble(folders, taken, overwrite=True)
    names = {entry.name for entry in taken.iterdir()}
    assert names == {"cohort.csv", "decision.json", "model.json", "model.safetensors"}
    before = (taken / "model.json").read_bytes()
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1})
    with pytest.raises(ConfigError, match=r"holds model\.json and no checkpoint"):
        train(config, features, cohort, taken)
    assert (taken / "model.json").read_bytes() == before


def test_an_ensemble_does_not_learn(runs: tuple[Path, Path, list[Path]], tmp_path: Path) -> None:
    features, cohort, folders = runs
    ensemble(folders, tmp_path / "joined")
    given = {"device": "cpu", "fit.warm_start": str(tmp_path / "joined"), "split.folds": 3}
    with pytest.raises(ModelError):
        train(load_config(TrainConfig, given=given), features, cohort, tmp_path / "warm")  # type: ignore[arg-type]
