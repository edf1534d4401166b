"""What a model's answer for a bag rests on, tile by tile: scores of several kinds, each with the rule that made it.

Everything but the names of the kinds is loaded when first used: a config can be checked without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from wsimil.evaluation.attribution.kinds import SCORE_KINDS, ScoreKind, default_kinds, kinds_of

if TYPE_CHECKING:
    from wsimil.evaluation.attribution.scored import Scored as Scored
    from wsimil.evaluation.attribution.scoring import score as score
    from wsimil.evaluation.attribution.table import Attribution as Attribution
    from wsimil.evaluation.attribution.table import attribute as attribute

_HOMES = {
    "Attribution": "wsimil.evaluation.attribution.table",
    "Scored": "wsimil.evaluation.attribution.scored",
    "attribute": "wsimil.evaluation.attribution.table",
    "score": "wsimil.evaluation.attribution.scoring",
}

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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsimil.evaluation.attribution' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
