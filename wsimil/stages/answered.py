"""Answers in a folder, or in one folder for each fold or seed, beside what a cohort file says of their slides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wsimil.cohort import BagUnit, Cohort, column_names, read_cohort, read_columns, read_patients
from wsimil.errors import CohortError, ConfigError, StoreError
from wsimil.evaluation.judgement import Judged
from wsimil.evaluation.table import Row, read_table
from wsimil.mil.facts import ModelFacts
from wsimil.stages.learned import Learned, read_origin
from wsimil.targets import Survival, Task, number

USUAL_GROUPS = ("site", "scanner", "stain_batch", "sex", "age")
"""Columns of a cohort file by which answers are judged where none is named."""

_PARQUET = "predictions.parquet"
_MOST_NUMBERS = 12
_CODES = frozenset({"batch", "center", "centre", "code", "hospital", "id", "institution", "scanner", "sex", "site"})
"""Words in the names of columns whose numbers name something, and measure nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The answers of one folder, who gave them, and what that model learned from; `alike` as in `Origin`."""

    name: str
    folder: Path
    model: ModelFacts
    learned: Learned
    rows: tuple[Row, ...]
    alike: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a cohort file says: the labelled units, in its order; all units with their patient, labelled or not, and all slides
    with theirs; groups by column and unit. A unit is a slide, or a patient where that is a bag.
    """

    cohort: Cohort
    owners: Mapping[str, str]
    patients: Mapping[str, str]
    groups: Mapping[str, Mapping[str, str]]


def read_runs(predictions: Sequence[Path], *, model: Path | None = None) -> tuple[Run, ...]:
    """The runs in folders that `wsimil predict` or `train` wrote; a folder without answers stands for those in it that have some,
    or in folders in it, as that of a config in a study.

    Raises ConfigError, StoreError; also where runs do not answer the same question.
    """
    folders = [folder for given in predictions for folder in _folders(given)]
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; give each run once")
    if model is not None and len(folders) > 1:
        raise ConfigError(f"--model is for the answers of one run, got {len(folders)}; leave it out")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = []
    for name, folder in zip(names, folders, strict=True):
        origin = read_origin(folder, model=model)
        rows = read_table(folder, task=origin.model.task, bag=origin.model.bag, answered_by=origin.model.answers)
        run = Run(name=name, folder=folder, model=origin.model, learned=origin.learned, rows=rows, alike=origin.alike)
        runs.append(run)
    first = runs[0].model
    for run in runs[1:]:
        refuse_other_question(first, run.model, runs[0].folder, run.folder)
    return tuple(runs)


def refuse_other_question(first: ModelFacts, second: ModelFacts, first_folder: Path, second_folder: Path) -> None:
    """Raises ConfigError where two models do not answer one question about one kind of unit."""
    if question(first.task, first.bag) != question(second.task, second.bag):
        raise ConfigError(
            f"{first_folder} and {second_folder} do not answer the same question: {_question(first)}, and {_question(second)};"
            " judge them apart"
        )


def question(task: Task, bag: BagUnit) -> tuple[object, ...]:
    """What is asked of a model, and of which unit: two can be held against each other where it is the same."""
    return (task.kind, task.columns, task.group_names, getattr(task, "unit", ""), bag)


def read_known(path: Path, task: Task, bag: BagUnit, *, groups: Sequence[str] | None) -> Known:
    """What the cohort file says of a task's labels and of `groups`, columns of it; of None those usual ones that are there.

    A column of more than 12 numbers is cut in thirds, but for one whose name says that they are codes, such as a site's. Raises
    CohortError.
    """
    cohort = read_cohort(path, task=task, bag=bag)
    there = column_names(path)
    columns = [name for name in USUAL_GROUPS if name in there] if groups is None else [*groups]
    cells = read_columns(path, columns)
    patients = read_patients(path)
    tables = {name: _banded(name, {slide: own[i] for slide, own in cells.items()}) for i, name in enumerate(columns)}
    tables = {name: table for name, table in tables.items() if groups is not None or len(set(table.values())) > 1}
    if bag == "slide":
        return Known(cohort=cohort, owners=patients, patients=patients, groups=tables)
    joined = {name: _by_patient(table, patients) for name, table in tables.items()}
    owners = {patient: patient for patient in patients.values()}
    return Known(cohort=cohort.by_patient(), owners=owners, patients=patients, groups=joined)


