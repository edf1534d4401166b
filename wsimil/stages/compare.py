"""compare: two models on the slides that both answered, to metrics.json and report.html."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import wsimil
from wsimil.errors import CohortError, ConfigError
from wsimil.evaluation.judgement import Comparison, Judged, Thresholds
from wsimil.evaluation.judgement import compare as compare_answers
from wsimil.evaluation.table import Row, inert
from wsimil.evaluation.wrong import said_of
from wsimil.export.report.card import comparison_card
from wsimil.export.report.numbers import comparison_tree
from wsimil.export.report.page import comparison_page
from wsimil.export.report.report import ComparisonReport, FlowStep, Lost
from wsimil.provenance import Json
from wsimil.stages.answered import Run, judged, read_runs, refuse_other_question, shared_task
from wsimil.stages.cohort_flow import Counted
from wsimil.stages.deciding import pooled_thresholds
from wsimil.stages.evaluate import EvaluateOptions, card_of, gather, refuse_answers, write_judgement
from wsimil.stages.occupied import occupied
from wsimil.stages.words import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSummary:
    """What was found: the comparison of the models of these `names`, how many slides came to count, and notes."""

    comparison: Comparison
    names: tuple[str, str]
    flow: tuple[FlowStep, ...]
    notes: tuple[str, ...]
    unit: str
    tree: Mapping[str, Json]


def compare(first: Path, second: Path, cohort_csv: Path, out: Path, *, options: EvaluateOptions) -> CompareSummary:
    """Compare the answers in two folders of `wsimil predict` or `train`, or in two folders of folds, each slide once in each.

    Only slides count that both answered and that neither model saw. Writes metrics.json, predictions.csv, report.html and
    MODEL_CARD.md. Raises WsimilError; also where the two were predicted with different labels, or another process is at work in
    `out`.
    """
    refuse_answers(out)
    with occupied(out):
        return _compared(first, second, cohort_csv, out, options)


def _compared(first: Path, second: Path, cohort_csv: Path, out: Path, options: EvaluateOptions) -> CompareSummary:
    sides = (read_runs([first]), read_runs([second]))
    ours, theirs = sides[0][0].model, sides[1][0].model
    refuse_other_question(ours, theirs, first, second)
    _refuse_other_truth(*sides, first, second)
    materials = [gather(runs, cohort_csv, options) for runs in sides]
    unit = ours.bag
    tables = [
        _once(material.counted, folder, unit) for material, folder in zip(materials, (first, second), strict=True)
    ]
    both = [one for one in tables[0] if one in tables[1]]
    flow = _flow(materials[0].counted, materials[1].counted, set(both))
    if not both:
        raise CohortError(
            f"no {unit} of {cohort_csv} counts in both {first} and {second}; they count {len(tables[0])} and {len(tables[1])}"
        )
    task = shared_task([run.model.task for runs in sides for run in runs])
    pairs = [judged([table[one] for one in both], task, materials[0].known) for table in tables]
    names = _names(first, second)
    thresholds = [pooled_thresholds({run.name: run.model for run in runs}) for runs in sides]
    found = compare_answers(
        pairs[0], pairs[1], thresholds=(thresholds[0], thresholds[1]), replicates=options.replicates, seed=options.seed
    )
    notes = dict.fromkeys(note for material in materials for note in material.notes)
    if any(len(runs) > 1 for runs in sides):
        notes["Folds are pooled: scores of different models stand in one ranking."] = None
    report = ComparisonReport(
        title=f"{names[0]} and {names[1]}",
        unit=unit,
        version=wsimil.__version__,
        cohort=cohort_csv.name,
        split=options.split,
        comparison=found,
        flow=flow,
        models=tuple(
            replace(card_of(run), name=name if len(runs) == 1 else f"{name}/{run.name}")
            for name, runs in zip(names, sides, strict=True)
            for run in runs
        ),
        names=names,
        notes=tuple(notes),
    )
    tree = comparison_tree(report)
    files = {
        "predictions.csv": _table(pairs[0], pairs[1], (thresholds[0], thresholds[1]), unit),
        "report.html": comparison_page(report, tree),
        "MODEL_CARD.md": comparison_card(report, tree),
        "metrics.json": json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    write_judgement(out, files)
    return CompareSummary(comparison=found, names=names, flow=flow, notes=report.notes, unit=unit, tree=tree)


def _names(first: Path, second: Path) -> tuple[str, str]:
    names = (first.resolve().name, second.resolve().name)
    return (str(first), str(second)) if names[0] == names[1] else names


def _once(counted: Counted, folder: Path, unit: str) -> dict[str, tuple[Run, Row]]:
    """The one answer for each unit. Raises ConfigError where a unit was answered by several runs."""
    found: dict[str, tuple[Run, Row]] = {}
    for run, row in counted.rows:
        if row.slide_id in found:
            raise ConfigError(
                f"{folder}: {unit} {row.slide_id!r} was answered by the runs {found[row.slide_id][0].name!r} and {run.name!r};"
                " compare one run of each, or folds that answer for each once"
            )
        found[row.slide_id] = (run, row)
    return found


def _refuse_other_truth(ours: tuple[Run, ...], theirs: tuple[Run, ...], first: Path, second: Path) -> None:
    """Labels that differ say that the two studies do not mean the same; both would be judged by one of them."""
    labels = {row.slide_id: row.label for run in ours for row in run.rows if row.label}
    differing = sorted(
        row.slide_id
        for run in theirs
        for row in run.rows
        if row.label and labels.get(row.slide_id, row.label) != row.label
    )
    if differing:
        one = next(row.label for run in theirs for row in run.rows if row.slide_id == differing[0])
        raise CohortError(
            f"{len(set(differing))} slides were predicted with one label in {first} and another in {second}:"
            f" {quoted(sorted(set(differing)))} ({labels[differing[0]]!r} and {one!r}); predict both with one cohort file"
        )


def _flow(first: Counted, second: Counted, both: set[str]) -> tuple[FlowStep, ...]:
    """The flow of the first, and at its end those that do not count in the second."""
    patients = {row.slide_id: row.patient_id for _, row in first.rows}
    gone: dict[str, list[str]] = {}
    for unit in patients:
        if unit not in both:
            gone.setdefault(second.lost.get(unit, "no answer"), []).append(unit)
    lost = tuple(
        Lost(
            reason=f"second model: {why}",
            units=len(units),
            patients=len({patients[unit] for unit in units}),
            examples=tuple(units[:5]),
        )
        for why, units in sorted(gone.items())
    )
    counted = {unit: patient for unit, patient in patients.items() if unit in both}
    last = FlowStep(what="counted in both", units=len(counted), patients=len(set(counted.values())), lost=lost)
    return (*first.flow, last)


def _table(first: Judged, second: Judged, thresholds: tuple[Thresholds | None, Thresholds | None], unit: str) -> str:
    """predictions.csv: what both say of each unit that counts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [column.name for column in first.task.answers]
    said = [said_of(one.task, one.cases(own), one.values) for one, own in zip((first, second), thresholds, strict=True)]
    ids = ["slide_id", "patient_id"] if unit == "slide" else ["patient_id"]
    sides = [
        f"{side}:{name}"
        for side in ("first", "second")
        for name in [*names, *(["predicted"] if first.task.decides else [])]
    ]
    writer.writerow([*ids, *map(inert, sides), "label"])
    for i, one in enumerate(first.slide_ids):
        cells = [inert(one), inert(first.patients[i])] if unit == "slide" else [inert(one)]
        for side, words in zip((first, second), said, strict=True):
            cells += [f"{value:.9g}" for value in side.values[i]]
            cells += [inert(words[i])] if side.task.decides else []
        writer.writerow([*cells, inert(first.labels[i])])
    return text.getvalue()
