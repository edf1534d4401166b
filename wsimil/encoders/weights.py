"""Weight files: read without running code, named as timm names them, checked key by key, and known by their digest."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from wsimil.encoders.base import EncoderCard
from wsimil.encoders.layouts import Shapes, State, to_timm
from wsimil.errors import EncoderError
from wsimil.provenance import sha256_file

_WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict", "module", "encoder")
_PREFIXES = ("_orig_mod.", "module.", "backbone.", "model.", "vit.", "dinov2.")
_SHOWN = 4


def read_state(path: Path) -> State:
    """The tensors of a safetensors file or of a torch file, on CPU; a wrapping {"state_dict": ...} is taken off.

    A torch file is read with weights_only=True. Raises EncoderError where that cannot be done.
    """
    try:
        tree = _read(path)
    except FileNotFoundError:
        raise EncoderError(f"weights file {path} does not exist") from None
    except IsADirectoryError:
        raise EncoderError(f"weights file {path} is a folder; give the file of weights in it") from None
    except pickle.UnpicklingError:
        raise EncoderError(
            f"weights file {path} is no safetensors or torch file of plain tensors: it is damaged, or holds objects whose"
            " loading would run code; download it again, or save its state dict alone as safetensors"
        ) from None
    except (
        OSError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, struct.error, zipfile.BadZipFile,
        safetensors.SafetensorError,
    ) as error:  # fmt: skip
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise EncoderError(f"weights file {path} cannot be read ({reason}); download it again") from None
    while (state := _as_state(tree)) is None:
        inner = next((inner for key in _WRAPPERS if isinstance(inner := tree.get(key), Mapping)), None)
        if inner is None:
            raise EncoderError(
                f"weights file {path} holds no state dict: got keys {_some(sorted(map(str, tree)))}, wanted names of tensors,"
                f" or one of {', '.join(_WRAPPERS)} around them"
            )
        tree = inner
    return state


def state_for(card: EncoderCard, path: Path, shapes: Shapes, *, classifier: Sequence[str] = ()) -> State:
    """The tensors of `path` in float32, under the names and with the shapes of the model of `card`.

    `classifier` are prefixes of the model's classifier, which a file may hold and an encoder has no use for.
    Raises EncoderError, which names what is missing, unexpected, of another shape or not finite.
    """
    unused = (*card.unused, *classifier)
    state = _without(_strip(_without(read_state(path), unused)), unused)
    state = {key: _sane(card, path, key, tensor) for key, tensor in to_timm(card.layout, state, shapes).items()}
    for key in shapes:
        if key.endswith("num_batches_tracked"):  # a counter that evaluation does not read, and old files do not hold
            state.setdefault(key, torch.zeros((), dtype=torch.int64))
    _refuse_misfit(card, path, state, shapes)
    return state


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Name to shape of what a state dict of `model` holds."""
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits; read once for a given path, size and time of change."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    return sha256_file(path)


def _read(path: Path) -> Mapping[str, object]:
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return safetensors.torch.load_file(path)
    tree = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tree, Mapping):
        raise ValueError(f"it holds a {type(tree).__name__}")  # noqa: TRY004 - told to the user as one of many reasons
    return tree


def _as_state(tree: Mapping[str, object]) -> State | None:
    tensors = {str(key): value for key, value in tree.items() if isinstance(value, torch.Tensor)}
    return tensors if tensors and len(tensors) == len(tree) else None


def _without(state: State, prefixes: Sequence[str]) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith(tuple(prefixes))}


def _strip(state: State) -> State:
    """Take off a prefix that every key has, as often as there is one."""
    while state:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _sane(card: EncoderCard, path: Path, key: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.float32)
    if not torch.isfinite(tensor).all():
        raise EncoderError(
            f"encoder {card.name!r}: weights file {path} holds NaN or infinity (or a number beyond float32) in {key!r};"
            " it is damaged or from a failed training: download it again"
        )
    return tensor


def _refuse_misfit(card: EncoderCard, path: Path, state: State, shapes: Shapes) -> None:
    missing = [key for key in shapes if key not in state]
    unexpected = [key for key in state if key not in shapes]
    misshapen = [
        f"{key} {list(state[key].shape)} where {list(shape)} was wanted"
        for key, shape in shapes.items()
        if key in state and state[key].shape != shape
    ]
    reasons = [
        f"{len(names)} {what} ({_some(names)})"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (misshapen, "of another shape"))
        if names
    ]
    if reasons:
        source = f"; wanted the file {card.hub_files[0]} of {card.hub_id}" if card.hub_id else ""
        raise EncoderError(f"encoder {card.name!r}: weights file {path} does not fit: {', '.join(reasons)}{source}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
