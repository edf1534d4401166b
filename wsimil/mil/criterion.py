"""What a wrong answer costs."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""logits [B, C], targets [B] or [B, ...] -> scalar; a mean over bags, but for one that `compares_bags`."""


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropy:
    """`(class_weights[targets] * cross_entropy(logits, targets)).mean()`, in float32 or wider.

    `label_smoothing` in [0, 1) moves that share of the target evenly to all classes (Szegedy et al. 2016, arXiv:1512.00567).
    Two things are not as in `nn.CrossEntropyLoss`. The mean is over bags and not over weights, where that of a bag which stands
    alone cancels. And a bag has the weight of its own class alone: there what smoothing moves to a rare class has that one's. Of
    5 bags in 100, smoothed by 0.1, it would be as much as the other 95 keep for theirs, whose answer of least cost is one half.
    """

    class_weights: Float[Tensor, " C"] | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: Float[Tensor, "B C"], targets: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """The cost of `logits` where `targets` is right."""
        wide = _wide(logits)
        cost = F.cross_entropy(wide, targets, reduction="none", label_smoothing=self.label_smoothing)
        return (cost if self.class_weights is None else cost * self.class_weights.to(wide)[targets]).mean()


@dataclass(frozen=True, slots=True, eq=False)
class BinaryCrossEntropy:
    """`(class_weights[targets] * bce(logits, one_hot(targets)).mean(1)).mean()`, in float32 or wider: each class by itself.

    `label_smoothing` in [0, 1) moves that share of the target evenly to all classes.
    """

    class_weights: Float[Tensor, " C"] | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: Float[Tensor, "B C"], targets: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """The cost of `logits` where `targets` is right."""
        wide = _wide(logits)
        share = self.label_smoothing
        wanted = F.one_hot(targets, wide.shape[1]).to(wide) * (1 - share) + share / wide.shape[1]
        cost = F.binary_cross_entropy_with_logits(wide, wanted, reduction="none").mean(dim=1)
        return (cost if self.class_weights is None else cost * self.class_weights.to(wide)[targets]).mean()


