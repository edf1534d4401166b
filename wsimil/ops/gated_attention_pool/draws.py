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
    from jaxtyping import Float, Int8, Int64, Integer

LEVELS = 65536
"""Of a probability of dropout, which is a multiple of 1 / 65536."""
_CACHED = 65_536
_PAIRS = {4: torch.uint8, 8: torch.int16, 16: torch.int32}
"""Two draws of so many bits, side by side in one number."""


def bits_of(level: int) -> int:
    """How many random bits tell the probability `level` / 65536: 4 where it is a multiple of 1 / 16, 8 of 1 / 256, else 16."""
    return next(bits for bits in _PAIRS if level % (LEVELS >> bits) == 0)


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
    level = _level(spec)
    for rows, of_value, of_gate in _gate_draws(seed, begin, end, bag_id, width, spec):
        found[0, rows], found[1, rows] = of_value >= level, of_gate >= level
    found *= 1 / (1 - spec.drop_of_65536 / LEVELS)
    return found[0], found[1]


def gate_signs(
    seed: Int64[Tensor, 1], *, begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> Int8[Tensor, "n L"]:
    """1 where dropout leaves both factors of the gate, -1 where it takes one of them or both."""
    found = torch.empty(end - begin, width, dtype=torch.int8, device=seed.device)
    level = _level(spec)
    for rows, of_value, of_gate in _gate_draws(seed, begin, end, bag_id, width, spec):
        # Numbers of one byte come out in a third of the time that bools take.
        torch.ge(torch.minimum(of_value, of_gate), level, out=found[rows])
    return found.mul_(2).sub_(1)


def _level(spec: PoolSpec) -> int:
    """Draws below it are dropped."""
    return (spec.drop_of_65536 << bits_of(spec.drop_of_65536)) // LEVELS


def _gate_draws(
    seed: Int64[Tensor, 1], begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> Iterator[tuple[slice, Integer[Tensor, "n L"], Integer[Tensor, "n L"]]]:
    """A draw of `bits_of` bits for each value and gate, of some instances at once.

    A word of 32 bits has the draws of 16 / `bits_of` columns from its lowest bits up, of each that of the value first.
    """
    bits = bits_of(spec.drop_of_65536)
    mask = (1 << bits) - 1
    groups = torch.arange(-(-width * bits // 64), device=seed.device)
    # As many at a time as stay in a cache, and as two threads share.
    many = max(1, _CACHED // len(groups)) if seed.device.type == "cpu" else end - begin
    for first in range(begin, end, many):
        last = min(first + many, end)
        instances = torch.arange(first, last, device=seed.device)[:, None]
        words = torch.empty(last - first, len(groups), 4, dtype=torch.int32, device=seed.device)
        for place, word in enumerate(philox(seed, (instances, groups, bag_id, 2 * spec.drop_stream + 1))):
            words[:, :, place] = word
        pairs = words.flatten(1).view(_PAIRS[bits])[:, :width]
        yield slice(first - begin, last - begin), pairs & mask, pairs >> bits & mask
