"""What a user may choose about training, whatever the method; read without torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from wsimil.config import FrozenConfig
from wsimil.mil.masking import Masking
from wsimil.training.schedule import ScheduleConfig
from wsimil.training.trackers import TrackerName

OptimizerName: TypeAlias = Literal["adamw", "adam", "sgd", "radam", "lookahead_radam"]
Loss: TypeAlias = Literal[
    "cross_entropy",
    "binary_cross_entropy",
    "corn",
    "huber",
    "squared",
    "absolute",
    "hazard",
    "cox_efron",
    "cox_breslow",
]
Monitor: TypeAlias = Literal["auroc", "loss", "kappa", "mae", "spearman", "c_index"]


class AttentionEntropyConfig(FrozenConfig):
    """How much of AEM a run has, for any method whose attention is a softmax over the bag; it means nothing to others.

    `weight` of the term, 0 for none. `top_k`: over the k largest weights of a bag alone, brought to a sum of 1 (null: all), as
    the authors do since 2025 with k = 100. `anneal`: "cosine" lets the weight fall to 0 over training, as the abstract of the
    paper's third version says and no released code does.
    """

    weight: float = Field(0.04, ge=0)
    top_k: int | None = Field(None, ge=1)
    anneal: Literal["none", "cosine"] = "none"

    def weight_at(self, progress: float) -> float:
        """The weight when `progress` in [0, 1] of training is done."""
        return self.weight if self.anneal == "none" else self.weight * (1 + math.cos(math.pi * progress)) / 2


class AugmentationConfig(FrozenConfig):
    """What is done to features in training steps alone, nothing by default.

    `noise`: normal noise, in deviations of each feature over the training bags (in its own unit where `fit.standardize` is off).
    `drop_features`: the share of features that a bag has at their mean over the training bags for one step (at zero
    where `fit.standardize` is off), the same ones in all its instances.
    `mix`: each instance becomes `x + mix * u * (y - x)` with another instance y of its bag and u uniform in [0, 1).
    """

    noise: float = Field(0.0, ge=0)
    drop_features: float = Field(0.0, ge=0, lt=1)
    mix: float = Field(0.0, ge=0, le=1)

    @property
    def is_on(self) -> bool:
        """Whether anything is done."""
        return bool(self.noise or self.drop_features or self.mix)


class FitConfig(FrozenConfig):
    """Optimizer, schedule, sampling and stopping.

    `optimizer`: "adamw", "adam" (decay in the gradient), "sgd" with momentum, "radam", or "lookahead_radam", which is TransMIL's.
    `betas` of the Adam family, the first also SGD's momentum. `lr` is the peak of `schedule`. `weight_decay` acts on matrices
    only, with `decay_vectors` on biases and norms too. `warm_start`: a finished run whose weights this one begins with.
    `batch_bags`: bags in a step at most, packed; `batch_instances`: instances in a step at most, where a larger bag goes alone.
    It must hold the two largest where Cox's likelihood compares bags; there no bag is left alone for the last step of an epoch:
    the last two are halved, or, of pairs, are one step of three. `accumulate`: steps whose gradients are averaged before
    weights move. `precision`: "bfloat16" computes layers in it, by torch's autocast; weights stay in float32.
    `balance`: "class_weights" weighs each bag by the inverse frequency of its class, "sampling" draws classes equally often,
    "none" leaves the cohort as it is. `label_smoothing` in [0, 1).
    `loss`: the criterion of bags. Classification: "cross_entropy", or "binary_cross_entropy" for each class, as DSMIL has it;
    multilabel the latter; ordinal "corn"; regression "huber", "squared" or "absolute"; survival "hazard", or "cox_efron" and
    "cox_breslow" by how these treat ties. `hazard_alpha`: how much of the loss of censored bags is held back.
    `loss`, `balance`, `label_smoothing` and `monitor` are the task's own where they are null, for classification cross-entropy,
    class weights, 0.1 and AUROC, and refused where they mean nothing.
    `entropy`: attention entropy maximization (AEM, arXiv:2406.15303), for methods whose attention is a softmax over the bag.
    `masking`: instances that a step keeps from methods that have attention and bring no masking of their own, by their scores;
    kind "top_k" (STKIM, ACMIL) or "rank" (the masks of MHIM-MIL).
    `clip_norm`: gradients are scaled to at most this norm. `average`: the decay of an exponential moving average of the weights,
    which is then what is watched and kept. `max_instances`: instances of a bag drawn anew for each step, null for all.
    `augmentation`: what is done to features in training steps. `monitor`: what is watched on the validation split, from the share
    `watch_from` of the epochs on: "loss", "auroc" of classes and labels, "kappa" (quadratic) or "mae" of levels, "mae" or
    "spearman" of numbers, "c_index" of survival; of equal epochs the latest counts as best. `patience`: epochs without a best
    before training stops, null for never, and not before the share `stop_from` of the epochs. `keep`: "best" keeps the best
    watched epoch, "last" the last one. `standardize`: features by mean and deviation of the training bags, or, with a warm start,
    as its run has it. `cache_gb`: memory for features that stay loaded. `prefetch`: bags that are read ahead.
    `checkpoint_minutes`: how often a checkpoint is written within an epoch, null for after each epoch alone. `trackers`: who is
    told of each epoch beside metrics.jsonl. `seed` decides weights, order, dropout and draws.
    """

    epochs: int = Field(40, ge=1)
    optimizer: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    lr: float = Field(3e-4, gt=0)
    schedule: ScheduleConfig = ScheduleConfig()
    weight_decay: float = Field(1e-2, ge=0)
    decay_vectors: bool = False
    warm_start: Path | None = None
    batch_bags: int = Field(1, ge=1)
    batch_instances: int | None = Field(None, ge=1)
    accumulate: int = Field(1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    balance: Literal["class_weights", "sampling", "none"] | None = None
    label_smoothing: float | None = Field(None, ge=0, lt=1)
    loss: Loss | None = None
    hazard_alpha: float = Field(0.0, ge=0, lt=1)
    entropy: AttentionEntropyConfig = AttentionEntropyConfig()
    masking: Masking | None = None
    clip_norm: float | None = Field(5.0, gt=0)
    average: float | None = Field(None, gt=0, lt=1)
    max_instances: int | None = Field(None, ge=1)
    augmentation: AugmentationConfig = AugmentationConfig()
    monitor: Monitor | None = None
    watch_from: float = Field(0.5, ge=0, lt=1)
    patience: int | None = Field(10, ge=1)
    stop_from: float = Field(0.0, ge=0, lt=1)
    keep: Literal["best", "last"] = "best"
    standardize: bool = True
    cache_gb: float = Field(8.0, ge=0)
    prefetch: int = Field(2, ge=0)
    checkpoint_minutes: float | None = Field(10.0, gt=0)
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    seed: int = Field(0, ge=0)
