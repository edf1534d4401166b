"""The highest or lowest scores of each bag, with a rule for equal ones."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.ops.varlen import CuSeqlens, bag_ids, lengths_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int32, Int64

_INDEX_BITS = 31
_LAST = 2**_INDEX_BITS - 1


def topk(scores: Float[Tensor, "... n"], k: int, *, largest: bool = True) -> Int64[Tensor, "... k"]:
    """Indices of the min(k, n) highest or lowest scores, in order of rank; of equal scores the first comes first.

    -0 equals 0, NaN is above all. `torch.topk` says nothing of equal scores, and returns them in another order on each device.
    """
    k = min(k, scores.shape[-1])
    if scores.dtype == torch.float64:
        order: Tensor = scores.sort(dim=-1, descending=largest, stable=True).indices
        return order[..., :k]
    keys: Tensor = _keys(scores, largest=largest).topk(k, dim=-1).values
    indices: Tensor = _LAST - (keys & _LAST)
    return indices


def segment_topk(
    scores: Float[Tensor, "T H"], cu_seqlens: CuSeqlens, k: int, *, largest: bool = True
) -> Int32[Tensor, "B H k"]:
    """`topk` of every bag and column, counted from the bag's first row; -1 where a bag has fewer than k.

    On a GPU nothing waits for it: there all bags are ranked at once.
    """
    bags = cu_seqlens.shape[0] - 1
    if k == 0:
        return torch.empty(bags, scores.shape[1], 0, dtype=torch.int32, device=scores.device)
    if scores.device.type != "cpu" and bags > 1:
        return _of_all_bags(scores.t(), cu_seqlens, k, largest=largest)
    parts = (scores.t(),) if bags == 1 else torch.split(scores.t(), lengths_of(cu_seqlens), dim=1)
    found = [topk(part, k, largest=largest) for part in parts]
    return torch.stack([F.pad(rows, (0, k - rows.shape[1]), value=-1) for rows in found]).to(torch.int32)


def _of_all_bags(
    scores: Float[Tensor, "H T"], cu_seqlens: CuSeqlens, k: int, *, largest: bool
) -> Int32[Tensor, "B H k"]:
    # To rank each bag by itself would be to know on the host where it lies: by score, then by bag.
    count = scores.shape[1]
    order = topk(scores, count, largest=largest)
    bag = bag_ids(cu_seqlens, total=count)
    order = order.gather(1, bag[order].sort(dim=1, stable=True).indices)  # [H, T]
    begin, length = cu_seqlens[:-1].long(), cu_seqlens.diff()
    place = torch.arange(k, device=scores.device)
    where = (begin[:, None] + place).clamp_max(count - 1)  # [B, k]
    found = (order[:, where] - begin[:, None]).transpose(0, 1)
    return found.masked_fill((place >= length[:, None])[:, None], -1).to(torch.int32).contiguous()


def _keys(scores: Tensor, *, largest: bool) -> Tensor:
    """Numbers of which no two are equal and whose order is that of the scores, then of the indices."""
    wide = scores.detach().to(torch.float32) + 0.0  # makes 0 of -0
    bits = wide.masked_fill(wide.isnan(), torch.nan).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered if largest else ~ordered).to(torch.int64) << _INDEX_BITS
    return keys | torch.arange(_LAST, _LAST - scores.shape[-1], -1, device=scores.device)
