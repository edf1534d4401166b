"""Decision thresholds: chosen on the validation split by a stated rule, frozen, and then applied as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from wsimil.errors import ConfigError
from wsimil.evaluation.cases import Floats, Ints, checked_probabilities, checked_targets
from wsimil.evaluation.fitted import refuse_test_split
from wsimil.provenance import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Decide for class 1 where its probability is `value` or more; `value` may lie just above 1, which decides for none.

    `rule` says how it was chosen, `fitted_on` on which split, with `rows` rows of which `positive` are of class 1;
    `sensitivity` and `specificity` are what it reached there, which is better than what to expect elsewhere.
    """

    value: float
    rule: str
    fitted_on: str
    rows: int
    positive: int
    sensitivity: float
    specificity: float

    def __post_init__(self) -> None:
        refuse_test_split(self.fitted_on, "a decision threshold")
        if not np.isfinite(self.value):
            raise ConfigError(f"a decision threshold must be finite, got {self.value}")

    def to_json(self) -> dict[str, Json]:
        """All fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Json]) -> Self:
        """The inverse of `to_json`. Raises TypeError where fields are missing or unknown."""
        return cls(**tree)  # type: ignore[arg-type]  # the constructor checks the names


def youden_threshold(targets: Ints, probabilities: Floats, *, fitted_on: str) -> Threshold:
    """The highest sensitivity + specificity; of equals the lowest threshold, which misses fewest. Youden 1950, Cancer 3:32."""
    rates = _Rates.of(targets, probabilities)
    gain = rates.true * rates.negative + (rates.negative - rates.false) * rates.positive
    return rates.frozen(int(np.flatnonzero(gain == gain.max())[-1]), "youden", fitted_on)


def sensitivity_threshold(targets: Ints, probabilities: Floats, *, at_least: float, fitted_on: str) -> Threshold:
    """The highest threshold with a sensitivity of `at_least`, in (0, 1]."""
    _check_share(at_least)
    rates = _Rates.of(targets, probabilities)
    enough = rates.true >= at_least * rates.positive - 1e-9
    return rates.frozen(int(np.flatnonzero(enough)[0]), f"sensitivity >= {at_least:g}", fitted_on)


def specificity_threshold(targets: Ints, probabilities: Floats, *, at_least: float, fitted_on: str) -> Threshold:
    """The lowest threshold with a specificity of `at_least`, in (0, 1]."""
    _check_share(at_least)
    rates = _Rates.of(targets, probabilities)
    enough = rates.negative - rates.false >= at_least * rates.negative - 1e-9
    return rates.frozen(int(np.flatnonzero(enough)[-1]), f"specificity >= {at_least:g}", fitted_on)


def cost_threshold(
    targets: Ints, probabilities: Floats, *, false_negative: float, false_positive: float, fitted_on: str
) -> Threshold:
    """The lowest cost of errors at the prevalence of the rows, at > 0 for each kind; of equals the lowest threshold."""
    if not (false_negative > 0 and false_positive > 0):
        raise ConfigError(f"costs must be above 0, got {false_negative} and {false_positive}")
    rates = _Rates.of(targets, probabilities)
    cost = false_negative * (rates.positive - rates.true) + false_positive * rates.false
    best = int(np.flatnonzero(cost <= cost.min() * (1 + 1e-12))[-1])
    return rates.frozen(best, f"cost {false_negative:g} a miss, {false_positive:g} a false alarm", fitted_on)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rates:
    """Candidate thresholds, falling from one that decides for none to 0, with true and false positives at each."""

    values: Floats
    true: Ints
    false: Ints

    @classmethod
    def of(cls, targets: Ints, probabilities: Floats) -> Self:
        truth = checked_targets(targets, 2)
        p = checked_probabilities("probabilities", probabilities, truth.shape)
        if not 0 < int(truth.sum()) < len(truth):
            raise ConfigError(
                f"a decision threshold needs rows of both classes, got {int(truth.sum())} of class 1 among {len(truth)}"
            )
        levels, level_of = np.unique(-p, return_inverse=True)
        levels = -levels
        positive = np.bincount(level_of, weights=truth, minlength=len(levels)).astype(np.int64)
        rows = np.bincount(level_of, minlength=len(levels))
        # Between two values, so that no rounding of a probability moves it over the threshold; of neighbors the higher one.
        between = np.maximum((levels[:-1] + levels[1:]) / 2, np.nextafter(levels[1:], 1))
        first = (levels[0] + 1) / 2 if levels[0] < 1 else float(np.nextafter(1.0, 2.0))
        return cls(
            values=np.concatenate([[first], between, [0.0]]),
            true=np.concatenate([[0], positive.cumsum()]),
            false=np.concatenate([[0], (rows - positive).cumsum()]),
        )

    @property
    def positive(self) -> int:
        return int(self.true[-1])

    @property
    def negative(self) -> int:
        return int(self.false[-1])

    def frozen(self, index: int, rule: str, fitted_on: str) -> Threshold:
        return Threshold(
            value=float(self.values[index]),
            rule=rule,
            fitted_on=fitted_on,
            rows=self.positive + self.negative,
            positive=self.positive,
            sensitivity=int(self.true[index]) / self.positive,
            specificity=1 - int(self.false[index]) / self.negative,
        )


def _check_share(at_least: float) -> None:
    if not 0 < at_least <= 1:
        raise ConfigError(f"a sensitivity or specificity to hold must be in (0, 1], got {at_least}")
