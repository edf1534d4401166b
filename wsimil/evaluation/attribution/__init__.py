"""What a model's answer for a bag rests on, tile by tile: scores of several kinds, each with the rule that made it."""

from __future__ import annotations

from wsimil.evaluation.attribution.scored import SCORE_KINDS, Scored, ScoreKind
from wsimil.evaluation.attribution.scoring import score
from wsimil.evaluation.attribution.table import Attribution, attribute, default_kinds, kinds_of

__all__ = [
    "SCORE_KINDS",
    "Attribution",
    "ScoreKind",
    "Scored",
    "attribute",
    "default_kinds",
    "kinds_of",
    "score",
]
