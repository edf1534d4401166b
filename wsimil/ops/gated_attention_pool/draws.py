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
    from jaxtyping import Bool, Float, Int8, Int64

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
    for rows, for_value, for_gate in _kept(seed, begin, end, bag_id, width, spec):
        found[0, rows], found[1, rows] = for_value, for_gate
    found *= 1 / (1 - spec.drop_of_65536 / LEVELS)
    return found[0], found[1]


def gate_signs(
    seed: Int64[Tensor, 1], *, begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> Int8[Tensor, "n L"]:
    """1 where dropout leaves both factors of the gate, -1 where it takes one of them or both."""
    found = torch.empty(end - begin, width, dtype=torch.int8, device=seed.device)
    for rows, for_value, for_gate in _kept(seed, begin, end, bag_id, width, spec):
        found[rows] = for_value.logical_and_(for_gate)
    return found.mul_(2).sub_(1)


def _kept(
    seed: Int64[Tensor, 1], begin: int, end: int, bag_id: Tensor, width: int, spec: PoolSpec
) -> Iterator[tuple[slice, Bool[Tensor, "n L"], Bool[Tensor, "n L"]]]:
    """Whether value and gate stay, for some instances at once.

    A word of 32 bits has the draws of 16 / `bits_of` columns from its lowest bits up, of each that of the value first.
    """
    bits = bits_of(spec.drop_of_65536)
    level = spec.drop_of_65536 * 2**bits // LEVELS
    groups = torch.arange(-(-width * bits // 64), device=seed.device)
    # As many at a time as stay in a cache, and as two threads share.
    many = max(1, _CACHED // len(groups)) if seed.device.type == "cpu" else end - begin
    for first in range(begin, end, many):
        last = min(first + many, end)
        instances = torch.arange(first, last, device=seed.device)[:, None]
        words = torch.stack(philox(seed, (instances, groups, bag_id, 2 * spec.drop_stream + 1)), dim=2)
        pairs = words.to(torch.int32).flatten(1).view(_PAIRS[bits])[:, :width]
        if bits > 4:
            pairs = pairs.to(torch.int64) & (4**bits - 1)
        yield slice(first - begin, last - begin), pairs & (2**bits - 1) >= level, pairs >= level * 2**bits
