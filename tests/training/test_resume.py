"""A run that is stopped in the middle of an epoch goes on with the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.made import DIM, QUICK, MadeBags, Pause, history, made_cohort, run, weights
from wsimil.errors import TrainingError
from wsimil.training.checkpoint import read_checkpoint, write_checkpoint
from wsimil.training.config import AugmentationConfig, FitConfig
from wsimil.training.loading import Instances

VARIANTS = {
    "plain": QUICK,
    "accumulated": QUICK.model_copy(update={"batch_bags": 1, "accumulate": 3}),
    "budgeted": QUICK.model_copy(update={"batch_bags": 4, "batch_instances": 25}),
    "averaged": QUICK.model_copy(update={"average": 0.9}),
    "augmented": QUICK.model_copy(
        update={"augmentation": AugmentationConfig(noise=0.1, mix=0.5, drop_features=0.1), "max_instances": 7}
    ),
    "sampled": QUICK.model_copy(update={"balance": "sampling", "max_instances": 7}),
    "lookahead": QUICK.model_copy(update={"optimizer": "lookahead_radam"}),
}


@pytest.mark.parametrize("method", ["abmil", "mhim"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_paused_between_any_two_steps_ends_with_the_same_bits(tmp_path: Path, name: str, method: str) -> None:
    config = VARIANTS[name]
    run(tmp_path / "whole", config=config, method=method)
    pauses = 0
    for after in (0, 2, 5, 3, 9):
        try:
            run(tmp_path / "cut", config=config, method=method, pause=Pause(after))
        except KeyboardInterrupt:
            pauses += 1
            saved = read_checkpoint(tmp_path / "cut")
            assert saved is not None
            assert saved.facts["steps_done"] > 0
    assert pauses == 5
    run(tmp_path / "cut", config=config, method=method)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history(tmp_path / "whole") == history(tmp_path / "cut")


def test_gradients_are_never_lost_at_a_pause(tmp_path: Path) -> None:
    config = VARIANTS["accumulated"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config=config, pause=Pause(0))
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    assert saved.facts["steps_done"] % config.accumulate == 0


def test_a_loss_that_is_not_finite_names_the_bag_the_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    cohort = made_cohort()

    class Spoiled(MadeBags):
        def load(self, slide_id: str) -> Instances:
            bag = super().load(slide_id)
            if slide_id == "s4" and self.loads > 40:
                bag.features[0, 0] = float("inf")
            return bag

    config = QUICK.model_copy(update={"cache_gb": 0.0, "batch_bags": 1, "checkpoint_minutes": 1e-9})
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, config=config, cohort=cohort, source=Spoiled(cohort.slides))
    message = str(caught.value)
    saved = read_checkpoint(tmp_path)
    assert saved is not None
    epoch, step = len(saved.facts["history"]) + 1, saved.facts["steps_done"]
    assert f"not finite in epoch {epoch}, step {step + 1}, on 's4'" in message
    assert (f"The checkpoint of epoch {epoch}, step {step} in" if step else f"of epoch {epoch - 1} in") in message
    assert all(torch.isfinite(t).all() for n, t in saved.tensors.items() if n.startswith("model."))


def test_checkpoints_within_an_epoch_can_be_left_out(tmp_path: Path) -> None:
    seen: list[int] = []

    def look() -> bool:
        saved = read_checkpoint(tmp_path)
        seen.append(0 if saved is None else saved.facts["steps_done"])
        return False

    run(tmp_path, config=QUICK.model_copy(update={"checkpoint_minutes": None}), pause=look)
    assert seen
    assert set(seen) == {0}


def test_a_checkpoint_is_written_within_an_epoch_when_its_time_has_come(tmp_path: Path) -> None:
    seen: set[int] = set()

    def look() -> bool:
        saved = read_checkpoint(tmp_path)
        seen.add(0 if saved is None else saved.facts["steps_done"])
        return False

    run(tmp_path, config=QUICK.model_copy(update={"checkpoint_minutes": 1e-9}), pause=look)
    assert len(seen) > 2


def test_what_changes_no_weight_may_change_between_two_parts_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, pause=Pause(3))
    other = FitConfig.model_validate({**QUICK.model_dump(), "prefetch": 0, "cache_gb": 0, "checkpoint_minutes": None})
    assert len(run(tmp_path, config=other).history) == QUICK.epochs
    assert weights(tmp_path)["standardize.mean"].shape[0] == DIM


def test_a_run_goes_on_with_no_other_features_than_it_was_begun_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, pause=Pause(3), contents="first")
    with pytest.raises(
        TrainingError, match=r"different in what the features of its slides hold.*wsimil train --overwrite"
    ):
        run(tmp_path, contents="second")
    assert len(run(tmp_path, contents="first").history) == QUICK.epochs
    with pytest.raises(TrainingError, match="what the features of its slides hold"):
        run(tmp_path, contents="second")


def as_if_not_noted(folder: Path, name: str) -> None:
    """Take out of a run's checkpoint what an older version did not write."""
    saved = read_checkpoint(folder)
    assert saved is not None
    recipe = {key: value for key, value in saved.facts["recipe"].items() if key != name}
    write_checkpoint(folder, replace(saved, facts={**saved.facts, "recipe": recipe}))


def test_a_run_that_does_not_say_what_its_features_held_is_not_gone_on_with_but_loads(tmp_path: Path) -> None:
    run(tmp_path)
    as_if_not_noted(tmp_path, "contents")
    with pytest.raises(TrainingError, match="an older version began it"):
        run(tmp_path)
    assert weights(tmp_path)["standardize.mean"].shape[0] == DIM


def test_a_run_whose_smoothed_classes_were_weighed_otherwise_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path)
    as_if_not_noted(tmp_path, "loss_version")
    with pytest.raises(TrainingError, match="what bags cost whose classes are weighed and smoothed"):
        run(tmp_path)
    run(tmp_path / "other", config=QUICK.model_copy(update={"label_smoothing": 0.0}))
    other = read_checkpoint(tmp_path / "other")
    assert other is not None
    assert "loss_version" not in other.facts["recipe"]
