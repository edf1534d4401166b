"""Which bags an epoch sees, in which order, and which of their instances; all of it drawn from a generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wsimil.targets import Targets


def epoch_order(
    targets: Targets, *, balance: Literal["class_weights", "sampling", "none"] | None, generator: torch.Generator
) -> list[int]:
    """Indices of bags, as many as there are: each once in random order, or, for "sampling", drawn so that classes are even.

    "sampling" takes class numbers [n].
    """
    count = len(targets)
    if balance != "sampling":
        return torch.randperm(count, generator=generator).tolist()
    targets = np.asarray(targets, np.int64)
    frequency = np.bincount(targets)
    weights = torch.from_numpy(1 / frequency[targets])
    return torch.multinomial(weights, count, replacement=True, generator=generator).tolist()


def steps_of(order: Sequence[int], *, bags: int, instances: int | None, counts: Sequence[int]) -> list[list[int]]:
    """`order` cut into steps of at most `bags` bags and `instances` instances; a larger bag is a step of its own.

    `counts` are the instances of each bag, looked at only where `instances` limits them.
    """
    if instances is None:
        return [list(order[start : start + bags]) for start in range(0, len(order), bags)]
    steps: list[list[int]] = []
    held = 0
    for index in order:
        if not steps or len(steps[-1]) == bags or held + counts[index] > instances:
            steps.append([])
            held = 0
        steps[-1].append(index)
        held += counts[index]
    return steps


def without_lone_bag(steps: Sequence[list[int]], *, instances: int | None, counts: Sequence[int]) -> list[list[int]]:
    """`steps` of two bags or more with the bag that was left for the last one beside others, for who compares those of a step.

    It halves the last two steps; where the one before has two, they are one step of three, or stay as they are where that is more
    than `instances`, which any two bags are not.
    """
    if len(steps) < 2 or len(steps[-1]) > 1:
        return list(steps)
    *before, previous, last = steps
    bags = [*previous, *last]
    for size in range(len(bags) // 2, 1, -1):
        if instances is None or sum(counts[index] for index in bags[-size:]) <= instances:
            return [*before, bags[:-size], bags[-size:]]
    whole = instances is None or sum(counts[index] for index in bags) <= instances
    return [*before, bags] if whole else list(steps)


def class_weights(targets: NDArray[np.int64], *, classes: int) -> torch.Tensor:
    """Weight of each class, float32 [C]: inverse to its frequency, 1 on average over the bags."""
    frequency = np.bincount(targets, minlength=classes)
    return torch.from_numpy((len(targets) / (classes * np.maximum(frequency, 1))).astype(np.float32))


def label_weights(targets: NDArray[np.int64]) -> torch.Tensor:
    """Weights [2, L] of bags that have not (row 0) and that have each label: inverse to their frequency among the known ones."""
    counts = np.stack([(targets == value).sum(axis=0) for value in (0, 1)])
    return torch.from_numpy((counts.sum(axis=0) / (2 * np.maximum(counts, 1))).astype(np.float32))


def draw_instances(count: int, most: int | None, generator: torch.Generator) -> torch.Tensor | None:
    """Rows of a bag of `count` for one step, ascending; None for all."""
    if most is None or count <= most:
        return None
    return torch.randperm(count, generator=generator)[:most].sort().values
