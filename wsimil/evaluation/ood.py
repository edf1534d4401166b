"""Whether a slide lies far from those that a model learnt from: the distance of its mean feature, and a threshold that holds.

Mahalanobis distance with the shrunk covariance of Ledoit & Wolf 2004 (as Lee et al. 2018, NeurIPS, but of one class), or the
distance to the k-th nearest training slide of features of length 1 (Sun et al. 2022, ICML). The threshold comes from
training slides, each measured against a reference without its patient; so new slides of the same kind are flagged about as
often as is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import ConfigError
from wsimil.evaluation.cases import Floats, checked_numbers

Distance: TypeAlias = Literal["mahalanobis", "knn"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OodReference:
    """What slides are held against: distances above `threshold` are flagged, of training-like slides the share `false_flags`.

    "mahalanobis": `center` [D], principal `axes` [r, D] of the training slides with their shrunk variances `variances` [r] >
    0, and `floor` > 0, the variance of every other direction; `neighbors` is 0. "knn": `axes` [n, D] are the training slides
    at length 1, `neighbors` is k; `center` and `variances` are empty, `floor` is 0. `rows` is the number of training slides.
    """

    kind: Distance
    threshold: float
    false_flags: float
    rows: int
    neighbors: int
    floor: float
    center: NDArray[np.float32]
    axes: NDArray[np.float32]
    variances: NDArray[np.float32]

    def distances(self, features: Floats) -> Floats:
        """The distance of each slide, float64 [n] >= 0, for mean features [n, D]. Raises ValueError for another D or NaN."""
        rows = checked_numbers("features", features, (len(features), self.axes.shape[1]))
        if self.kind == "knn":
            return _kth(_unit(rows) @ self.axes.T.astype(np.float64), self.neighbors)
        off = rows - self.center
        along = off @ self.axes.T.astype(np.float64)
        across = np.maximum((off**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return np.asarray(np.sqrt((along**2 / self.variances).sum(axis=1) + across / self.floor), dtype=np.float64)

    def flags(self, features: Floats) -> NDArray[np.bool_]:
        """Which slides lie too far, bool [n]."""
        return self.distances(features) > self.threshold

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """All fields as arrays, for a file of tensors."""
        numbers = {
            name: np.array(getattr(self, name)) for name in ("threshold", "false_flags", "rows", "neighbors", "floor")
        }
        kind = np.array(["mahalanobis", "knn"].index(self.kind))
        return {"kind": kind, **numbers, "center": self.center, "axes": self.axes, "variances": self.variances}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The inverse of `to_arrays`. Raises KeyError where one is missing."""
        return cls(
            kind="knn" if int(arrays["kind"]) else "mahalanobis",
            threshold=float(arrays["threshold"]),
            false_flags=float(arrays["false_flags"]),
            rows=int(arrays["rows"]),
            neighbors=int(arrays["neighbors"]),
            floor=float(arrays["floor"]),
            center=arrays["center"].astype(np.float32),
            axes=arrays["axes"].astype(np.float32),
            variances=arrays["variances"].astype(np.float32),
        )


