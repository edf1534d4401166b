"""What a run notices while it trains: features that are replaced, of which nothing is kept, and options without effect."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stages.conftest import replace_features
from tests.stages.notes import Notes
from wsimil.config import load_config
from wsimil.errors import ConfigError, TrainingError
from wsimil.evaluation.decision import DECISION, Decision
from wsimil.stages import train as stage
from wsimil.stages.crossval import crossval
from wsimil.stages.progress import Quiet
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.stages.work_items import WorkItem

EPOCHS = 3


class Replacing(Quiet):
    """Replaces features when an epoch has ended."""

    def __init__(self, features: Path, *, after: int) -> None:
        self.features, self.left = features, after

    def finish_item(self, line: str) -> None:
        self.left -= 1
        if self.left == 0:
            replace_features(self.features, ["s3"])


@pytest.mark.parametrize("after", [1, EPOCHS])
def test_nothing_learned_of_replaced_features_is_kept_and_restored_ones_give_the_same_bits(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path, after: int
) -> None:
    features, cohort = feature_study()
    fit = {"epochs": EPOCHS, "trackers": []}
    config = load_config(TrainConfig, given={"device": "cpu", "method": {"name": "abmil", "hidden_dim": 8}, "fit": fit})
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config, features, cohort, whole)
    shutil.copytree(features, tmp_path / "first")
    with pytest.raises(TrainingError, match=r"slide 's3' \(got .*, wanted .*restore these to go on"):
        train(config, features, cohort, run, reporter=Replacing(features, after=after))
    assert len((run / "metrics.jsonl").read_text().splitlines()) == after
    assert not (run / "model.json").exists()
    shutil.rmtree(features)
    shutil.copytree(tmp_path / "first", features)
    train(config, features, cohort, run)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_no_decision_learned_of_replaced_features_is_kept(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, cohort = feature_study()
    decide = stage._decide

    def replaced_first(*given: Any) -> Decision:
        replace_features(features, ["s3"])
        return decide(*given)

    monkeypatch.setattr(stage, "_decide", replaced_first)
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1})
    with pytest.raises(TrainingError, match="slide 's3'"):
        train(config, features, cohort, tmp_path / "run")
    assert (tmp_path / "run" / "model.json").exists()
    assert not (tmp_path / "run" / DECISION).exists()


def test_no_header_is_read_again_while_features_are_as_they_were(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path, headers_read: list[str]
) -> None:
    features, cohort = feature_study()
    train(load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 2}), features, cohort, tmp_path / "run")
    assert len(headers_read) == len(set(headers_read)) > 0


@pytest.mark.parametrize(
    ("method", "weight", "wanted"), [("abmil", 0.04, 0), ("pooling", 0.04, 1), ("pooling", 0.0, 0)]
)
def test_an_entropy_that_does_nothing_is_told(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path, method: str, weight: float, wanted: int
) -> None:
    features, cohort = feature_study()
    given = {
        "device": "cpu",
        "fit.epochs": 2,
        "fit.entropy.weight": weight,
        "method": {"name": method, "hidden_dim": 8},
    }
    notes = Notes()
    train(load_config(TrainConfig, given=given), features, cohort, tmp_path / "run", reporter=notes)
    assert [text.partition(":")[0] for text in notes.said] == ["fit.entropy has no effect"] * wanted


def test_a_precision_that_the_cpu_was_not_made_for_is_told(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    features, cohort = feature_study()
    given = {
        "device": "cpu",
        "fit.epochs": 1,
        "fit.precision": "bfloat16",
        "method.hidden_dim": 8,
        "fit.max_instances": 2,
    }
    notes = Notes()
    train(load_config(TrainConfig, given=given), features, cohort, tmp_path / "run", reporter=notes)
    assert [text.partition(":")[0] for text in notes.said] == ["precision bfloat16"]


def test_a_folder_of_features_takes_no_run_and_no_study(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    features, cohort = feature_study()
    (features / "config.yaml").write_text("of the extraction", encoding="utf-8")
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1})
    with pytest.raises(ConfigError, match="holds features"):
        train(config, features, cohort, features)
    item = WorkItem(name="a/0/seed-0", config=config, features=features, cohort=cohort, out=features / "a/0/seed-0")
    with pytest.raises(ConfigError, match="holds features"):
        crossval([item], features)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/predictions.json").touch()
    with pytest.raises(ConfigError, match=r"holds predictions\.json"):
        crossval([item], tmp_path / "predictions")
    assert (features / "config.yaml").read_text(encoding="utf-8") == "of the extraction"
    assert not (features / "model.json").exists()
