"""The maps that are judged: one score of each tile, for one output, turned the way of what was said."""

from __future__ import annotations

import numpy as np

from wsimil.evaluation.attribution import ScoreKind
from wsimil.evaluation.attribution.scored import NO_RULE, Scored
from wsimil.evaluation.cases import Floats
from wsimil.evaluation.class_odds import rest_of_odds, score_of_odds
from wsimil.evaluation.faithfulness.said import Said
from wsimil.evaluation.faithfulness.slide import TileMap
from wsimil.mil.base import MILModel
from wsimil.targets import Classification, Task

ATTENTION = "attention"


def column(scored: Scored, kind: ScoreKind, model: MILModel, task: Task, output: int, *, logits: Floats) -> Floats:
    """The score [N] of each tile for one output, as a heatmap shows it before calibration; `logits` [C] are the bag's.

    Of a class it is what the tile says of the log-odds against the other classes, see `class_odds`. Attention knows no output: it
    is the mean over heads, but the head of that output where a method has one for each.
    """
    values = scored.values.detach().double().cpu().numpy()
    if kind == ATTENTION:
        heads = values.shape[1]
        own = heads == model.num_classes == model.embedding_parts and heads > 1
        return np.asarray(values[:, output] if own else values.mean(axis=1), np.float64)
    if isinstance(task, Classification):
        return score_of_odds("single" if scored.rule == NO_RULE else kind, values, logits, output)
    return np.asarray(values[:, output], np.float64)


def tile_map(scored: Scored, kind: ScoreKind, model: MILModel, task: Task, said: Said, *, logits: Floats) -> TileMap:
    """The map of one bag for what was said, turned by its sign; attention is never turned, for it has none."""
    values = column(scored, kind, model, task, said.output, logits=logits)
    if kind == ATTENTION:
        return TileMap(score=kind, values=values, rule=scored.rule)
    total = None
    if scored.bias is not None:
        bias = scored.bias[0].double().cpu().numpy()
        odds = isinstance(task, Classification)
        rest = rest_of_odds(bias, logits, said.output) if odds else float(bias[said.output])
        total = said.sign * (float(values.sum()) + rest)
    return TileMap(score=kind, values=said.sign * values, rule=scored.rule, total=total)
