"""The masks that maskings draw: which instances of a pack, or of one bag, a training step does not show."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.mil.batch import BagBatch, StepContext
from wsimil.mil.masking import RankMasking, TopKMasking
from wsimil.ops.varlen import split_bags


def top_k_mask(
    masking: TopKMasking, scores: Float[Tensor, "T H"], bags: BagBatch, step: StepContext
) -> Bool[Tensor, "T H"]:
    """One uniform draw [H, min(k, n)] a bag; the masked are those whose draws are lowest."""
    masked = torch.zeros_like(scores, dtype=torch.bool)
    for part, out in zip(split_bags(scores, bags.cu_seqlens), torch.split(masked, list(bags.lengths)), strict=True):
        k = min(masking.k, len(part))
        if k == 0:
            continue
        top = part.topk(k, dim=0).indices  # [k, H]
        order = step.uniform((part.shape[1], k), device=part.device).argsort(dim=1)
        chosen = top.t().gather(1, order[:, : int(k * masking.drop)])
        out.scatter_(0, chosen.t(), True)
    return masked


def rank_mask(
    masking: RankMasking, scores: Float[Tensor, "T H"], bags: BagBatch, step: StepContext
) -> Bool[Tensor, "T H"]:
    """The same instances for all heads, chosen from all heads' scores."""
    masked = [rank_choice(masking, part, step) for part in split_bags(scores, bags.cu_seqlens)]
    return torch.cat(masked)[:, None].expand_as(scores)


def rank_choice(
    masking: RankMasking, scores: Float[Tensor, "n H"], step: StepContext, *, official: bool = False
) -> Bool[Tensor, " n"]:
    """True where an instance of one bag is masked.

    `official` is as careless with small bags as the official code: it may mask all, and raises ModelError where an earlier
    mask took exactly one instance before another mask is drawn. Its draws are for instances in order of rank, which takes
    several times as long.
    """
    parts = [
        (masking.random, 0.001, False),
        (masking.low, 1.0, False),
        (masking.high_at(step.progress), masking.high_share, True),
    ]
    masked = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    for ratio, share, largest in parts:
        if ratio == 0:
            continue
        found = _find(masking, scores, ratio, share, step, largest=largest, official=official)
        if official and int(masked.sum()) == 1:
            raise ModelError(
                f"a bag of {len(scores)} instances: the official MHIM-MIL raises where a first mask takes exactly one; leave"
                " such bags out, or set method.compat to wsimil"
            )
        masked[found] = True
    if masking.invert:
        masked = ~masked
    return torch.zeros_like(masked) if bool(masked.all()) and not official else masked


def _find(
    masking: RankMasking,
    scores: Float[Tensor, "n H"],
    ratio: float,
    share: float,
    step: StepContext,
    *,
    largest: bool,
    official: bool,
) -> Int64[Tensor, " found"]:
    """Rows of a random `share` of the `ratio / share` of all that lie at one end; of a random `ratio` where that is more."""
    wanted, ratio = ratio, ratio / share
    if ratio > 1:
        share, ratio = wanted, 1.0
    # In float64 and without tolerance, as the official code counts: a share of .06 of 50 may come to four.
    k = math.ceil(len(scores) * ratio)
    if k == len(scores) and not official:
        return step.permutation(k, device=scores.device)[: math.ceil(k * share)]
    rows = _ends(masking, scores, k, largest=largest, ranked=official)
    if share < 1:
        order = step.permutation(len(rows), device=rows.device)
        rows = rows[order[: math.ceil(len(rows) * share)]]
    return rows


def _ends(
    masking: RankMasking, scores: Float[Tensor, "n H"], k: int, *, largest: bool, ranked: bool
) -> Int64[Tensor, " found"]:
    heads = scores.shape[1]
    if heads == 1 or masking.fusion == "max":
        return scores.amax(dim=1).topk(k, largest=largest, sorted=ranked).indices
    if masking.fusion == "mean":
        found: Tensor = torch.unique(scores.topk(k // heads, dim=0, largest=largest, sorted=False).indices)
        return found
    named = scores.t().contiguous().topk(k, dim=1, largest=largest, sorted=False).indices  # [H, k]
    votes = torch.zeros(heads, len(scores), dtype=scores.dtype, device=scores.device).scatter_(1, named, 1.0)
    # Unsorted: which of equal votes come first is then as in the official code.
    return votes.sum(dim=0).topk(k, sorted=False).indices
