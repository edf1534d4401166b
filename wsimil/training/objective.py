"""What a run minimizes and watches, for each task: defaults, refusals and the criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from wsimil.errors import ConfigError
from wsimil.mil.base import MILModel
from wsimil.mil.criterion import (
    BinaryCrossEntropy,
    Corn,
    CoxLikelihood,
    Criterion,
    CrossEntropy,
    Deviation,
    HazardLikelihood,
    LabelCrossEntropy,
    RegressionLoss,
)
from wsimil.targets import MultiLabel, Regression, Survival, Targets, Task
from wsimil.training.config import FitConfig
from wsimil.training.sampling import class_weights, label_weights

_CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "classification": {
        "loss": ("cross_entropy", "binary_cross_entropy"),
        "monitor": ("auroc", "loss"),
        "balance": ("class_weights", "sampling", "none"),
    },
    "multilabel": {
        "loss": ("binary_cross_entropy",),
        "monitor": ("auroc", "loss"),
        "balance": ("class_weights", "none"),
    },
    "ordinal": {
        "loss": ("corn",),
        "monitor": ("kappa", "mae", "loss"),
        "balance": ("none", "class_weights", "sampling"),
    },
    "regression": {
        "loss": ("huber", "squared", "absolute"),
        "monitor": ("mae", "spearman", "loss"),
        "balance": ("none",),
    },
    "survival by hazard": {"loss": ("hazard",), "monitor": ("c_index", "loss"), "balance": ("none",)},
    "survival by cox": {
        "loss": ("cox_efron", "cox_breslow"),
        "monitor": ("c_index", "loss"),
        "balance": ("none",),
    },
}
_SMOOTHED = {"classification": 0.1, "multilabel": 0.0}
_REGRESSION: Mapping[str, RegressionLoss] = {"huber": "huber", "squared": "squared", "absolute": "absolute"}


def resolved(config: FitConfig, task: Task) -> FitConfig:
    """The config with the defaults of the task, the first of each choice. Raises ConfigError for what means nothing for it."""
    name = _name(task)
    update: dict[str, object] = {}
    for key, choices in _CHOICES[name].items():
        given = getattr(config, key)
        if given is None:
            update[key] = choices[0]
        elif given not in choices:
            raise ConfigError(f"fit.{key}: {given!r} means nothing for {name}; wanted {' or '.join(choices)}")
    if config.label_smoothing is None:
        update["label_smoothing"] = _SMOOTHED.get(name, 0.0)
    elif config.label_smoothing and name not in _SMOOTHED:
        raise ConfigError(f"fit.label_smoothing: got {config.label_smoothing}, but {name} has no classes; leave it out")
    if config.hazard_alpha and name != "survival by hazard":
        raise ConfigError(f"fit.hazard_alpha: means nothing for {name}, it is for survival with task.model hazard")
    if name == "survival by cox" and config.batch_bags < 2:
        raise ConfigError(
            f"fit.batch_bags: got {config.batch_bags}; Cox's likelihood compares the bags of a step with each other, so it needs"
            " two at least, and better 16 or more, some with an event; fit.accumulate does not help, as it averages steps"
        )
    return config.model_copy(update=update)


def criterion_of(config: FitConfig, task: Task, targets: Targets, *, device: str) -> tuple[Criterion, Criterion]:
    """The criterion of training, and that of validation, without smoothing; `config` is resolved, `targets` those of training.

    What they hold lies on `device`, and goes where logits are.
    """
    smoothing = config.label_smoothing or 0.0
    weigh = config.balance == "class_weights"
    if isinstance(task, MultiLabel):
        of_labels = label_weights(np.asarray(targets, np.int64)).to(device) if weigh else None
        return LabelCrossEntropy(of_labels, smoothing), LabelCrossEntropy(of_labels)
    if isinstance(task, Regression):
        kind = _REGRESSION[str(config.loss)]
        deviation = Deviation(_tensor(task.mean, device), _tensor(task.scale, device), kind)
        return deviation, deviation
    if isinstance(task, Survival):
        survival: Criterion
        if task.model == "cox":
            survival = CoxLikelihood("efron" if config.loss == "cox_efron" else "breslow")
        else:
            survival = HazardLikelihood(_tensor(task.edges, device), config.hazard_alpha)
        return survival, survival
    counts = len(task.group_names)
    weights = class_weights(np.asarray(targets, np.int64), classes=counts).to(device) if weigh else None
    if task.kind == "ordinal":
        return Corn(weights), Corn(weights)
    made: Callable[..., Criterion] = CrossEntropy if config.loss == "cross_entropy" else BinaryCrossEntropy
    return made(weights, smoothing), made(weights)


def check_options(
    config: FitConfig, task: Task, model: MILModel, *, method: str, counts: Callable[[], Sequence[int]]
) -> None:
    """Raise ConfigError for options of a resolved config that the model of a `method` has no use for, or that keep bags apart
    which are to be compared; `counts` gives the instances of training bags in a step.
    """
    if config.batch_instances is not None and _name(task) == "survival by cox":
        _check_batch_instances(config.batch_instances, counts())
    if config.masking is not None and not model.takes_masking:
        raise ConfigError(
            f"fit.masking: method {method!r} has no attention that could be masked, or masks by itself; leave fit.masking"
            " out, or turn the method's own masking off"
        )


def _check_batch_instances(budget: int, counts: Sequence[int]) -> None:
    largest = sorted(counts)[-2:]
    if budget < sum(largest):
        raise ConfigError(
            f"fit.batch_instances: got {budget}, but the two largest training bags have"
            f" {' + '.join(str(count) for count in largest)} instances in a step; Cox's likelihood compares the bags of a"
            f" step, and learns nothing from one that goes alone: wanted {sum(largest)} or more, better enough for"
            " fit.batch_bags bags, or smaller bags by fit.max_instances"
        )


def _tensor(values: Sequence[float], device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def _name(task: Task) -> str:
    return f"survival by {task.model}" if isinstance(task, Survival) else task.kind
