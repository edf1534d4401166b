"""Maskings: which instances a training step keeps from a method, as data that any method can be given."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wsimil.mil.batch import BagBatch, StepContext
from wsimil.ops.varlen import split_bags


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKMasking:
    """STKIM, stochastic top-k instance masking: each head loses a random `drop` of the `k` instances that it scores highest.

    Of min(k, n) instances int(min(k, n) * drop) are masked, drawn anew for each bag, head and step. A bag may lose all its
    instances to one head where k >= n and `drop` is 1; attention is then even. ACMIL, Zhang et al. 2024, ECCV,
    arXiv:2311.07125, section 3.3.
    """

    k: int
    drop: float

    def __post_init__(self) -> None:
        if self.k < 0 or not 0 <= self.drop <= 1:
            raise ValueError(f"k is 0 or more and drop lies in [0, 1], got k={self.k}, drop={self.drop}")

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
