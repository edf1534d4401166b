"""evaluate: answers beside the truth to metrics.json, predictions.csv, report.html and MODEL_CARD.md."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import wsimil
from wsimil.cohort import CohortSlide
from wsimil.errors import CohortError, ConfigError
from wsimil.evaluation.judgement import Judged, Judgement, Thresholds, judge
from wsimil.evaluation.table import csv_was_changed, inert
from wsimil.evaluation.wrong import said_of
from wsimil.export.report.card import model_card
from wsimil.export.report.numbers import report_tree
from wsimil.export.report.page import report_page
from wsimil.export.report.report import FlowStep, ModelCard, Report, WrongCase
from wsimil.files import atomic_path, check_writable
from wsimil.mil.facts import FACTS
from wsimil.provenance import Json, sha256_json
from wsimil.stages.answered import (
    Known,
    Run,
    judged,
    read_known,
    read_runs,
    refuse_other_patients,
    relabelled,
    shared_task,
)
from wsimil.stages.cohort_flow import Counted, count, read_extracted
from wsimil.stages.deciding import deciding_of, pooled_thresholds
from wsimil.stages.failures import used_though_failed
from wsimil.stages.learned import ORIGIN
from wsimil.stages.occupied import occupied
from wsimil.stages.thumbnails import thumbnail
from wsimil.stages.twins import refuse_twins
from wsimil.stages.words import quoted, unit_words
from wsimil.store.places import failed_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What a user may choose. `groups` are columns of the cohort file, None for the usual ones that are there; `split` counts
    one split alone; `features` is the folder that answers were made from, for thumbnails and reasons."""

    model: Path | None = None
    features: Path | None = None
    groups: tuple[str, ...] | None = None
    split: str | None = None
    replicates: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSummary:
    """What was found: the judgement, how many slides came to count, and notes; `unit` is "slide" or "patient"."""

    judgement: Judgement
    flow: tuple[FlowStep, ...]
    notes: tuple[str, ...]
    unit: str
    tree: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What there is to judge: runs that answer one question, what the cohort file knows, who counts, and what to say of it."""

    runs: tuple[Run, ...]
    known: Known
    counted: Counted
    notes: tuple[str, ...]


def evaluate(predictions: Sequence[Path], cohort_csv: Path, out: Path, *, options: EvaluateOptions) -> EvaluateSummary:
    """Judge the answers in `predictions`, folders of `wsimil predict` or `train`; several are the folds or seeds of one study.

    Slides that a model learned from or was chosen on never count. Writes metrics.json, predictions.csv, report.html and
    MODEL_CARD.md into `out`, which holds no answers itself. Raises WsimilError; also where another process is at work in `out`.
    """
    refuse_answers(out)
    with occupied(out):
        return _evaluated(predictions, cohort_csv, out, options)


def _evaluated(predictions: Sequence[Path], cohort_csv: Path, out: Path, options: EvaluateOptions) -> EvaluateSummary:
    runs = read_runs(predictions, model=options.model)
    material = gather(runs, cohort_csv, options)
    _refuse_one_model_twice(material.counted)
    task = shared_task([run.model.task for run in runs])
    found = judged(material.counted.rows, task, material.known)
    thresholds = pooled_thresholds({run.name: run.model for run in runs})
    groups = {
        column: [table.get(unit, "") for unit in found.slide_ids] for column, table in material.known.groups.items()
    }
    judgement = judge(found, thresholds=thresholds, groups=groups, replicates=options.replicates, seed=options.seed)
    unit = runs[0].model.bag
    report = Report(
        title=_title(predictions, runs),
        unit=unit,
        version=wsimil.__version__,
        cohort=cohort_csv.name,
        split=options.split,
        judgement=judgement,
        flow=material.counted.flow,
        models=tuple(card_of(run) for run in runs),
        wrong=_wrong_cases(judgement, found, material, options.features),
        notes=material.notes,
    )
    tree = report_tree(report)
    files = {
        "predictions.csv": _table(found, material, thresholds),
        "report.html": report_page(report, tree),
        "MODEL_CARD.md": model_card(report, tree),
        "metrics.json": json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    write_judgement(out, files)
    return EvaluateSummary(judgement=judgement, flow=report.flow, notes=report.notes, unit=unit, tree=tree)


def gather(runs: Sequence[Run], cohort_csv: Path, options: EvaluateOptions) -> Material:
    """Who counts of the runs' answers. Raises CohortError where nobody does, with the reasons."""
    unit = runs[0].model.bag
    known = read_known(cohort_csv, shared_task([run.model.task for run in runs]), unit, groups=options.groups)
    refuse_other_patients(runs, known, cohort_csv)
    for run in runs:
        run.learned.refuse_other_spellings(known.owners.values(), cohort_csv)
        refuse_twins(run.alike, known.cohort.slides)
    runs = [replace(run, learned=run.learned.among(known.patients)) for run in runs]
    extracted = None if options.features is None else read_extracted(options.features)
    counted = count(runs, known, split=options.split, extracted=extracted)
    strangers = sorted({row.slide_id for run in runs for row in run.rows} - set(known.owners))
    unlisted = f"{unit_words(unit, len(strangers))} with an answer {'is' if len(strangers) == 1 else 'are'} not in"
    if not counted.rows:
        reasons = "; ".join(f"{lost.units} {lost.reason}" for step in counted.flow for lost in step.lost)
        rename = (
            f" {unlisted} that file: {quoted(strangers)}; write ids there as they were predicted, or"
            if strangers
            else ""
        )
        raise CohortError(
            f"no {unit} of {cohort_csv} is left to be judged: of {unit_words(unit, counted.flow[0].units)} {reasons};{rename}"
            " give a cohort with slides that the model has not seen"
        )
    notes = [str(finding) for finding in known.cohort.findings if "no label" not in finding.what]
    if strangers:
        notes.append(f"{unlisted} the cohort file and not counted: {quoted(strangers)}")
    changed = relabelled(runs, known)
    if changed:
        notes.append(
            f"{unit_words(unit, len(changed))} had another label when predicted; that of the cohort file counts:"
            f" {quoted(changed)}"
        )
    if options.features is not None:
        slides = {one.slide_id: one.members or (one.slide_id,) for one in known.cohort.slides}
        used = [slide for _, row in counted.rows for slide in slides[row.slide_id]]
        notes += map(str, used_though_failed(failed_ids(options.features), used))
    if edited := [run.name for run in runs if csv_was_changed(run.folder)]:
        notes.append(
            f"predictions.csv of {quoted(edited)} was changed since it was written, and is not read: the answers that were given"
            " count, as predictions.parquet has them"
        )
    blind = [run.name for run in runs if not run.learned.known]
    if blind:
        notes.append(
            f"Which patients the model learned from is not known ({quoted(blind)} came without its cohort.csv), so none could be"
            " left out: if it learned from some of those judged here, these numbers are too good."
        )
    return Material(runs=tuple(runs), known=known, counted=counted, notes=tuple(notes))


