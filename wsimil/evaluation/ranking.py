"""AUROC and average precision for many weightings of the same rows at once, which is what a bootstrap needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.cases import Floats


def weighted_ranking(
    positive: NDArray[np.bool_], scores: Floats, weights: Floats, negative_weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """AUROC and average precision, [R] each, for every row of `weights` [R, n]; NaN where a side is missing.

        auroc = P(score of a positive > score of a negative) + P(equal) / 2;  auprc = sum of precision * gain of recall

    Equal scores share their rank. Where `negative_weights` [R, n] are given, negatives count by these.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(-scores[order], prepend=-np.inf) != 0)
    is_true = positive[order]
    true = np.add.reduceat(np.where(is_true, weights[:, order], 0.0), starts, axis=1)
    other = (weights if negative_weights is None else negative_weights)[:, order]
    false = np.add.reduceat(np.where(is_true, 0.0, other), starts, axis=1)
    above_true, above_false = true.cumsum(axis=1), false.cumsum(axis=1)
    all_true, all_false = above_true[:, -1], above_false[:, -1]
    wins = np.einsum("rl,rl->r", false, above_true - true / 2)
    above = above_true + above_false
    precision = np.divide(above_true, above, out=np.zeros_like(above), where=above > 0)
    gained = np.einsum("rl,rl->r", true, precision)
    pairs = all_true * all_false
    auroc = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
    auprc = np.divide(gained, all_true, out=np.full(len(wins), np.nan), where=pairs > 0)
    return auroc, auprc
