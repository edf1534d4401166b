"""A model's answer for bags, and how much each instance was looked at on the way to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wsimil.evaluation.attribution.scored import NO_SOFTMAX, SOFTMAX, Scored, rule_of_several
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput
from wsimil.mil.ensemble import Ensemble
from wsimil.ops.segment_softmax import segment_softmax


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answered:
    """The output of a model, and its attention [T, H] with the rule that made it; None where it has none."""

    output: BagOutput
    attention: Scored | None


@torch.no_grad()
def answered(model: MILModel, bags: BagBatch) -> Answered:
    """One pass through the model."""
    if isinstance(model, Ensemble):
        return joined(model, [answered(member, bags) for member in model.each()], bags)
    return answered_by(model(bags), bags)


def answered_by(output: BagOutput, bags: BagBatch) -> Answered:
    """An output that one model gave."""
    attention = None
    if output.attention is not None:
        attention = Scored(values=output.attention, rule=NO_SOFTMAX)
    elif output.attention_logits is not None:
        attention = Scored(values=segment_softmax(output.attention_logits, bags.cu_seqlens), rule=SOFTMAX)
    return Answered(output=output, attention=attention)


def joined(model: Ensemble, parts: list[Answered], bags: BagBatch) -> Answered:
    """What the members of an ensemble answered; its attention is the mean over them and their heads."""
    output = model.joined([part.output for part in parts], bags)
    if output.attention is None:
        return Answered(output=output, attention=None)
    rule = rule_of_several([part.attention.rule for part in parts if part.attention is not None])
    return Answered(output=output, attention=Scored(values=output.attention, rule=rule))
