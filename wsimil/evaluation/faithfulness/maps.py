"""The maps that are judged: one score of each tile, for one output, turned the way of what was said."""

from __future__ import annotations

import numpy as np

from wsimil.evaluation.attribution import ScoreKind
from wsimil.evaluation.attribution.scored import Scored
from wsimil.evaluation.cases import Floats
from wsimil.evaluation.faithfulness.slide import TileMap
from wsimil.mil.base import MILModel

ATTENTION = "attention"


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
