"""import-checkpoint: weights of official code become a run that predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, JsonValue

from wsimil.config import FrozenConfig
from wsimil.errors import ConfigError, ModelError
from wsimil.files import check_writable
from wsimil.mil.checkpoints import base
from wsimil.mil.checkpoints.file import read_state
from wsimil.mil.saved import save_model
from wsimil.provenance import Json, Provenance, sha256_file
from wsimil.stages.features import open_features
from wsimil.stages.occupied import occupied
from wsimil.stages.run_folder import clear_run, refuse_taken
from wsimil.targets import Classification


class ImportConfig(FrozenConfig):
    """Hyperparameters that tensors do not tell, such as `method.activation`."""

    method: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """What became of a checkpoint: the method, its hyperparameters, and what it takes and answers.

    `assumed` are hyperparameters, with their values, that tensors do not tell and nobody gave.
    """

    method: str
    config: FrozenConfig
    in_dim: int
    classes: tuple[str, ...]
    features: Provenance | None
    assumed: Mapping[str, Json]


def import_checkpoint(
    file: Path,
    source: str,
    out: Path,
    *,
    config: ImportConfig,
    classes: tuple[str, ...] | None = None,
    features: Path | None = None,
    overwrite: bool = False,
) -> ImportSummary:
    """Write model.safetensors and model.json into `out` from a checkpoint of official code.

    `classes` name its logits in their order; a checkpoint of one logit becomes two classes, the first of which has logit 0, so
    that the probability of the second is the sigmoid it was trained with. `features`, a feature folder, says of which kind the
    features are that the checkpoint was trained on; without it a prediction can only check their number.
    Raises ModelError for a checkpoint that is not whole, ConfigError for what does not fit it.
    """
    if not overwrite:
        refuse_taken(out)
    state = read_state(file)
    official, state = base.with_two_classes(base.describe(source, state), state)
    model = base.build(official, state, config=config.method).float()
    names = _classes(classes, official.num_classes)
    provenance = None if features is None else _provenance(features, official.in_dim)
    assumed = _assumed(official, model.config, config.method)
    check_writable(out)
    imported: dict[str, Json] = {"file": file.name, "source": source, "sha256": sha256_file(file), "assumed": assumed}
    with occupied(out):
        if overwrite:
            clear_run(out, needed=file)
        save_model(
            out,
            model,
            method=official.method,
            task=Classification(classes=names),
            features=provenance,
            training={"imported": imported},
        )
    return ImportSummary(
        method=official.method,
        config=model.config,
        in_dim=model.in_dim,
        classes=names,
        features=provenance,
        assumed=assumed,
    )


def _assumed(official: base.OfficialModel, config: FrozenConfig, given: Mapping[str, JsonValue]) -> dict[str, Json]:
    resolved = config.model_dump(mode="json")
    values: dict[str, Json] = {}
    for name in official.untold:
        where, told = resolved, given
        *groups, leaf = name.split(".")
        for group in groups:
            inner = told.get(group)
            where, told = where[group], inner if isinstance(inner, Mapping) else {}
        if leaf not in told:
            values[name] = where[leaf]
    return values


def _classes(given: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
    if given is None:
        return ("negative", "positive") if count == 2 else tuple(f"class {number}" for number in range(count))
    if len(given) != count or len(set(given)) != count:
        raise ConfigError(
            f"--classes: got {', '.join(given)}; wanted {count} different names, in the order of the logits"
        )
    return given


def _provenance(features: Path, in_dim: int) -> Provenance:
    store = open_features(features)
    ids = store.ids()
    if not ids:
        raise ConfigError(f"--features {features}: no feature file there")
    header = store.header(ids[0])
    if header.dim != in_dim:
        raise ModelError(f"--features {features}: {header.dim} features an instance, the checkpoint takes {in_dim}")
    return header.provenance
