"""A trained model on disk: weights as safetensors, everything else as JSON; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

import wsimil
from wsimil.cohort import BagUnit
from wsimil.errors import ConfigError, ModelError
from wsimil.files import atomic_path, write_text
from wsimil.mil.base import MILModel
from wsimil.mil.ensemble import build_saved
from wsimil.mil.facts import FACTS, FORMAT_VERSION, WEIGHTS, answers_digest, read_facts, task_of
from wsimil.provenance import Json, Provenance, sha256_json
from wsimil.targets import Task

_REMEDY = "extract with the model's encoder and tiling, or give slides to wsimil predict, which does so by itself"

__all__ = ["FACTS", "FORMAT_VERSION", "WEIGHTS", "TrainedModel", "load_model", "save_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A model with what it takes to use it: the task that it was trained for, and the kind of features that it was trained on.

    `bag`: whether a bag is a slide, or all slides of a patient.

    `features` is None where a model was imported and nobody said of which kind they were. `digest` is of the weights;
    `training` says where it came from, as plain JSON. `calibrated` turns logits into answers, where something was fitted, and
    `calibration` says so in plain JSON.
    """

    model: MILModel
    method: str
    task: Task
    features: Provenance | None
    training: Mapping[str, Json]
    digest: str
    bag: BagUnit = "slide"
    calibrated: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None
    calibration: Mapping[str, Json] = field(default_factory=dict)

    def values(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """The task's answers [n, V] for logits [n, C], calibrated where `calibrated` says how."""
        return self.task.values(logits) if self.calibrated is None else self.calibrated(logits)

    @property
    def facts(self) -> dict[str, Json]:
        """What a prediction says of the model that made it."""
        return {"method": self.method, "digest": self.digest, **self.calibration}

    @property
    def answers(self) -> str:
        """See `answers_digest`."""
        return answers_digest(self.digest, self.calibration)

    def check_features(self, provenance: Provenance, where: str, *, remedy: str = _REMEDY) -> None:
        """Raises ModelError where features are of another kind than the model's, naming what differs in both and the `remedy`."""
        if self.features is None:
            width = provenance.encoder.get("dim")
            if width is not None and width != self.model.in_dim:
                raise ModelError(f"{where}: {width} features an instance, the imported model takes {self.model.in_dim}")
            return
        differences = self.features.kind_differences(provenance)
        if differences:
            raise ModelError(
                f"{where}: these features do not fit the model, which was trained on others (model != features):"
                f" {'; '.join(differences)}; {remedy}"
            )


def save_model(
    run: Path,
    model: MILModel,
    *,
    method: str,
    task: Task,
    features: Provenance | None,
    training: Mapping[str, Json],
    bag: BagUnit = "slide",
) -> None:
    """Write model.safetensors, then model.json, which names the digest of the former. Raises OutputError."""
    state = {name: tensor.detach().to("cpu").contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(run / WEIGHTS) as temporary:
        temporary.write_bytes(safetensors.torch.save(state))  # save_file would leave a file for its owner alone
    facts: dict[str, Json] = {
        "format_version": FORMAT_VERSION,
        "wsimil_version": wsimil.__version__,
        "method": method,
        "config": model.config.model_dump(mode="json"),
        "in_dim": model.in_dim,
        "task": task.to_json(),
        "bag": bag,
        "weights_digest": _digest(state),
        "features": None if features is None else features.without_slide().to_json(),
        "training": dict(training),
    }
    write_text(run / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def load_model(run: Path, *, device: str = "cpu") -> TrainedModel:
    """The model of a finished run. Raises ModelError where it is missing, broken or of a newer format."""
    facts = read_facts(run)
    try:
        state = safetensors.torch.load_file(run / WEIGHTS)
    except FileNotFoundError:
        raise ModelError(f"{run / WEIGHTS} does not exist; copy the whole run folder, or train again") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{run / WEIGHTS} cannot be read: {error}; copy it again, or train again") from error
    if _digest(state) != facts.get("weights_digest"):
        raise ModelError(
            f"{run / WEIGHTS} is not the file that {FACTS} beside it describes; copy both again, or train again"
        )
    try:
        method, task = str(facts["method"]), task_of(facts)
        model = build_saved(
            method, facts["config"], in_dim=facts["in_dim"], num_classes=len(task.outputs), source=str(run / FACTS)
        )
        model.load_state_dict(state)
        trained = TrainedModel(
            model=model.to(device),
            method=method,
            task=task,
            features=None if facts["features"] is None else Provenance.from_json(facts["features"]),
            training=MappingProxyType(facts["training"]),
            digest=str(facts["weights_digest"]),
            bag="patient" if facts.get("bag") == "patient" else "slide",
        )
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{run / FACTS} does not describe a model that this version can build: {reason}") from error
    return trained


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    parts: dict[str, Json] = {}
    for name, tensor in state.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        parts[name] = [str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw).hexdigest()]
    return sha256_json(parts)
