"""How good probabilities are, by scikit-learn; what is undefined is None, with a reason, and never a number.

The averaging over classes is in the name: macro means that each class counts the same, ovr is one class against the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

NAMES_BINARY = ("auroc", "auprc", "balanced_accuracy", "f1", "accuracy", "log_loss")
NAMES_MULTICLASS = ("auroc_macro_ovr", "auprc_macro_ovr", "balanced_accuracy", "f1_macro", "accuracy", "log_loss")


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


def auprc(targets: NDArray[np.int64], probabilities: NDArray[np.floating]) -> float | None:
    """Average precision of class 1, or the macro average over classes; None where a class is missing."""
    columns = _per_class(probabilities)
    if (np.bincount(targets, minlength=columns.shape[1]) == 0).any():
        return None
    if columns.shape[1] == 2:
        return float(sk.average_precision_score(targets == 1, columns[:, 1]))
    return float(np.mean([sk.average_precision_score(targets == c, columns[:, c]) for c in range(columns.shape[1])]))


def evaluate(targets: NDArray[np.int64], probabilities: NDArray[np.floating]) -> dict[str, float | None]:
    """Every metric by name, for `probabilities` [n, C] and `targets` [n] in 0..C-1; decisions by highest probability.

    F1 of two classes is that of class 1. A metric that is undefined for these targets is None.
    """
    columns = _per_class(probabilities)
    count = columns.shape[1]
    decided = columns.argmax(axis=1)
    whole = bool((np.bincount(targets, minlength=count) > 0).all())
    names = NAMES_BINARY if count == 2 else NAMES_MULTICLASS
    values: tuple[float | None, ...] = (
        auroc(targets, columns),
        auprc(targets, columns),
        float(sk.balanced_accuracy_score(targets, decided)) if whole else None,
        _f1(targets, decided, count) if whole else None,
        float(sk.accuracy_score(targets, decided)) if len(targets) else None,
        float(sk.log_loss(targets, columns, labels=list(range(count)))) if len(targets) else None,
    )
    return dict(zip(names, values, strict=True))


def _f1(targets: NDArray[np.int64], decided: NDArray[np.int64], count: int) -> float:
    if count == 2:
        return float(sk.f1_score(targets, decided, zero_division=0.0))
    return float(sk.f1_score(targets, decided, average="macro", zero_division=0.0))


def _per_class(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = np.asarray(probabilities, dtype=np.float64)
    return np.stack([1 - wide, wide], axis=1) if wide.ndim == 1 else wide
