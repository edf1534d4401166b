"""One number or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wsimil.targets.base import AnswerColumn, Task, TaskKind, number, plain, unique

_MOST_STRATA, _PATIENTS_A_STRATUM = 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression(Task):
    """The numbers in `columns`, one logit each; targets float64 [n, K], as the table has them.

    Logits are in standard deviations: `value = mean + scale * logit`, with `mean` and `scale` of the training targets, once
    `fitted`. `unit` is that of all columns. A slide that lacks one of them is left out.
    """

    kind: ClassVar[TaskKind] = "regression"
    decides: ClassVar[bool] = False
    raises: ClassVar[tuple[str, str]] = ("lower", "higher")
    unit: str = ""
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        unique(self.columns, "columns")
        if not self.columns:
            raise ValueError("regression takes one column or more")
        if len(self.mean) != len(self.scale) or len(self.mean) not in (0, len(self.columns)):
            raise ValueError(f"mean and scale are of each column, got {self.mean} and {self.scale}")
        if not all(np.isfinite((*self.mean, *self.scale))) or min(self.scale, default=1.0) <= 0:
            raise ValueError(f"mean and scale are finite and scale above 0, got {self.mean} and {self.scale}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The columns."""
        return self.columns

    @property
    def answers(self) -> tuple[AnswerColumn, ...]:
        """The value of each column."""
        tail = f"_{self.unit}" if self.unit else ""
        return tuple(
            AnswerColumn(name=f"value_{name}{tail}", title=name, unit=self.unit, probability=False)
            for name in self.columns
        )

    @property
    def group_names(self) -> tuple[str, ...]:
        """All slides are one group."""
        return ("a value",)

    def groups(self, label: str) -> tuple[str, ...]:
        """See `Task.groups`."""
        return self.group_names

    def read(self, cells: Sequence[str]) -> str | None:
        """See `Task.read`."""
        values = []
        for name, cell in zip(self.columns, cells, strict=True):
            try:
                values.append(number(cell))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        known = [value for value in values if value is not None]
        return ";".join(map(plain, known)) if len(known) == len(values) else None

    def cells(self, label: str) -> tuple[str, ...]:
        """See `Task.cells`."""
        return tuple(label.split(";"))

    def encode(self, labels: Sequence[str]) -> NDArray[np.float64]:
        """See `Task.encode`."""
        rows = [[float(part) for part in label.split(";")] for label in labels]
        if any(len(row) != len(self.columns) for row in rows):
            raise ValueError(f"labels hold {len(self.columns)} numbers each")
        return np.array(rows, np.float64).reshape(len(labels), len(self.columns))

    def fitted(self, labels: Sequence[str]) -> Regression:
        """With the mean and the standard deviation of these targets. Raises ValueError where all are the same."""
        targets = self.encode(labels)
        for name, values in zip(self.columns, targets.T, strict=True):
            # Of equal numbers the standard deviation may be what rounding leaves, which is above 0.
            if not np.ptp(values) > 0:
                raise ValueError(f"{name} is {values[0]:g} for all training slides; there is nothing to learn")
        return replace(self, mean=tuple(targets.mean(axis=0).tolist()), scale=tuple(targets.std(axis=0).tolist()))

    def values(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values [n, K] in their unit."""
        if not self.mean:
            raise ValueError("regression: mean and scale are not fitted yet")
        return np.array(self.mean) + np.array(self.scale) * logits

    def decided(self, values: NDArray[np.float64]) -> str:
        """The values with their unit."""
        unit = f" {self.unit}" if self.unit else ""
        if len(values) == 1:
            return f"{values[0]:.4g}{unit}"
        return ", ".join(f"{name} {value:.4g}{unit}" for name, value in zip(self.columns, values, strict=True))

    def _strata(self, patients: Sequence[Sequence[str]]) -> list[str]:
        """Quantiles of the first column, up to four, of a patient's mean."""
        means = np.array([self.encode(labels)[:, 0].mean() for labels in patients])
        return [f"quantile {q + 1}" for q in quantile_of(means, min(_MOST_STRATA, len(means) // _PATIENTS_A_STRATUM))]


def quantile_of(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """For each value the number from 0 of its quantile, of `count` or of one where that is below one."""
    inner = np.quantile(values, np.arange(1, max(count, 1)) / max(count, 1)) if count > 1 else np.empty(0)
    return np.asarray(np.searchsorted(inner, values, side="right"), np.int64)
