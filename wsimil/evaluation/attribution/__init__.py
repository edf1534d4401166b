"""What a model's answer for a bag rests on, tile by tile: scores of several kinds, each with the rule that made it.

Here are the names of the kinds alone, so that a config can be checked without torch.
"""

from __future__ import annotations

from wsimil.evaluation.attribution.kinds import (
    LEAVE_ONE_OUT_TILES,
    SCORE_KINDS,
    ScoreKind,
    default_kinds,
    kinds_of,
)

__all__ = ["LEAVE_ONE_OUT_TILES", "SCORE_KINDS", "ScoreKind", "default_kinds", "kinds_of"]
