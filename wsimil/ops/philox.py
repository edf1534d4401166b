"""Counter-based draws: a number that depends on a seed and on what it is for, not on when or where it is drawn.

Philox-4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC '11. The key is the seed; the counter is
(instance in its bag, column, bag, stream). CPU and GPU, one bag and a pack, tiles of any size: the same bits.
"""
# jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int64

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(
    seed: Int64[Tensor, 1], counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]
) -> tuple[Int64[Tensor, ...], Int64[Tensor, ...], Int64[Tensor, ...], Int64[Tensor, ...]]:
    """Four words of 32 random bits for each counter, in [0, 2**32), of the shape to which the parts of `counter` broadcast.

    Of each part of the counter the low 32 bits count; all 64 bits of the seed do.
    """
    if seed.device.type == "cpu":
        # There a number costs nothing to look at, and an operation on one as much as on a thousand.
        number = int(seed)
        return _rounds([number & _LOW, (number >> 32) & _LOW], [_low(part, seed) for part in counter])
    return _rounds([seed & _LOW, (seed >> 32) & _LOW], [_low(part, seed) for part in counter])


def _low(part: Tensor | int, seed: Tensor) -> Tensor:
    return part.to(torch.int64) & _LOW if isinstance(part, Tensor) else torch.full_like(seed, part & _LOW)


def _rounds(key: Sequence[Any], counter: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c0, c1, c2, c3 = counter
    for number in range(_ROUNDS):
        # An int64 product overflows to the 64 bits that are wanted. Of c1 and c3 the high bits never matter until the end.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # After three rounds each word is of all parts of the counter, and so of one shape.
        xor = torch.bitwise_xor if number < 3 else Tensor.bitwise_xor_
        c0 = xor(second >> 32, xor(c1, key[0])).bitwise_and_(_LOW)
        c2 = xor(first >> 32, xor(c3, key[1])).bitwise_and_(_LOW)
        c1, c3 = second, first
        key = [(part + step) & _LOW for part, step in zip(key, _WEYL, strict=True)]
    return c0, c1 & _LOW, c2, c3 & _LOW
