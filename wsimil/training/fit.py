"""fit: a method, labelled bags and a config become a model; interrupted anywhere, the same call goes on with the same bits.

On a CPU with the same number of threads, the same inputs give the same weights to the last bit, whether the run was
interrupted or not, be it in the middle of an epoch. The test split is never looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wsimil.cohort import BagUnit, Cohort, CohortSlide
from wsimil.errors import CohortError, ModelError, TrainingError
from wsimil.files import check_writable, write_text
from wsimil.mil import registry
from wsimil.mil.batch import BagBatch, pack
from wsimil.mil.criterion import CrossEntropy, compares_bags
from wsimil.mil.saved import TrainedModel, load_model, save_model
from wsimil.provenance import Json, Provenance, sha256_json
from wsimil.targets import Survival, Task
from wsimil.training.checkpoint import Checkpoint, part, place, read_checkpoint, write_checkpoint
from wsimil.training.config import FitConfig
from wsimil.training.learner import Learner, StepReport
from wsimil.training.loading import BagLoader, BagSource, Instances
from wsimil.training.objective import check_options, criterion_of, resolved
from wsimil.training.records import EpochRecord, FitResult
from wsimil.training.sampling import draw_instances, epoch_order, steps_of, without_lone_bag
from wsimil.training.trackers import check_trackers, tracking

if TYPE_CHECKING:
    from pydantic import JsonValue

_CHANGES_NO_WEIGHT = {"cache_gb", "prefetch", "checkpoint_minutes", "trackers"}
# 1, which no file states, left a bag alone for the last step of an epoch.
_STEPS_VERSION = 2
# 1, which no file states, gave what smoothing moves to a class the weight of that class, in place of the bag's own.
_LOSS_VERSION = 2
_TOLD = {
    "cohort": "the cohort or its splits",
    "features": "the kind of features",
    "contents": "what the features of its slides hold (they were replaced, or an older version began it and did not note it)",
    "steps_version": "which bags are in a step (an older version began it)",
    "loss_version": "what bags cost whose classes are weighed and smoothed (an older version began it)",
}


def fit(
    source: BagSource,
    cohort: Cohort,
    *,
    method: str,
    method_config: Mapping[str, JsonValue],
    config: FitConfig,
    features: Provenance,
    contents: str,
    in_dim: int,
    run: Path,
    device: str = "cpu",
    bag: BagUnit = "slide",
    on_epoch: Callable[[EpochRecord], None] = lambda _: None,
    pause: Callable[[], bool] = lambda: False,
    verify: Callable[[], None] = lambda: None,
) -> FitResult:
    """Train for the cohort's task on its train split, watch its val split, and write the model into `run`.

    `bag` says what a row of the cohort and a bag of `source` is, for whoever predicts; `contents` is a text that differs where
    what the bags hold does, so that a run goes on with no others than it was begun with; `verify` raises where they hold
    something else by now, and is asked before anything that was learned from them is kept. `run` also gets metrics.jsonl,
    tensorboard/ and checkpoint/. Where `pause` says so between two moves of the weights, a checkpoint is written and
    KeyboardInterrupt raised. Raises TrainingError where the loss or an answer is not finite or `run` holds a run of another
    recipe, CohortError where a split is missing or nothing can be learned from its targets, ConfigError for a wrong method, or
    one or an option that means nothing for the task.
    """
    trainer = _Run(source, cohort, method, method_config, config, features, contents, in_dim, run, device, bag, verify)
    with trainer.loader:
        return trainer.go(on_epoch, pause)


def fitted_task(cohort: Cohort) -> Task:
    """The task with what the train split decides. Raises CohortError where nothing can be learned from it."""
    try:
        return cohort.task.fitted([slide.label for slide in cohort.of("train")])
    except ValueError as error:
        raise CohortError(f"the train split: {error}") from None


def instance_counts(source: BagSource, bags: Sequence[CohortSlide], *, most: int | None) -> list[int]:
    """Instances of each bag in a step, of which it has `most` at most. Raises StoreError."""
    counts = [source.count(bag.slide_id) for bag in bags]
    return counts if most is None else [min(count, most) for count in counts]


@dataclass(slots=True, kw_only=True)
class _Progress:
    """How far a run has come: epochs that ended, and, of the one that has not, its order, steps, sums and seconds."""

    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    begun_at: torch.Tensor | None = None
    steps_done: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    waited_s: float = 0.0


class _Run:
    def __init__(
        self,
        source: BagSource,
        cohort: Cohort,
        method: str,
        method_config: Mapping[str, JsonValue],
        config: FitConfig,
        features: Provenance,
        contents: str,
        in_dim: int,
        run: Path,
        device: str,
        bag: BagUnit,
        verify: Callable[[], None],
    ) -> None:
        self.config = config = resolved(config, cohort.task)
        self.bag: BagUnit = bag
        self.cohort, self.device, self.run, self.method, self.features = (cohort, device, run, method, features)
        self.train, self.val = cohort.of("train"), cohort.of("val")
        if not self.train or not self.val:
            raise CohortError(
                "training needs slides in the train and in the val split; draw them, or fill the split column"
            )
        check_writable(run)
        check_trackers(config.trackers)
        self.source, self.verify = source, verify
        self.loader = BagLoader(source, ahead=config.prefetch, cache_gb=config.cache_gb)
        self.task = fitted_task(cohort)
        self.targets, self.val_targets = cohort.targets(self.train), cohort.targets(self.val)
        outputs = len(self.task.outputs)
        self.model = registry.build(method, method_config, in_dim=in_dim, num_classes=outputs, seed=config.seed)
        self.model.check_task(self.task)
        self.recipe: dict[str, Json] = {
            "method": {"name": method, **self.model.config.model_dump(mode="json")},
            "fit": config.model_dump(mode="json", exclude=_CHANGES_NO_WEIGHT),
            "cohort": sha256_json({"table": cohort.to_csv(), "task": cohort.task.to_json()}),
            "features": features.feature_digest,
            "contents": contents,
        }
        if config.warm_start is not None:
            self.recipe["warm_start"] = load_model(config.warm_start).digest
        self.criterion, self.val_criterion = criterion_of(config, self.task, self.targets, device=device)
        if compares_bags(self.criterion):
            self.recipe["steps_version"] = _STEPS_VERSION
        if isinstance(self.criterion, CrossEntropy) and config.balance == "class_weights" and config.label_smoothing:
            self.recipe["loss_version"] = _LOSS_VERSION
        check_options(config, self.task, self.model, method=method, counts=lambda: self._counts)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.good: str | None = None
        self.saved_at = time.monotonic()

    def go(self, on_epoch: Callable[[EpochRecord], None], pause: Callable[[], bool]) -> FitResult:
        saved = read_checkpoint(self.run)
        if saved is not None:
            self._refuse_other_recipe(saved)
        elif self.config.warm_start is not None:
            self._warm_start(self.config.warm_start, load_model(self.config.warm_start))
        elif self.config.standardize:
            bags = self.loader.stream([[slide.slide_id] for slide in self.train])
            self.model.standardize.fit(bag.features for (bag,) in bags)
        self.model.to(self.device)
        self.learner = Learner(
            self.model, self.config, criterion=self.criterion, generator=self.generator, device=self.device
        )
        so_far = self._resumed(saved)
        history = so_far.history
        stopped = self._is_over(so_far)
        with tracking(self.config.trackers, self.run, recipe=self.recipe, first=len(history)) as trackers:
            while not stopped:
                record = self._epoch(so_far, pause)
                history.append(record)
                if self._is_best(so_far):
                    so_far.best_epoch = len(history)
                    so_far.best = self.learner.answering_weights()
                self._checkpoint(so_far)
                for tracker in trackers:
                    tracker.add(record)
                on_epoch(record)
                stopped = self._is_over(so_far)
        kept = so_far.best_epoch if self.config.keep == "best" else len(history)
        self.model.load_state_dict(so_far.best if self.config.keep == "best" else self.learner.answering_weights())
        if isinstance(self.task, Survival):
            bags = self.loader.stream([[slide.slide_id] for slide in self.train])
            with torch.no_grad():
                logits = self._logits(self.train, bags).double().numpy()
            self.task = self.task.with_baseline([slide.label for slide in self.train], logits)
        self._save(history[kept - 1], kept)
        return FitResult(history=tuple(history), kept_epoch=kept, stopped_early=len(history) < self.config.epochs)

    def _warm_start(self, run: Path, other: TrainedModel) -> None:
        remedy = "begin with a run that learned from features of this kind, or give the features that it learned from"
        other.check_features(self.features, f"fit.warm_start {run}", remedy=remedy)
        if other.bag != self.bag:
            raise ModelError(f"fit.warm_start {run}: its bags are of a {other.bag}, those of this run of a {self.bag}")
        if other.task.kind != self.task.kind or other.task.outputs != self.task.outputs:
            raise ModelError(
                f"fit.warm_start {run}: its logits are those of {other.task.kind}, {', '.join(other.task.outputs)}, those of the"
                f" cohort {self.task.kind}, {', '.join(self.task.outputs)}; it takes the same in the same order"
            )
        before = other.training.get("recipe")
        if isinstance(before, Mapping) and before.get("cohort") != self.recipe["cohort"]:
            raise ModelError(
                f"fit.warm_start {run}: it was trained on another cohort or other splits, so it may have learned from slides that"
                " are held out here; train it with the same cohort file, split and fold"
            )
        self.model.warm_start(other.model)

    def _is_best(self, so_far: _Progress) -> bool:
        history, best_epoch = so_far.history, so_far.best_epoch
        if len(history) <= self.config.watch_from * self.config.epochs:
            return False
        return best_epoch == 0 or self._worth(history[-1]) >= self._worth(history[best_epoch - 1])

    def _worth(self, record: EpochRecord) -> tuple[bool, float]:
        """By the loss where the metric is not defined, which no epoch's metric can be held against."""
        value = record.val.get(str(self.config.monitor))
        if value is None:
            return False, -record.val_loss
        return True, -value if self.config.monitor == "mae" else value

    def _is_over(self, so_far: _Progress) -> bool:
        history, best_epoch = so_far.history, so_far.best_epoch
        patience = self.config.patience
        out_of_patience = patience is not None and best_epoch > 0 and len(history) - best_epoch >= patience
        may_stop = len(history) > self.config.stop_from * self.config.epochs
        return len(history) >= self.config.epochs or (out_of_patience and may_stop)

    def _epoch(self, so_far: _Progress, pause: Callable[[], bool]) -> EpochRecord:
        from wsimil.evaluation.task_metrics import watched  # brings scikit-learn, which a plan of a run does without

        began, waited = time.perf_counter() - so_far.seconds, self.loader.waited_s - so_far.waited_s
        epoch, config = len(so_far.history), self.config
        steps = self._steps(so_far)
        bags = self.loader.stream(
            [[slide.slide_id for slide in step] for step in steps[so_far.steps_done :]]
            + [[slide.slide_id] for slide in self.val]
        )
        for number in range(so_far.steps_done, len(steps)):
            place = number % config.accumulate
            of = min(config.accumulate, len(steps) - number + place)
            report = self.learner.step(
                self._pack(steps[number], next(bags), draw=True),
                progress=(epoch * len(steps) + number) / (config.epochs * len(steps)),
                moved=(epoch * len(steps) + number) / (config.epochs * len(steps))
                if config.schedule.by == "step"
                else epoch / config.epochs,
                place=place,
                of=of,
            )
            if not report.finite:
                raise TrainingError(self._not_finite(report, steps[number], epoch, number))
            for name, value in {"total": report.loss, **report.terms}.items():
                so_far.sums[name] = so_far.sums.get(name, 0.0) + value / len(steps)
            so_far.steps_done = number + 1
            if place + 1 == of and number + 1 < len(steps):
                so_far.seconds, so_far.waited_s = time.perf_counter() - began, self.loader.waited_s - waited
                self._between_steps(so_far, pause)
        with self.learner.answering():
            logits = self._logits(self.val, bags)
        lost = [slide.slide_id for slide, row in zip(self.val, logits, strict=True) if not bool(row.isfinite().all())]
        if lost:
            raise TrainingError(self._no_answer(lost, epoch))
        val_loss = float(self.val_criterion(logits, torch.from_numpy(self.val_targets)))
        sums = so_far.sums
        so_far.sums, so_far.steps_done, so_far.begun_at, so_far.seconds, so_far.waited_s = {}, 0, None, 0.0, 0.0
        return EpochRecord(
            epoch=epoch + 1,
            lr=self.learner.lr,
            train_loss=sums.pop("total"),
            terms=sums,
            val_loss=val_loss,
            val=watched(self.task, self.val_targets, self.task.values(logits.double().numpy())),
            seconds=round(time.perf_counter() - began, 3),
            waited_s=round(self.loader.waited_s - waited, 3),
        )

    def _steps(self, so_far: _Progress) -> list[list[CohortSlide]]:
        """The bags of each step of this epoch; of one that was begun before, the same ones, from the state that drew them."""
        now = self.generator.get_state()
        if so_far.begun_at is not None:
            self.generator.set_state(so_far.begun_at)
        else:
            so_far.begun_at = now
        order = epoch_order(self.targets, balance=self.config.balance, generator=self.generator)
        if so_far.steps_done:
            self.generator.set_state(now)
        most = self.config.batch_instances
        counts = () if most is None else self._counts
        steps = steps_of(order, bags=self.config.batch_bags, instances=most, counts=counts)
        if compares_bags(self.criterion):
            steps = without_lone_bag(steps, instances=most, counts=counts)
        return [[self.train[index] for index in step] for step in steps]

    @cached_property
    def _counts(self) -> list[int]:
        """Instances of each training bag in a step."""
        return instance_counts(self.source, self.train, most=self.config.max_instances)

    def _between_steps(self, so_far: _Progress, pause: Callable[[], bool]) -> None:
        paused = pause()
        minutes = self.config.checkpoint_minutes
        if paused or (minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes):
            self._checkpoint(so_far)
        if paused:
            raise KeyboardInterrupt

    def _not_finite(self, report: StepReport, slides: Sequence[CohortSlide], epoch: int, number: int) -> str:
        names = ", ".join(repr(slide.slide_id) for slide in slides)
        return (
            f"the loss or its gradient is not finite in epoch {epoch + 1}, step {number + 1}, on {names}: loss {report.loss},"
            f" terms {dict(report.terms)}, gradient norm {report.gradient_norm}. {self._remedy()}"
        )

    def _no_answer(self, lost: Sequence[str], epoch: int) -> str:
        more = f" and {len(lost) - 6} more" if len(lost) > 6 else ""
        return (
            f"the model has no finite answer after the steps of epoch {epoch + 1} for {len(lost)} of {len(self.val)} validation"
            f" bags: {', '.join(map(repr, lost[:6]))}{more}. {self._remedy()}"
        )

    def _remedy(self) -> str:
        good = (
            "no checkpoint was written yet"
            if self.good is None
            else f"The checkpoint of {self.good} in {self.run} is good"
        )
        return f"{good}; look at these slides' features, or lower fit.lr and start anew with --overwrite"

    def _logits(self, slides: Sequence[CohortSlide], bags: Iterator[list[Instances]]) -> torch.Tensor:
        return torch.cat([self.model(self._pack([slide], next(bags), draw=False)).logits.cpu() for slide in slides])

    def _pack(self, slides: Sequence[CohortSlide], parts: Sequence[Instances], *, draw: bool) -> BagBatch:
        features, xy0 = [p.features for p in parts], [p.xy0 for p in parts]
        if draw:
            for index, bag in enumerate(parts):
                rows = draw_instances(len(bag.xy0), self.config.max_instances, self.generator)
                if rows is not None:
                    features[index], xy0[index] = bag.features[rows.numpy()], bag.xy0[rows.numpy()]
        targets = self.cohort.targets(slides)
        return pack(features, xy0=xy0, slide_ids=[s.slide_id for s in slides], targets=targets).to(self.device)

    def _resumed(self, saved: Checkpoint | None) -> _Progress:
        if saved is None:
            return _Progress()
        self.learner.load(saved.tensors)
        facts = saved.facts
        so_far = _Progress(
            history=[EpochRecord.from_json(record) for record in facts["history"]],
            best=part(saved.tensors, "best."),
            best_epoch=facts["best_epoch"],
            begun_at=saved.tensors.get("begun_at"),
            steps_done=facts.get("steps_done", 0),
            sums=facts.get("sums", {}),
            seconds=facts.get("seconds", 0.0),
            waited_s=facts.get("waited_s", 0.0),
        )
        self.good = _place(so_far)
        return so_far

    def _checkpoint(self, so_far: _Progress) -> None:
        self.verify()
        tensors = {
            **self.learner.tensors(),
            **{f"best.{name}": tensor for name, tensor in so_far.best.items()},
            **({} if so_far.begun_at is None else {"begun_at": so_far.begun_at}),
        }
        records = [record.to_json() for record in so_far.history]
        facts = {
            "recipe": self.recipe,
            "history": records,
            "best_epoch": so_far.best_epoch,
            "steps_done": so_far.steps_done,
            "sums": so_far.sums,
            "seconds": round(so_far.seconds, 3),
            "waited_s": round(so_far.waited_s, 3),
        }
        write_checkpoint(self.run, Checkpoint(tensors=tensors, facts=facts))
        write_text(self.run / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        self.good, self.saved_at = _place(so_far), time.monotonic()

    def _refuse_other_recipe(self, saved: Checkpoint) -> None:
        before = saved.facts["recipe"]
        changed = []
        for name, now in self.recipe.items():
            then = before.get(name)
            if isinstance(now, Mapping) and isinstance(then, Mapping):
                changed += [
                    f"{name}.{key}: {then.get(key)!r} -> {now.get(key)!r}"
                    for key in now
                    if then.get(key) != now.get(key)
                ]
            elif then != now:
                changed.append(_TOLD.get(name, name))
        if changed:
            raise TrainingError(
                f"{self.run} holds a run of another recipe, different in {'; '.join(changed)}; restore that to go on,"
                " choose another output folder, or replace the run: remove its folder, or say wsimil train --overwrite"
            )

    def _save(self, record: EpochRecord, kept: int) -> None:
        self.verify()
        training: dict[str, Json] = {
            "kept_epoch": kept,
            "val_loss": record.val_loss,
            **{f"val_{name}": value for name, value in record.val.items()},
            "slides": {"train": len(self.train), "val": len(self.val)},
            "recipe": self.recipe,
        }
        save_model(
            self.run,
            self.model,
            method=self.method,
            task=self.task,
            bag=self.bag,
            features=self.features,
            training=training,
        )


def _place(so_far: _Progress) -> str:
    return place(len(so_far.history), so_far.steps_done)
