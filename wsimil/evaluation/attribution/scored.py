"""Scores of one kind, with the rule that made them."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

EXACT: Final = "exact"
SHAPLEY: Final = "Shapley values of the maximum"
MIXED: Final = "exact, of tiles that have seen others"
LRP: Final = "attention-constant LRP"
ALONE: Final = "bags of one tile"
NO_RULE: Final = "single, as the method has no rule"
CLOSED: Final = "closed form"
RECOMPUTED: Final = "recomputed"
SOFTMAX: Final = "softmax over the bag"
NO_SOFTMAX: Final = "weights of the method, no softmax over the bag"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Scores of one kind for the T instances of a pack.

    `values` [T, C] are for each logit, of attention [T, H] for each head. NaN is an instance that this kind says nothing of: one
    that is all of its bag has none to be left out of. `rule` says how they were made. `bias` [B, C] is what the sum over a bag
    leaves to the logit, found by itself and not as that rest; None for kinds that are no parts of a sum.
    """

    values: Float[Tensor, "T K"]
    rule: str
    bias: Float[Tensor, "B C"] | None = None


def mean_of(parts: Sequence[Scored]) -> Scored:
    """Scores of the mean of several models' logits, in which all kinds but attention are linear."""
    biases = [part.bias for part in parts if part.bias is not None]
    return Scored(
        values=torch.stack([part.values for part in parts]).mean(dim=0),
        rule=rule_of_several([part.rule for part in parts]),
        bias=torch.stack(biases).mean(dim=0) if len(biases) == len(parts) else None,
    )


def rule_of_several(rules: Sequence[str]) -> str:
    """The one rule, or all that there are."""
    return " / ".join(dict.fromkeys(rules))
