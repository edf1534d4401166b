"""Calibration: from logits to probabilities that happen as often as they say, fitted on the validation split and frozen.

Temperature: Guo et al. 2017, arXiv:1706.04599. Bias-corrected: Alexandari et al. 2020, arXiv:1901.06852; of two classes that is
the sigmoid of Platt 1999, "Probabilistic outputs for support vector machines". Isotonic: Zadrozny & Elkan 2002, KDD; several
classes one against rest, normalized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Self, cast

import numpy as np

from wsimil.errors import ConfigError, ModelError
from wsimil.evaluation.cases import Floats, Ints, checked_numbers, checked_targets
from wsimil.evaluation.fitted import refuse_test_split
from wsimil.provenance import Json
from wsimil.targets.base import softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How logits [n, C] become probabilities, fitted on `rows` rows of the split `fitted_on`.

    "temperature": softmax of logits over `temperature` > 0, which changes no decision by highest probability.
    "bias_corrected": softmax of logits over `temperature`, plus `shifts`, one for each class. "isotonic": for each of `curves`
    the softmax probability is looked up between knots (x rising, y not falling, both in [0, 1]); two classes have one curve, of
    class 1, more have one each and are normalized, evenly where all are 0. A label of several has the two logits (0, logit).
    """

    kind: Literal["temperature", "bias_corrected", "isotonic"]
    classes: int
    fitted_on: str
    rows: int
    temperature: float | None = None
    shifts: tuple[float, ...] = ()
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()

    def __post_init__(self) -> None:
        refuse_test_split(self.fitted_on, "a calibration")
        if self.kind not in ("temperature", "bias_corrected", "isotonic"):
            raise ModelError(f"a calibration of kind {self.kind!r} is not known to this version; update wsimil")
        if self.kind == "isotonic":
            sound = len(self.curves) == (1 if self.classes == 2 else self.classes)
            sound = sound and all(_rises(curve) for curve in self.curves)
            sound = sound and self.temperature is None and not self.shifts
        else:
            sound = self.temperature is not None and np.isfinite(self.temperature) and self.temperature > 0
            sound = sound and len(self.shifts) == (self.classes if self.kind == "bias_corrected" else 0)
            sound = sound and bool(np.isfinite(self.shifts).all()) and not self.curves
        if not sound or self.classes < 2:
            raise ModelError(f"a {self.kind} calibration of {self.classes} classes is incomplete or does not rise")

    def apply(self, logits: Floats) -> Floats:
        """Probabilities [n, C], rows that sum to 1, for `logits` [n, C]. Raises ValueError for another C."""
        known = checked_numbers("logits", logits, (len(logits), self.classes))
        moved = self.moved(known)
        if moved is not None:
            return softmax(moved)
        p = softmax(known)
        columns = range(self.classes) if self.classes > 2 else [1]
        looked_up = np.stack(
            [np.interp(p[:, c], *np.array(curve).T) for c, curve in zip(columns, self.curves, strict=True)], axis=1
        )
        if self.classes == 2:
            return np.concatenate([1 - looked_up, looked_up], axis=1)
        total = looked_up.sum(axis=1, keepdims=True)
        return np.where(total > 0, looked_up / np.where(total > 0, total, 1), 1 / self.classes)

    def moved(self, logits: Floats) -> Floats | None:
        """Logits [..., C] whose softmax is calibrated; None where steps are looked up."""
        return None if self.temperature is None else logits / self.temperature + np.array(self.shifts or 0.0)

    def to_json(self) -> dict[str, Json]:
        """All fields as plain JSON values."""
        curves: list[Json] = [[list(knot) for knot in curve] for curve in self.curves]
        return asdict(self) | {"shifts": list(self.shifts), "curves": curves}

    @classmethod
    def from_json(cls, tree: Mapping[str, Json]) -> Self:
        """The inverse of `to_json`. Raises TypeError where fields are missing or unknown, ModelError where they do not fit."""
        stored = cast("list[list[list[float]]]", tree["curves"])
        curves = tuple(tuple((x, y) for x, y in curve) for curve in stored)
        shifts = tuple(cast("list[float]", tree.get("shifts", [])))
        return cls(**{**tree, "shifts": shifts, "curves": curves})  # type: ignore[arg-type]  # the constructor checks the names


def frozen_calibrations(facts: Mapping[str, Json]) -> tuple[Calibration | None, dict[str, Calibration]]:
    """What `facts` of a model have frozen with it: "calibration" of classes, None without one, and "calibrations" by label.

    Raises TypeError, KeyError, ValueError or ModelError where they are broken.
    """
    own, labels = facts.get("calibration"), facts.get("calibrations") or {}
    if not isinstance(labels, Mapping):
        raise TypeError(f"calibrations are by label, got {labels!r}")
    found = {name: _read(one) for name, one in labels.items()}
    return None if own is None else _read(own), found


def _read(facts: Json) -> Calibration:
    if not isinstance(facts, Mapping):
        raise TypeError(f"a calibration is a mapping of its facts, got {facts!r}")
    return Calibration.from_json(facts)


