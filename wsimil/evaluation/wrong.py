"""The answers that are furthest from the truth, for a person to look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.cases import Cases, Floats, Ints
from wsimil.evaluation.multiclass import MulticlassCases
from wsimil.evaluation.multilabel import MultilabelCases
from wsimil.evaluation.regression import RegressionCases, SeveralNumbersCases
from wsimil.evaluation.survival_cases import SurvivalCases
from wsimil.targets import Classification, Ordinal, Task

_FEWEST_PAIRS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongAnswer:
    """Row `row` was said to be `said` and is `truth`; `of` names the label or number where there are several.

    `number` is by what they are sorted, and `means` says what it is.
    """

    row: int
    of: str
    truth: str
    said: str
    number: float
    means: str


def wrong_answers(task: Task, cases: Cases, *, most: int = 24) -> tuple[WrongAnswer, ...]:
    """The worst first: decisions by their probability, numbers by their error, risks by the pairs that they order wrongly."""
    found = sorted(_all(task, cases), key=lambda one: (-abs(one.number), one.row, one.of))
    return tuple(found[:most])


def said_of(task: Task, cases: Cases, values: Floats) -> list[str]:
    """What is said of each row in words, with the thresholds of `cases`; `values` [n, V] are the answers."""
    names = class_names(task)
    if isinstance(cases, BinaryCases | MulticlassCases):
        return [names[c] for c in cases.decided]
    if isinstance(cases, MultilabelCases):
        has = cases.probabilities >= cases.thresholds
        return [";".join(name for name, own in zip(cases.labels, row, strict=True) if own) or "-" for row in has]
    return [task.decided(row) for row in values]


def class_names(task: Task) -> tuple[str, ...]:
    """The classes or levels of a task that has them, in order, else nothing."""
    if isinstance(task, Classification):
        return task.classes
    return task.levels if isinstance(task, Ordinal) else ()


def _all(task: Task, cases: Cases) -> Iterable[WrongAnswer]:
    names = class_names(task)
    if isinstance(cases, BinaryCases):
        yield from _of_two(cases, np.arange(len(cases)), names, "")
    elif isinstance(cases, MulticlassCases):
        for row in np.flatnonzero(cases.decided != cases.targets).tolist():
            truth, said = int(cases.targets[row]), int(cases.decided[row])
            yield WrongAnswer(
                row=row, of="", truth=names[truth], said=names[said], number=float(cases.probabilities[row, said]),
                means="probability of what was said",
            )  # fmt: skip
    elif isinstance(cases, MultilabelCases):
        for index, label in enumerate(cases.labels):
            rows = np.flatnonzero(cases.targets[:, index] >= 0)
            yield from _of_two(cases.of(label), rows, ("has it not", "has it"), label)
    elif isinstance(cases, RegressionCases):
        yield from _of_numbers(cases, "", getattr(task, "unit", ""))
    elif isinstance(cases, SeveralNumbersCases):
        for name, one in zip(cases.names, cases.numbers, strict=True):
            yield from _of_numbers(one, name, getattr(task, "unit", ""))
    elif isinstance(cases, SurvivalCases):
        yield from _of_risks(cases, getattr(task, "unit", ""))


def _of_two(cases: BinaryCases, rows: Ints, names: tuple[str, ...], of: str) -> Iterable[WrongAnswer]:
    for index in np.flatnonzero(cases.decided != cases.targets).tolist():
        said = int(cases.decided[index])
        p = float(cases.probabilities[index])
        yield WrongAnswer(
            row=int(rows[index]), of=of, truth=names[1 - said], said=names[said], number=p if said else 1 - p,
            means="probability of what was said",
        )  # fmt: skip


def _of_numbers(cases: RegressionCases, of: str, unit: str) -> Iterable[WrongAnswer]:
    spread = float(cases.targets.std()) if len(cases) else 0.0
    for row, (truth, said) in enumerate(zip(cases.targets.tolist(), cases.predictions.tolist(), strict=True)):
        number = (said - truth) / spread if of and spread else said - truth
        means = "error in standard deviations of the truth" if of else f"error{f' in {unit}' if unit else ''}"
        yield WrongAnswer(row=row, of=of, truth=f"{truth:.4g}", said=f"{said:.4g}", number=number, means=means)


def _of_risks(cases: SurvivalCases, unit: str) -> Iterable[WrongAnswer]:
    times, events, risks = cases.times, cases.events, cases.risks
    for row in range(len(cases)):
        later = events[row] & ((times > times[row]) | ((times == times[row]) & ~events))
        earlier = events & ((times < times[row]) | ((times == times[row]) & (not events[row])))
        pairs = int(later.sum() + earlier.sum())
        if pairs < _FEWEST_PAIRS:
            continue
        missed = float((risks[row] < risks[later]).sum() + (risks[row] > risks[earlier]).sum())
        missed += float((risks[row] == risks[later]).sum() + (risks[row] == risks[earlier]).sum()) / 2
        if missed / pairs > 0.5:
            rank = int((risks > risks[row]).sum()) + 1
            yield WrongAnswer(
                row=row, of="", number=missed / pairs, means="share of its pairs in the wrong order",
                truth=f"{'event' if events[row] else 'censored'} at {times[row]:g}{f' {unit}' if unit else ''}",
                said=f"risk {risks[row]:.3f}, number {rank} of {len(risks)}",
            )  # fmt: skip
