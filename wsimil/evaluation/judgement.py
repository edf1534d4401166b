"""Answers judged: every metric with its interval, class by class, group by group, run by run, and the worst answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.bootstrap import Difference, Estimate, differences, estimates
from wsimil.evaluation.cases import Cases, Floats
from wsimil.evaluation.curves import Confusion, Curve, confusion, roc_curve
from wsimil.evaluation.delong import DeLongDifference
from wsimil.evaluation.groups import GroupRow, by_group
from wsimil.evaluation.multiclass import MulticlassCases
from wsimil.evaluation.multilabel import MultilabelCases
from wsimil.evaluation.one_class import OneClass, class_cases, delong_of_two, judge_class
from wsimil.evaluation.regression import RegressionCases, SeveralNumbersCases
from wsimil.evaluation.risk_groups import RiskGroups, risk_groups
from wsimil.evaluation.runs import RunSpread, over_runs
from wsimil.evaluation.survival_cases import SurvivalCases
from wsimil.evaluation.task_metrics import cases_of
from wsimil.evaluation.wrong import WrongAnswer, class_names, wrong_answers
from wsimil.targets import Task

Thresholds: TypeAlias = Sequence[float] | Mapping[str, Sequence[float]]
"""Of two classes one, of several labels one each; for all rows, or for each run by its name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """n answers beside the truth, and whose they are: `slide_ids` (patients where a bag is one), `patients`, `runs`, `truth`
    as labels, and `values` [n, V]; a slide has a row for each run that answered for it."""

    task: Task
    slide_ids: tuple[str, ...]
    patients: tuple[str, ...]
    runs: tuple[str, ...]
    labels: tuple[str, ...]
    values: Floats

    def __len__(self) -> int:
        return len(self.slide_ids)

    def cases(self, thresholds: Thresholds | None = None) -> Cases:
        """The cases, decided at `thresholds`; as by the task without any."""
        found = cases_of(self.task, self.task.encode(self.labels), self.values)
        if thresholds is None:
            return found
        by_run = isinstance(thresholds, Mapping)
        at = np.array([thresholds[run] for run in self.runs] if isinstance(thresholds, Mapping) else thresholds)
        if isinstance(found, BinaryCases):
            return replace(found, threshold=at[:, 0] if by_run else float(at[0]))
        return replace(found, thresholds=at) if isinstance(found, MultilabelCases) else found


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """Metrics within the groups of one column of the cohort, such as its sites."""

    column: str
    groups: tuple[GroupRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Agreement:
    """A predicted number beside the true one: mean and standard deviation of predicted less true, and the limits of agreement,
    mean -+ 1.96 sd (Bland & Altman 1986, Lancet 327:307); None of one row."""

    name: str
    unit: str
    truth: Floats
    predicted: Floats
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """What `judge` found. `counts` are rows of each class, of events, of those with each label; `runs` the names of several
    runs, whose `spread` then stands beside estimates that pool their rows. Empty or None where it means nothing for the task.
    """

    task: Task
    rows: int
    slides: int
    patients: int
    replicates: int
    seed: int
    runs: tuple[str, ...]
    counts: Mapping[str, int]
    estimates: Mapping[str, Estimate]
    spread: Mapping[str, RunSpread]
    classes: tuple[OneClass, ...]
    confusion: Confusion | None
    agreement: tuple[Agreement, ...]
    survival: RiskGroups | None
    groupings: tuple[Grouping, ...]
    wrong: tuple[WrongAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassComparison:
    """One class in two models: DeLong's test, of "rows" or of the means of "patients", and both ROC curves."""

    name: str
    delong: DeLongDifference | None
    delong_of: str
    first_roc: Curve | None
    second_roc: Curve | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Two models on the same rows: `differences` are first less second. `right` are rows that both, the first alone, the second
    alone, and neither decided rightly; None where nothing is decided. `scores` [n, 2] is the one number of each row to draw, and
    `scored` names it; `classed` [n] the class of each row, where there are two.
    """

    task: Task
    rows: int
    patients: int
    replicates: int
    seed: int
    counts: Mapping[str, int]
    differences: Mapping[str, Difference]
    classes: tuple[ClassComparison, ...]
    right: tuple[int, int, int, int] | None
    scores: Floats
    scored: str
    classed: tuple[int, ...]


def judge(
    judged: Judged,
    *,
    thresholds: Thresholds | None = None,
    groups: Mapping[str, Sequence[str]],
    replicates: int = 2000,
    seed: int = 0,
) -> Judgement:
    """Judge all rows; `groups` names columns, and of each row its group. Raises ValueError without rows."""
    if not len(judged):
        raise ValueError("there is no row to judge")
    cases, patients, runs = judged.cases(thresholds), judged.patients, judged.runs
    run_names = tuple(sorted(set(runs)))
    spread: Mapping[str, RunSpread] = {}
    if len(run_names) > 1:
        spread = over_runs(cases, runs, patients, replicates=replicates, seed=seed)
        found: Mapping[str, Estimate] = {name: one.pooled for name, one in spread.items()}
    else:
        found = estimates(cases, patients, replicates=replicates, seed=seed)
    names = class_names(judged.task)
    classes = tuple(
        judge_class(one, cases, patients, found=found, one_run=len(run_names) == 1, replicates=replicates, seed=seed)
        for one in class_cases(cases, names)
    )
    return Judgement(
        task=judged.task,
        rows=len(judged),
        slides=len(set(judged.slide_ids)),
        patients=len(set(patients)),
        replicates=replicates,
        seed=seed,
        runs=run_names if len(run_names) > 1 else (),
        counts=named_counts(judged.task, cases.counts),
        estimates=found,
        spread=spread,
        classes=classes,
        confusion=confusion(cases.targets, cases.decided, classes=names)
        if isinstance(cases, BinaryCases | MulticlassCases)
        else None,
        agreement=_agreement(cases, judged.task),
        survival=risk_groups(cases, patients, runs) if isinstance(cases, SurvivalCases) else None,
        groupings=tuple(
            Grouping(column=column, groups=_grouped(judged, cases, own, replicates, seed))
            for column, own in groups.items()
        ),
        wrong=wrong_answers(judged.task, cases),
    )


def compare(
    first: Judged,
    second: Judged,
    *,
    thresholds: tuple[Thresholds | None, Thresholds | None] = (None, None),
    replicates: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Two models' answers to the same rows in the same order, with the same truth. Raises ValueError."""
    if first.slide_ids != second.slide_ids or first.labels != second.labels or not len(first):
        raise ValueError("two models are compared on the same rows with the same truth, one at least")
    ours, theirs = first.cases(thresholds[0]), second.cases(thresholds[1])
    patients, names = first.patients, class_names(first.task)
    classes = []
    for mine, other in zip(class_cases(ours, names), class_cases(theirs, names), strict=True):
        own = [patients[row] for row in mine.rows]
        targets = mine.cases.targets
        delong, of = delong_of_two(targets, mine.cases.probabilities, other.cases.probabilities, own)
        classes.append(
            ClassComparison(
                name=mine.name,
                delong=delong,
                delong_of=of,
                first_roc=roc_curve(targets, mine.cases.probabilities, columns=200),
                second_roc=roc_curve(targets, other.cases.probabilities, columns=200),
            )
        )
    scores, scored = _scores(first, second)
    return Comparison(
        task=first.task,
        rows=len(first),
        patients=len(set(patients)),
        replicates=replicates,
        seed=seed,
        counts=named_counts(first.task, ours.counts),
        differences=differences(ours, theirs, patients, replicates=replicates, seed=seed),
        classes=tuple(classes),
        right=_right(ours, theirs),
        scores=scores,
        scored=scored,
        classed=tuple(ours.targets.tolist()) if isinstance(ours, BinaryCases) else (),
    )


def named_counts(task: Task, counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of cases by the names of the task's classes, where it has classes."""
    names = class_names(task)
    return dict(zip(names, counts.values(), strict=True)) if names else dict(counts)


def _grouped(judged: Judged, cases: Cases, groups: Sequence[str], replicates: int, seed: int) -> tuple[GroupRow, ...]:
    rows = by_group(cases, groups, judged.patients, replicates=replicates, seed=seed)
    return tuple(replace(row, counts=named_counts(judged.task, row.counts)) for row in rows)


def _agreement(cases: Cases, task: Task) -> tuple[Agreement, ...]:
    if isinstance(cases, RegressionCases):
        pairs = [(task.columns[0], cases)]
    elif isinstance(cases, SeveralNumbersCases):
        pairs = [*zip(cases.names, cases.numbers, strict=True)]
    else:
        return ()
    result = []
    for name, one in pairs:
        off = one.predictions - one.targets
        mean, sd = float(off.mean()), float(off.std(ddof=1)) if len(off) > 1 else None
        result.append(
            Agreement(
                name=name,
                unit=str(getattr(task, "unit", "")),
                truth=one.targets,
                predicted=one.predictions,
                mean=mean,
                sd=sd,
                low=None if sd is None else mean - 1.96 * sd,
                high=None if sd is None else mean + 1.96 * sd,
            )
        )
    return tuple(result)


def _right(ours: Cases, theirs: Cases) -> tuple[int, int, int, int] | None:
    decided = [one.decided == one.targets for one in (ours, theirs) if isinstance(one, BinaryCases | MulticlassCases)]
    if len(decided) < 2:
        return None
    mine, other = decided
    cells = (mine & other, mine & ~other, ~mine & other, ~mine & ~other)
    both, first, second, neither = (int(cell.sum()) for cell in cells)
    return both, first, second, neither


def _scores(first: Judged, second: Judged) -> tuple[Floats, str]:
    """One number a row of each model: of two classes the probability of the second, else the first answer."""
    column = 1 if len(class_names(first.task)) == 2 else 0
    name = first.task.answers[column].name
    return np.stack([first.values[:, column], second.values[:, column]], axis=1), name
