"""What a wrong answer costs."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""logits [B, C], targets [B] -> scalar; a mean over bags."""


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropy:
    """`(class_weights[targets] * cross_entropy(logits, targets)).mean()`, in float32 or wider.

    `label_smoothing` in [0, 1) moves that share of the target evenly to all classes (Szegedy et al. 2016, arXiv:1512.00567).
    The mean is over bags, not over weights as in `nn.CrossEntropyLoss`, where the weight of a bag that stands alone cancels.
    """

    class_weights: Float[Tensor, " C"] | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: Float[Tensor, "B C"], targets: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """The cost of `logits` where `targets` is right."""
        wide = logits.float() if logits.dtype.itemsize < 4 else logits
        weights = None if self.class_weights is None else self.class_weights.to(wide)
        cost = F.cross_entropy(wide, targets, weight=weights, reduction="none", label_smoothing=self.label_smoothing)
        return cost.mean()


@dataclass(frozen=True, slots=True, eq=False)
class BinaryCrossEntropy:
    """`(class_weights[targets] * bce(logits, one_hot(targets)).mean(1)).mean()`, in float32 or wider: each class by itself.

    `label_smoothing` in [0, 1) moves that share of the target evenly to all classes.
    """

    class_weights: Float[Tensor, " C"] | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: Float[Tensor, "B C"], targets: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """The cost of `logits` where `targets` is right."""
        wide = logits.float() if logits.dtype.itemsize < 4 else logits
        share = self.label_smoothing
        wanted = F.one_hot(targets, wide.shape[1]).to(wide) * (1 - share) + share / wide.shape[1]
        cost = F.binary_cross_entropy_with_logits(wide, wanted, reduction="none").mean(dim=1)
        return (cost if self.class_weights is None else cost * self.class_weights.to(wide)[targets]).mean()
