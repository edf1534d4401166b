"""Several classes, without or with an order: how well probabilities rank, decide and are calibrated.

The averaging over classes is in the name: macro means that each class counts the same, ovr is one class against the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from wsimil.evaluation.binary import LOG_FLOOR
from wsimil.evaluation.binning import NAMES_CALIBRATION, Binning, bin_of, calibration_error
from wsimil.evaluation.cases import Floats, Ints, checked_distributions, checked_targets, rarity, ratio
from wsimil.evaluation.ranking import weighted_ranking

NAMES = (
    "auroc_macro_ovr", "auprc_macro_ovr", "balanced_accuracy", "f1_macro", "mcc", "accuracy", "brier", "log_loss",
)  # fmt: skip
NAMES_ORDINAL = ("cohen_kappa_quadratic", "mae_rank")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MulticlassCases:
    """`targets` int64 [n] in 0..C-1, `probabilities` float64 [n, C] with rows that sum to 1; decided for the highest, C >= 2.

    Metrics, each None where it is undefined:

    - auroc_macro_ovr, auprc_macro_ovr, balanced_accuracy (mean recall), f1_macro: None where a class is missing among the
      targets.
    - mcc (Gorodkin 2004): None where targets or decisions are all the same.
    - accuracy, brier (squared error summed over classes, in [0, 2]; Brier 1950), log_loss (nats): None without rows.
    - ece_equal_width, ece_equal_mass: expected calibration error of the highest probability, in 15 bins (`binning`); no
      replicates.
    """

    targets: Ints
    probabilities: Floats

    def __post_init__(self) -> None:
        probabilities = checked_distributions("probabilities", self.probabilities, len(self.targets))
        object.__setattr__(self, "targets", checked_targets(self.targets, probabilities.shape[1]))
        object.__setattr__(self, "probabilities", probabilities)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.probabilities.shape[1])

    @property
    def decided(self) -> Ints:
        """The class that each row is decided for, [n]; the first of equals."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def strata(self) -> Ints:
        """The rank of each row's class, 0 for the rarest."""
        return rarity(self.targets, self.classes)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows of each class, by its index."""
        return {str(c): int(n) for c, n in enumerate(np.bincount(self.targets, minlength=self.classes))}

    @property
    def truth(self) -> Sequence[NDArray[np.generic]]:
        """What is true of the rows."""
        return (self.targets,)

    def take(self, rows: Ints) -> Self:
        """The cases of these rows."""
        return type(self)(targets=self.targets[rows], probabilities=self.probabilities[rows])

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        if not len(self):
            return dict.fromkeys((*NAMES, *NAMES_CALIBRATION))
        truth, decided, p = self.targets, self.decided, self.probabilities
        one_hot = np.eye(self.classes)[truth]
        whole = bool(one_hot.any(axis=0).all())
        varied = len(np.unique(truth)) > 1 and len(np.unique(decided)) > 1
        over = range(self.classes)
        return {
            "auroc_macro_ovr": float(np.mean([sk.roc_auc_score(truth == c, p[:, c]) for c in over])) if whole else None,
            "auprc_macro_ovr": float(np.mean([sk.average_precision_score(truth == c, p[:, c]) for c in over]))
            if whole
            else None,
            "balanced_accuracy": float(sk.balanced_accuracy_score(truth, decided)) if whole else None,
            "f1_macro": float(sk.f1_score(truth, decided, average="macro", zero_division=0.0)) if whole else None,
            "mcc": float(sk.matthews_corrcoef(truth, decided)) if varied else None,
            "accuracy": float(sk.accuracy_score(truth, decided)),
            "brier": float(((p - one_hot) ** 2).sum(axis=1).mean()),
            "log_loss": float(sk.log_loss(truth, p / p.sum(axis=1, keepdims=True), labels=list(over))),
            "ece_equal_width": self._calibration("equal_width"),
            "ece_equal_mass": self._calibration("equal_mass"),
        }

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for each row of `weights` [R, n]."""
        if not len(self):
            return {name: np.full(len(weights), np.nan) for name in NAMES}
        p, one_hot = self.probabilities, np.eye(self.classes)[self.targets]
        table = self.weighted_confusion(weights)
        actual, chosen, hits = table.sum(axis=2), table.sum(axis=1), np.einsum("rcc->rc", table)
        total = actual.sum(axis=1)
        whole = (actual > 0).all(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = (hits / actual).mean(axis=1)
            f1 = (2 * hits / (actual + chosen)).mean(axis=1)
        ranked = [weighted_ranking(self.targets == c, p[:, c], weights) for c in range(self.classes)]
        norm = np.sqrt((total**2 - (chosen**2).sum(axis=1)) * (total**2 - (actual**2).sum(axis=1)))
        true = p[np.arange(len(self)), self.targets] / p.sum(axis=1)
        costs = -np.log(np.clip(true, LOG_FLOOR, 1 - LOG_FLOOR))
        squares = ((p - one_hot) ** 2).sum(axis=1)
        return {
            "auroc_macro_ovr": np.where(whole, np.mean([auroc for auroc, _ in ranked], axis=0), np.nan),
            "auprc_macro_ovr": np.where(whole, np.mean([auprc for _, auprc in ranked], axis=0), np.nan),
            "balanced_accuracy": np.where(whole, recall, np.nan),
            "f1_macro": np.where(whole, f1, np.nan),
            "mcc": ratio(hits.sum(axis=1) * total - (chosen * actual).sum(axis=1), norm),
            "accuracy": ratio(hits.sum(axis=1), total),
            "brier": ratio(weights @ squares, total),
            "log_loss": ratio(weights @ costs, total),
        }

    def weighted_confusion(self, weights: Floats) -> Floats:
        """Confusion matrices [R, C, C] for each row of `weights`, truth by decision."""
        cell = np.zeros((len(self), self.classes**2))
        cell[np.arange(len(self)), self.targets * self.classes + self.decided] = 1
        return (weights @ cell).reshape(len(weights), self.classes, self.classes)

    def _calibration(self, binning: Binning) -> float | None:
        confidence = self.probabilities[np.arange(len(self)), self.decided]
        residuals = (self.decided == self.targets) - confidence
        return calibration_error(bin_of(confidence, binning), residuals)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OrdinalCases(MulticlassCases):
    """Classes with an order, grades for example: what `MulticlassCases` has, and two metrics that know how far off a
    decision is. The decision is the median: the highest class that a row is in or above with a probability of more than a half.

    - cohen_kappa_quadratic (Cohen 1968): in [-1, 1], 0 by chance; None where targets and decisions are all of one class.
    - mae_rank: mean distance of the decided class from the true one, in classes; None without rows.
    """

    @property
    def decided(self) -> Ints:
        """The median class of each row, [n]."""
        above = 1 - np.cumsum(self.probabilities[:, :-1], axis=1)
        return np.asarray((above > 0.5).sum(axis=1), dtype=np.int64)

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        # dataclass(slots=True) makes the class anew, so that super() without arguments would not find it.
        found = MulticlassCases.values(self)
        if not len(self):
            return found | dict.fromkeys(NAMES_ORDINAL)
        truth, decided = self.targets, self.decided
        varied = len(np.unique(np.concatenate([truth, decided]))) > 1
        # Without all classes named, scikit-learn counts steps between those that occur.
        kappa = (
            sk.cohen_kappa_score(truth, decided, labels=range(self.classes), weights="quadratic") if varied else None
        )
        return found | {
            "cohen_kappa_quadratic": None if kappa is None else float(kappa),
            "mae_rank": float(sk.mean_absolute_error(truth, decided)),
        }

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for each row of `weights` [R, n]."""
        found = MulticlassCases.replicates(self, weights)
        if not len(self):
            return found | {name: np.full(len(weights), np.nan) for name in NAMES_ORDINAL}
        table = self.weighted_confusion(weights)
        step = np.arange(self.classes)
        squared = (step[:, None] - step) ** 2.0
        total = table.sum(axis=(1, 2))
        seen = (table * squared).sum(axis=(1, 2))
        expected = np.einsum("ra,rb,ab->r", table.sum(axis=2), table.sum(axis=1), squared)
        return found | {
            "cohen_kappa_quadratic": 1 - ratio(seen * total, expected),
            "mae_rank": ratio(weights @ np.abs(self.targets - self.decided).astype(np.float64), total),
        }