def _refuse_one_model_twice(counted: Counted) -> None:
    """Raises ConfigError where a unit would count twice by the answers of one model, which are no two folds or seeds."""
    first: dict[tuple[str, str], Run] = {}
    for run, row in counted.rows:
        other = first.setdefault((run.model.digest, row.slide_id), run)
        if other is not run:
            raise ConfigError(
                f"{other.folder} and {run.folder} hold answers of one model, and both answer {row.slide_id!r}: they are no two"
                " folds or seeds; give one of them"
            )


def card_of(run: Run) -> ModelCard:
    """What a report says of the model of a run."""
    model, learned, decision = run.model, run.learned, deciding_of(run.model)
    splits = [split for split in ("train", "val", "test") if split in learned.splits.values()]
    cohort = {}
    for split in splits:
        rows = [one for one, own in learned.splits.items() if own == split]
        cohort[split] = {"rows": len(rows), "patients": learned.counts.get(split, 0)}
    return ModelCard(
        name=run.name,
        task=model.task.to_json(),
        method=model.method,
        digest=model.digest,
        version=model.version,
        config=model.config,
        config_digest=sha256_json({"method": model.method, "config": model.config}),
        training=model.training,
        encoder={} if model.features is None else model.features.encoder,
        tiling={} if model.features is None else model.features.tiling,
        features_digest="" if model.features is None else model.features.feature_digest,
        thresholds=decision.thresholds,
        threshold_origin=decision.origin,
        threshold=decision.chosen,
        learned_known=learned.known,
        cohort=cohort,
    )