@dataclass(frozen=True, slots=True, eq=False)
class LabelCrossEntropy:
    """`(w * bce(logits, targets))[known].sum(1) / known.sum(1)`, mean over bags, in float32 or wider.

    A target is 1 for a label that a bag has, 0 for one that it has not, -1 for one that is not known. `weights` [2, L] weigh a
    label that a bag has not (row 0) and has (row 1). `label_smoothing` in [0, 1) moves that share of a target evenly to yes and
    no. A bag of which nothing is known counts 0.
    """

    weights: Float[Tensor, "2 L"] | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: Float[Tensor, "B L"], targets: Int64[Tensor, "B L"]) -> Float[Tensor, ""]:
        """The cost of `logits` where `targets` are right."""
        wide = _wide(logits)
        known = targets >= 0
        has = (targets == 1).to(wide)
        wanted = has * (1 - self.label_smoothing) + self.label_smoothing / 2
        cost = F.binary_cross_entropy_with_logits(wide, wanted, reduction="none") * known
        if self.weights is not None:
            lacks, owns = self.weights.to(wide)
            cost = cost * torch.where(targets == 1, owns, lacks)
        return (cost.sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()


@dataclass(frozen=True, slots=True, eq=False)
class Corn:
    """`-log P(level)`, mean over bags, with `P(above k | at k or above) = sigmoid(logits[k])`, in float32 or wider.

        -(logsigmoid(logits[:y]).sum() + logsigmoid(-logits[y]))

    The loss of CORN (Shi, Cao & Raschka 2023, arXiv:2111.08851; https://github.com/Raschka-research-group/coral-pytorch), but for
    its divisor: there the pairs of a bag and a logit in the batch that bear on each other, here the bags, so that a bag costs the
    same in every batch. `level_weights` [K] weigh bags by their level.
    """

    level_weights: Float[Tensor, " K"] | None = None

    def __call__(self, logits: Float[Tensor, "B C"], targets: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """The cost of `logits` where the levels `targets`, 0 to C, are right."""
        wide = _wide(logits)
        step = torch.arange(wide.shape[1], device=wide.device)
        above, at = targets[:, None] > step, targets[:, None] == step
        cost = (F.softplus(-wide) * above + F.softplus(wide) * at).sum(dim=1)
        return (cost if self.level_weights is None else cost * self.level_weights.to(wide)[targets]).mean()


RegressionLoss: TypeAlias = Literal["squared", "huber", "absolute"]


@dataclass(frozen=True, slots=True, eq=False)
class Deviation:
    """How far `logits` are from `(targets - mean) / scale`, mean over bags and numbers, in float32 or wider.

    "squared": half the square; "huber": that up to 1, beyond it the distance less a half; "absolute": the distance.
    """

    mean: Float[Tensor, " K"]
    scale: Float[Tensor, " K"]
    kind: RegressionLoss = "huber"

    def __call__(self, logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """The cost of `logits` where `targets`, in their own unit, are right."""
        wide = _wide(logits)
        wanted = ((targets - self.mean.to(targets)) / self.scale.to(targets)).to(wide)
        if self.kind == "squared":
            return F.mse_loss(wide, wanted) / 2
        return F.huber_loss(wide, wanted) if self.kind == "huber" else F.l1_loss(wide, wanted)


@dataclass(frozen=True, slots=True, eq=False)
class HazardLikelihood:
    """Minus the log-likelihood of discrete-time hazards, mean over bags, in float32 or wider; targets are time and event.

    With h = sigmoid(logits) and time in interval k of those that end at `edges`, each edge in the interval that it ends, the last
    interval open:

        event      -log h[k] - log(1 - h[:k]).sum()
        censored   -log(1 - h[:k + 1]).sum(), times 1 - alpha

    Zadeh & Schmid 2020, doi:10.1109/TPAMI.2020.2979450; `alpha` as in MCAT and PORPOISE (Chen et al. 2022,
    doi:10.1016/j.ccell.2022.07.004), where it holds censored bags back. By log-sigmoids, where those add 1e-7 inside logarithms.
    They count an event at an edge in the next interval, so that survival there is that before it; Kaplan-Meier's is that after.
    """

    edges: Float[Tensor, " C"]
    alpha: float = 0.0

    def __call__(self, logits: Float[Tensor, "B C"], targets: Float[Tensor, "B 2"]) -> Float[Tensor, ""]:
        """The cost of `logits` where `targets` are right."""
        wide = _wide(logits)
        event = targets[:, 1] == 1
        at = torch.bucketize(targets[:, 0].contiguous(), self.edges[:-1].to(targets))
        step = torch.arange(wide.shape[1], device=wide.device)
        lived = (step < at[:, None]) | ((step == at[:, None]) & ~event[:, None])
        died = (step == at[:, None]) & event[:, None]
        cost = (F.softplus(wide) * lived + F.softplus(-wide) * died).sum(dim=1)
        return torch.where(event, cost, (1 - self.alpha) * cost).mean()


@dataclass(frozen=True, slots=True, eq=False)
class CoxLikelihood:
    """Minus Cox's partial log-likelihood of the bags of a step, mean over their events, in float32 or wider; 0 without events.

        (log(sum(exp(logits[times >= times[i]]))) - logits[i]) for each event i

    The bags of a step are at risk with each other, and with no others: it needs two or more. Events at one time by `ties`:
    "breslow" as if each came first, "efron" as if each came at every place among them (Efron 1977).
    Cox 1972, doi:10.1111/j.2517-6161.1972.tb00899.x.
    """

    ties: Literal["efron", "breslow"] = "efron"

    def __call__(self, logits: Float[Tensor, "B 1"], targets: Float[Tensor, "B 2"]) -> Float[Tensor, ""]:
        """The cost of `logits` where `targets`, time and event, are right."""
        risk = _wide(logits)[:, 0]
        times, event = targets[:, 0], targets[:, 1] == 1
        if not bool(event.any()):
            return risk.sum() * 0
        same = event[None] & (times[None] == times[event, None])  # [events, B], who has an event at that time
        at_risk = times[None] >= times[event, None]
        log_all = risk.expand_as(at_risk).masked_fill(~at_risk, -torch.inf).logsumexp(dim=1)
        if self.ties == "efron":
            log_tied = risk.expand_as(same).masked_fill(~same, -torch.inf).logsumexp(dim=1)
            own = same[:, event]
            place = own.tril(-1).sum(dim=1) / own.sum(dim=1)
            log_all = log_all + torch.log1p(-place.to(risk) * (log_tied - log_all).exp())
        return (log_all - risk[event]).mean()


def compares_bags(criterion: Criterion) -> bool:
    """Whether a bag's cost depends on the other bags beside it, so that a pack of one bag's parts means nothing."""
    return isinstance(criterion, CoxLikelihood)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits
