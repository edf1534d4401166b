"""Checkpoints: the whole state of a run after an epoch, in one file; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from wsimil.errors import TrainingError
from wsimil.files import atomic_path
from wsimil.mil.facts import CHECKPOINT
from wsimil.provenance import canonical_json

_KEY = "wsimil"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """State after `epoch` epochs: tensors by name (model, optimizer, best weights, generator) and plain facts."""

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint, atomically: one file, the facts in its header. Raises OutputError."""
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    with atomic_path(run / CHECKPOINT) as temporary:
        facts = {_KEY: canonical_json(dict(checkpoint.facts))}
        temporary.write_bytes(safetensors.torch.save(tensors, metadata=facts))  # save_file: for its owner alone


def read_checkpoint(run: Path) -> Checkpoint | None:
    """The run's checkpoint, None where there is none. Raises TrainingError where it is broken."""
    path = run / CHECKPOINT
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            return Checkpoint(tensors={name: file.get_tensor(name) for name in file.keys()}, facts=facts)  # noqa: SIM118
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise TrainingError(f"checkpoint {path} cannot be read: {error}; start anew with --overwrite") from error


def checkpoint_place(run: Path) -> str:
    """How far the run's checkpoint is, as epochs and steps that are done; empty where there is none. Raises TrainingError."""
    saved = read_checkpoint(run)
    return "" if saved is None else place(len(saved.facts["history"]), int(saved.facts.get("steps_done", 0)))


def place(epochs: int, steps: int) -> str:
    """Words for so many epochs and steps of the next that are done."""
    return f"epoch {epochs + 1}, step {steps}" if steps else f"epoch {epochs}"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Moments and step counts of an optimizer as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimizer over the same parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, value in tensors.items():
        if full.startswith("optimizer."):
            _, index, name = full.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
