"""Time until an event, which is not seen for everybody: discrete-time hazards, or Cox's proportional ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsimil.targets.base import AnswerColumn, Task, TaskKind, number, plain
from wsimil.targets.regression import quantile_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival(Task):
    """`columns` are a time >= 0, in `unit`, and an event: 1 seen at that time, 0 not seen until then; targets float64 [n, 2].

    `model` "hazard": `bins` intervals that end at `edges`, by quantiles of the times of training events and at last the longest
    training time; logit k is that of the hazard, the probability of an event in interval k for who lived to see it (Zadeh &
    Schmid 2020, doi:10.1109/TPAMI.2020.2979450). An edge belongs to the interval that it ends, time beyond the last to the last.
    "cox": one logit, the log hazard relative to that of the training set (Cox 1972); `baseline` is the cumulative hazard of
    logit 0 at each of `horizons`, by Breslow, once `with_baseline` fitted it.

    An answer is a risk, higher for earlier events, and the probability to be without event at each horizon: by default the edges
    of the intervals, and for "cox" none. The risk of "hazard" is minus the sum of survival at the edges, that of "cox" the logit.
    Between edges the hazard is taken as constant.
    """

    kind: ClassVar[TaskKind] = "survival"
    decides: ClassVar[bool] = False
    raises: ClassVar[tuple[str, str]] = ("lower risk", "higher risk")
    columns: tuple[str, ...] = ("time", "event")
    model: Literal["hazard", "cox"] = "hazard"
    unit: str = ""
    bins: int = 4
    horizons: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    baseline: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.columns) != 2 or self.columns[0] == self.columns[1]:
            raise ValueError(f"survival takes two columns, time and event, got {', '.join(self.columns)}")
        if self.model not in ("hazard", "cox"):
            raise ValueError(f"survival is by 'hazard' or 'cox', got {self.model!r}")
        for name in ("horizons", "edges"):
            values = getattr(self, name)
            if any(not (np.isfinite(v) and v > 0) for v in values) or any(np.diff(values) <= 0):
                raise ValueError(f"{name} rise and lie above 0, got {list(values)}")
        told = self.horizons or self.edges
        if len({f"{value:g}" for value in told}) < len(told):  # as metrics name them, too
            raise ValueError(
                f"{'horizons' if self.horizons else 'edges'} name columns and metrics by six digits and must differ in these, got"
                f" {list(told)}; give other task.horizons, and count time from when each patient was first seen"
            )
        if self.edges and self.model == "hazard" and self.horizons and self.horizons[-1] > self.edges[-1]:
            raise ValueError(
                f"horizon {self.horizons[-1]:g} lies beyond the longest training time {self.edges[-1]:g}, where nothing is known"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The interval of each hazard, or the risk."""
        if self.model == "cox":
            return ("risk",)
        spans = list(zip(self._begins, self._known_edges, strict=True))
        named = (tuple(f"hazard {low:.{digits}g}-{high:.{digits}g}" for low, high in spans) for digits in (4, 6, 17))
        return next(names for names in named if len(set(names)) == len(names))

    @property
    def answers(self) -> tuple[AnswerColumn, ...]:
        """The risk, and survival at each horizon."""
        tail, unit = (f"_{self.unit}", f" {self.unit}") if self.unit else ("", "")
        return (
            AnswerColumn(name="risk", title="risk", probability=False),
            *(
                AnswerColumn(name=f"survival_{h:g}{tail}", title=f"survival at {h:.4g}{unit}")
                for h in self.answered_horizons
            ),
        )

    @property
    def group_names(self) -> tuple[str, ...]:
        """With the event, and censored before it."""
        return ("event", "censored")

    def groups(self, label: str) -> tuple[str, ...]:
        """See `Task.groups`."""
        return (label.split(" ")[1],)

    def read(self, cells: Sequence[str]) -> str | None:
        """See `Task.read`."""
        time, event = (self._number(name, cell) for name, cell in zip(self.columns, cells, strict=True))
        if time is None or event is None:
            return None
        if time < 0:
            raise ValueError(f"{self.columns[0]} {cells[0]!r}, wanted a time of 0 or more")
        if event not in (0.0, 1.0):
            raise ValueError(f"{self.columns[1]} {cells[1]!r}, wanted 1 for an event or 0 for none until then")
        return f"{plain(time)} {'event' if event else 'censored'}"

    def cells(self, label: str) -> tuple[str, ...]:
        """See `Task.cells`."""
        time, state = label.split(" ")
        return (time, "1" if state == "event" else "0")

    def encode(self, labels: Sequence[str]) -> NDArray[np.float64]:
        """Time and event of each, float64 [n, 2]."""
        cells = [self.cells(label) for label in labels]
        return np.array([[float(time), float(event)] for time, event in cells], np.float64).reshape(len(labels), 2)

    def fitted(self, labels: Sequence[str]) -> Survival:
        """With the edges of the intervals. Raises ValueError without an event, or where events do not tell intervals apart."""
        times, events = self.encode(labels).T
        seen = times[events == 1]
        if not len(seen):
            raise ValueError(f"none of {len(times)} training slides has an event; survival cannot be learned")
        if self.horizons and self.horizons[-1] > times.max():
            raise ValueError(
                f"horizon {self.horizons[-1]:g} lies beyond the longest training time {times.max():g}, where nothing is known"
            )
        if self.model == "cox":
            return self
        inner = np.unique(np.quantile(seen, np.arange(1, self.bins) / self.bins))
        inner = inner[(inner > 0) & (inner < times.max())]
        if not len(inner):
            raise ValueError(f"the {len(seen)} training events do not tell two intervals apart; use task.model cox")
        return replace(self, edges=(*inner.tolist(), float(times.max())))

    def with_baseline(self, labels: Sequence[str], logits: NDArray[np.float64]) -> Survival:
        """With the baseline hazard at the horizons, from training targets and their logits [n, 1]; the same without horizons."""
        if self.model != "cox" or not self.horizons:
            return self
        times, events = self.encode(labels).T
        relative = np.exp(logits[:, 0])
        moments = np.unique(times[events == 1])
        steps = np.array([(events[times == t] == 1).sum() / relative[times >= t].sum() for t in moments])
        found = [float(steps[moments <= horizon].sum()) for horizon in self.horizons]
        return replace(self, baseline=tuple(found))

    def values(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Risk and survival [n, 1 + horizons]."""
        if self.model == "cox":
            return np.concatenate([logits, np.exp(-np.exp(logits) * np.array(self.baseline))], axis=1)
        # log(1 - sigmoid(x)) = -log(1 + exp(x)), which keeps its digits where a hazard is near 1.
        hazard = np.cumsum(np.logaddexp(0.0, logits), axis=1)
        risk = -np.exp(-hazard).sum(axis=1, keepdims=True)
        edges = np.array([0.0, *self._known_edges])
        hazard = np.concatenate([np.zeros((len(logits), 1)), hazard], axis=1)
        between = [np.interp(self.answered_horizons, edges, row) for row in hazard]
        return np.concatenate([risk, np.exp(-np.array(between).reshape(len(logits), -1))], axis=1)

    def decided(self, values: NDArray[np.float64]) -> str:
        """The risk, and survival at the last horizon."""
        columns = self.answers
        last = f", {columns[-1].title} {values[-1]:.3f}" if len(columns) > 1 else ""
        return f"risk {values[0]:.3f}{last}"

    def main_output(self, values: NDArray[np.float64]) -> str:
        """The first interval, or the risk."""
        return self.outputs[0]

    @property
    def _known_edges(self) -> tuple[float, ...]:
        if not self.edges:
            raise ValueError("survival: the intervals are not fitted yet")
        return self.edges

    @property
    def _begins(self) -> tuple[float, ...]:
        return (0.0, *self._known_edges[:-1])

    @property
    def answered_horizons(self) -> tuple[float, ...]:
        """The times at which answers tell survival: those that were asked for, or the ends of the intervals."""
        if self.model == "cox":
            return self.horizons if self.baseline else ()
        return self.horizons or self._known_edges

    def _strata(self, patients: Sequence[Sequence[str]]) -> list[str]:
        """Event or not, by the tertile of the time; of a patient whose slides differ, that of the first."""
        targets = np.array([self.encode(labels[:1])[0] for labels in patients])
        thirds = quantile_of(targets[:, 0], 3)
        return [
            f"{'event' if event else 'censored'}, tertile {third + 1} of time"
            for event, third in zip(targets[:, 1], thirds, strict=True)
        ]

    @staticmethod
    def _number(name: str, cell: str) -> float | None:
        try:
            return number(cell)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
