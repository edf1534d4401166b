"""An exponential moving average of the weights, which answers in their place.

Polyak & Juditsky 1992, SIAM J. Control Optim.; the growing decay of the first steps as in Inception, Szegedy et al. 2016,
arXiv:1512.00567 (TensorFlow's ExponentialMovingAverage).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """`average = d * average + (1 - d) * weights` after each move of the weights, with `d = min(decay, (1 + t) / (10 + t))`.

    `t` counts the moves before. All floating-point parameters and buffers are averaged; what is no such number is taken as it is.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.moves = model, decay, 0
        self.averaged = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Called after each move of the weights."""
        decay = min(self.decay, (1 + self.moves) / (10 + self.moves))
        self.moves += 1
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.averaged[name].lerp_(tensor, 1 - decay)
            else:
                self.averaged[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs."""
        return {"average_moves": torch.tensor(self.moves)} | {f"average.{n}": t for n, t in self.averaged.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.moves = int(tensors["average_moves"])
        for name, tensor in self.averaged.items():
            tensor.copy_(tensors[f"average.{name}"])
