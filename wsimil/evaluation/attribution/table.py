"""All scores of a pack that were asked for, named, in one table."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.evaluation.attribution.answered import answered
from wsimil.evaluation.attribution.contribution import contributed
from wsimil.evaluation.attribution.kinds import LEAVE_ONE_OUT_TILES, SCORE_KINDS, ScoreKind, default_kinds
from wsimil.evaluation.attribution.scored import Scored
from wsimil.evaluation.attribution.scoring import score, without_rule
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput

_WITH_THE_ANSWER: Final[tuple[ScoreKind, ...]] = ("contribution", "attention")
OWN: Final = "the method's own logit of the tile"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """A model's output for a batch and K named scores of each instance, each with the rule that made it.

    "attention" (or "attention:1" ... where there are several heads) is how much the bag's vector is made of an instance,
    which is not what the instance speaks for; "<kind>:<output>" is a score of one logit, such as that of a class: see
    `score`. "score:<output>" is the logit that a method itself gives an instance. Contributions to a logit sum over a bag
    to the logit less `bias`, which is None where none were asked for or the method has no rule; then "single:<output>" stands for
    them.
    """

    output: BagOutput
    names: tuple[str, ...]
    rules: tuple[str, ...]
    values: Float[Tensor, "T K"]
    bias: Float[Tensor, "B C"] | None
    lengths: tuple[int, ...]

    def per_bag(self) -> list[NDArray[np.float32]]:
        """The scores of each bag, [n, K], on the host."""
        return [part.numpy() for part in torch.split(self.values.to("cpu", torch.float32), list(self.lengths))]


def attribute(
    model: MILModel,
    bags: BagBatch,
    *,
    outputs: Sequence[str],
    kinds: Sequence[ScoreKind] | None = None,
    leave_one_out_tiles: int = LEAVE_ONE_OUT_TILES,
) -> Attribution:
    """The scores of these kinds, attention first and the others in the order of `SCORE_KINDS`; `outputs` name the logits.

    `kinds` None are those of `default_kinds`.
    Contributions and attention come with the one pass that gives the output, the others take passes of their own. A method
    without attention gives none. Raises ModelError where the model has another number of logits, and as `score` does.
    """
    if len(outputs) != model.num_classes:
        raise ModelError(f"the model has {model.num_classes} logits, got {len(outputs)} names: {', '.join(outputs)}")
    kinds = default_kinds(model) if kinds is None else kinds
    found = contributed(model, bags) if "contribution" in kinds else None
    answer = answered(model, bags) if found is None else found.answer
    table = _Columns()
    if "attention" in kinds and answer.attention is not None:
        heads = answer.attention.values.shape[1]
        names = ["attention"] if heads == 1 else [f"attention:{head}" for head in range(1, heads + 1)]
        table.add(names, answer.attention)
    if found is not None:
        table.add([f"contribution:{name}" for name in outputs], found.scored)
    elif "contribution" in kinds:
        table.add([f"single:{name}" for name in outputs], without_rule(model, bags))
    for kind in SCORE_KINDS:
        if kind in kinds and kind not in _WITH_THE_ANSWER and f"{kind}:{outputs[0]}" not in table.names:
            scored = score(model, bags, kind, leave_one_out_tiles=leave_one_out_tiles)
            table.add([f"{kind}:{name}" for name in outputs], scored)
    own = answer.output.instance_logits
    if own is not None and kinds:
        table.add([f"score:{name}" for name in outputs], Scored(values=own, rule=OWN))
    empty = bags.features.new_empty((len(bags.features), 0))
    return Attribution(
        output=answer.output,
        names=tuple(table.names),
        rules=tuple(table.rules),
        values=torch.cat(table.values, dim=1) if table.values else empty,
        bias=None if found is None else found.scored.bias,
        lengths=bags.lengths,
    )


class _Columns:
    """Columns as they come."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rules: list[str] = []
        self.values: list[Tensor] = []

    def add(self, names: Sequence[str], scored: Scored) -> None:
        self.names += names
        self.rules += [scored.rule] * len(names)
        self.values.append(scored.values.detach())
