"""Two classes: how well probabilities of class 1 rank, decide and are calibrated.

Values by scikit-learn where it has them; replicates of all of them by matrix products over weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from wsimil.evaluation.binning import NAMES_CALIBRATION, Binning, bin_of, calibration_error
from wsimil.evaluation.cases import Floats, Ints, checked_probabilities, checked_targets, rarity, ratio
from wsimil.evaluation.ranking import weighted_ranking

LOG_FLOOR = float(np.finfo(np.float64).eps)
"""The least probability that log loss reckons with; scikit-learn's."""

NAMES = (
    "auroc", "auprc", "balanced_accuracy", "f1", "mcc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "brier",
    "log_loss",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BinaryCases:
    """`targets` int64 [n] in {0, 1}, `probabilities` float64 [n] of class 1; decided for class 1 at `threshold` and above.

    The threshold is given, never chosen here: it comes from the validation split (`threshold.Threshold`), or from the task;
    rows of several models have one each, [n].

    Metrics, each None where it is undefined:

    - auroc, auprc (average precision; its chance level is the prevalence), balanced_accuracy, f1 (of class 1), mcc: None
      where a class is missing among the targets; mcc also where all decisions are the same.
    - sensitivity, specificity: None without class 1, class 0. ppv, npv: None where nothing is decided for class 1, class 0.
    - accuracy, brier (mean squared error of the probability, in [0, 1]), log_loss (nats): None without rows.
    - ece_equal_width, ece_equal_mass: expected calibration error of P(class 1) in 15 bins (`binning`); no replicates.
    """

    targets: Ints
    probabilities: Floats
    threshold: float | Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", checked_targets(self.targets, 2))
        shape = (len(self.targets),)
        object.__setattr__(self, "probabilities", checked_probabilities("probabilities", self.probabilities, shape))
        if np.shape(self.threshold) not in ((), (len(self.targets),)):
            raise ValueError(f"one threshold for all rows, or one each, got {np.shape(self.threshold)}")
        if not np.isfinite(self.threshold).all():
            raise ValueError(f"threshold must be finite, got {self.threshold}")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def decided(self) -> Ints:
        """The class that each row is decided for, [n]."""
        return (self.probabilities >= self.threshold).astype(np.int64)

    @property
    def strata(self) -> Ints:
        """The rank of each row's class, 0 for the rarer."""
        return rarity(self.targets, 2)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows of both classes."""
        positive = int(self.targets.sum())
        return {"negative": len(self) - positive, "positive": positive}

    @property
    def truth(self) -> Sequence[NDArray[np.generic]]:
        """What is true of the rows."""
        return (self.targets,)

    def take(self, rows: Ints) -> Self:
        """The cases of these rows."""
        threshold = self.threshold if isinstance(self.threshold, float) else self.threshold[rows]
        return type(self)(targets=self.targets[rows], probabilities=self.probabilities[rows], threshold=threshold)

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        if not len(self):
            return dict.fromkeys((*NAMES, *NAMES_CALIBRATION))
        truth, decided, p = self.targets, self.decided, self.probabilities
        tn, fp, fn, tp = sk.confusion_matrix(truth, decided, labels=[0, 1]).ravel().tolist()
        both = 0 < int(truth.sum()) < len(self)
        return {
            "auroc": float(sk.roc_auc_score(truth, p)) if both else None,
            "auprc": float(sk.average_precision_score(truth, p)) if both else None,
            "balanced_accuracy": float(sk.balanced_accuracy_score(truth, decided)) if both else None,
            "f1": float(sk.f1_score(truth, decided, zero_division=0.0)) if both else None,
            "mcc": float(sk.matthews_corrcoef(truth, decided)) if both and 0 < tp + fp < len(self) else None,
            "sensitivity": tp / (tp + fn) if tp + fn else None,
            "specificity": tn / (tn + fp) if tn + fp else None,
            "ppv": tp / (tp + fp) if tp + fp else None,
            "npv": tn / (tn + fn) if tn + fn else None,
            "accuracy": float(sk.accuracy_score(truth, decided)),
            "brier": float(sk.brier_score_loss(truth, p)),
            "log_loss": float(sk.log_loss(truth, p, labels=[0, 1])),
            "ece_equal_width": self._calibration("equal_width"),
            "ece_equal_mass": self._calibration("equal_mass"),
        }

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for each row of `weights` [R, n]."""
        if not len(self):
            return {name: np.full(len(weights), np.nan) for name in NAMES}
        truth, p = self.targets.astype(np.float64), self.probabilities
        auroc, auprc = weighted_ranking(self.targets == 1, p, weights)
        cost = -np.log(np.clip(np.where(self.targets == 1, p, 1 - p), LOG_FLOOR, 1 - LOG_FLOOR))
        cells = [(self.targets == t) & (self.decided == d) for t in (0, 1) for d in (0, 1)]
        sums = weights @ np.column_stack([*cells, (p - truth) ** 2, cost])
        tn, fp, fn, tp, squares, costs = sums.T
        total = weights.sum(axis=1)
        sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
        whole = (tp + fn > 0) & (tn + fp > 0)
        norm = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        return {
            "auroc": auroc,
            "auprc": auprc,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "f1": np.where(whole, ratio(2 * tp, 2 * tp + fp + fn), np.nan),
            "mcc": ratio(tp * tn - fp * fn, norm),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "ppv": ratio(tp, tp + fp),
            "npv": ratio(tn, tn + fn),
            "accuracy": ratio(tp + tn, total),
            "brier": ratio(squares, total),
            "log_loss": ratio(costs, total),
        }

    def _calibration(self, binning: Binning) -> float | None:
        return calibration_error(bin_of(self.probabilities, binning), self.targets - self.probabilities)
