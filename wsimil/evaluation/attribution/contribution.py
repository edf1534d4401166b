"""What each instance adds to each logit: exactly where these are sums over instances or maxima, else by constant-attention LRP.

With weights of attention, deviations that norms divide by and gates held as they are, a network is affine in its embedded
instances: their parts and its value at zero, the bias, sum to the logit. Ali et al. 2022, ICML, arXiv:2202.07304; Hense et al.
2024, NeurIPS, arXiv:2406.04280.
"""
# jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsimil.evaluation.attribution.answered import Answered, answered, answered_by, joined
from wsimil.evaluation.attribution.inputs_alone import by_inputs_alone
from wsimil.evaluation.attribution.scored import EXACT, LRP, MIXED, SHAPLEY, Scored, mean_of
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, Contributions
from wsimil.mil.ensemble import Ensemble


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contributed:
    """Contributions, and the answer whose logits they are parts of."""

    scored: Scored
    answer: Answered


@torch.no_grad()
def contributed(model: MILModel, bags: BagBatch) -> Contributed | None:
    """None where a method has no rule, or one of an ensemble's members has none.

    Of a method that mixes instances before it pools them an exact split speaks of what is pooled, which has seen other tiles; LRP
    follows it back to the tiles themselves, and goes first.
    """
    if isinstance(model, Ensemble):
        return _of_ensemble(model, bags)
    if not model.mixes_instances:
        split = model.contributions(bags)
        if split is not None:
            return _of_split(split, bags, SHAPLEY if split.of_maximum else EXACT)
    relevance = _relevance(model, bags)
    if relevance is not None:
        return Contributed(scored=relevance, answer=answered(model, bags))
    split = model.contributions(bags) if model.mixes_instances else None
    return None if split is None else _of_split(split, bags, MIXED)


def _of_ensemble(model: Ensemble, bags: BagBatch) -> Contributed | None:
    found = []
    for member in model.each():
        one = contributed(member, bags)
        if one is None:
            return None
        found.append(one)
    answer = joined(model, [one.answer for one in found], bags)
    return Contributed(scored=mean_of([one.scored for one in found]), answer=answer)


def _of_split(split: Contributions, bags: BagBatch, rule: str) -> Contributed:
    bias = split.bias.detach().expand(len(bags), -1)
    scored = Scored(values=split.values, rule=rule, bias=bias)
    return Contributed(scored=scored, answer=answered_by(split.output, bags))


def _relevance(model: MILModel, bags: BagBatch) -> Scored | None:
    """Gradient at zero times input: the gradient of an affine function is the same everywhere, its value at zero the bias."""
    h = model.embed_instances(bags, None)
    zero = torch.zeros_like(h).requires_grad_()
    with by_inputs_alone(model):
        logits = model.linearized(zero, bags, at=h)
        if logits is None:
            return None
        totals = logits.sum(dim=0).unbind()
    columns: list[Tensor] = []
    for column, total in enumerate(totals):
        (gradient,) = torch.autograd.grad(total, zero, retain_graph=column + 1 < len(totals))
        columns.append((gradient * h).sum(dim=1))
    return Scored(values=torch.stack(columns, dim=1), rule=LRP, bias=logits.detach())
