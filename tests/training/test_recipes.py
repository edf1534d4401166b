"""The recipes of `configs/train`: each is valid, trains, and says what its authors chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_fit import made_cohort, run
from wsimil.config import load_config
from wsimil.mil import registry
from wsimil.stages.train_config import TrainConfig
from wsimil.targets import Classification
from wsimil.training.objective import resolved

FOLDER = Path(__file__).resolve().parents[2] / "configs/train/classification"
RECIPES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_trains(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainConfig, path)
    method = dict(config.method)
    name = str(method.pop("name"))
    quick = config.fit.model_copy(update={"epochs": 1, "watch_from": 0.0})
    result = run(tmp_path, config=quick, method=name, method_config=method, cohort=made_cohort(8))
    assert result.history[0].train_loss > 0


def test_every_method_has_a_recipe() -> None:
    named = {str(load_config(TrainConfig, path).method["name"]) for path in RECIPES}
    assert named == set(registry.names())


def test_the_default_is_what_its_recipe_says() -> None:
    recipe, default = load_config(TrainConfig, FOLDER / "gated_abmil.yaml"), TrainConfig()
    task = Classification(classes=("n", "t"))
    assert resolved(recipe.fit, task) == resolved(default.fit, task)
    configs = [
        registry.config_class("abmil")(**{k: v for k, v in c.method.items() if k != "name"}) for c in (recipe, default)
    ]
    assert configs[0] == configs[1]
