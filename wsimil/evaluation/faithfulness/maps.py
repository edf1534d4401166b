"""The maps that are judged: one score of each tile, for one output, turned the way of what was said."""

from __future__ import annotations

import numpy as np

from wsimil.evaluation.attribution import ScoreKind
from wsimil.evaluation.attribution.scored import Scored
from wsimil.evaluation.cases import Floats
from wsimil.evaluation.faithfulness.said import Said
from wsimil.evaluation.faithfulness.slide import TileMap
from wsimil.mil.base import MILModel
from wsimil.targets import Classification, Task
from wsimil.targets.base import log_odds

ATTENTION = "attention"


def column(scored: Scored, kind: ScoreKind, model: MILModel, task: Task, output: int) -> Floats:
    """The score [N] of each tile for one output, as a heatmap shows it.

    `single` of a class is the log-odds against the other classes, which its logit alone is not. Attention knows no output: it is
    the mean over heads, but the head of that output where a method has one for each.
    """
    values = scored.values.detach().double().cpu().numpy()
    if kind == "single" and isinstance(task, Classification):
        return log_odds(values, output)
    if kind != ATTENTION:
        return np.asarray(values[:, output], np.float64)
    heads = values.shape[1]
    own = heads == model.num_classes == model.embedding_parts and heads > 1
    return np.asarray(values[:, output] if own else values.mean(axis=1), np.float64)


def tile_map(scored: Scored, kind: ScoreKind, model: MILModel, task: Task, said: Said) -> TileMap:
    """The map of one bag for what was said, turned by its sign; attention is never turned, for it has none."""
    values = column(scored, kind, model, task, said.output)
    if kind == ATTENTION:
        return TileMap(score=kind, values=values, rule=scored.rule)
    total = None
    if scored.bias is not None:
        total = said.sign * (float(values.sum()) + float(scored.bias[0, said.output]))
    return TileMap(score=kind, values=said.sign * values, rule=scored.rule, total=total)
