"""A folder of predictions as the viewer lists it: opened quickly, however many slides it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wsimil.cohort import read_cohort
from wsimil.errors import ConfigError, ModelError, StoreError
from wsimil.evaluation.decision import Decision, load_decision
from wsimil.evaluation.table import Row, read_table
from wsimil.export.answers import AnswerRule
from wsimil.export.scores import ScoreTable, read_scores
from wsimil.export.viewer.payload import NO_SCORES, Cohort, ListedCase
from wsimil.export.viewer.ranges import cohort_scores, sampled
from wsimil.export.viewer.what_if import Mix, head_mix
from wsimil.mil.facts import FACTS, ModelFacts
from wsimil.stages.deciding import deciding_of
from wsimil.stages.learned import read_origin
from wsimil.stages.listed import refuse_another_answer
from wsimil.store.base import is_slide_id, slide_path
from wsimil.targets import Classification, MultiLabel, Task

_COUNTED = 2000
"""Cohorts up to that many slides have their tiles counted, which opens every score table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Predictions in `folder`: the list, and a slide's score table when it is asked for. `notes` are for people.

    `unplaced` is one of the slides of which nobody knows where the scan begins; None where none was found among those looked at.
    """

    folder: Path
    cohort: Cohort
    mix: Mix | None
    notes: tuple[str, ...] = ()
    unplaced: str | None = None

    def table(self, index: int) -> ScoreTable:
        """The score table of a slide of the list.

        Raises StoreError where it cannot be read, MadeAnewError where it belongs to another answer than that of the list.
        """
        return _table(self.folder, self.cohort.cases[index])

    def tiling(self, slide_id: str) -> str | None:
        """Over which tiles a slide was answered; None where its score table cannot be read."""
        try:
            return read_scores(slide_path(self.folder / "scores", slide_id, ".parquet")).tiling
        except StoreError:
            return None  # the slide itself says so when it is opened


def open_study(folder: Path, *, run: Path | None = None, cohort_csv: Path | None = None) -> Study:
    """Read the list of `folder`, which `wsimil predict` wrote; of a trained run the answers alone, as it has no tile scores.

    `run` is the model that answered, where it is at hand; `cohort_csv` gives labels and wins over those that were predicted
    with. Raises WsimilError.
    """
    if not (folder / "predictions.parquet").is_file():
        raise ConfigError(
            f"{folder} holds no predictions.parquet; give the folder that wsimil predict wrote"
            + (f": wsimil predict {folder} FEATURES -o PREDICTIONS" if (folder / FACTS).is_file() else "")
        )
    model = read_origin(folder, model=run, option="--run").model
    rows = read_table(folder, task=model.task, bag=model.bag, answered_by=model.answers)
    files = {path.stem for path in (folder / "scores").glob("*.parquet")}
    cases = tuple(_cases(rows, folder, model, files, _labels(cohort_csv, model)))
    scored = [case for case in cases if case.scored]
    notes: list[str] = []
    if not scored:
        notes.append(_no_scores(folder, model))
    deciding = deciding_of(model)
    task: Task = model.task
    if deciding.chosen is not None and isinstance(task, Classification):
        task = replace(task, threshold=deciding.chosen.value)
    if isinstance(task, MultiLabel):
        task = replace(task, thresholds=deciding.thresholds)
    unplaced: list[str] = []
    tables = _watched(_shown(folder, sampled(scored), notes), unplaced)
    return Study(
        folder=folder,
        cohort=Cohort(
            model=model,
            rule=_rule(task, model, run, next(_shown(folder, scored, []), None)),
            thresholds=deciding.thresholds,
            scores=cohort_scores(tables, slides=len(scored)),
            cases=cases,
        ),
        mix=head_mix(model.method, model.config),
        notes=tuple(notes),
        unplaced=next(iter(unplaced), None),
    )


def _table(folder: Path, case: ListedCase) -> ScoreTable:
    table = read_scores(slide_path(folder / "scores", case.slide_id, ".parquet"))
    refuse_another_answer(table, case.slide_id, case.values)
    return table


def _shown(folder: Path, cases: Sequence[ListedCase], notes: list[str]) -> Iterator[ScoreTable]:
    """The tables of these cases that the viewer shows."""
    for case in cases:
        try:
            yield _table(folder, case)
        except StoreError as error:
            notes.append(str(error))


def _watched(tables: Iterator[ScoreTable], unplaced: list[str]) -> Iterator[ScoreTable]:
    for table in tables:
        unplaced += [] if table.bounds_known else [table.slide_id]
        yield table


def _cases(
    rows: Sequence[Row], folder: Path, model: ModelFacts, files: set[str], labels: Mapping[str, tuple[str, str]] | None
) -> Iterator[ListedCase]:
    unusual = _unusual(folder, len(rows))
    count = sum(max(1, len(row.slides)) for row in rows) <= _COUNTED
    for row, odd in zip(rows, unusual, strict=True):
        patient, label = row.patient_id, row.label
        if labels is not None:
            patient, label = labels.get(row.slide_id, (patient, ""))
        for slide_id in row.slides or (row.slide_id,):
            scored = slide_id in files and is_slide_id(slide_id)
            yield ListedCase(
                slide_id=slide_id,
                patient_id=row.slide_id if model.bag == "patient" else patient,
                values=row.values,
                label=label,
                split=row.split,
                status=row.status if scored or row.values is None else NO_SCORES,
                unusual=odd,
                tiles=_tiles(folder, slide_id) if scored and count else None,
                scored=scored,
            )


def _tiles(folder: Path, slide_id: str) -> int | None:
    try:
        return int(pq.read_metadata(folder / "scores" / f"{slide_id}.parquet").num_rows)
    except (pa.ArrowException, OSError):
        return None  # the slide itself says so when it is opened


def _unusual(folder: Path, rows: int) -> list[bool | None]:
    path = folder / "predictions.parquet"
    if "unusual" not in pq.read_schema(path).names:
        return [None] * rows
    column = pq.read_table(path, columns=["unusual"], partitioning=None).column("unusual").to_pylist()
    return [{"yes": True, "no": False}.get(value) for value in column]


def _labels(cohort_csv: Path | None, model: ModelFacts) -> dict[str, tuple[str, str]] | None:
    """Patient and label of each unit."""
    if cohort_csv is None:
        return None
    cohort = read_cohort(cohort_csv, task=model.task, bag=model.bag)
    units = cohort.by_patient() if model.bag == "patient" else cohort
    return {unit.slide_id: (unit.patient_id, unit.label) for unit in units.slides}


def _rule(task: Task, model: ModelFacts, run: Path | None, table: ScoreTable | None) -> AnswerRule:
    """As the predictions say; where `table`, one of them, shows that they do not say it, as earlier ones did not: from the run.

    A run that was given may have been calibrated anew since it answered, so it is not what is asked first.
    """
    try:
        own = AnswerRule.frozen(task, model.training)
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"predictions.json: training.calibration is none ({error}); predict again") from error
    if run is None or table is None or own.explains(table):
        return own
    decision = load_decision(run) or Decision(model=model.digest)
    return AnswerRule.frozen(task, decision.calibration_facts)


def _no_scores(folder: Path, model: ModelFacts) -> str:
    if (folder / FACTS).is_file():
        return (
            f"{folder} is a trained run: it has answers, and no tile scores; make these with: wsimil predict {folder} FEATURES"
            f" -o PREDICTIONS{' --cohort COHORT.csv' if model.bag == 'patient' else ''}, and view PREDICTIONS"
        )
    return f"{folder} has answers, and no tile scores; make them with wsimil predict, without --no-heatmaps"
