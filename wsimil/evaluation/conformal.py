"""Conformal prediction sets: as many classes as it takes to hold the true one with a stated frequency.

Split conformal prediction (Vovk et al. 2005): quantiles are fitted on the validation split and frozen. If validation and new
patients are exchangeable, a set holds the true class with at least the stated probability, on average over patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Self, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from wsimil.errors import ConfigError
from wsimil.evaluation.cases import Floats, Ints, checked_distributions, checked_targets, rarity, ratio
from wsimil.evaluation.fitted import refuse_test_split
from wsimil.evaluation.patients import refuse_repeated_patients
from wsimil.provenance import Json

SetKind: TypeAlias = Literal["lac", "aps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformal:
    """Frozen quantiles of how strange the true class was on `rows` rows of the split `fitted_on`; `coverage` in (0, 1) is
    what is stated.

    "lac": a class is in where 1 - its probability is at most the quantile; smallest sets on average, which may be empty
    (Sadinle et al. 2019, JASA). "aps": where the probabilities above its own sum to at most the
    quantile; adapts to hard rows, and the highest is always in (Romano et al. 2020, NeurIPS, with the draw u at 0, so that a
    slide gets the same set again; where highest probabilities are right more often than `coverage`, sets are of one class and
    cover as often as these are right). `quantiles` is one for all classes, or one each: then coverage is stated for each class
    too. None is a class with too few rows to state anything, which is in every set.
    """

    kind: SetKind
    coverage: float
    classes: int
    quantiles: tuple[float | None, ...]
    fitted_on: str
    rows: int

    def __post_init__(self) -> None:
        refuse_test_split(self.fitted_on, "conformal quantiles")
        if not 0 < self.coverage < 1 or self.kind not in ("lac", "aps") or len(self.quantiles) not in (1, self.classes):
            raise ConfigError(
                f"conformal sets need a coverage in (0, 1), kind lac or aps, and 1 or {self.classes} quantiles; got"
                f" {self.coverage}, {self.kind!r} and {len(self.quantiles)}"
            )

    def sets(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Which classes are in the set of each row, bool [n, C], for `probabilities` [n, C]. Raises ValueError for another
        C."""
        p = checked_distributions("probabilities", probabilities, len(probabilities))
        if p.shape[1] != self.classes:
            raise ValueError(f"conformal quantiles of {self.classes} classes, got probabilities of {p.shape[1]}")
        bound = np.array([np.inf if quantile is None else quantile for quantile in self.quantiles])
        return np.asarray(_strangeness(p, self.kind) <= bound)

    def to_json(self) -> dict[str, Json]:
        """All fields as plain JSON values."""
        return asdict(self) | {"quantiles": list(self.quantiles)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Json]) -> Self:
        """The inverse of `to_json`. Raises TypeError where fields are missing or unknown."""
        quantiles = tuple(cast("list[float | None]", tree["quantiles"]))
        return cls(**{**tree, "quantiles": quantiles})  # type: ignore[arg-type]  # the constructor checks the names


def fit_conformal(
    targets: Ints,
    probabilities: Floats,
    patients: Sequence[str],
    *,
    kind: SetKind,
    coverage: float,
    fitted_on: str,
    per_class: bool = False,
) -> Conformal:
    """Quantiles for `probabilities` [n, C] of `targets` [n], one row a patient. Raises ValueError for a patient of several
    rows."""
    p = checked_distributions("probabilities", probabilities, len(targets))
    truth = checked_targets(targets, p.shape[1])
    refuse_repeated_patients(patients, len(truth), "conformal prediction")
    strange = _strangeness(p, kind)[np.arange(len(truth)), truth]
    groups = [strange[truth == c] for c in range(p.shape[1])] if per_class else [strange]
    return Conformal(
        kind=kind,
        coverage=coverage,
        classes=p.shape[1],
        quantiles=tuple(_quantile(group, coverage) for group in groups),
        fitted_on=fitted_on,
        rows=len(truth),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConformalCases:
    """Sets beside the truth: `targets` int64 [n], `sets` bool [n, C]; their metrics get intervals as those of any cases do.

    coverage (share of sets that hold the true class), mean_set_size in classes, share_single, share_empty, and
    "coverage:<class>" by index; None without such rows.
    """

    targets: Ints
    sets: NDArray[np.bool_]

    def __post_init__(self) -> None:
        sets = np.asarray(self.sets, dtype=bool)
        if sets.ndim != 2 or len(sets) != len(self.targets):
            raise ValueError(f"sets must be bool [{len(self.targets)}, C], got {list(sets.shape)}")
        object.__setattr__(self, "targets", checked_targets(self.targets, sets.shape[1]))
        object.__setattr__(self, "sets", sets)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def strata(self) -> Ints:
        """The rank of each row's class, 0 for the rarest."""
        return rarity(self.targets, self.sets.shape[1])

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows of each class, by its index."""
        return {str(c): int(n) for c, n in enumerate(np.bincount(self.targets, minlength=self.sets.shape[1]))}

    @property
    def truth(self) -> Sequence[NDArray[np.generic]]:
        """What is true of the rows."""
        return (self.targets,)

    def take(self, rows: Ints) -> Self:
        """The cases of these rows."""
        return type(self)(targets=self.targets[rows], sets=self.sets[rows])

    def values(self) -> dict[str, float | None]:
        """Every metric by its name."""
        once = self.replicates(np.ones((1, len(self))))
        return {name: float(column[0]) if np.isfinite(column[0]) else None for name, column in once.items()}

    def replicates(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for each row of `weights` [R, n]."""
        held = self.sets[np.arange(len(self)), self.targets].astype(np.float64)
        size, total = self.sets.sum(axis=1), weights.sum(axis=1)
        result = {
            "coverage": ratio(weights @ held, total),
            "mean_set_size": ratio(weights @ size, total),
            "share_single": ratio(weights @ (size == 1), total),
            "share_empty": ratio(weights @ (size == 0), total),
        }
        for c in range(self.sets.shape[1]):
            own = self.targets == c
            result[f"coverage:{c}"] = ratio(weights[:, own] @ held[own], weights[:, own].sum(axis=1))
        return result


def _strangeness(probabilities: Floats, kind: SetKind) -> Floats:
    if kind == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    falling = np.take_along_axis(probabilities, order, axis=1)
    result = np.zeros_like(probabilities)
    np.put_along_axis(result, order[:, 1:], falling[:, :-1].cumsum(axis=1), axis=1)
    return result


def _quantile(strange: Floats, coverage: float) -> float | None:
    rank = int(np.ceil((len(strange) + 1) * coverage - 1e-9))
    return float(np.sort(strange)[rank - 1]) if rank <= len(strange) else None
