"""Optimizers by name, those of the official recipes among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from wsimil.mil.base import ParamGroup
from wsimil.training.config import OptimizerName

_SYNC_EVERY, _TOWARD_FAST = 6, 0.5


def make_optimizer(
    name: OptimizerName,
    groups: Iterable[ParamGroup],
    *,
    lr: float,
    weight_decay: float,
    decay_vectors: bool,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    """An optimizer over `groups`.

    "adamw", "radam" and "lookahead_radam" take decay off the weights, "adam" and "sgd" add it to the gradient, as torch names
    them; `betas` are those of the Adam family, the first of them is SGD's momentum.
    """
    parts = [
        {"params": group.parameters, "weight_decay": weight_decay if group.decay or decay_vectors else 0.0}
        for group in groups
    ]
    if name == "sgd":
        return torch.optim.SGD(parts, lr=lr, momentum=betas[0])
    if name == "adam":
        return torch.optim.Adam(parts, lr=lr, betas=betas)
    if name == "adamw":
        return torch.optim.AdamW(parts, lr=lr, betas=betas)
    return torch.optim.RAdam(parts, lr=lr, betas=betas, decoupled_weight_decay=True)


class Lookahead:
    """Slow weights that every sixth step go half the way to the fast ones, which then begin again from there.

    Zhang, Lucas, Hinton & Ba 2019, NeurIPS, arXiv:1907.08610, with k = 6 and alpha = 0.5 as in TransMIL. `steps` counts the
    steps of the fast optimizer.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.fast = list(parameters)
        self.slow = [parameter.detach().clone() for parameter in self.fast]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Called after each step of the fast optimizer."""
        self.steps += 1
        if self.steps % _SYNC_EVERY:
            return
        for slow, fast in zip(self.slow, self.fast, strict=True):
            slow.lerp_(fast, _TOWARD_FAST)
            fast.copy_(slow)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a resumed run needs."""
        return {"lookahead.steps": torch.tensor(self.steps)} | {
            f"lookahead.{index}": slow for index, slow in enumerate(self.slow)
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        self.steps = int(tensors["lookahead.steps"])
        for index, slow in enumerate(self.slow):
            slow.copy_(tensors[f"lookahead.{index}"])