def write_judgement(out: Path, files: Mapping[str, str]) -> None:
    """Write `files`, texts by name; none of them takes its place before all are written, so that no parts of two are left.

    Raises OutputError.
    """
    check_writable(out)
    with ExitStack() as stack:
        for name, text in files.items():
            stack.enter_context(atomic_path(out / name)).write_text(text, encoding="utf-8")


def refuse_answers(out: Path) -> None:
    """A report replaces files that answers have too: raises ConfigError where `out` holds a model or predictions."""
    for name in (FACTS, ORIGIN, "predictions.parquet"):
        if (out / name).exists():
            raise ConfigError(
                f"{out} holds {name}: a report replaces metrics.json and predictions.csv, so give it a folder of its own"
            )


def _title(predictions: Sequence[Path], runs: Sequence[Run]) -> str:
    name = predictions[0].resolve().name if len(predictions) == 1 else runs[0].name
    return name if len(predictions) == 1 else f"{name} and {len(runs) - 1} more"


def _wrong_cases(found: Judgement, rows: Judged, material: Material, features: Path | None) -> tuple[WrongCase, ...]:
    units: dict[str, CohortSlide] = {unit.slide_id: unit for unit in material.known.cohort.slides}
    result = []
    for one in found.wrong:
        unit = units[rows.slide_ids[one.row]]
        slide = unit.members[0] if unit.members else unit.slide_id
        result.append(
            WrongCase(
                unit=unit.slide_id,
                patient=unit.patient_id,
                run=rows.runs[one.row] if found.runs else "",
                of=one.of,
                truth=one.truth,
                said=one.said,
                number=one.number,
                means=one.means,
                thumbnail=b"" if features is None else thumbnail(features, slide),
            )
        )
    return tuple(result)


def _table(found: Judged, material: Material, thresholds: Thresholds | None) -> str:
    """predictions.csv: every unit of the cohort file, counted or not, and why."""
    runs, known = material.runs, material.known
    several = len(runs) > 1
    key = runs[0].model.bag
    said = dict(
        zip(
            zip(found.slide_ids, found.runs, strict=True),
            zip(said_of(found.task, found.cases(thresholds), found.values), found.values, strict=True),
            strict=True,
        )
    )
    numbers = [column.name for column in found.task.answers]
    labels = {unit.slide_id: unit.label for unit in known.cohort.slides}
    owners = {**known.owners} | {unit.slide_id: unit.patient_id for unit in known.cohort.slides}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ids = ["slide_id", "patient_id"] if key == "slide" else ["patient_id"]
    tail = ["predicted", "label", "counted"] if found.task.decides else ["label", "counted"]
    header = [*(["run"] if several else []), *ids, *known.groups, *numbers, *tail]
    writer.writerow([inert(name) for name in header])
    for unit, patient in owners.items():
        mine = [run.name for run in runs if (unit, run.name) in said]
        for run in mine or [""]:
            decided, values = said.get((unit, run), ("", None))
            cells = [*([run] if several else []), *([unit, patient] if key == "slide" else [patient])]
            cells += [table.get(unit, "") for table in known.groups.values()]
            digits = [""] * len(numbers) if values is None else [f"{value:.9g}" for value in values]
            end = [*([decided] if found.task.decides else []), labels.get(unit, "")]
            end.append("yes" if values is not None else f"no: {material.counted.lost.get(unit, '')}")
            writer.writerow([*map(inert, cells), *digits, *map(inert, end)])
    return text.getvalue()
