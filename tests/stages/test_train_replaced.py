"""Features that are replaced while a model learns from them: nothing that was learned from both is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.conftest import replace_features
from wsimil.config import load_config
from wsimil.errors import TrainingError
from wsimil.stages.progress import Quiet
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig

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
