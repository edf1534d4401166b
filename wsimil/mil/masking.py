"""Maskings: which instances a training step keeps from a method, as data that any method can be given."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Discriminator, Field, Tag
from torch import Tensor

from wsimil.config import FrozenConfig
from wsimil.errors import ModelError
from wsimil.mil.batch import BagBatch, StepContext
from wsimil.ops.varlen import split_bags


class TopKMasking(FrozenConfig):
    """STKIM, stochastic top-k instance masking: each head loses a random `drop` of the `k` instances that it scores highest.

    Of min(k, n) instances int(min(k, n) * drop) are masked, drawn anew for each bag, head and step. A bag may lose all its
    instances to one head where k >= n and `drop` is 1; attention is then even. ACMIL, Zhang et al. 2024, ECCV,
    arXiv:2311.07125, section 3.3.
    """

    kind: Literal["top_k"] = "top_k"
    k: int = Field(10, ge=0)
    drop: float = Field(0.6, ge=0, le=1)

    def __call__(self, scores: Float[Tensor, "T H"], bags: BagBatch, step: StepContext) -> Bool[Tensor, "T H"]:
        """One uniform draw [H, min(k, n)] a bag; the masked are those whose draws are lowest."""
        masked = torch.zeros_like(scores, dtype=torch.bool)
        for part, out in zip(split_bags(scores, bags.cu_seqlens), torch.split(masked, list(bags.lengths)), strict=True):
            k = min(self.k, len(part))
            if k == 0:
                continue
            top = part.topk(k, dim=0).indices  # [k, H]
            order = step.uniform((part.shape[1], k), device=part.device).argsort(dim=1)
            chosen = top.t().gather(1, order[:, : int(k * self.drop)])
            out.scatter_(0, chosen.t(), True)
        return masked


class RankMasking(FrozenConfig):
    """The masks of MHIM-MIL: instances at random, of the lowest scores, of the highest, or any union of these.

    `random`, `low` and `high` are shares of all n instances of a bag, each rounded up to whole instances; where they meet,
    fewer are masked than their sum. `high_share` below 1 masks that share, at random, of `high / high_share` of the highest
    (R-HAM). `decay`: `high` falls along half a cosine to 0 over training. `invert` masks what would be kept. With several heads
    `fusion` is "vote" (each head names as many as are sought, those most often named are taken), "mean" (each head takes an
    even part) or "max" (the highest score over the heads counts). A mask that would take all instances of a bag takes none.
    MHIM-MIL, Tang et al. 2023, ICCV, arXiv:2307.15254; https://github.com/DearCaat/MHIM-MIL.
    """

    kind: Literal["rank"] = "rank"
    random: float = Field(0.0, ge=0, le=1)
    low: float = Field(0.0, ge=0, le=1)
    high: float = Field(0.0, ge=0, le=1)
    high_share: float = Field(1.0, gt=0, le=1)
    fusion: Literal["vote", "mean", "max"] = "vote"
    decay: bool = False
    invert: bool = False

    def __call__(self, scores: Float[Tensor, "T H"], bags: BagBatch, step: StepContext) -> Bool[Tensor, "T H"]:
        """The same instances for all heads, chosen from all heads' scores."""
        masked = [self.choose(part, step) for part in split_bags(scores, bags.cu_seqlens)]
        return torch.cat(masked)[:, None].expand_as(scores)

    def choose(self, scores: Float[Tensor, "n H"], step: StepContext, *, official: bool = False) -> Bool[Tensor, " n"]:
        """True where an instance of one bag is masked.

        `official` is as careless with small bags as the official code: it may mask all, and raises ModelError where an earlier
        mask took exactly one instance before another mask is drawn. Its draws are for instances in order of rank, which takes
        several times as long.
        """
        parts = [
            (self.random, 0.001, False),
            (self.low, 1.0, False),
            (self.high_at(step.progress), self.high_share, True),
        ]
        masked = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        for ratio, share, largest in parts:
            if ratio == 0:
                continue
            found = self._find(scores, ratio, share, step, largest=largest, official=official)
            if official and int(masked.sum()) == 1:
                raise ModelError(
                    f"a bag of {len(scores)} instances: the official MHIM-MIL raises where a first mask takes exactly one; leave"
                    " such bags out, or set method.compat to wsimil"
                )
            masked[found] = True
        if self.invert:
            masked = ~masked
        return torch.zeros_like(masked) if bool(masked.all()) and not official else masked

    def high_at(self, progress: float) -> float:
        """`high` when `progress` in [0, 1] of training is done."""
        return self.high * (1 + math.cos(math.pi * progress)) / 2 if self.decay else self.high

    def _find(
        self,
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
        rows = self._ends(scores, k, largest=largest, ranked=official)
        if share < 1:
            order = step.permutation(len(rows), device=rows.device)
            rows = rows[order[: math.ceil(len(rows) * share)]]
        return rows

    def _ends(self, scores: Float[Tensor, "n H"], k: int, *, largest: bool, ranked: bool) -> Int64[Tensor, " found"]:
        heads = scores.shape[1]
        if heads == 1 or self.fusion == "max":
            return scores.amax(dim=1).topk(k, largest=largest, sorted=ranked).indices
        if self.fusion == "mean":
            found: Tensor = torch.unique(scores.topk(k // heads, dim=0, largest=largest, sorted=False).indices)
            return found
        named = scores.t().contiguous().topk(k, dim=1, largest=largest, sorted=False).indices  # [H, k]
        votes = torch.zeros(heads, len(scores), dtype=scores.dtype, device=scores.device).scatter_(1, named, 1.0)
        # Unsorted: which of equal votes come first is then as in the official code.
        return votes.sum(dim=0).topk(k, sorted=False).indices


def _kind(value: object) -> str:
    kind = value.get("kind", "top_k") if isinstance(value, dict) else getattr(value, "kind", "top_k")
    return str(kind)


Masking: TypeAlias = Annotated[
    Annotated[TopKMasking, Tag("top_k")] | Annotated[RankMasking, Tag("rank")], Discriminator(_kind)
]
"""Any masking, as a config names it by its `kind`."""
