"""Files of one tensor, as torch writes them; nothing but tensors is ever unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsimil.errors import StoreError
from wsimil.files import atomic_path
from wsimil.store.interop.peer import Features


class TorchTensors:
    """What `wsimil.store.interop` needs of torch."""

    def describe(self, path: Path) -> tuple[tuple[int, ...], str]:
        """Shape and the dtype that `load` gives. The values stay on the disk where the file allows it. Raises StoreError."""
        tensor = _load(path)
        dtype = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
        return tuple(tensor.shape), str(dtype).removeprefix("torch.")

    def load(self, path: Path) -> NDArray[np.generic]:
        """All values; bfloat16 becomes float32. Raises StoreError."""
        tensor = _load(path)
        values: NDArray[np.generic] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return np.array(values)  # out of the mapped file, which may be replaced

    def save(self, path: Path, array: Features) -> None:
        """Write atomically, as float32. Raises OutputError."""
        with atomic_path(path) as temporary:
            torch.save(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), temporary)


def _load(path: Path) -> Tensor:
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(2) == b"PK"  # before torch 1.6 files were no archives, and cannot be mapped
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; extract the slide or drop it") from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StoreError(
            f"{path} cannot be read as a tensor ({reason}); copy it again, or extract the slide again"
        ) from None
    if not isinstance(found, Tensor):
        raise StoreError(
            f"{path} holds a {type(found).__name__}, wanted one tensor [tiles, features]; give a folder of tile features"
        )
    return found.detach()
