"""Training learns, repeats itself to the bit, and goes on where it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tests.training.made import FEATURES, QUICK, MadeBags, history, made_cohort, run, weights
from wsimil.cohort import Cohort, CohortSlide
from wsimil.errors import ConfigError, ModelError, TrainingError
from wsimil.evaluation import task_metrics
from wsimil.mil import registry
from wsimil.mil.batch import pack
from wsimil.mil.criterion import CoxLikelihood
from wsimil.mil.masking import TopKMasking
from wsimil.mil.saved import load_model
from wsimil.targets import Regression, Survival
from wsimil.training.checkpoint import read_checkpoint
from wsimil.training.config import AttentionEntropyConfig, FitConfig
from wsimil.training.fit import fit
from wsimil.training.loading import Instances
from wsimil.training.optimizer import Lookahead, make_optimizer
from wsimil.training.sampling import (
    class_weights,
    draw_instances,
    epoch_order,
    label_weights,
    steps_of,
    without_lone_bag,
)
from wsimil.training.schedule import ScheduleConfig

NARROW = {
    "rrt": {"hidden_dim": 64, "heads": 4, "cross_heads": 4, "region_side": 2, "cross_region_side": 2},
    "transmil": {"hidden_dim": 64, "heads": 4},
}
"""What costs seconds a step at its official width."""


@pytest.mark.parametrize("method", registry.names())
def test_every_method_learns_what_can_be_learned(tmp_path: Path, method: str) -> None:
    config = QUICK.model_copy(update={"epochs": 25, "lr": 1e-2})
    result = run(tmp_path, config=config, method=method, method_config=NARROW.get(method, {}))
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert max(record.val_auroc or 0 for record in result.history) > 0.95


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state(tmp_path: Path) -> None:
    run(tmp_path / "a")
    torch.manual_seed(123)
    torch.rand(7)
    run(tmp_path / "b")
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history(tmp_path / "a") == history(tmp_path / "b")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", config=QUICK.model_copy(update={"seed": 1}))
    assert not torch.equal(weights(tmp_path / "a")["classifier.weight"], weights(tmp_path / "b")["classifier.weight"])


@pytest.mark.parametrize("balance", ["class_weights", "sampling"])
@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, stop: int, balance: str) -> None:
    config = QUICK.model_copy(update={"balance": balance, "max_instances": 7})
    run(tmp_path / "whole", config=config)

    def interrupt(record: object) -> None:
        if record.epoch == stop:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config=config, on_epoch=interrupt)
    with pytest.raises(ModelError, match="its training is not finished"):
        load_model(tmp_path / "cut")
    run(tmp_path / "cut", config=config)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history(tmp_path / "whole") == history(tmp_path / "cut")


_KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
sys.path.insert(0, sys.argv[2])
import made
config = made.QUICK.model_copy(update={"epochs": 60})
made.run(Path(sys.argv[1]), config=config, on_epoch=lambda record: print(record.epoch, flush=True))
"""


def test_after_kill_9_the_same_call_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"epochs": 60})
    run(tmp_path / "whole", config=config)
    killed = 0
    for lines in (1, 9, 30):
        threads = str(torch.get_num_threads())
        command = [sys.executable, "-c", _KILLED, str(tmp_path / "killed"), str(Path(__file__).parent), threads]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert killed >= 1
    run(tmp_path / "killed", config=config)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert history(tmp_path / "whole") == history(tmp_path / "killed")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    seen: list[object] = []
    again = run(tmp_path, on_epoch=seen.append)
    assert seen == []
    assert [replace(r, seconds=0, waited_s=0) for r in again.history] == [
        replace(r, seconds=0, waited_s=0) for r in first.history
    ]


def test_a_run_of_another_recipe_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(TrainingError, match=r"fit.lr: 0.003 -> 0.1; .*--overwrite"):
        run(tmp_path, config=QUICK.model_copy(update={"lr": 0.1}))
    with pytest.raises(TrainingError, match="the cohort or its splits"):
        run(tmp_path, cohort=made_cohort(28))


def test_the_test_split_is_never_read(tmp_path: Path) -> None:
    cohort = made_cohort()
    tests = tuple(CohortSlide(slide_id=f"x{i}", patient_id=f"x{i}", label="nt"[i % 2], split="test") for i in range(4))

    class NoTest(MadeBags):
        def load(self, slide_id: str) -> Instances:
            assert not slide_id.startswith("x")
            return super().load(slide_id)

    run(tmp_path, cohort=Cohort(slides=cohort.slides + tests, classes=cohort.classes), source=NoTest(cohort.slides))