def fit_temperature(logits: Floats, targets: Ints, *, fitted_on: str) -> Calibration:
    """The temperature of the lowest negative log-likelihood, which is convex in 1 / temperature: the root of its derivative.

    Raises ModelError where there is none: logits that rank no better than chance (it would be infinite), or that get every
    row right (it would be 0), as happens on few rows; such a model stays as it is.
    """
    from scipy.optimize import brentq  # whoever asks a model fits nothing

    scores, truth = _checked(logits, targets)
    if _are_one_row(scores):
        scores = np.broadcast_to(scores.mean(axis=0), scores.shape)
    own = scores[np.arange(len(truth)), truth]

    def slope(inverse: float) -> float:
        return float(((softmax(scores * inverse) * scores).sum(axis=1) - own).mean())

    size = float(np.abs(scores).max()) or 1.0
    low = 1e-9 / size  # at 0 rounding says which side of chance the logits are on
    if slope(low) >= 0:
        raise _at_chance(len(truth))
    if not (scores.max(axis=1) > own).any():
        raise ModelError(
            f"no temperature fits: all {len(truth)} rows are decided right; give more rows, or leave logits alone"
        )
    high = 1.0 / size
    while slope(high) < 0:
        high *= 2
    inverse = float(brentq(slope, low, high, xtol=1e-14 * high, rtol=1e-13))
    return Calibration(
        kind="temperature", classes=scores.shape[1], fitted_on=fitted_on, rows=len(truth), temperature=1 / inverse
    )


def fit_bias_corrected(logits: Floats, targets: Ints, *, fitted_on: str) -> Calibration:
    """The temperature and shifts of the lowest cross-entropy with Platt's targets, which is convex in 1 / temperature and shifts.

    Where a class has m of n rows, its rows count as it by (m + 1) / (m + C) and as each other class by 1 / (m + C): so rows that
    are all decided right have a finite fit, which of few rows is not sure.
    Raises ModelError for logits that rank no better than chance: the temperature would be infinite, or negative.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    scores, truth = _checked(logits, targets)
    rows, classes = scores.shape
    if _are_one_row(scores):
        raise _at_chance(rows)
    counts = np.bincount(truth, minlength=classes).astype(np.float64)
    wanted = ((1 + counts[:, None] * np.eye(classes)) / (counts + classes)[:, None])[truth]
    centered = scores - scores.mean(axis=1, keepdims=True)
    middle = centered.mean(axis=0)  # what all rows have in common is the shifts' own, however large it is
    centered -= middle
    size = float(np.abs(centered).max())
    # Of each row the derivative of logits by 1 / temperature and by the shifts of all classes but the first.
    columns = np.broadcast_to(np.eye(classes)[:, 1:], (rows, classes, classes - 1))
    design = np.concatenate([centered[:, :, None] / size, columns], axis=2)

    def loss(at: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(design @ at, axis=1)
        slope = np.einsum("ncw,nc->w", design, np.exp(log_p) - wanted) / rows
        return -float((wanted * log_p).sum() / rows), slope

    def curvature(at: Floats) -> Floats:
        p = softmax(design @ at)
        weighed = design * p[:, :, None]
        mean = weighed.sum(axis=1)
        return np.asarray((np.einsum("ncv,ncw->vw", weighed, design) - mean.T @ mean) / rows, np.float64)

    found = minimize(loss, np.zeros(classes), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-11})
    inverse = found.x[0] / size
    if not found.x[0] > 1e-9:
        raise _at_chance(rows)
    if not np.abs(found.jac).max() < 1e-7:
        raise ModelError(f"no temperature fits: the search over {rows} rows did not end ({found.message})")
    shifts = np.array([0.0, *found.x[1:]]) - inverse * middle
    return Calibration(
        kind="bias_corrected",
        classes=classes,
        fitted_on=fitted_on,
        rows=rows,
        temperature=float(1 / inverse),
        shifts=tuple((shifts - shifts.mean()).tolist()),
    )


def fit_isotonic(logits: Floats, targets: Ints, *, fitted_on: str) -> Calibration:
    """Rising step-wise curves of least squared error. It needs more rows than a temperature, and may say 0 or 1."""
    from sklearn.isotonic import IsotonicRegression

    scores, truth = _checked(logits, targets)
    p = softmax(scores)
    classes = scores.shape[1]
    curves = []
    for c in range(classes) if classes > 2 else [1]:
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(p[:, c], truth == c)
        knots = zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True)
        curves.append(tuple(knots))
    return Calibration(kind="isotonic", classes=classes, fitted_on=fitted_on, rows=len(truth), curves=tuple(curves))


def _checked(logits: Floats, targets: Ints) -> tuple[Floats, Ints]:
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"logits must be [n, C] with C >= 2, got {list(scores.shape)}; one logit z is the two (0, z)")
    truth = checked_targets(targets, scores.shape[1])
    if len(np.unique(truth)) < scores.shape[1]:
        raise ConfigError(
            f"a calibration needs rows of all {scores.shape[1]} classes, got {np.bincount(truth, minlength=scores.shape[1])}"
        )
    return checked_numbers("logits", scores, (len(truth), scores.shape[1])), truth


def _are_one_row(scores: Floats) -> bool:
    """Whether logits differ by what rounding leaves, and by nothing else: that of float32 where it holds all of them."""
    centered = scores - scores.mean(axis=1, keepdims=True)
    apart = float(np.abs(centered - centered.mean(axis=0)).max())
    kind = np.float32 if (scores == scores.astype(np.float32)).all() else np.float64
    return apart <= 100 * float(np.finfo(kind).eps) * float(np.abs(scores).max())


def _at_chance(rows: int) -> ModelError:
    return ModelError(f"no temperature fits: the logits of {rows} rows favor the true class no more than chance")


def _rises(curve: tuple[tuple[float, float], ...]) -> bool:
    knots = np.array(curve, dtype=np.float64).reshape(-1, 2)
    inside = bool(len(knots)) and bool(((knots >= 0) & (knots <= 1)).all())
    return inside and bool((np.diff(knots[:, 0]) > 0).all() and (np.diff(knots[:, 1]) >= 0).all())