def fit_ood(
    features: Floats,
    patients: Sequence[str],
    *,
    kind: Distance = "mahalanobis",
    false_flags: float = 0.05,
    neighbors: int = 5,
) -> OodReference:
    """A reference from the training slides' mean features [n, D], `patients` [n]; `neighbors` is for "knn".

    Raises ConfigError where there are too few slides to state the rate: n >= 1 / false_flags - 1, and of 3 patients or more.
    """
    rows = checked_numbers("features", features, (len(patients), np.shape(features)[1]))
    _, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    rank = int(np.ceil((len(rows) + 1) * (1 - false_flags) - 1e-9))
    if not 0 < false_flags < 1 or rank > len(rows) or owner.max(initial=0) < 2:
        raise ConfigError(
            f"flagging {false_flags:g} of training-like slides needs {1 / max(false_flags, 1e-9) - 1:.0f} training slides,"
            f" and 3 patients, got {len(rows)} of {owner.max(initial=-1) + 1}; ask for a higher rate, or leave it out"
        )
    if kind == "knn":
        unit = _unit(rows)
        near = np.where(owner[:, None] == owner, -np.inf, unit @ unit.T)
        if int(np.isfinite(near).sum(axis=1).min()) < neighbors or neighbors < 1:
            raise ConfigError(
                f"{neighbors} neighbors of other patients are wanted, and not there for every training slide"
            )
        held_out = _kth(near, neighbors)
        parts = {"center": np.zeros(0), "axes": unit, "variances": np.zeros(0)}
        floor = 0.0
    else:
        fitted = _Gaussian.of(rows)
        held_out, floor, neighbors = fitted.without_own(owner.astype(np.int64)), fitted.floor, 0
        parts = {"center": fitted.center, "axes": fitted.axes, "variances": fitted.shrunk(1.0)}
    return OodReference(
        kind=kind,
        threshold=float(np.sort(held_out)[rank - 1]),
        false_flags=false_flags,
        rows=len(rows),
        neighbors=neighbors,
        floor=floor,
        **{name: part.astype(np.float32) for name, part in parts.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Gaussian:
    """Training slides in their principal axes: `scores` [n, r] around `center`, `spectrum` [r] of their covariance."""

    center: Floats
    axes: Floats
    scores: Floats
    spectrum: Floats
    shrinkage: float
    floor: float

    @classmethod
    def of(cls, rows: Floats) -> Self:
        from sklearn.covariance import ledoit_wolf_shrinkage  # whoever asks a model fits nothing

        center = rows.mean(axis=0)
        off = rows - center
        left, singular, axes = np.linalg.svd(off, full_matrices=False)
        kept = singular > singular[0] * 1e-10
        spectrum = singular[kept] ** 2 / len(rows)
        shrinkage = float(ledoit_wolf_shrinkage(off, assume_centered=True))
        floor = shrinkage * float(spectrum.sum()) / rows.shape[1]
        if not floor > 0:
            raise ConfigError(
                f"the mean features of {len(rows)} training slides leave no covariance; are they all the same?"
            )
        return cls(
            center=center,
            axes=axes[kept],
            scores=left[:, kept] * singular[kept],
            spectrum=spectrum,
            shrinkage=shrinkage,
            floor=floor,
        )

    def shrunk(self, scale: float) -> Floats:
        """Variances along the axes, the covariance being `scale` times what it is."""
        return (1 - self.shrinkage) * scale * self.spectrum + self.floor

    def without_own(self, owner: NDArray[np.int64]) -> Floats:
        """The distance of each slide from all but its patient's own, at the same shrinkage.

        Leaving k of n rows C out of a covariance takes C'C and the shift of the mean from it: k + 1 directions (Woodbury).
        """
        count = len(self.scores)
        result = np.zeros(count)
        for patient in range(int(owner.max()) + 1):
            own = np.flatnonzero(owner == patient)
            rest = count - len(own)
            shift = -self.scores[own].sum(axis=0) / rest
            inverse = 1 / self.shrunk(count / rest)
            removed = np.vstack([self.scores[own], np.sqrt(rest) * shift])
            off = self.scores[own] - shift
            cross = removed @ (inverse * off).T
            kept = 1 - self.shrinkage  # 0 where rows look like noise: then their covariance counts for nothing
            inner = rest * np.eye(len(removed)) - kept * (removed @ (inverse * removed).T)
            squared = (off**2 * inverse).sum(axis=1) + kept * (cross * np.linalg.solve(inner, cross)).sum(axis=0)
            result[own] = np.sqrt(squared)
        return result


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1), dtype=np.float64)


def _kth(similar: Floats, neighbors: int) -> Floats:
    """Euclidean distance to the k-th nearest, from cosines [n, m] of rows of length 1."""
    kth = -np.partition(-similar, neighbors - 1, axis=1)[:, neighbors - 1]
    return np.asarray(np.sqrt(np.maximum(2 - 2 * kth, 0)), dtype=np.float64)