def test_the_scaler_is_fitted_on_training_bags_alone(tmp_path: Path) -> None:
    cohort = made_cohort()
    run(tmp_path, cohort=cohort)
    bags = [MadeBags(cohort.slides).load(s.slide_id).features.astype(np.float64) for s in cohort.of("train")]
    mean = np.mean([bag.mean(axis=0) for bag in bags], axis=0)
    np.testing.assert_allclose(weights(tmp_path)["standardize.mean"].numpy(), mean, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_names_the_bag_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    cohort = made_cohort()

    class Poisoned(MadeBags):
        def load(self, slide_id: str) -> Instances:
            bag = super().load(slide_id)
            if slide_id == "s4" and self.loads > len(self.slides):
                bag = replace(bag, features=np.full_like(bag.features, np.nan))
            return bag

    with pytest.raises(TrainingError, match=r"'s4'.*checkpoint of epoch \d+"):
        run(
            tmp_path, source=Poisoned(cohort.slides), config=QUICK.model_copy(update={"cache_gb": 0.0, "batch_bags": 1})
        )
    saved = read_checkpoint(tmp_path)
    assert saved is None or all(t.isfinite().all() for n, t in saved.tensors.items() if n.startswith("model."))


def test_a_validation_bag_without_a_finite_answer_is_named(tmp_path: Path) -> None:
    class Huge(MadeBags):
        def load(self, slide_id: str) -> Instances:
            found = super().load(slide_id)
            return found if slide_id != "s3" else replace(found, features=np.copysign(np.float32(3e38), found.features))

    cohort = made_cohort()
    with pytest.raises(
        TrainingError, match=r"epoch 1 for 1 of 16 validation bags: 's3'. no checkpoint .* lower fit.lr"
    ):
        run(tmp_path, cohort=cohort, source=Huge(cohort.slides))


def test_bags_within_the_budget_are_loaded_once(tmp_path: Path) -> None:
    cohort = made_cohort()
    source = MadeBags(cohort.slides)
    run(tmp_path, source=source)
    assert source.loads == len(cohort.slides)


def test_training_stops_when_the_validation_split_gets_no_better(tmp_path: Path) -> None:
    config = FitConfig(epochs=60, lr=0.05, batch_bags=4, monitor="loss", watch_from=0.0, patience=3)
    result = run(tmp_path, config=config)
    assert result.stopped_early
    assert len(result.history) == result.kept_epoch + 3
    losses = [record.val_loss for record in result.history]
    assert losses[result.kept_epoch - 1] == min(losses)


def test_of_equal_epochs_the_latest_watched_one_is_kept(tmp_path: Path) -> None:
    result = run(tmp_path, config=FitConfig(epochs=12, lr=1e-2, watch_from=0.5, patience=None))
    watched = [(record.val_auroc, record.epoch) for record in result.history if record.epoch > 6]
    assert result.kept_epoch == max(watched)[1]


@pytest.mark.parametrize("monitor", ["mae", "loss"])
def test_the_least_error_from_the_watched_share_on_is_kept_and_told_with_its_numbers(
    tmp_path: Path, monitor: Literal["mae", "loss"], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (replace(slide, label=str(index * 7 % 5)) for index, slide in enumerate(made_cohort().slides))
    cohort = Cohort(slides=tuple(numbers), task=Regression(columns=("x",)))
    found = iter([1.0, 5.0, 4.0, 6.0, 3.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr(task_metrics, "watched", lambda *_: {"mae": next(found)})
    config = FitConfig(epochs=8, lr=0.02, batch_bags=2, monitor=monitor, watch_from=0.5, patience=None)
    result = run(tmp_path, config=config, cohort=cohort)
    errors = [record.val_loss if monitor == "loss" else record.val["mae"] for record in result.history]
    assert result.kept_epoch > 4
    assert errors[result.kept_epoch - 1] == min(errors[4:])
    told = load_model(tmp_path).training
    assert (told["kept_epoch"], told[f"val_{monitor}"]) == (result.kept_epoch, min(errors[4:]))


def test_an_epoch_whose_metric_is_not_defined_is_kept_for_none_whose_metric_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the rank correlation of answers that are all the same."""
    numbers = (replace(slide, label=str(index * 7 % 5)) for index, slide in enumerate(made_cohort().slides))
    cohort = Cohort(slides=tuple(numbers), task=Regression(columns=("x",)))
    found = iter([None, -0.99, None, -0.98, None])
    monkeypatch.setattr(
        task_metrics, "watched", lambda *_: {} if (value := next(found)) is None else {"spearman": value}
    )
    config = FitConfig(epochs=5, lr=1e-4, batch_bags=2, monitor="spearman", watch_from=0.0, patience=None)
    result = run(tmp_path, config=config, cohort=cohort)
    assert all(record.val_loss < 0.98 for record in result.history)
    assert result.kept_epoch == 4


def test_masking_by_config_changes_training_of_attention_methods_and_is_refused_for_others(tmp_path: Path) -> None:
    masking = QUICK.model_copy(update={"masking": TopKMasking(k=4, drop=0.5)})
    plain, masked = run(tmp_path / "a"), run(tmp_path / "b", config=masking)
    assert plain.history[0].train_loss != masked.history[0].train_loss
    again = run(tmp_path / "c", config=masking)
    assert [r.train_loss for r in masked.history] == [r.train_loss for r in again.history]
    with pytest.raises(ConfigError, match=r"fit\.masking: method 'pooling' has no attention that could be masked"):
        run(tmp_path / "d", config=masking, method="pooling")


def test_masking_is_refused_for_methods_that_bring_their_own(tmp_path: Path) -> None:
    masking = QUICK.model_copy(update={"masking": TopKMasking(k=4, drop=0.5)})
    acmil = {"name": "acmil", "hidden_dim": 16}
    for method, options in (("acmil", {}), ("mhim", {"base": acmil})):
        with pytest.raises(ConfigError, match=rf"fit\.masking: method '{method}' .* masks by itself"):
            run(tmp_path / method, config=masking, method=method, method_config=options)
    assert run(tmp_path / "none", config=masking, method="acmil", method_config={"top_k": 0}).history


def test_an_annealed_entropy_weight_falls_to_nothing() -> None:
    constant, falling = (AttentionEntropyConfig(weight=0.2, anneal=kind) for kind in ("none", "cosine"))
    assert [constant.weight_at(p) for p in (0, 0.5, 1)] == [0.2, 0.2, 0.2]
    assert [falling.weight_at(p) for p in (0, 0.5, 1)] == pytest.approx([0.2, 0.1, 0.0])


def test_binary_cross_entropy_is_a_loss_to_train_with(tmp_path: Path) -> None:
    result = run(tmp_path, config=QUICK.model_copy(update={"loss": "binary_cross_entropy"}), method="dsmil")
    assert {"bag", "max"} <= set(result.history[0].terms)
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_entropy_spreads_attention_and_is_logged(tmp_path: Path) -> None:
    plain = run(
        tmp_path / "a", config=QUICK.model_copy(update={"entropy": AttentionEntropyConfig(weight=0.0), "epochs": 15})
    )
    spread = run(
        tmp_path / "b", config=QUICK.model_copy(update={"entropy": AttentionEntropyConfig(weight=5.0), "epochs": 15})
    )
    assert "attention_entropy" not in plain.history[-1].terms
    assert spread.history[-1].terms["attention_entropy"] < -1.8  # -log n, with n from 9 to 13, is -2.2 to -2.6


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'abmil'"):
        run(tmp_path, method="abmill")


def test_tensorboard_holds_every_epoch_once(tmp_path: Path) -> None:
    run(tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/val")] == [1, 2, 3, 4, 5, 6]


def test_of_labels_those_that_have_a_rare_one_weigh_the_more_and_unknown_ones_nothing() -> None:
    targets = np.array([[1, 0], [0, 1], [0, 1], [0, 1], [-1, 1]])
    lacks, owns = label_weights(targets).numpy()
    assert lacks == pytest.approx([4 / (2 * 3), 5 / (2 * 1)])
    assert owns == pytest.approx([4 / (2 * 1), 5 / (2 * 4)])


def test_sampling_evens_out_classes_and_weights_do_too() -> None:
    targets = np.array([0] * 90 + [1] * 10)
    generator = torch.Generator().manual_seed(0)
    drawn = [i for _ in range(20) for i in epoch_order(targets, balance="sampling", generator=generator)]
    assert 0.45 < np.mean(targets[drawn]) < 0.55
    assert sorted(epoch_order(targets, balance="none", generator=generator)) == list(range(100))
    per_class = class_weights(targets, classes=2).numpy()
    assert per_class[targets].mean() == pytest.approx(1)
    assert per_class[0] * 90 == pytest.approx(per_class[1] * 10)


def test_drawn_instances_are_distinct_and_ascending() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = draw_instances(50, 20, generator)
    assert rows is not None
    assert len(rows) == 20
    assert (rows.diff() > 0).all()
    assert draw_instances(20, 20, generator) is None


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    schedule = ScheduleConfig(warmup=0.2)
    assert [schedule.factor_at(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (ScheduleConfig(end=0.2), [1, 0.6, 0.2]),
        (ScheduleConfig(kind="constant"), [1, 1, 1]),
        (ScheduleConfig(kind="steps", at=(0.5, 0.9), factor=0.1), [1, 0.1, 0.01]),
    ],
)
def test_schedules_end_where_they_say(schedule: ScheduleConfig, factors: list[float]) -> None:
    assert [schedule.factor_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx(factors)


def test_warmup_by_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup rises by step"):
        ScheduleConfig(by="epoch", warmup=0.1)


def test_a_schedule_by_epoch_moves_between_epochs_alone(tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"schedule": ScheduleConfig(by="epoch"), "epochs": 4})
    lrs = [record.lr for record in run(tmp_path, config=config).history]
    wanted = [3e-3 * 0.5 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4)]
    assert lrs == pytest.approx(wanted)


def test_patience_waits_for_the_share_of_epochs_before_which_nothing_stops(tmp_path: Path) -> None:
    cohort = made_cohort()
    other = {"n": "t", "t": "n"}
    wrong = tuple(
        replace(s, label=other[s.label]) if s.split == "val" else s for s in cohort.slides
    )  # so no epoch is better
    update = {"epochs": 10, "patience": 1, "monitor": "loss"}
    counts = [
        len(
            run(
                tmp_path / str(share),
                config=QUICK.model_copy(update={**update, "stop_from": share}),
                cohort=replace(cohort, slides=wrong),
                source=MadeBags(cohort.slides),
            ).history
        )
        for share in (0.0, 0.5)
    ]
    assert counts == [2, 6]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "radam", "lookahead_radam"])
def test_every_optimizer_learns_and_goes_on_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    config = QUICK.model_copy(update={"optimizer": optimizer, "lr": 2e-2, "epochs": 8, "accumulate": 3})
    result = run(tmp_path / "whole", config=config)
    assert result.history[-1].train_loss < result.history[0].train_loss

    def interrupt(record: object) -> None:
        if record.epoch == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config=config, on_epoch=interrupt)
    run(tmp_path / "cut", config=config)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lookahead_keeps_weights_between_slow_and_fast() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    lookahead = Lookahead([parameter])
    for number in range(1, 13):
        with torch.no_grad():
            parameter.add_(1)
        lookahead.step()
        assert parameter.tolist() == [{6: 3.0, 12: 6.0}.get(number, number % 6 + 3.0 * (number > 6))] * 3


@pytest.mark.parametrize("more", [{}, {"optimizer": "sgd", "lr": 0.1, "clip_norm": 0.05}])
def test_accumulated_steps_move_weights_as_a_pack_does(tmp_path: Path, more: dict[str, object]) -> None:
    """What is clipped is their mean, which Adam's steps would not tell."""
    calm = {"embed_dropout": 0.0}
    for name, update in {"pack": {"batch_bags": 4}, "apart": {"batch_bags": 1, "accumulate": 4}}.items():
        run(tmp_path / name, config=QUICK.model_copy(update={**update, **more, "epochs": 2}), method_config=calm)
    first, second = weights(tmp_path / "pack"), weights(tmp_path / "apart")
    for name in set(first) - {"attention.score.bias"}:  # whose gradient is rounding alone, which Adam makes a step of
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


def test_decay_acts_on_vectors_where_asked(tmp_path: Path) -> None:
    strong = {"weight_decay": 0.5, "lr": 1e-2}
    run(tmp_path / "matrices", config=QUICK.model_copy(update=strong))
    run(tmp_path / "all", config=QUICK.model_copy(update={**strong, "decay_vectors": True}))
    name = "attention.value.bias"
    assert weights(tmp_path / "all")[name].norm() < weights(tmp_path / "matrices")[name].norm()


@pytest.mark.parametrize(("vectors", "decays"), [(False, [0.5, 0.0]), (True, [0.5, 0.5])])
def test_matrices_decay_whether_vectors_do_or_not(vectors: bool, decays: list[float]) -> None:
    groups = registry.build("abmil", {}, in_dim=4, num_classes=2).param_groups()
    made = make_optimizer("adamw", groups, lr=1.0, weight_decay=0.5, decay_vectors=vectors, betas=(0.9, 0.999))
    assert [group["weight_decay"] for group in made.param_groups] == decays
    assert [{p.ndim > 1 for p in group["params"]} for group in made.param_groups] == [{True}, {False}]


def test_bfloat16_learns_with_weights_in_float32(tmp_path: Path) -> None:
    result = run(tmp_path, config=QUICK.model_copy(update={"precision": "bfloat16", "epochs": 10, "lr": 1e-2}))
    assert max(record.val_auroc or 0 for record in result.history) > 0.95
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())


def test_cox_is_refused_a_budget_that_lets_a_bag_go_alone_and_learns_from_every_other(tmp_path: Path) -> None:
    slides = tuple(
        replace(slide, label=f"{1 + index * 3 % 37} {'event' if index % 3 else 'censored'}")
        for index, slide in enumerate(made_cohort().slides)
    )
    cohort = Cohort(slides=slides, task=Survival(model="cox"))
    config = QUICK.model_copy(update={"batch_bags": 16, "batch_instances": 25})
    with pytest.raises(ConfigError, match=r"fit\.batch_instances: got 25, .* have 13 \+ 13 .* wanted 26 or more"):
        run(tmp_path / "low", config=config, cohort=cohort)
    for name, update in {"high": {"batch_instances": 26}, "drawn": {"max_instances": 12}}.items():
        result = run(tmp_path / name, config=config.model_copy(update=update), cohort=cohort)
        assert min(record.train_loss for record in result.history) > 0


def test_cox_compares_also_the_bag_that_is_left_for_the_last_step(tmp_path: Path) -> None:
    """Its step had nobody to compare it with, and taught nothing."""
    slides = tuple(replace(slide, label=f"{1 + index} event") for index, slide in enumerate(made_cohort(6).slides))
    cohort = Cohort(slides=slides, task=Survival(model="cox"))
    still = QUICK.model_copy(update={"lr": 1e-12, "weight_decay": 0.0, "epochs": 1})
    result = run(tmp_path, config=still, cohort=cohort, method_config={"embed_dropout": 0.0})
    train, bags = cohort.of("train"), [MadeBags(slides).load(slide.slide_id) for slide in cohort.of("train")]
    model = load_model(tmp_path).model
    logits = model(pack([bag.features for bag in bags], xy0=[bag.xy0 for bag in bags], slide_ids=list("abc"))).logits
    wanted = CoxLikelihood()(logits, torch.from_numpy(cohort.targets(train)))
    assert result.history[0].terms["bag"] == pytest.approx(float(wanted.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("count", "bags", "instances", "sizes"),
    [
        (17, 16, None, [9, 8]),
        (18, 16, None, [16, 2]),
        (33, 16, None, [16, 9, 8]),
        (7, 2, None, [2, 2, 3]),
        (3, 2, 30, [3]),
        (3, 2, 25, [2, 1]),
        (4, 3, 30, [2, 2]),
        (1, 16, None, [1]),
    ],
)
def test_no_bag_is_left_alone_for_the_last_step_within_the_budget(
    count: int, bags: int, instances: int | None, sizes: list[int]
) -> None:
    counts = [10] * count
    steps = steps_of(range(count), bags=bags, instances=instances, counts=counts)
    found = without_lone_bag(steps, instances=instances, counts=counts)
    assert [index for step in found for index in step] == list(range(count))
    assert [len(step) for step in found] == sizes


def test_a_warm_start_begins_with_the_weights_of_a_run(tmp_path: Path) -> None:
    run(tmp_path / "first")
    still = QUICK.model_copy(update={"warm_start": tmp_path / "first", "lr": 1e-12, "weight_decay": 0.0, "epochs": 1})
    run(tmp_path / "second", config=still)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-9)


def test_a_warm_start_refuses_other_classes_and_other_sizes(tmp_path: Path) -> None:
    run(tmp_path / "first")
    config = QUICK.model_copy(update={"warm_start": tmp_path / "first"})
    cohort = made_cohort()
    turned = Cohort(slides=cohort.slides, classes=("t", "n"))
    with pytest.raises(ModelError, match=r"those of classification, n, t, those of the cohort classification, t, n"):
        run(tmp_path / "second", config=config, cohort=turned)
    with pytest.raises(ModelError, match=r"a warm start needs a model built like this DSMIL, got a ABMIL"):
        run(tmp_path / "third", config=config, method="dsmil")


def test_a_warm_start_from_features_of_another_kind_is_refused_with_what_to_give(tmp_path: Path) -> None:
    run(tmp_path / "first")
    other = replace(FEATURES, encoder={**FEATURES.encoder, "name": "another"})
    says = r"encoder\.name: 'made up' != 'another'; begin with a run that learned from features of this kind"
    with pytest.raises(ModelError, match=says):
        run(tmp_path / "second", config=QUICK.model_copy(update={"warm_start": tmp_path / "first"}), features=other)


def test_a_warm_start_refuses_a_run_on_other_splits(tmp_path: Path) -> None:
    run(tmp_path / "first")
    cohort = made_cohort()
    swapped = {"train": "val", "val": "train"}
    other = replace(cohort, slides=tuple(replace(s, split=swapped[s.split]) for s in cohort.slides))
    with pytest.raises(
        ModelError, match="trained on another cohort or other splits, so it may have learned from slides"
    ):
        run(tmp_path / "second", config=QUICK.model_copy(update={"warm_start": tmp_path / "first"}), cohort=other)


def test_a_warm_start_refuses_hyperparameters_that_answers_hang_on(tmp_path: Path) -> None:
    run(tmp_path / "first", method_config={"activation": "gelu"})
    config = QUICK.model_copy(update={"warm_start": tmp_path / "first", "epochs": 1})
    with pytest.raises(ModelError, match="these differ: activation 'gelu' -> 'relu'"):
        run(tmp_path / "second", config=config)
    run(tmp_path / "third", config=config, method_config={"activation": "gelu", "embed_dropout": 0.5})


def test_a_group_cut_short_by_the_end_of_an_epoch_is_averaged_too(tmp_path: Path) -> None:
    calm = {"embed_dropout": 0.0}
    cohort = made_cohort(12)  # six bags an epoch
    for name, update in {"pack": {"batch_bags": 4}, "apart": {"batch_bags": 1, "accumulate": 4}}.items():
        still = {"epochs": 1, "optimizer": "sgd", "clip_norm": None, "schedule": ScheduleConfig(kind="constant")}
        config = QUICK.model_copy(update={**update, **still})
        run(tmp_path / name, config=config, method_config=calm, cohort=cohort)
    first, second = weights(tmp_path / "pack"), weights(tmp_path / "apart")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


def test_mhim_begins_from_a_trained_base(tmp_path: Path) -> None:
    base = {"hidden_dim": 16, "attention_dim": 8}
    run(tmp_path / "base", method_config=base)
    config = QUICK.model_copy(update={"warm_start": tmp_path / "base", "lr": 1e-12, "epochs": 1, "weight_decay": 0.0})
    run(tmp_path / "mhim", config=config, method="mhim", method_config={"base": {"name": "abmil", **base}})
    taught, trained = weights(tmp_path / "mhim"), weights(tmp_path / "base")
    for name, value in trained.items():
        mine = name if name.startswith("standardize.") else f"teacher.method.{name}"
        torch.testing.assert_close(taught[mine], value, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(taught["student.method.embed.linear.weight"], trained["embed.linear.weight"])


@pytest.mark.shared
def test_the_classic_musk_bags_are_learned(shared_dir: Path, tmp_path: Path) -> None:
    data = np.load(shared_dir / "data/bags/musk1.npz")
    rows = {str(number): np.flatnonzero(data["bag"] == number) for number in np.unique(data["bag"])}
    slides = tuple(
        CohortSlide(slide_id=name, patient_id=name, label="nt"[int(data["bag_label"][int(name)] > 0)]) for name in rows
    )
    cohort = Cohort(slides=slides, classes=("n", "t")).with_splits(seed=0, val_fraction=0.3, test_fraction=0.0)

    class Musk:
        def load(self, slide_id: str) -> Instances:
            features = data["X"][rows[slide_id]].astype(np.float32)
            return Instances(features=features, xy0=np.zeros((len(features), 2), np.int64))

    result = fit(
        Musk(), cohort, method="abmil", method_config={}, config=FitConfig(epochs=25, keep="last", patience=None),
        features=FEATURES, contents="Musk", in_dim=data["X"].shape[1], run=tmp_path,
    )  # fmt: skip
    assert (result.history[-1].val_auroc or 0) > 0.75