def shared_task(tasks: Sequence[Task]) -> Task:
    """The task whose answers the models of all `tasks` give: the same, of survival with the horizons that all tell."""
    task = tasks[0]
    if not isinstance(task, Survival):
        return task
    others = [set(one.answered_horizons) for one in tasks if isinstance(one, Survival)]
    horizons = tuple(h for h in task.answered_horizons if all(h in other for other in others))
    if not horizons:
        return replace(task, model="cox", horizons=(), edges=(), baseline=())
    return replace(task, horizons=horizons)


def judged(pairs: Sequence[tuple[Run, Row]], task: Task, known: Known) -> Judged:
    """Rows that count, as they are judged: by the labels of the cohort file."""
    units = {unit.slide_id: unit for unit in known.cohort.slides}
    columns = {run.name: answer_columns(run.model.task, task) for run, _ in pairs}
    values = [row.values[columns[run.name]] for run, row in pairs if row.values is not None]
    return Judged(
        task=task,
        slide_ids=tuple(row.slide_id for _, row in pairs),
        patients=tuple(units[row.slide_id].patient_id for _, row in pairs),
        runs=tuple(run.name for run, _ in pairs),
        labels=tuple(units[row.slide_id].label for _, row in pairs),
        values=np.stack(values) if values else np.zeros((0, len(task.answers))),
    )


def refuse_other_patients(runs: Sequence[Run], known: Known, path: Path) -> None:
    """Raises CohortError where a slide belongs to another patient than when it was predicted: who was learned from is told by
    patient."""
    for run in runs:
        for row in run.rows:
            for slide_id in row.slides if run.model.bag == "patient" else (row.slide_id,):
                now = known.patients.get(slide_id)
                if now is not None and row.patient_id and row.patient_id != now:
                    raise CohortError(
                        f"slide {slide_id!r} belongs to patient {now!r} in {path}, and to {row.patient_id!r} in {run.folder};"
                        " use one cohort file for both, or what the model learned from cannot be told"
                    )


def relabelled(runs: Sequence[Run], known: Known) -> tuple[str, ...]:
    """Units whose label was another one when they were predicted."""
    labels = {unit.slide_id: unit.label for unit in known.cohort.slides}
    changed = {
        row.slide_id
        for run in runs
        for row in run.rows
        if row.label and labels.get(row.slide_id, row.label) != row.label
    }
    return tuple(sorted(changed))


def _folders(given: Path) -> list[Path]:
    if not given.is_dir():
        raise ConfigError(f"{given} is not a folder; give one that wsimil predict or wsimil train wrote")
    if (given / _PARQUET).is_file():
        return [given]
    for inner in ("*", "*/*"):
        if found := sorted(file.parent for file in given.glob(f"{inner}/{_PARQUET}")):
            return found
    raise ConfigError(
        f"{given} holds no {_PARQUET}, nor does a folder in it: give the folder of a run, or of a config in a study, or what"
        " wsimil predict wrote"
    )


def _question(model: ModelFacts) -> str:
    names = ", ".join(model.task.group_names[:6])
    return f"{model.task.kind} of {model.bag}s by {', '.join(model.task.columns)} ({names})"


def answer_columns(own: Task, task: Task) -> list[int]:
    """Where the answers of `task` stand among those of a run's own. Raises StoreError where they do not."""
    names = [column.name for column in own.answers]
    try:
        return [names.index(column.name) for column in task.answers]
    except ValueError:
        raise StoreError(f"runs answer in other columns: {names} and {[c.name for c in task.answers]}") from None


def _banded(column: str, table: Mapping[str, str]) -> dict[str, str]:
    """Cells as they are; of many numbers that are no codes their thirds, of a word for missing nothing."""
    if _CODES & set(re.split(r"[^a-z]+", column.casefold())):
        return dict(table)
    try:
        numbers = {slide: number(cell) for slide, cell in table.items()}
    except ValueError:
        return dict(table)
    known = [value for value in numbers.values() if value is not None]
    if len(set(known)) <= _MOST_NUMBERS:
        return dict(table)
    low, high = np.quantile(known, [1 / 3, 2 / 3]).tolist()
    names = (f"1: up to {low:.4g}", f"2: to {high:.4g}", f"3: above {high:.4g}")
    return {
        slide: "" if value is None else names[int(value > low) + int(value > high)] for slide, value in numbers.items()
    }


def _by_patient(table: Mapping[str, str], patients: Mapping[str, str]) -> dict[str, str]:
    """Of each patient the cell that all its slides share, else nothing."""
    cells: dict[str, set[str]] = {}
    for slide, cell in table.items():
        cells.setdefault(patients[slide], set()).add(cell)
    return {patient: next(iter(own)) if len(own) == 1 else "" for patient, own in cells.items()}
