"""Rank metrics of one set of scores, by scikit-learn; what is undefined is None, never a number.

Whole sets of metrics, with intervals, are made of cases (`cases`): `BinaryCases`, `MulticlassCases` and their like.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk


def auroc(targets: NDArray[np.int64], probabilities: NDArray[np.floating]) -> float | None:
    """Area under the ROC curve; None where a class is missing.

    `probabilities` is [n] or [n, 2] (of class 1, or of both) for two classes, [n, C] for more: macro average, one against rest.
    """
    columns = _per_class(probabilities)
    present = np.bincount(targets, minlength=columns.shape[1])
    if (present == 0).any():
        return None
    if columns.shape[1] == 2:
        return float(sk.roc_auc_score(targets, columns[:, 1]))
    return float(np.mean([sk.roc_auc_score(targets == c, columns[:, c]) for c in range(columns.shape[1])]))


def _per_class(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = np.asarray(probabilities, dtype=np.float64)
    return np.stack([1 - wide, wide], axis=1) if wide.ndim == 1 else wide
