"""How the linear layers of a method begin."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import nn

Init: TypeAlias = Literal["torch", "xavier_normal", "kaiming_uniform", "orthogonal"]


def initialize(module: nn.Module, init: Init) -> None:
    """Draw every linear layer below `module` anew: its weight as `init` says, its bias 0; "torch" leaves torch's own draw.

    With "orthogonal" one-dimensional convolutions are drawn too.

    Draws come from torch's global generator, which `wsimil.mil.registry.build` seeds and puts back.
    """
    if init == "torch":
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear) or (init == "orthogonal" and isinstance(layer, nn.Conv1d)):
            if init == "orthogonal":
                nn.init.orthogonal_(layer.weight)
            elif init == "xavier_normal":
                nn.init.xavier_normal_(layer.weight)
            else:
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def center(classifier: nn.Linear) -> None:
    """Take from each row of a classifier the mean over its rows, and set its bias to 0."""
    classifier.weight -= classifier.weight.mean(dim=0, keepdim=True)
    nn.init.zeros_(classifier.bias)
