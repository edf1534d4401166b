"""Scores of tiles for a class, as what they say of its probability: a softmax hears a logit only beside those of other classes.

A tile that raises all logits alike speaks for no class. So a score is turned from the logit of a class to its log-odds against
the other classes, `z_c - log(sum(exp(z_k) for k != c))`, which the logits of labels and levels are by themselves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.calibration import Calibration
from wsimil.targets.base import log_odds, softmax


def score_of_odds(
    kind: str,
    scores: NDArray[np.float64],
    logits: NDArray[np.float64],
    index: int,
    calibration: Calibration | None = None,
) -> NDArray[np.float64]:
    """Scores [N] of one class for its log-odds, from raw `scores` [N, C] for each logit and the `logits` [C] of the whole bag.

    "single" is the log-odds of the tile alone, "leave_one_out" how much the bag's log-odds lose; both are exact. Scores of other
    kinds are parts of logits, or gradients of them: the class's own less those of the others, each by its share of their
    probability. That is the tangent of the log-odds at the bag's answer: with two classes it is exact, with more what parts
    leave to the log-odds is one number for the whole bag, `rest_of_odds`. All are those of the calibrated answer where
    `calibration` moves logits.
    """

    def moved(z: NDArray[np.float64]) -> NDArray[np.float64]:
        known = None if calibration is None else calibration.moved(z)
        return z if known is None else known

    if kind == "single":
        return log_odds(moved(scores), index)
    whole = moved(logits[None])
    if kind == "leave_one_out":
        return np.asarray(log_odds(whole, index) - log_odds(moved(logits - scores), index))
    temperature = None if calibration is None else calibration.temperature
    return _tangent(scores, whole, index) / (temperature or 1.0)


def rest_of_odds(bias: NDArray[np.float64], logits: NDArray[np.float64], index: int) -> float:
    """What contributions to the log-odds of a class leave to them, where those to each logit leave `bias` [C] to `logits` [C]."""
    whole = logits[None]
    bent = log_odds(whole, index) - _tangent(whole, whole, index)
    return float((_tangent(bias[None], whole, index) + bent)[0])


def _tangent(parts: NDArray[np.float64], at: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    slope = np.insert(-softmax(np.delete(at, index, axis=1))[0], index, 1.0)
    return np.asarray(parts @ slope)
