"""One class against the rest: what figures show of it, and the numbers that stand beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.bootstrap import Estimate, estimates
from wsimil.evaluation.cases import Cases, Floats, Ints
from wsimil.evaluation.curves import Curve, DecisionCurve, decision_curve, pr_curve, roc_curve, with_band
from wsimil.evaluation.delong import DeLongAuroc, DeLongDifference, delong_auroc, delong_difference
from wsimil.evaluation.multiclass import MulticlassCases
from wsimil.evaluation.multilabel import MultilabelCases
from wsimil.evaluation.patients import patient_means
from wsimil.evaluation.reliability import CalibratedEce, ReliabilityBin, ece_if_calibrated, reliability_curve

BINS = 20
"""Of a histogram of probabilities."""

_RANKED = ("auroc", "auprc", "brier")
_DECIDED = ("sensitivity", "specificity", "ppv", "npv", "f1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OneClass:
    """A class, or a label of several, with the truth known of `rows` rows, of which `positive` are of it.

    `decides` is False where it is one of several classes, so that its probability alone decides nothing: then there is no
    threshold and no decision curve. Where `delong` is given it is of `delong_of`: "rows", or "patients", by the mean of a
    patient's slides. `histogram` are rows without and with the class in 20 bins of probability. None or empty where undefined;
    `threshold` also where each of several runs has its own.
    """

    name: str
    rows: int
    positive: int
    decides: bool
    threshold: float | None
    estimates: Mapping[str, Estimate]
    delong: DeLongAuroc | None
    delong_of: str
    roc: Curve | None
    pr: Curve | None
    reliability: tuple[ReliabilityBin, ...]
    ece: Mapping[str, CalibratedEce]
    decision: DecisionCurve | None
    histogram: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassCases:
    """The cases of one class by its probability, and as it is decided; and which rows they are."""

    name: str
    cases: BinaryCases
    decided: BinaryCases
    rows: Ints
    decides: bool


def class_cases(cases: Cases, classes: Sequence[str]) -> tuple[ClassCases, ...]:
    """Of two classes the second, of several each against the rest, of several labels each; none of other cases."""
    everything = np.arange(len(cases))
    if isinstance(cases, BinaryCases):
        return (ClassCases(name=classes[1], cases=cases, decided=cases, rows=everything, decides=True),)
    if isinstance(cases, MultilabelCases):
        found = []
        for index, name in enumerate(cases.labels):
            rows, own = np.flatnonzero(cases.targets[:, index] >= 0), cases.of(name)
            found.append(ClassCases(name=name, cases=own, decided=own, rows=rows, decides=True))
        return tuple(found)
    if isinstance(cases, MulticlassCases):
        return tuple(_against_rest(cases, c, name) for c, name in enumerate(classes))
    return ()


def judge_class(
    one: ClassCases,
    whole: Cases,
    patients: Sequence[str],
    *,
    found: Mapping[str, Estimate],
    one_run: bool,
    replicates: int,
    seed: int,
) -> OneClass:
    """Everything about one class of `whole`, whose metrics are `found`; `patients` [n] are those of all its rows."""
    own = [patients[row] for row in one.rows]
    cases = one.cases
    delong, of = _delong(cases, own) if one_run else (None, "")
    known = bool(len(cases))
    edges = np.minimum((cases.probabilities * BINS).astype(np.int64), BINS - 1)
    ece = {}
    for binning in ("equal_width", "equal_mass"):
        chance = ece_if_calibrated(cases.targets, cases.probabilities, binning=binning, draws=replicates, seed=seed)
        if chance is not None:
            ece[binning] = chance
    return OneClass(
        name=one.name,
        rows=len(cases),
        positive=int(cases.targets.sum()),
        decides=one.decides,
        threshold=cases.threshold if one.decides and isinstance(cases.threshold, float) else None,
        estimates=_estimates(one, whole, patients, found=found, replicates=replicates, seed=seed),
        delong=delong,
        delong_of=of,
        roc=roc_curve(cases.targets, cases.probabilities, columns=200),
        pr=pr_curve(cases.targets, cases.probabilities, columns=200),
        reliability=reliability_curve(cases.targets, cases.probabilities) if known else (),
        ece=ece,
        decision=_decision(cases, own, replicates=replicates, seed=seed) if known and one.decides else None,
        histogram=(_counts(edges[cases.targets == 0]), _counts(edges[cases.targets == 1])),
    )


def delong_of_two(
    targets: Ints, first: Floats, second: Floats, patients: Sequence[str]
) -> tuple[DeLongDifference | None, str]:
    """AUROC of two models on the same rows, and whether it is of "rows" or "patients"; None where a patient's slides differ."""
    if len(set(patients)) == len(patients):
        return delong_difference(targets, first, second, patients), "rows"
    try:
        means = patient_means(np.stack([first, second], axis=1), targets, patients)
    except ValueError:
        return None, ""
    return delong_difference(means.targets, means.outputs[:, 0], means.outputs[:, 1], means.patients), "patients"


def _delong(cases: BinaryCases, patients: Sequence[str]) -> tuple[DeLongAuroc | None, str]:
    if len(set(patients)) == len(patients):
        return delong_auroc(cases.targets, cases.probabilities, patients), "rows"
    try:
        means = patient_means(cases.probabilities, cases.targets, patients)
    except ValueError:
        return None, ""
    return delong_auroc(means.targets, means.outputs, means.patients), "patients"


def _decision(cases: BinaryCases, patients: Sequence[str], *, replicates: int, seed: int) -> DecisionCurve:
    curve = decision_curve(cases.targets, cases.probabilities)
    return with_band(curve, cases.targets, cases.probabilities, patients, replicates=replicates, seed=seed)


def _estimates(
    one: ClassCases,
    whole: Cases,
    patients: Sequence[str],
    *,
    found: Mapping[str, Estimate],
    replicates: int,
    seed: int,
) -> Mapping[str, Estimate]:
    if isinstance(whole, BinaryCases):
        return found
    if isinstance(whole, MultilabelCases):
        tail = f":{one.name}"
        return {name.removesuffix(tail): value for name, value in found.items() if name.endswith(tail)}
    ranked = estimates(one.cases, patients, replicates=replicates, seed=seed)
    chosen = estimates(one.decided, patients, replicates=replicates, seed=seed)
    return {name: ranked[name] for name in _RANKED} | {name: chosen[name] for name in _DECIDED}


def _against_rest(cases: MulticlassCases, c: int, name: str) -> ClassCases:
    of_class = (cases.targets == c).astype(np.int64)
    decided = (cases.decided == c).astype(np.float64)
    return ClassCases(
        name=name,
        cases=BinaryCases(targets=of_class, probabilities=np.clip(cases.probabilities[:, c], 0, 1), threshold=0.5),
        # What was decided, as a probability of 0 or 1, has the same sensitivity and predictive values at a half.
        decided=BinaryCases(targets=of_class, probabilities=decided, threshold=0.5),
        rows=np.arange(len(cases)),
        decides=False,
    )


def _counts(bins: Ints) -> tuple[int, ...]:
    return tuple(np.bincount(bins, minlength=BINS).tolist())
