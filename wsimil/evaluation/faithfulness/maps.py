"""The maps that are judged: one score of each tile, for one output, turned the way of what was said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsimil.evaluation.attribution import ScoreKind
from wsimil.evaluation.attribution.scored import NO_RULE, Scored
from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.cases import Floats
from wsimil.evaluation.class_odds import rest_of_odds, score_of_odds
from wsimil.evaluation.faithfulness.said import Said
from wsimil.evaluation.faithfulness.slide import TileMap
from wsimil.mil.base import MILModel
from wsimil.targets import Classification, Task

ATTENTION = "attention"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BagMaps:
    """How scores of one bag become maps, as heatmaps show them: by the `logits` [C] that the model answers for the whole bag, and
    the `calibration` of its classes.
    """

    model: MILModel
    task: Task
    logits: Floats
    calibration: Calibration | None = None

    def column(self, scored: Scored, kind: ScoreKind, output: int) -> Floats:
        """The score [N] of each tile for one output.

        Of a class it is what the tile says of the log-odds against the other classes, see `class_odds`. Attention knows no
        output: it is the mean over heads, but the head of that output where a method has one for each.
        """
        values = _values(scored)
        if kind == ATTENTION:
            heads = values.shape[1]
            own = heads == self.model.num_classes == self.model.embedding_parts and heads > 1
            return np.asarray(values[:, output] if own else values.mean(axis=1), np.float64)
        if isinstance(self.task, Classification):
            alone = scored.rule == NO_RULE
            return score_of_odds("single" if alone else kind, values, self.logits, output, self.calibration)
        return np.asarray(values[:, output], np.float64)

    def tile_map(self, scored: Scored, kind: ScoreKind, said: Said) -> TileMap:
        """The map for what was said, turned by its sign; attention is never turned, for it has none.

        What it sums to is told of the answer before calibration.
        """
        values = self.column(scored, kind, said.output)
        if kind == ATTENTION:
            return TileMap(score=kind, values=values, rule=scored.rule)
        total = None
        if scored.bias is not None:
            total = said.sign * self._total(kind, _values(scored), scored.bias[0].double().cpu().numpy(), said.output)
        return TileMap(score=kind, values=said.sign * values, rule=scored.rule, total=total)

    def _total(self, kind: ScoreKind, values: Floats, bias: Floats, output: int) -> float:
        if isinstance(self.task, Classification):
            parts = score_of_odds(kind, values, self.logits, output)
            return float(parts.sum()) + rest_of_odds(bias, self.logits, output)
        return float(values[:, output].sum()) + float(bias[output])


def _values(scored: Scored) -> Floats:
    return np.asarray(scored.values.detach().double().cpu().numpy(), np.float64)
