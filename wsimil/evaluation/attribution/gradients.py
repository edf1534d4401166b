"""Gradients of logits by features, and their integral along the way from a baseline.

Both have one, which the rule names: a bag of as many instances at the same places, each of which is the mean tile of training,
zero in standardized features; of a model that standardizes nothing, features of zero.

Integrated gradients: Sundararajan, Taly & Yan 2017, ICML, arXiv:1703.01365.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from wsimil.evaluation.attribution.inputs_alone import by_inputs_alone
from wsimil.evaluation.attribution.scored import Scored
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch
from wsimil.ops.varlen import cu_seqlens_of, split_bags

_STEPS = (32, 64, 128)
_ROWS = 8192
"""Instances of several steps that go through a model together."""
_INCOMPLETE = 0.01
"""Of the largest change of a logit along the way: what may be missing where no further steps are taken."""


def gradient_x_input(model: MILModel, bags: BagBatch) -> Scored:
    """`(x - base) · d logit / d x`: what a logit would change by along a straight line; its parts do not sum to the logit."""
    parts = [_parts(model, bag, np.ones(1))[0] for bag in _each(bags)]
    return Scored(values=torch.cat(parts), rule=f"gradient x distance from {_named(model)}")


def integrated_gradients(model: MILModel, bags: BagBatch) -> Scored:
    """`(x - base) · integral of d logit / d x` from the baseline to x, by Gauss and Legendre; `bias` is the baseline's logit.

    Steps are doubled from 32 up to 128 until what a bag's parts and bias leave to its logit is below a hundredth of the largest
    change of its logits; the rule tells the most steps that were taken and the most that was left. No number of steps catches a
    jump: methods that pick instances by rank jump along the way, and RRT-MIL at its beginning, where all tiles are equal.
    """
    values, biases, most, worst = [], [], 0, 0.0
    for bag in _each(bags):
        base = replace(bag, features=_baseline(model).expand_as(bag.features))
        with torch.no_grad():
            begin, end = model(base).logits, model(bag).logits
        change = (end - begin).abs().max().clamp_min(torch.finfo(end.dtype).eps * end.abs().max())
        for steps in _STEPS:
            found = _integral(model, bag, steps)
            left = float((found.sum(dim=0) + begin[0] - end[0]).abs().max() / change) if change > 0 else 0.0
            if left <= _INCOMPLETE:
                break
        values.append(found)
        biases.append(begin)
        most, worst = max(most, steps), max(worst, left)
    rule = f"from {_named(model)}, {most} steps, complete to {worst:.1%}"
    return Scored(values=torch.cat(values), rule=rule, bias=torch.cat(biases))


def _integral(model: MILModel, bag: BagBatch, steps: int) -> Float[Tensor, "n C"]:
    places, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros(len(bag.features), model.num_classes, dtype=torch.float64, device=bag.features.device)
    together = max(_ROWS // len(bag.features), 1)
    for begin in range(0, steps, together):
        here = slice(begin, begin + together)
        for weight, part in zip(weights[here] / 2, _parts(model, bag, (places[here] + 1) / 2), strict=True):
            total += float(weight) * part.double()
    return total.to(model.standardize.mean.dtype)


def _parts(model: MILModel, bag: BagBatch, shares: NDArray[np.float64]) -> Float[Tensor, "S n C"]:
    """`(x - base) · gradient` of each logit at `base + share * (x - base)` of S shares, which are a pack of as many bags."""
    base, count = _baseline(model), len(bag.features)
    way = bag.features.to(base.dtype) - base
    on_the_way = base + torch.from_numpy(shares).to(base)[:, None, None] * way
    x = on_the_way.flatten(0, 1).requires_grad_()
    with by_inputs_alone(model):
        logits = model(
            BagBatch(
                features=x,
                xy0=bag.xy0.repeat(len(shares), 1),
                cu_seqlens=cu_seqlens_of([count] * len(shares), device=x.device),
                slide_ids=bag.slide_ids * len(shares),
            )
        ).logits
        totals = logits.sum(dim=0).unbind()
    columns = []
    for column, total in enumerate(totals):
        (gradient,) = torch.autograd.grad(total, x, retain_graph=column + 1 < len(totals))
        columns.append((gradient.view_as(on_the_way) * way).sum(dim=2))
    return torch.stack(columns, dim=2)


def _baseline(model: MILModel) -> Float[Tensor, " D"]:
    return model.standardize.mean


def _named(model: MILModel) -> str:
    return "features of zero" if model.standardize.is_identity else "the mean tile"


def _each(bags: BagBatch) -> Iterator[BagBatch]:
    """Bags one by one: how many steps one takes does not hang on its neighbors."""
    split = [split_bags(part, bags.cu_seqlens) for part in (bags.features, bags.xy0)]
    for slide_id, features, xy0 in zip(bags.slide_ids, *split, strict=True):
        ends = cu_seqlens_of([len(features)], device=features.device)
        yield BagBatch(features=features, xy0=xy0, cu_seqlens=ends, slide_ids=(slide_id,))
