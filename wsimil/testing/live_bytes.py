"""Peak memory of a computation in torch, counted and not sampled: the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its modes
    """Within the block, `peak` is the largest sum of bytes of tensors made in it and alive at one time, backward included.

    What a kernel takes for itself while it runs is not seen, nor are tensors made before the block.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs the operation and counts the storages that it made."""
        before = {_key(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self._alive = {key: held for key, held in self._alive.items() if not _is_gone(held[0])}
        for storage in _storages(result):
            if _key(storage) not in before:
                self._alive[_key(storage)] = (_weak(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def _weak(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # torch does not type it


def _is_gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]  # torch does not type it


def _storages(values: object) -> Iterator[torch.UntypedStorage]:
    """Of all tensors in them; a sparse tensor has two."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, torch.Tensor):
            parts = (leaf._indices(), leaf._values()) if leaf.is_sparse else (leaf,)
            yield from (part.untyped_storage() for part in parts)


def _key(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)
