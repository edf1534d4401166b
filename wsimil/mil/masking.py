"""Maskings: which instances a training step keeps from a method, as data that any method can be given.

A config holds one, so torch is not imported before one is applied.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from wsimil.config import FrozenConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from wsimil.mil.batch import BagBatch, StepContext


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
        """True where an instance is masked for a head."""
        from wsimil.mil.masks import top_k_mask

        return top_k_mask(self, scores, bags, step)


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
        """The same instances for all heads."""
        from wsimil.mil.masks import rank_mask

        return rank_mask(self, scores, bags, step)

    def choose(self, scores: Float[Tensor, "n H"], step: StepContext, *, official: bool = False) -> Bool[Tensor, " n"]:
        """True where an instance of one bag is masked; `official` as in `masks.rank_choice`."""
        from wsimil.mil.masks import rank_choice

        return rank_choice(self, scores, step, official=official)

    def high_at(self, progress: float) -> float:
        """`high` when `progress` in [0, 1] of training is done."""
        return self.high * (1 + math.cos(math.pi * progress)) / 2 if self.decay else self.high


def _kind(value: object) -> str:
    kind = value.get("kind", "top_k") if isinstance(value, dict) else getattr(value, "kind", "top_k")
    return str(kind)


Masking: TypeAlias = Annotated[
    Annotated[TopKMasking, Tag("top_k")] | Annotated[RankMasking, Tag("rank")], Discriminator(_kind)
]
"""Any masking, as a config names it by its `kind`."""
