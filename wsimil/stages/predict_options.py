"""What a user may choose about prediction; read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsimil.evaluation.attribution import LEAVE_ONE_OUT_TILES, SCORE_KINDS, ScoreKind, default_kinds
from wsimil.export.span import RangeKind
from wsimil.geometry import Origin

if TYPE_CHECKING:
    from wsimil.mil.base import MILModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """What a user may choose about prediction.

    `scores` are the kinds that tiles get, None for those of `default_kinds`. `score` is what
    overlays show, None for the first of those of what is predicted; its kind need not stand in `scores` too. A bag of more than
    `leave_one_out_tiles` gets no such score from a method that would have to answer anew without each. `range` is what
    the colors of overlays span: one range for all slides, each slide's own, or the ranks of its tiles.
    `encoder_weights`, `mpp_override`, `batch_size` and `readers` matter where slides are given: the rest of the extraction is
    the model's. `origin` says from where QuPath coordinates count. `pseudonyms` is a file of names that stand for slides and
    patients in everything that is written and said; it is made where it is not there.
    """

    device: str = "auto"
    heatmaps: bool = True
    scores: tuple[ScoreKind, ...] | None = None
    score: str | None = None
    leave_one_out_tiles: int = LEAVE_ONE_OUT_TILES
    range: RangeKind = "cohort"
    origin: Origin = "bounds"
    encoder_weights: Path | None = None
    mpp_override: float | None = None
    batch_size: int = 32
    readers: int = 2
    pseudonyms: Path | None = None

    def kinds(self, model: MILModel) -> tuple[ScoreKind, ...]:
        """The kinds of scores that are made of this model's answers."""
        wanted = default_kinds(model) if self.scores is None else self.scores
        of_overlays = (self.score or "").partition(":")[0]
        return tuple(kind for kind in SCORE_KINDS if kind in wanted or kind == of_overlays)
