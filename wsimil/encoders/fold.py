"""Batch norm in evaluation is one scale and shift per channel: folded into the convolution before it, it costs nothing."""

from __future__ import annotations

import torch
from torch import nn


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Fold each batch norm of `model` into the convolution defined just before it, in place.

    The folding is done in float64 and rounded once. For models whose layers run in the order of their definition.
    """
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
            _fold(previous[1], child)
            # timm's batch norm runs the activation that follows it.
            rest = child.act if hasattr(child, "act") else nn.Identity()
            setattr(model, name, rest)
        else:
            fold_batchnorm(child)
        previous = (name, child)
    return model


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise TypeError("a batch norm without running statistics cannot be folded")
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    bias = torch.zeros_like(mean, dtype=torch.float64) if conv.bias is None else conv.bias.double()
    shift = norm.bias.double() + (bias - mean.double()) * scale
    conv.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).float(), requires_grad=False)
    conv.bias = nn.Parameter(shift.float(), requires_grad=False)
