"""The maps that are judged: one score of each tile, for one output, turned the way of what was said."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.evaluation.attribution import attribute
from wsimil.evaluation.cases import Floats
from wsimil.evaluation.faithfulness.slide import TileMap
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch

ATTENTION = "attention"
ScoreKind: TypeAlias = Literal["contribution", "attention"]
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Scores of one kind: `values` for each logit, of attention for each head; `bias` is what their sum lacks of the logit."""

    values: Float[Tensor, "T C"]
    rule: str
    bias: Float[Tensor, "B C"] | None


def score(model: MILModel, bags: BagBatch, kind: ScoreKind) -> Scored:
    """Scores that a method gives by itself. Raises ModelError where it does not."""
    found = attribute(model, bags, outputs=[str(i) for i in range(model.num_classes)])
    columns = [i for i, name in enumerate(found.names) if name.startswith(kind)]
    if not columns:
        raise ModelError(f"{kind} is not given by {type(model).__name__}")
    bias = None if kind == "attention" or found.bias is None else found.bias[None].expand(len(bags), -1)
    return Scored(values=found.values[:, columns], rule="", bias=bias)


def column(scored: Scored, kind: ScoreKind, model: MILModel, output: int) -> Floats:
    """The score [N] of each tile for one output.

    Attention knows no output: it is the mean over heads, but the head of that output where a method has one for each.
    """
    values = scored.values.detach().double().cpu().numpy()
    if kind != ATTENTION:
        return np.asarray(values[:, output], np.float64)
    heads = values.shape[1]
    own = heads == model.num_classes == model.embedding_parts and heads > 1
    return np.asarray(values[:, output] if own else values.mean(axis=1), np.float64)


def tile_map(scored: Scored, kind: ScoreKind, model: MILModel, output: int, sign: int) -> TileMap:
    """The map of one bag for what was said: `output`, turned by `sign`; attention is never turned, for it has no sign."""
    values = column(scored, kind, model, output)
    if kind == ATTENTION:
        return TileMap(score=kind, values=values, rule=scored.rule)
    total = None
    if scored.bias is not None:
        total = sign * (float(values.sum()) + float(scored.bias[0, output]))
    return TileMap(score=kind, values=sign * values, rule=scored.rule, total=total)
