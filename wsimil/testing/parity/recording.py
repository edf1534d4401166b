"""A recorded step: what went in, what was drawn, what came out."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsimil.errors import WsimilError
from wsimil.mil.batch import BagBatch, StepContext, pack
from wsimil.mil.criterion import Criterion, CrossEntropy

_INPUTS = ("config", "state.", "in.", "rng.")


class RecordingError(WsimilError):
    """A recording that cannot be read, or whose draws do not fit those that the method asks for."""


class Recording:
    """The arrays of one file; it knows which of them were asked for."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self._arrays: dict[str, NDArray[Any]] = {key: file[key] for key in file.files}
            self.config: dict[str, Any] = json.loads(str(self._arrays["config"]))
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise RecordingError(f"{path} is not a recording: {error}") from error
        self.path = path
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def array(self, key: str) -> NDArray[Any]:
        """One array. Raises RecordingError where there is none."""
        if key not in self._arrays:
            raise RecordingError(f"{self.path} holds no {key!r}")
        self._asked.add(key)
        return self._arrays[key]

    def peek(self, key: str) -> NDArray[Any]:
        """One array, without counting it as compared."""
        return self._arrays[key]

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, without it."""
        return [key.removeprefix(prefix) for key in self._arrays if key.startswith(prefix)]

    def state(self, prefix: str = "state.", *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The official state_dict."""
        return {key: torch.from_numpy(self._arrays[prefix + key]).to(dtype) for key in self.keys(prefix)}

    def bag(self, key: str = "in.x", *, dtype: torch.dtype = torch.float32) -> BagBatch:
        """The recorded bag, in its order, with features that ask for a gradient."""
        x = torch.from_numpy(np.atleast_2d(self.array(key)).astype(np.float32)).to(dtype).requires_grad_()
        rows = torch.arange(len(x))
        targets = [0]
        if "in.label" in self and self._arrays["in.label"].size == 1:
            targets = [int(self._arrays["in.label"].item())]
        return pack(
            [x], xy0=[torch.stack([rows, torch.zeros_like(rows)], dim=1)], slide_ids=["recorded"], targets=targets
        )

    def step(self, *, progress: float = 0.0, criterion: Criterion | None = None) -> RecordedStep:
        """A training step that draws what was drawn."""
        order = json.loads(str(self._arrays["rng.order"])) if "rng.order" in self else []
        draws: dict[str, deque[NDArray[Any]]] = {}
        for name in order:
            draws.setdefault(name.partition(".")[0], deque()).append(self._arrays[f"rng.{name}"])
        return RecordedStep(
            generator=torch.Generator(), progress=progress, criterion=criterion or CrossEntropy(), draws=draws
        )

    def uncompared(self) -> list[str]:
        """What the file expects and nobody asked for."""
        return [key for key in self._arrays if not key.startswith(_INPUTS) and key not in self._asked]

    def without_comparison(self, key: str) -> None:
        """Set a quantity aside that is no result of the method: a note, or what is listed as informational."""
        self._asked.add(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStep(StepContext):
    """A step whose draws are those of a recording, each kind in its order."""

    draws: dict[str, deque[NDArray[Any]]]

    def keep_mask(self, shape: Sequence[int], *, drop: float, device: torch.device) -> Tensor:
        """The next recorded dropout mask."""
        return self._next("dropout", int(np.prod(shape))).bool().view(*shape).to(device)

    def uniform(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        """The next recorded uniform numbers."""
        return self._next("rand", int(np.prod(shape))).view(*shape).to(device)

    def seed(self, *, device: torch.device) -> None:
        """None: every draw is recorded."""

    def permutation(self, count: int, *, device: torch.device) -> Tensor:
        """The next recorded permutation."""
        return self._next("randperm" if self.draws.get("randperm") else "shuffle", count).to(device)

    def left(self) -> dict[str, int]:
        """How many draws of each kind nobody asked for."""
        return {kind: len(queue) for kind, queue in self.draws.items() if queue}

    def _next(self, kind: str, size: int) -> Tensor:
        queue = self.draws.get(kind)
        if not queue:
            raise RecordingError(
                f"the method draws more often than the recording: no {kind} is left, one of {size} was asked for"
            )
        # What we draw at once may have been drawn in several calls.
        parts = [queue.popleft().reshape(-1)]
        while queue and sum(map(len, parts)) < size:
            parts.append(queue.popleft().reshape(-1))
        if sum(map(len, parts)) != size:
            raise RecordingError(f"the method asks for a {kind} of {size} numbers, {[*map(len, parts)]} were recorded")
        return torch.from_numpy(np.concatenate(parts))
