"""Scores of one kind for a pack of bags, of whatever method."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wsimil.errors import ModelError
from wsimil.evaluation.attribution.answered import answered
from wsimil.evaluation.attribution.contribution import contributed
from wsimil.evaluation.attribution.gradients import gradient_x_input, integrated_gradients
from wsimil.evaluation.attribution.kinds import LEAVE_ONE_OUT_TILES, SCORE_KINDS, ScoreKind
from wsimil.evaluation.attribution.leaving import leave_one_out, single
from wsimil.evaluation.attribution.scored import NO_RULE, Scored, mean_of
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch
from wsimil.mil.ensemble import Ensemble

_OF_LOGITS: Mapping[ScoreKind, Callable[[MILModel, BagBatch], Scored]] = {
    "single": single,
    "integrated_gradients": integrated_gradients,
    "gradient_x_input": gradient_x_input,
}


def score(
    model: MILModel, bags: BagBatch, kind: ScoreKind, *, leave_one_out_tiles: int = LEAVE_ONE_OUT_TILES
) -> Scored:
    """How each instance of `bags` speaks for each logit, in logits; of attention, how much each head looks at it.

    "contribution": what the instance adds to the logit, which is the sum over the bag and `bias`: exact where the method's
    logits are sums over instances, Shapley values where they are maxima, else by LRP with constant attention; where a method
    has no rule, `single`, as the rule says. "single": the logits of a bag of this instance alone. "leave_one_out": the bag's
    logits less those without the instance. "integrated_gradients" and "gradient_x_input": from a baseline, see `gradients`.
    "attention": how much of the bag's vector the instance makes up, which is not what it speaks for.

    Of an ensemble all are means over members, as its logits are. Raises ValueError for an unknown kind, ModelError where a method
    has no attention, or where a bag of more than `leave_one_out_tiles` would have to be answered anew without each.
    """
    if kind not in SCORE_KINDS:
        raise ValueError(f"a score is one of {', '.join(SCORE_KINDS)}, got {kind!r}")
    if kind == "attention":
        attention = answered(model, bags).attention
        if attention is None:
            raise ModelError(
                f"{type(model).__name__} pools without attention; ask for another score, such as contribution"
            )
        return attention
    if kind == "contribution":
        found = contributed(model, bags)
        return without_rule(model, bags) if found is None else found.scored
    if isinstance(model, Ensemble):
        return mean_of([score(member, bags, kind, leave_one_out_tiles=leave_one_out_tiles) for member in model.each()])
    if kind == "leave_one_out":
        return leave_one_out(model, bags, most_tiles=leave_one_out_tiles)
    return _OF_LOGITS[kind](model, bags)


def without_rule(model: MILModel, bags: BagBatch) -> Scored:
    """What stands for contributions where a method has no rule for them: `single`, under a rule that says so."""
    return Scored(values=score(model, bags, "single").values, rule=NO_RULE)
