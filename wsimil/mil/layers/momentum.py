"""A teacher that follows its student: its weights are a moving average, its view of a bag is what the student should reach.

MHIM-MIL, Tang et al. 2023, ICCV, arXiv:2307.15254; https://github.com/DearCaat/MHIM-MIL.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def rising(momentum: float, progress: float) -> float:
    """From `momentum` at the beginning of training along half a cosine to 1 at its end; `progress` in [0, 1]."""
    return 1 + (momentum - 1) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """`teacher = momentum * teacher + (1 - momentum) * student` for all parameters; buffers stay."""
    for theirs, own in zip(student.parameters(), teacher.parameters(), strict=True):
        own.mul_(momentum).add_(theirs, alpha=1 - momentum)


def consistency(
    student: Float[Tensor, "B L"],
    teacher: Float[Tensor, "B L"],
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy between two vectors read as distributions over their L numbers, mean over B; nats.

        loss = -(softmax(teacher / t) * log_softmax(student / s)).sum(1).mean()

    The teacher gets no gradient.
    """
    wanted = (teacher.detach() / teacher_temperature).softmax(dim=1)
    got = (student / student_temperature).log_softmax(dim=1)
    return -(wanted * got).sum(dim=1).mean()
