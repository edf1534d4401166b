"""Where pixels are labelled: how well a map ranks tiles, and how many lesions it finds at how many false alarms a slide (FROC).

FROC after the CAMELYON16 challenge (Ehteshami Bejnordi et al. 2017, JAMA 318(22), doi:10.1001/jama.2017.14585): sensitivity over
lesions, at 1/4, 1/2, 1, 2, 4 and 8 false alarms a slide on average, and the mean of these six. What differs from it: a lesion is
a connected polygon as it was drawn unless `truth.grown` widened it, and none is left out as too small; a map gives tiles, not
points, so an alarm is a tile and finds every lesion that it overlaps; and between thresholds the curve is a step, not a slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from wsimil.evaluation.cases import Floats, Ints
from wsimil.evaluation.ranking import weighted_ranking

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False alarms a slide at which CAMELYON16 reads sensitivity."""

_REACH = 1.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alarms:
    """The alarms of one slide: their `scores` [A], and which of the slide's lesions each finds, bool [A, L]."""

    scores: Floats
    finds: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Froc:
    """Sensitivity at each of `RATES`, and the curve: at threshold i there are `false_alarms` a slide and `sensitivity`."""

    at: tuple[float, ...]
    mean: float
    slides: int
    lesions: int
    false_alarms: tuple[float, ...]
    sensitivity: tuple[float, ...]


def tile_ranking(positive: NDArray[np.bool_], scores: Floats) -> tuple[float, float]:
    """AUROC and average precision of the scores [N] of one slide's tiles; NaN where all tiles are alike."""
    if positive.all() or not positive.any():
        return float("nan"), float("nan")
    auroc, auprc = weighted_ranking(positive, scores, np.ones((1, len(scores))))
    return float(auroc[0]), float(auprc[0])


def alarms(scores: Floats, xy0: Ints, size0: float, lesions: shapely.MultiPolygon) -> Alarms:
    """Tiles whose score is the highest around: the highest tile is an alarm, and those nearer than 1.5 tile sides fall silent,
    then the highest of the others, and so on; of equal scores the earlier tile.

    `xy0` [N, 2] and `size0` in level-0 px, as `lesions`, connected polygons of which none touches another (`truth.connected`).
    An alarm finds a lesion where its tile and the lesion share an area.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(xy0.astype(np.float64))
    open_ = np.ones(len(scores), np.bool_)
    chosen = []
    for row in np.argsort(-scores, kind="stable"):
        if open_[row]:
            chosen.append(int(row))
            near = tree.query_ball_point(xy0[row].astype(np.float64), np.nextafter(_REACH * size0, 0))
            open_[near] = False
    low = xy0[chosen].astype(np.float64)
    boxes = shapely.box(low[:, 0], low[:, 1], low[:, 0] + size0, low[:, 1] + size0)
    finds = np.zeros((len(chosen), len(lesions.geoms)), np.bool_)
    for column, lesion in enumerate(lesions.geoms):
        shapely.prepare(lesion)
        finds[:, column] = shapely.area(shapely.intersection(boxes, lesion)) > 0
    return Alarms(scores=np.asarray(scores[chosen], np.float64), finds=finds)


def froc(slides: Sequence[Alarms]) -> Froc | None:
    """The curve over all slides, those without a lesion too; None where no slide has one.

    At a threshold t, sensitivity is the share of lesions that an alarm of score >= t finds, and false alarms are those of score
    >= t that find none. At a rate it is the highest sensitivity among thresholds with no more false alarms a slide than that.
    """
    lesions = sum(one.finds.shape[1] for one in slides)
    if not lesions:
        return None
    best = np.concatenate(
        [np.where(one.finds, one.scores[:, None], -np.inf).max(axis=0, initial=-np.inf) for one in slides]
    )
    false = np.sort(np.concatenate([one.scores[~one.finds.any(axis=1)] for one in slides]))
    thresholds = np.unique(np.concatenate([one.scores for one in slides]))[::-1]
    sensitivity = (best[None, :] >= thresholds[:, None]).mean(axis=1)
    rate = (len(false) - np.searchsorted(false, thresholds, side="left")) / len(slides)
    at = tuple(float(sensitivity[rate <= most].max(initial=0.0)) for most in RATES)
    return Froc(
        at=at,
        mean=float(np.mean(at)),
        slides=len(slides),
        lesions=lesions,
        false_alarms=tuple(rate.tolist()),
        sensitivity=tuple(sensitivity.tolist()),
    )
