"""From a file of official code to the tensors in it; nothing but tensors and plain values is ever unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from wsimil.errors import ModelError

_WRAPPERS = ("model_state_dict", "state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "model.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state_dict of a .safetensors file, or of what `torch.save` wrote, without what it is wrapped in.

    A file of student and teacher ("model" and "teacher") gives keys "student...." and "teacher....", one of several modules keys
    that begin with the module's name. Raises ModelError for a file that is missing, broken, or holds other things.
    """
    if not path.is_file():
        raise ModelError(f"checkpoint {path} does not exist")
    try:
        tree = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"checkpoint {path} cannot be read as tensors: {reason[:300]}; it must be a state_dict: save model.state_dict() where"
            " the official code is installed, a whole pickled model is never loaded"
        ) from None
    state = _unwrapped(tree, path)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _unpickle(path: Path) -> object:
    # Numbers that numpy wrote beside the weights are harmless: a scalar, its type, and the types that it may have.
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    allowed: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype]
    allowed += [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    with torch.serialization.safe_globals(allowed):
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    return found


def _unwrapped(tree: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(tree, Mapping) or not tree:
        raise ModelError(f"checkpoint {path} holds a {type(tree).__name__}, wanted a state_dict")
    if _is_state(tree):
        return dict(tree)
    if _is_state(tree.get("model")) and _is_state(tree.get("teacher")):
        return _joined({"student": tree["model"], "teacher": tree["teacher"]})
    for name in _WRAPPERS:
        if _is_state(tree.get(name)):
            return dict(tree[name])
    if all(_is_state(value) for value in tree.values()):
        return _joined(tree)
    raise ModelError(
        f"checkpoint {path} holds no state_dict that is known; its keys are {', '.join(map(str, tree))[:200]}"
    )


def _is_state(tree: object) -> bool:
    return isinstance(tree, Mapping) and bool(tree) and all(isinstance(value, Tensor) for value in tree.values())


def _joined(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{group}.{key}": value for group, state in groups.items() for key, value in state.items()}
