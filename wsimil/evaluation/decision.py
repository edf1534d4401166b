"""What is fitted to a model's answers on the validation split and kept with it: calibration, threshold, sets, distances.

A run has decision.json, and ood.safetensors where distances are measured; both name the weights that they belong to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field

from wsimil.config import FrozenConfig
from wsimil.errors import ConfigError, ModelError
from wsimil.evaluation.calibration import Calibration, fit_bias_corrected, fit_isotonic, fit_temperature
from wsimil.evaluation.cases import Floats, Ints
from wsimil.evaluation.conformal import Conformal, SetKind, fit_conformal
from wsimil.evaluation.ood import Distance, OodReference, fit_ood
from wsimil.evaluation.threshold import (
    Threshold,
    cost_threshold,
    sensitivity_threshold,
    specificity_threshold,
    youden_threshold,
)
from wsimil.files import write_bytes, write_text
from wsimil.provenance import Json
from wsimil.targets import Classification, MultiLabel, Task
from wsimil.targets.base import sigmoid

if TYPE_CHECKING:
    from wsimil.mil.saved import TrainedModel

DECISION, REFERENCE = "decision.json", "ood.safetensors"
_VERSION = 3
_READABLE = (1, 2, 3)


class DecisionConfig(FrozenConfig):
    """What is fitted on the validation split once a model is trained, and frozen with it.

    Of classes: `calibration` "bias_corrected" (a temperature, and a shift of each class), "temperature", "isotonic" or "none";
    null is the first for two classes with a threshold, which is fitted behind it, else "temperature", which moves no decision.
    `threshold` of two classes, for the calibrated probability of the second: "youden", "sensitivity" or "specificity" of
    `at_least`, "cost" with `miss_cost` and `false_alarm_cost`, or "none", the higher probability. `conformal`: "lac" or "aps"
    sets with `coverage`, fitted on one slide a patient. `fewest`: patients of each class that the validation split must have, or
    all three stay as they are, and a note says so. Of several labels each has a calibration and a threshold of its own, as of two
    classes, where so many patients have it and so many have not. `ood`: "mahalanobis" or "knn" distance of a slide's mean feature
    to the training slides, or "none"; of slides like these the share `false_flags` is flagged. Other nulls are the first of each
    where it can be fitted; what is asked for and cannot be is refused.
    """

    calibration: Literal["bias_corrected", "temperature", "isotonic", "none"] | None = None
    threshold: Literal["youden", "sensitivity", "specificity", "cost", "none"] | None = None
    at_least: float = Field(0.95, gt=0, le=1)
    miss_cost: float = Field(1.0, gt=0)
    false_alarm_cost: float = Field(1.0, gt=0)
    conformal: SetKind | Literal["none"] = "none"
    coverage: float = Field(0.9, gt=0, lt=1)
    fewest: int = Field(10, ge=2)
    ood: Distance | Literal["none"] | None = None
    false_flags: float = Field(0.05, gt=0, lt=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelDecision:
    """Of one label of several: how its logit becomes a probability, and from which one on it is said; None: as the task does."""

    calibration: Calibration | None = None
    threshold: Threshold | None = None

    def to_json(self) -> dict[str, Json]:
        """Both as plain JSON."""
        parts = {"calibration": self.calibration, "threshold": self.threshold}
        return {name: None if part is None else part.to_json() for name, part in parts.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What goes with the weights of digest `model`; None is what was not fitted, and `notes` say why.

    `labels` are of a task of several labels, by name, those alone for which something was fitted.
    """

    model: str
    calibration: Calibration | None = None
    threshold: Threshold | None = None
    labels: Mapping[str, LabelDecision] = field(default_factory=dict)
    conformal: Conformal | None = None
    ood: OodReference | None = None
    notes: tuple[str, ...] = ()

    def applied(self, trained: TrainedModel) -> TrainedModel:
        """The model as it answers and decides from here on. Raises ModelError for other weights."""
        if self.model != trained.digest:
            raise ModelError(
                f"{DECISION} belongs to other weights ({self.model[:12]} != {trained.digest[:12]}); copy the whole run folder"
            )
        task = trained.task
        if self.threshold is not None and isinstance(task, Classification):
            task = replace(task, threshold=self.threshold.value)
        trained = replace(trained, calibration=self.calibration_facts)
        if self.labels and isinstance(task, MultiLabel):
            return self._of_labels(trained, task)
        apply = None if self.calibration is None else self.calibration.apply
        return replace(trained, task=task, calibrated=apply)

    def _of_labels(self, trained: TrainedModel, task: MultiLabel) -> TrainedModel:
        unknown = sorted(set(self.labels) - set(task.labels))
        if unknown:
            raise ModelError(f"{DECISION} speaks of labels that the model has not: {', '.join(unknown)}; train again")
        own = [self.labels.get(name, LabelDecision()) for name in task.labels]
        at = [
            half if one.threshold is None else one.threshold.value
            for one, half in zip(own, task.decides_at, strict=True)
        ]

        def probabilities(logits: Floats) -> Floats:
            columns = task.values(logits)
            for index, one in enumerate(own):
                if one.calibration is not None:
                    columns[:, index] = one.calibration.apply(_two_logits(logits[:, index]))[:, 1]
            return columns

        return replace(trained, task=replace(task, thresholds=tuple(at)), calibrated=probabilities)

    @property
    def calibration_facts(self) -> dict[str, Json]:
        """What `frozen_calibrations` reads, each as its `to_json` has it; empty where nothing was fitted."""
        labels = {name: one.calibration.to_json() for name, one in self.labels.items() if one.calibration is not None}
        if labels:
            return {"calibrations": labels}
        return {} if self.calibration is None else {"calibration": self.calibration.to_json()}

    def beside(self, values: Floats, mean_features: Floats, task: Task) -> dict[str, str | float]:
        """What stands beside an answer `values` [V] of one slide: "plausible" classes, "distance", "unusual" (yes or no)."""
        found: dict[str, str | float] = {}
        if self.conformal is not None and isinstance(task, Classification):
            (inside,) = self.conformal.sets(values[None])
            found["plausible"] = ";".join(name for name, there in zip(task.classes, inside, strict=True) if there)
        if self.ood is not None:
            distance = float(self.ood.distances(mean_features[None])[0])
            found |= {"distance": distance, "unusual": "yes" if distance > self.ood.threshold else "no"}
        return found

    def to_json(self) -> dict[str, Json]:
        """All but the arrays of the reference."""
        parts = {name: getattr(self, name) for name in ("calibration", "threshold", "conformal")}
        facts: dict[str, Json] = {"format_version": _VERSION, "model": self.model}
        facts |= {name: None if part is None else part.to_json() for name, part in parts.items()}
        ood = self.ood
        facts["labels"] = {name: one.to_json() for name, one in self.labels.items()}
        return facts | {
            "ood": None
            if ood is None
            else {"kind": ood.kind, "threshold": ood.threshold, "false_flags": ood.false_flags, "rows": ood.rows},
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValidationAnswers:
    """Of n validation slides the `logits` [n, C], the task's targets, and the patients that they are of."""

    logits: Floats
    targets: Ints
    patients: tuple[str, ...]


def check_decision(config: DecisionConfig, task: Task) -> None:
    """Raises ConfigError for what means nothing for the task, of which nothing need be fitted yet."""
    asked = [name for name in ("calibration", "threshold", "conformal") if getattr(config, name) not in (None, "none")]
    if not isinstance(task, Classification):
        meant = ("calibration", "threshold") if isinstance(task, MultiLabel) else ()
        for name in asked:
            if name not in meant:
                raise ConfigError(f"decision.{name}: is for classes, the task is {task.kind}; leave it out")
    elif "threshold" in asked and len(task.classes) != 2:
        raise ConfigError(f"decision.threshold: is for two classes, the task has {len(task.classes)}; leave it out")


def fit_decision(
    config: DecisionConfig,
    trained: TrainedModel,
    val: ValidationAnswers,
    *,
    training_means: Floats | None,
    training_patients: Sequence[str] = (),
) -> Decision:
    """Fit what `config` asks for; `training_means` [m, D] are mean features of training slides, None for no distances.

    What cannot be fitted is left out with a note. Raises ConfigError as `check_decision` does.
    """
    task = trained.task
    check_decision(config, task)
    notes: list[str] = []
    ood = _distance(config, training_means, training_patients, notes)
    if not isinstance(task, Classification):
        labels = _labels(config, task, val, notes) if isinstance(task, MultiLabel) else {}
        return Decision(model=trained.digest, labels=labels, ood=ood, notes=tuple(notes))
    few = _few(task, val, config.fewest)
    if few:
        if any(getattr(config, name) != "none" for name in ("calibration", "threshold", "conformal")):
            sets = "" if config.conformal == "none" else ", and there are no sets of plausible classes"
            notes.append(f"probabilities and the threshold are as the model gives them{sets}: {few}")
        return Decision(model=trained.digest, ood=ood, notes=tuple(notes))
    calibration = _calibration(config, val.logits, val.targets, notes)
    shares = task.values(val.logits) if calibration is None else calibration.apply(val.logits)
    threshold = _threshold(config, val.targets, shares[:, 1]) if len(task.classes) == 2 else None
    return Decision(
        model=trained.digest,
        calibration=calibration,
        threshold=threshold,
        conformal=_conformal(config, val, shares),
        ood=ood,
        notes=tuple(notes),
    )


def save_decision(run: Path, decision: Decision) -> None:
    """Write a decision into the folder of its run, in place of an earlier one. Raises OutputError."""
    if decision.ood is None:
        (run / REFERENCE).unlink(missing_ok=True)
    else:
        arrays = {name: np.array(array, order="C") for name, array in decision.ood.to_arrays().items()}
        write_bytes(run / REFERENCE, safetensors.numpy.save(arrays, metadata={"model": decision.model}))
    write_text(run / DECISION, json.dumps(decision.to_json(), indent=2) + "\n")


def load_decision(run: Path) -> Decision | None:
    """The decision of a run, None where it has none. Raises ModelError where it is broken."""
    try:
        facts = json.loads((run / DECISION).read_text(encoding="utf-8"))
        if facts["format_version"] not in _READABLE:
            raise ModelError(
                f"{run / DECISION}: format version {facts['format_version']!r}, this version reads {_VERSION} and older ones"
            )
        ood = None
        if facts["ood"] is not None:
            with safetensors.safe_open(run / REFERENCE, framework="np") as file:
                if (file.metadata() or {}).get("model") != facts["model"]:
                    raise ModelError(f"{run / REFERENCE} belongs to other weights; copy the whole run folder")
                ood = OodReference.from_arrays({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return Decision(
            model=facts["model"],
            calibration=None if facts["calibration"] is None else Calibration.from_json(facts["calibration"]),
            threshold=None if facts["threshold"] is None else Threshold.from_json(facts["threshold"]),
            labels={name: _label(one) for name, one in facts.get("labels", {}).items()},
            conformal=None if facts["conformal"] is None else Conformal.from_json(facts["conformal"]),
            ood=ood,
            notes=tuple(facts["notes"]),
        )
    except FileNotFoundError as error:
        if Path(str(error.filename)).name == DECISION:
            return None
        raise ModelError(f"{run / REFERENCE} does not exist; copy the whole run folder, or train again") from error
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError, ConfigError) as error:
        raise ModelError(
            f"{run / DECISION} cannot be read: {error!r}; copy the whole run folder, or train again"
        ) from error


def load_decided(run: Path, *, device: str = "cpu") -> tuple[TrainedModel, Decision]:
    """The model of a run as it answers and decides, with its decision. Raises ModelError."""
    from wsimil.mil.saved import load_model  # torch takes a second, which whoever only reads decisions need not wait

    trained = load_model(run, device=device)
    decision = load_decision(run) or Decision(model=trained.digest)
    return decision.applied(trained), decision


def mean_feature(features: NDArray[np.float16] | NDArray[np.float32]) -> Floats:
    """The mean over the instances of a bag, float64 [D]; no copy of the bag is made."""
    return np.asarray(features.mean(axis=0, dtype=np.float64))


def _few(task: Classification, val: ValidationAnswers, fewest: int) -> str:
    owners = {(patient, int(target)) for patient, target in zip(val.patients, val.targets, strict=True)}
    counts = Counter(target for _, target in owners)
    least = min(range(len(task.classes)), key=lambda index: counts[index])
    if counts[least] >= fewest:
        return ""
    return f"the validation split has {counts[least]} patients of {task.classes[least]!r}, {fewest} are wanted (decision.fewest)"


def _label(facts: Mapping[str, Any]) -> LabelDecision:
    calibration, threshold = facts["calibration"], facts["threshold"]
    return LabelDecision(
        calibration=None if calibration is None else Calibration.from_json(calibration),
        threshold=None if threshold is None else Threshold.from_json(threshold),
    )


def _labels(
    config: DecisionConfig, task: MultiLabel, val: ValidationAnswers, notes: list[str]
) -> dict[str, LabelDecision]:
    """Each label on the rows where it is known, where enough patients have it and enough have not."""
    if config.calibration == config.threshold == "none":
        return {}
    found, few = {}, []
    patients = np.asarray(val.patients, dtype=str)
    for index, name in enumerate(task.labels):
        known = val.targets[:, index] >= 0
        truth, logits = val.targets[known, index], _two_logits(val.logits[known, index])
        least = min(len(np.unique(patients[known][truth == value])) for value in (0, 1))
        if least < config.fewest:
            few.append(f"{name} {least}")
            continue
        own: list[str] = []
        calibration = _calibration(config, logits, truth, own)
        notes += [f"label {name}: {note}" for note in own]
        p = sigmoid(logits[:, 1]) if calibration is None else calibration.apply(logits)[:, 1]
        found[name] = LabelDecision(calibration=calibration, threshold=_threshold(config, truth, p))
    if few:
        notes.append(
            f"of {len(few)} labels the probabilities are as the model gives them, and 0.5 decides: the validation split has fewer"
            f" than {config.fewest} patients with or without them (decision.fewest): {', '.join(few)}"
        )
    return found


def _two_logits(logits: Floats) -> Floats:
    """A label's logit z [n] as the two (0, z) of having it not and having it, [n, 2]."""
    return np.stack([np.zeros_like(logits), logits], axis=1)


def _calibration(config: DecisionConfig, logits: Floats, targets: Ints, notes: list[str]) -> Calibration | None:
    if config.calibration == "none":
        return None
    fits = {"bias_corrected": fit_bias_corrected, "temperature": fit_temperature, "isotonic": fit_isotonic}
    # Without a threshold the higher probability decides, and a shift would move that by how often a class is seen.
    default = "bias_corrected" if logits.shape[1] == 2 and config.threshold != "none" else "temperature"
    try:
        return fits[config.calibration or default](logits, targets, fitted_on="val")
    except ModelError as error:
        notes.append(f"not calibrated: {error}")
        return None


def _threshold(config: DecisionConfig, targets: Ints, p: Floats) -> Threshold | None:
    """By the rule of `config`, for probabilities `p` [n] of class 1."""
    if config.threshold in (None, "youden"):
        return youden_threshold(targets, p, fitted_on="val")
    if config.threshold == "sensitivity":
        return sensitivity_threshold(targets, p, at_least=config.at_least, fitted_on="val")
    if config.threshold == "specificity":
        return specificity_threshold(targets, p, at_least=config.at_least, fitted_on="val")
    if config.threshold == "cost":
        costs = {"false_negative": config.miss_cost, "false_positive": config.false_alarm_cost}
        return cost_threshold(targets, p, fitted_on="val", **costs)
    return None


def _conformal(config: DecisionConfig, val: ValidationAnswers, shares: Floats) -> Conformal | None:
    if config.conformal == "none":
        return None
    _, first = np.unique(np.asarray(val.patients, dtype=str), return_index=True)
    rows = np.sort(first)
    patients = [val.patients[row] for row in rows]
    return fit_conformal(
        val.targets[rows], shares[rows], patients, kind=config.conformal, coverage=config.coverage, fitted_on="val"
    )


def _distance(
    config: DecisionConfig, means: Floats | None, patients: Sequence[str], notes: list[str]
) -> OodReference | None:
    if config.ood == "none" or means is None:
        return None
    try:
        return fit_ood(means, patients, kind=config.ood or "mahalanobis", false_flags=config.false_flags)
    except ConfigError as error:
        if config.ood is not None:
            raise
        notes.append(f"no slide is flagged as unusual: {error}")
        return None
