"""fit: a method, labelled bags and a config become a model; interrupted anywhere, the same call goes on with the same bits.

On a CPU with the same number of threads, the same inputs give the same weights to the last bit, whether the run was
interrupted or not. The test split is never looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wsimil.cohort import Cohort, CohortSlide
from wsimil.errors import CohortError, ConfigError, ModelError, TrainingError
from wsimil.evaluation.task_metrics import watched
from wsimil.files import check_writable, write_text
from wsimil.mil import registry
from wsimil.mil.batch import BagBatch, StepContext, pack
from wsimil.mil.regularizers.attention_entropy import attention_entropy
from wsimil.mil.saved import BagUnit, TrainedModel, load_model, save_model
from wsimil.provenance import Json, Provenance, sha256_json
from wsimil.targets import Survival, Task
from wsimil.training.checkpoint import (
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    part,
    read_checkpoint,
    write_checkpoint,
)
from wsimil.training.config import FitConfig
from wsimil.training.objective import criterion_of, resolved
from wsimil.training.optimizer import Lookahead, make_optimizer
from wsimil.training.sampling import draw_instances, epoch_order

if TYPE_CHECKING:
    from pydantic import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """The instances of one bag: `features` [n, D] and where each lies, `xy0` int64 [n, 2], level-0 px.

    Methods look at the order of places alone, so where a source cannot tell px, numbers that order likewise do as well.
    """

    features: NDArray[np.float16] | NDArray[np.float32]
    xy0: NDArray[np.int64]


class BagSource(Protocol):
    """Where bags come from, by slide id."""

    def load(self, slide_id: str) -> Instances:
        """The instances of one slide. Raises StoreError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One line of metrics.jsonl. `terms` are the named terms of the training loss, means over the steps of the epoch.

    `val` is what the task can watch on the validation split, by the names of `fit.monitor`.
    """

    epoch: int
    lr: float
    train_loss: float
    terms: Mapping[str, float]
    val_loss: float
    val: Mapping[str, float | None]
    seconds: float

    @property
    def val_auroc(self) -> float | None:
        """AUROC on the validation split, None where it is undefined or the task has none."""
        return self.val.get("auroc")

    def to_json(self) -> dict[str, Json]:
        """One flat mapping; what is watched is `val_<name>`."""
        watched = {f"val_{name}": value for name, value in self.val.items()}
        facts: dict[str, Json] = {
            "epoch": self.epoch,
            "lr": self.lr,
            "train_loss": self.train_loss,
            "terms": dict(self.terms),
        }
        return {**facts, "val_loss": self.val_loss, **watched, "seconds": self.seconds}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> EpochRecord:
        """The inverse of `to_json`."""
        own = {name: facts[name] for name in ("epoch", "lr", "train_loss", "terms", "val_loss", "seconds")}
        val = {k.removeprefix("val_"): v for k, v in facts.items() if k.startswith("val_") and k != "val_loss"}
        return cls(**own, val=val)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """How a run ended: all epochs, and the one (from 1) whose weights were kept."""

    history: tuple[EpochRecord, ...]
    kept_epoch: int
    stopped_early: bool


def fit(
    source: BagSource,
    cohort: Cohort,
    *,
    method: str,
    method_config: Mapping[str, JsonValue],
    config: FitConfig,
    features: Provenance,
    in_dim: int,
    run: Path,
    device: str = "cpu",
    bag: BagUnit = "slide",
    on_epoch: Callable[[EpochRecord], None] = lambda _: None,
) -> FitResult:
    """Train for the cohort's task on its train split, watch its val split, and write the model into `run`.

    `bag` says what a row of the cohort and a bag of `source` is, for whoever predicts. `run` also gets metrics.jsonl,
    tensorboard/ and checkpoint/. Raises TrainingError where the loss is not finite or `run`
    holds a run of another recipe, CohortError where a split is missing or nothing can be learned from its targets, ConfigError
    for a wrong method, or one or an option that means nothing for the task.
    """
    trainer = _Run(source, cohort, method, method_config, config, features, in_dim, run, device, bag)
    return trainer.go(on_epoch)


def fitted_task(cohort: Cohort) -> Task:
    """The task with what the train split decides. Raises CohortError where nothing can be learned from it."""
    try:
        return cohort.task.fitted([slide.label for slide in cohort.of("train")])
    except ValueError as error:
        raise CohortError(f"the train split: {error}") from None


class _Run:
    def __init__(
        self,
        source: BagSource,
        cohort: Cohort,
        method: str,
        method_config: Mapping[str, JsonValue],
        config: FitConfig,
        features: Provenance,
        in_dim: int,
        run: Path,
        device: str,
        bag: BagUnit,
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
        self.cache = _Cache(source, config.cache_gb)
        self.task = fitted_task(cohort)
        self.targets, self.val_targets = cohort.targets(self.train), cohort.targets(self.val)
        outputs = len(self.task.outputs)
        self.model = registry.build(method, method_config, in_dim=in_dim, num_classes=outputs, seed=config.seed)
        self.model.check_task(self.task)
        self.recipe: dict[str, Json] = {
            "method": {"name": method, **self.model.config.model_dump(mode="json")},
            "fit": config.model_dump(mode="json", exclude={"cache_gb"}),
            "cohort": sha256_json({"table": cohort.to_csv(), "task": cohort.task.to_json()}),
            "features": features.feature_digest,
        }
        if config.warm_start is not None:
            self.recipe["warm_start"] = load_model(config.warm_start).digest
        self.criterion, self.val_criterion = criterion_of(config, self.task, self.targets, device=device)
        if config.masking is not None and not self.model.takes_masking:
            raise ConfigError(f"fit.masking: method {method!r} has no attention that could be masked; leave it out")
        self.generator = torch.Generator().manual_seed(config.seed)

    def go(self, on_epoch: Callable[[EpochRecord], None]) -> FitResult:
        saved = read_checkpoint(self.run)
        if saved is not None:
            self._refuse_other_recipe(saved)
        elif self.config.warm_start is not None:
            self._warm_start(self.config.warm_start, load_model(self.config.warm_start))
        elif self.config.standardize:
            self.model.standardize.fit(self.cache.load(slide.slide_id).features for slide in self.train)
        self.model.to(self.device)
        groups = self.model.param_groups()
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.optimizer = make_optimizer(
            self.config.optimizer,
            groups,
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            decay_vectors=self.config.decay_vectors,
            betas=self.config.betas,
        )
        self.lookahead = Lookahead(self.parameters) if self.config.optimizer == "lookahead_radam" else None
        history: list[EpochRecord] = []
        best: dict[str, torch.Tensor] = {}
        best_epoch = 0
        if saved is not None:
            self.model.load_state_dict(part(saved.tensors, "model."))
            load_optimizer(self.optimizer, saved.tensors)
            if self.lookahead is not None:
                self.lookahead.load(saved.tensors)
            self.generator.set_state(saved.tensors["generator"])
            best = part(saved.tensors, "best.")
            history = [EpochRecord.from_json(record) for record in saved.facts["history"]]
            best_epoch = saved.facts["best_epoch"]
        stopped = self._is_over(history, best_epoch)
        with _Board(self.run / "tensorboard", first=len(history)) as board:
            while not stopped:
                record = self._epoch(len(history))
                history.append(record)
                if self._is_best(history, best_epoch):
                    best_epoch = len(history)
                    best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
                self._checkpoint(history, best, best_epoch)
                board.add(record)
                on_epoch(record)
                stopped = self._is_over(history, best_epoch)
        kept = best_epoch if self.config.keep == "best" else len(history)
        if self.config.keep == "best":
            self.model.load_state_dict(best)
        if isinstance(self.task, Survival):
            self.task = self.task.with_baseline(
                [slide.label for slide in self.train], self._logits(self.train).double().numpy()
            )
        self._save(history[kept - 1], kept)
        return FitResult(history=tuple(history), kept_epoch=kept, stopped_early=len(history) < self.config.epochs)

    def _warm_start(self, run: Path, other: TrainedModel) -> None:
        other.check_features(self.features, f"fit.warm_start {run}")
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

    def _is_best(self, history: list[EpochRecord], best_epoch: int) -> bool:
        if len(history) <= self.config.watch_from * self.config.epochs:
            return False
        return best_epoch == 0 or self._worth(history[-1]) >= self._worth(history[best_epoch - 1])

    def _worth(self, record: EpochRecord) -> float:
        value = record.val.get(str(self.config.monitor))
        if value is None:
            return -record.val_loss
        return -value if self.config.monitor == "mae" else value

    def _is_over(self, history: list[EpochRecord], best_epoch: int) -> bool:
        patience = self.config.patience
        out_of_patience = patience is not None and best_epoch > 0 and len(history) - best_epoch >= patience
        may_stop = len(history) > self.config.stop_from * self.config.epochs
        return len(history) >= self.config.epochs or (out_of_patience and may_stop)

    def _epoch(self, epoch: int) -> EpochRecord:
        began = time.perf_counter()
        config = self.config
        order = epoch_order(self.targets, balance=config.balance, generator=self.generator)
        starts = range(0, len(order), config.batch_bags)
        sums: dict[str, float] = {}
        for number, start in enumerate(starts):
            progress = (epoch * len(starts) + number) / (config.epochs * len(starts))
            chosen = [self.train[index] for index in order[start : start + config.batch_bags]]
            total, terms = self._step(chosen, progress, epoch=epoch, number=number, steps=len(starts))
            for name, value in {"total": total, **terms}.items():
                sums[name] = sums.get(name, 0.0) + value / len(starts)
        val_loss, val = self._validate()
        return EpochRecord(
            epoch=epoch + 1,
            lr=self.optimizer.param_groups[0]["lr"],
            train_loss=sums.pop("total"),
            terms=sums,
            val_loss=val_loss,
            val=val,
            seconds=round(time.perf_counter() - began, 3),
        )

    def _step(
        self, chosen: list[CohortSlide], progress: float, *, epoch: int, number: int, steps: int
    ) -> tuple[float, dict[str, float]]:
        config = self.config
        bags = self._pack(chosen, draw=True)
        step = StepContext(
            generator=self.generator, progress=progress, criterion=self.criterion, masking=config.masking
        )
        place = number % config.accumulate
        if place == 0:
            moved = progress if config.schedule.by == "step" else epoch / config.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * config.schedule.factor_at(moved)
        kind = torch.device(self.device).type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            terms = self.model.losses(bags, step)
        total = terms.total
        named = {name: float(term.detach()) for name, term in terms.terms.items()}
        weight = config.entropy.weight_at(progress)
        entropy = attention_entropy(terms.output, terms.seen or bags, top_k=config.entropy.top_k) if weight else None
        if entropy is not None:
            total = total + weight * entropy
            named["attention_entropy"] = float(entropy.detach())
        if place == 0:
            self.optimizer.zero_grad(set_to_none=True)
        (total / min(config.accumulate, steps - number + place)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        moves = number + 1 == steps or place + 1 == config.accumulate
        limit = config.clip_norm if config.clip_norm is not None and moves else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        if not (torch.isfinite(total) and torch.isfinite(norm)):
            names = ", ".join(repr(slide.slide_id) for slide in chosen)
            raise TrainingError(
                f"the loss or its gradient is not finite in epoch {epoch + 1}, step {number + 1}, on {names}: loss"
                f" {float(total.detach())}, terms {named}, gradient norm {float(norm)}. The checkpoint of epoch {epoch} in"
                f" {self.run} is good; look at these slides' features, or lower fit.lr and start anew with --overwrite"
            )
        if moves:
            self.optimizer.step()
            if self.lookahead is not None:
                self.lookahead.step()
            with torch.no_grad():
                self.model.after_step(step)
        return float(total.detach()), named

    def _validate(self) -> tuple[float, dict[str, float | None]]:
        logits = self._logits(self.val)
        loss = float(self.val_criterion(logits, torch.from_numpy(self.val_targets)))
        return loss, watched(self.task, self.val_targets, self.task.values(logits.double().numpy()))

    @torch.no_grad()
    def _logits(self, slides: Sequence[CohortSlide]) -> torch.Tensor:
        return torch.cat([self.model(self._pack([slide], draw=False)).logits.cpu() for slide in slides])

    def _pack(self, slides: list[CohortSlide], *, draw: bool) -> BagBatch:
        parts = [self.cache.load(slide.slide_id) for slide in slides]
        features, xy0 = [p.features for p in parts], [p.xy0 for p in parts]
        if draw:
            for index, bag in enumerate(parts):
                rows = draw_instances(len(bag.xy0), self.config.max_instances, self.generator)
                if rows is not None:
                    features[index], xy0[index] = bag.features[rows.numpy()], bag.xy0[rows.numpy()]
        targets = self.cohort.targets(slides)
        return pack(features, xy0=xy0, slide_ids=[s.slide_id for s in slides], targets=targets).to(self.device)

    def _checkpoint(self, history: list[EpochRecord], best: dict[str, torch.Tensor], best_epoch: int) -> None:
        tensors = {
            **{f"model.{name}": tensor for name, tensor in self.model.state_dict().items()},
            **{f"best.{name}": tensor for name, tensor in best.items()},
            **optimizer_tensors(self.optimizer),
            **({} if self.lookahead is None else self.lookahead.tensors()),
            "generator": self.generator.get_state(),
        }
        records = [record.to_json() for record in history]
        facts = {"recipe": self.recipe, "history": records, "best_epoch": best_epoch}
        write_checkpoint(self.run, Checkpoint(tensors=tensors, facts=facts))
        write_text(self.run / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))

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
                changed.append(
                    {"cohort": "the cohort or its splits", "features": "the kind of features"}.get(name, name)
                )
        if changed:
            raise TrainingError(
                f"{self.run} holds a run of another recipe, different in {'; '.join(changed)}; choose another output folder,"
                " or replace the run with --overwrite"
            )

    def _save(self, record: EpochRecord, kept: int) -> None:
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


class _Cache:
    """Instances that were loaded once stay, as long as they fit the budget."""

    def __init__(self, source: BagSource, budget_gb: float) -> None:
        self._source, self._left, self._kept = source, budget_gb * 1e9, dict[str, Instances]()

    def load(self, slide_id: str) -> Instances:
        if slide_id in self._kept:
            return self._kept[slide_id]
        instances = self._source.load(slide_id)
        size = instances.features.nbytes + instances.xy0.nbytes
        if size <= self._left:
            self._left -= size
            self._kept[slide_id] = instances
        return instances


class _Board:
    """TensorBoard's view of the same records."""

    def __init__(self, folder: Path, *, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first + 1)

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *details: object) -> None:
        self._writer.close()

    def add(self, record: EpochRecord) -> None:
        values = {"loss/train": record.train_loss, "loss/val": record.val_loss, "lr": record.lr}
        values |= {f"terms/{name}": value for name, value in record.terms.items()}
        values |= {f"{name}/val": value for name, value in record.val.items() if value is not None}
        for name, value in values.items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()
