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
