"""What a trained model says of itself in model.json; read without torch, by whoever needs no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from wsimil.cohort import BagUnit
from wsimil.errors import ModelError
from wsimil.provenance import Json, Provenance, sha256_json
from wsimil.targets import Classification, Task, from_json

WEIGHTS, FACTS = "model.safetensors", "model.json"
CHECKPOINTS = "checkpoint"
CHECKPOINT = f"{CHECKPOINTS}/last.safetensors"
"""In the folder of a run: the state of its training."""

FORMAT_VERSION = 2
_READ_VERSIONS = (1, 2)
"""1 held the names of classes where 2 holds the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model without its weights: `config` are its hyperparameters, `training` says where it came from; both plain JSON.

    `features` is None where nobody said on which kind of features it was trained. `digest` is of the weights.
    """

    method: str
    config: Mapping[str, Json]
    in_dim: int
    task: Task
    bag: BagUnit
    features: Provenance | None
    training: Mapping[str, Json]
    digest: str
    version: str

    @property
    def answers(self) -> str:
        """See `answers_digest`."""
        return answers_digest(self.digest, self.training)

    @classmethod
    def of(cls, tree: Mapping[str, Any], where: str) -> Self:
        """The facts that model.json holds. Raises ModelError, which names `where` they stand."""
        try:
            if tree.get("format_version") not in _READ_VERSIONS:
                got = tree.get("format_version")
                raise ModelError(f"{where}: format version {got!r}, this version reads {FORMAT_VERSION}; update wsimil")
            return cls(
                method=str(tree["method"]),
                config=MappingProxyType(dict(tree["config"])),
                in_dim=int(tree["in_dim"]),
                task=task_of(tree),
                bag="patient" if tree.get("bag") == "patient" else "slide",
                features=None if tree["features"] is None else Provenance.from_json(tree["features"]),
                training=MappingProxyType(dict(tree["training"])),
                digest=str(tree["weights_digest"]),
                version=str(tree.get("wsimil_version", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{where} does not describe a model that this version can read: {reason}") from error


def answers_digest(digest: str, facts: Mapping[str, Json]) -> str:
    """SHA-256 over the `digest` of a model's weights and the calibrations among `facts` of it."""
    frozen = {name: facts[name] for name in ("calibration", "calibrations") if name in facts}
    return sha256_json({"weights": digest, **frozen})


def read_facts(run: Path) -> dict[str, Any]:
    """model.json of a finished run, as it stands there. Raises ModelError where it is missing, broken or of a newer format."""
    if not run.is_dir():
        raise ModelError(f"{run} is not a folder; give the folder that wsimil train wrote to")
    try:
        facts = json.loads((run / FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        unfinished = (run / "checkpoint").is_dir()
        remedy = (
            "its training is not finished: run the same wsimil train again"
            if unfinished
            else "give the folder that wsimil train wrote to"
        )
        raise ModelError(f"{run} holds no {FACTS}; {remedy}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{run / FACTS} cannot be read: {error}; copy it again, or train again") from error
    if not isinstance(facts, dict) or facts.get("format_version") not in _READ_VERSIONS:
        got = facts.get("format_version") if isinstance(facts, dict) else type(facts).__name__
        raise ModelError(f"{run / FACTS}: format version {got!r}, this version reads {FORMAT_VERSION}; update wsimil")
    return facts


def task_of(facts: Mapping[str, Any]) -> Task:
    """The task that model.json names. Raises KeyError, TypeError or ValueError where it names none."""
    if facts["format_version"] == 1:
        return Classification(classes=tuple(map(str, facts["classes"])))
    return from_json(facts["task"])
