"""Gradients by inputs alone: what a layer keeps for the gradient of its weights is not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def by_inputs_alone(model: nn.Module) -> Iterator[None]:
    """Gradients are recorded, and none of them is by a parameter; afterwards parameters learn as before."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
