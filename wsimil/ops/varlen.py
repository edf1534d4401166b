"""Packed bags as FlashAttention lays them out: rows of all bags one after another, and where each bag begins."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int32, Int64

    CuSeqlens: TypeAlias = Int32[Tensor, " ends"]
else:
    CuSeqlens = Tensor
"""Where each of B bags begins and, last, the number of all rows: B + 1 ends, the first of them 0."""

_CACHE_LINE = 64


def cu_seqlens_of(lengths: Sequence[int], *, device: torch.device | str = "cpu") -> CuSeqlens:
    """Where each bag begins, and at the end the number of all rows: [0, n_0, n_0 + n_1, ...].

    Raises ValueError for no bags, an empty bag or more rows than int32 counts.
    """
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    check_cu_seqlens(ends, total=ends[-1])
    return torch.tensor(ends, dtype=torch.int32, device=device)


def check_cu_seqlens(ends: Sequence[int], *, total: int) -> None:
    """Raises ValueError unless `ends` begins at 0, grows strictly and ends at `total` rows."""
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != total:
        raise ValueError(f"cu_seqlens holds one bag or more, begins at 0 and ends at {total} rows, got {_shown(ends)}")
    if total >= 2**31:
        raise ValueError(f"a pack holds fewer than 2**31 rows, got {total}; pack fewer bags")
    for bag, (begin, end) in enumerate(pairwise(ends)):
        if end <= begin:
            raise ValueError(f"bag {bag} of {len(ends) - 1} has {end - begin} rows; an empty bag cannot be packed")


def lengths_of(cu_seqlens: CuSeqlens) -> list[int]:
    """Rows of each bag, on the host; waits for the device where `cu_seqlens` lies on one."""
    ends = cu_seqlens.tolist()
    return [end - begin for begin, end in pairwise(ends)]


def bag_ids(cu_seqlens: CuSeqlens, *, total: int) -> Int64[Tensor, " T"]:
    """For each of `total` rows the number of its bag."""
    numbers = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device)
    return numbers.repeat_interleave(cu_seqlens.diff(), output_size=total)


def split_bags(x: Tensor, cu_seqlens: CuSeqlens) -> Sequence[Tensor]:
    """The rows of each bag: views of `x`, on CPU copies where these would not be contiguous or begin between two cache lines."""
    # The backward of split writes all rows once more, which a single bag need not pay for.
    parts = (x,) if len(cu_seqlens) == 2 else torch.split(x, lengths_of(cu_seqlens))
    return parts if x.device.type != "cpu" else [_aligned(part) for part in parts]


def join_bags(parts: Sequence[Tensor]) -> Tensor:
    """The inverse of `split_bags`; a single part is returned as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _aligned(x: Tensor) -> Tensor:
    # CPU libraries choose their kernel, and with it the last bit of a sum, by how the numbers lie in memory.
    good = x.is_contiguous() and x.data_ptr() % _CACHE_LINE == 0
    return x if good else x.clone(memory_format=torch.contiguous_format)


def _shown(ends: Sequence[int]) -> str:
    return str(list(ends)) if len(ends) <= 8 else f"[{ends[0]}, {ends[1]}, ... {ends[-1]}]"
