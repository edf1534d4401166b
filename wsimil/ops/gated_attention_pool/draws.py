"""What is drawn for masks and for dropout, by which counters: the same on every backend."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsimil.ops.gated_attention_pool.contract import PoolSpec
from wsimil.ops.philox import philox

if TYPE_CHECKING:
    from jaxtyping import Float, Int8, Int64

LEVELS = 65536
"""Of a draw for dropout, which has 16 bits."""
_CACHED = 65_536


def mask_words(
    seed: Int64[Tensor, 1], instances: Int64[Tensor, "... k"], *, branch: Tensor | int, bag_id: Tensor, stream: int
) -> Int64[Tensor, "... k"]:
    """One word for each instance of a bag: the lowest of a bag and branch are masked."""
    return philox(seed, (instances, branch, bag_id, 2 * stream))[0]


def gate_factors(
    seed: Int64[Tensor, 1], *, begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> tuple[Float[Tensor, "n L"], Float[Tensor, "n L"]]:
    """What the two factors of the gate are multiplied by, 0 or 1 / (1 - p), for instances `begin` to `end` of a bag."""
    found = torch.empty(2, end - begin, width, dtype=torch.float64, device=seed.device)
    level = spec.drop_of_65536
    for rows, columns, words in _gate_words(seed, begin, end, bag_id, width, spec):
        found[0, rows, columns] = words & (LEVELS - 1) >= level
        found[1, rows, columns] = words >= level * LEVELS
    found *= 1 / (1 - level / LEVELS)
    return found[0], found[1]


def gate_signs(
    seed: Int64[Tensor, 1], *, begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> Int8[Tensor, "n L"]:
    """1 where dropout leaves both factors of the gate, -1 where it takes one of them or both."""
    found = torch.empty(end - begin, width, dtype=torch.int8, device=seed.device)
    level = spec.drop_of_65536
    for rows, columns, words in _gate_words(seed, begin, end, bag_id, width, spec):
        found[rows, columns] = (words >= level * LEVELS).logical_and_(words & (LEVELS - 1) >= level)
    return found.mul_(2).sub_(1)


def _gate_words(
    seed: Int64[Tensor, 1], begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> Iterator[tuple[slice, slice, Int64[Tensor, "n fourth"]]]:
    """A word for each instance and column, every fourth column at once; its low half is for the value, its high for the gate."""
    fourths = torch.arange(-(-width // 4), device=seed.device)
    # As many at a time as stay in a cache, and as two threads share.
    many = _CACHED // len(fourths) if seed.device.type == "cpu" else end - begin
    for first in range(begin, end, many):
        last = min(first + many, end)
        instances = torch.arange(first, last, device=seed.device)[:, None]
        words = philox(seed, (instances, fourths, bag_id, 2 * spec.drop_stream + 1))
        for place, word in enumerate(words[:width]):
            columns = slice(place, width, 4)
            yield slice(first - begin, last - begin), columns, word[:, : len(range(place, width, 4))]
