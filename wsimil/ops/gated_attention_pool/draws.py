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
    from jaxtyping import Float, Int64

LEVELS = 65536
"""Of a draw for dropout, which has 16 bits."""
_CACHED = 12_288


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
    for block, words in _gate_words(seed, begin, end, bag_id, width, spec):
        found[0, block] = words & (LEVELS - 1) >= spec.drop_of_65536
        found[1, block] = words >> 16 >= spec.drop_of_65536
    found *= 1 / (1 - spec.drop_of_65536 / LEVELS)
    return found[0], found[1]


def gate_signs(
    seed: Int64[Tensor, 1], *, begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> Float[Tensor, "n L"]:
    """1 where dropout leaves both factors of the gate, -1 where it takes one of them or both."""
    found = torch.empty(end - begin, width, device=seed.device)
    for block, words in _gate_words(seed, begin, end, bag_id, width, spec):
        found[block] = torch.minimum(words & (LEVELS - 1), words >> 16) >= spec.drop_of_65536
    return found.mul_(2).sub_(1)


def _gate_words(
    seed: Int64[Tensor, 1], begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> Iterator[tuple[slice, Int64[Tensor, "n L"]]]:
    """A word for each instance and column: its low half is for the value, its high half for the gate."""
    columns = torch.arange(-(-width // 4), device=seed.device)
    # As many at a time as stay in a cache.
    rows = _CACHED // len(columns) + 1 if seed.device.type == "cpu" else end - begin
    for first in range(begin, end, rows):
        last = min(first + rows, end)
        instances = torch.arange(first, last, device=seed.device)[:, None]
        words = torch.stack(philox(seed, (instances, columns, bag_id, 2 * spec.drop_stream + 1)), dim=2)
        yield slice(first - begin, last - begin), words.flatten(1)[:, :width]
