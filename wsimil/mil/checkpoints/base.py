"""What a source knows of its state_dicts: which of our methods they are, and which of their tensors is which of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.mil import registry

if TYPE_CHECKING:
    from pydantic import JsonValue

    from wsimil.mil.base import MILModel


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialModel:
    """A method of ours that computes what an official checkpoint computes.

    `config` is what tensors tell of the hyperparameters. `names` gives our name for each of theirs; a tensor may have more or
    fewer axes of length 1 with us. `aliases` are theirs that nothing reads, or that repeat another;
    `repeats` are ours that they lack, each with the one of ours that it begins as. `untold` are hyperparameters that an answer
    hangs on and tensors do not tell: theirs are the official defaults unless they are given.
    """

    method: str
    config: Mapping[str, JsonValue]
    in_dim: int
    num_classes: int
    names: Mapping[str, str]
    aliases: frozenset[str] = field(default=frozenset())
    repeats: Mapping[str, str] = field(default_factory=dict)
    untold: tuple[str, ...] = ()


class Source(Protocol):
    """A module of this package."""

    def describe(self, state: Mapping[str, Tensor]) -> OfficialModel:
        """Raises ModelError where `state` is of no layout that the source knows."""
        ...


_OTHERS = ("__init__", "base", "file")
_SINGLE_LOGIT = {
    "abmil": {"classifier.weight": (1, 0), "classifier.bias": (1, 0)},
    "dsmil": {"instance.weight": (1, 0), "instance.bias": (1, 0), "bag.weight": (1, 1), "bag.bias": (1, 0)},
}
"""Tensors of methods that may have one logit, and how many rows and columns of zeros come before what they hold."""


def sources() -> list[str]:
    """Names of all sources, sorted: the files of this package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _OTHERS)


def describe(source: str, state: Mapping[str, Tensor]) -> OfficialModel:
    """What `state` is. Raises ModelError for an unknown source or layout."""
    if source not in sources():
        raise ModelError(f"unknown source {source!r}; known are {', '.join(sources())}")
    module = cast("Source", import_module(f"wsimil.mil.checkpoints.{source}"))
    try:
        return module.describe(state)
    except KeyError as error:
        raise ModelError(f"the checkpoint is not one of {source}: missing key {error}") from None


def build(
    official: OfficialModel, state: Mapping[str, Tensor], *, config: Mapping[str, JsonValue] | None = None
) -> MILModel:
    """The model with the weights of `state`; `config` is laid over what was inferred.

    Raises ModelError that names every key which is missing, unexpected, of another shape, or not finite.
    """
    model = registry.build(
        official.method,
        _laid_over(official.config, config or {}),
        in_dim=official.in_dim,
        num_classes=official.num_classes,
        source="import",
    )
    ours = model.state_dict()
    unexpected = sorted(set(state) - set(official.names) - official.aliases)
    taken = {official.names[name]: tensor for name, tensor in state.items() if name in official.names}
    taken |= {name: taken[source] for name, source in official.repeats.items() if source in taken}
    missing = sorted(name for name in ours if name not in taken and "standardize." not in name)
    strange = sorted(set(taken) - set(ours))
    if unexpected or missing or strange:
        raise ModelError(
            f"the checkpoint is not that of method {official.method!r}: unexpected {unexpected or 'nothing'}, without a place"
            f" {strange or 'nothing'}, missing {missing or 'nothing'}"
        )
    for name, tensor in taken.items():
        if [n for n in tensor.shape if n > 1] != [n for n in ours[name].shape if n > 1]:
            raise ModelError(f"{name}: {list(tensor.shape)} in the checkpoint, wanted {list(ours[name].shape)}")
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{name}: NaN or infinity in the checkpoint")
        taken[name] = tensor.to(torch.promote_types(tensor.dtype, torch.float32)).reshape(ours[name].shape)
    if any(tensor.dtype == torch.float64 for tensor in taken.values()):
        model = model.double()
    model.load_state_dict(taken, strict=False)
    return model


def _laid_over(below: Mapping[str, JsonValue], above: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """`above` wins, key by key also in sections."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        merged[name] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def with_two_classes(official: OfficialModel, state: Mapping[str, Tensor]) -> tuple[OfficialModel, dict[str, Tensor]]:
    """A model of one logit as one of two classes, the first with logit 0; any other as it is.

    The softmax of (0, logit) is the sigmoid of the logit. Raises ModelError for a method of which no such model is known.
    """
    if official.num_classes > 1:
        return official, dict(state)
    if official.method not in _SINGLE_LOGIT:
        raise ModelError(f"a {official.method!r} of one logit is not known; a model needs two classes or more")
    widened = dict(state)
    for theirs, ours in official.names.items():
        rows, columns = _SINGLE_LOGIT[official.method].get(ours, (0, 0))
        if rows:
            tensor = widened[theirs]
            wide = tensor.new_zeros((tensor.shape[0] + rows, *tensor.shape[1:]))
            if columns:
                wide = tensor.new_zeros((tensor.shape[0] + rows, tensor.shape[1] + columns, *tensor.shape[2:]))
                wide[rows:, columns:] = tensor
            else:
                wide[rows:] = tensor
            widened[theirs] = wide
    return replace(official, num_classes=2), widened


def names_of(state: Mapping[str, Tensor], layers: Mapping[str, str], *, source: str) -> dict[str, str]:
    """Our names by layer: "a.0" -> "attention.value" makes of "a.0.weight" "attention.value.weight".

    A layer of ours without a name stands for the tensor itself ("q" -> "query"). "*" in both stands for a number.
    Raises ModelError that names keys without a layer, and layers without a key.
    """
    names: dict[str, str] = {}
    used: set[str] = set()
    for key in state:
        for layer, ours in layers.items():
            pattern = re.escape(layer).replace(r"\*", r"(\d+)")
            match = re.fullmatch(rf"{pattern}(\.(?:weight|bias))?", key)
            if match:
                number = match.group(1) if "*" in layer else ""
                names[key] = ours.replace("*", number) + (match.groups()[-1] or "")
                used.add(layer)
                break
    unexpected, missing = sorted(set(state) - set(names)), sorted(set(layers) - used)
    if unexpected or missing:
        raise ModelError(
            f"the checkpoint is not one of {source}: unexpected keys {unexpected or 'none'}, missing layers {missing or 'none'}"
        )
    return names


def first_layout(state: Mapping[str, Tensor], layouts: Sequence[tuple[str, str]], *, source: str) -> str:
    """The name of the first layout whose telling key is in `state`: (name, key) pairs. Raises ModelError for none."""
    for name, key in layouts:
        if key in state:
            return name
    raise ModelError(
        f"the checkpoint is not one of {source}: it has none of {', '.join(key for _, key in layouts)}; its keys begin with"
        f" {', '.join(sorted(state)[:4])}"
    )
