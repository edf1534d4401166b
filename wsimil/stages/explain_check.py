"""explain-check: whether the maps of a run show what its answers rest on; explain.json, curves.parquet and explain.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import wsimil
from wsimil.errors import CohortError, ConfigError, OutputError, WsimilError
from wsimil.evaluation.attribution import SCORE_KINDS, ScoreKind
from wsimil.evaluation.faithfulness.flipping import FlipConfig
from wsimil.evaluation.faithfulness.judged import JudgedMap, judge_maps
from wsimil.export.report.faithfulness import FaithfulnessReport, faithfulness_page, faithfulness_tree
from wsimil.files import check_writable, write_text
from wsimil.mil.facts import FACTS
from wsimil.provenance import Json
from wsimil.stages.device import resolve_device
from wsimil.stages.explain_runs import CheckedRun, Held, held_out, load_runs
from wsimil.stages.explain_truth import TruthFolder
from wsimil.stages.explain_unit import Judge, write_curves
from wsimil.stages.features import is_feature_folder, open_features
from wsimil.stages.interrupt import interrupt
from wsimil.stages.learned import ORIGIN
from wsimil.stages.occupied import occupied
from wsimil.stages.progress import Quiet, Reporter

_WRITTEN = ("explain.html", "explain.json", "curves.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions:
    """What a user may choose. `scores` are the kinds that are judged, all where empty; `split` counts one split alone.

    `truth`: a folder with <slide_id>.geojson or .npz of what is known of pixels; `truth_output` the output that it speaks of, or
    "output=name" where the files have another name for it; None where the names are the same. Lesions are grown by
    `truth_margin_um` before they are counted.
    """

    cohort_csv: Path | None = None
    truth: Path | None = None
    truth_output: str | None = None
    truth_margin_um: float = 0.0
    split: str | None = None
    scores: tuple[ScoreKind, ...] = ()
    device: str = "auto"
    config: FlipConfig = field(default_factory=FlipConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainSummary:
    """What was found: a judgement for each method and score, failures by slide or patient, and notes."""

    unit: str
    units: int
    patients: int
    maps: tuple[JudgedMap, ...]
    failures: Mapping[str, str]
    notes: tuple[str, ...]
    tree: Mapping[str, Json]


def explain_check(
    runs: Sequence[Path],
    features: Path,
    out: Path,
    *,
    options: ExplainOptions,
    reporter: Reporter | None = None,
) -> ExplainSummary:
    """Judge the maps of `runs` on slides that each run neither learned from nor was chosen on.

    Several runs of one method (folds, seeds) are judged together, those of other methods beside them. A slide that fails stands
    among the failures and the rest goes on. Raises WsimilError for what concerns all slides, CohortError where none is left; also
    where another process is at work in `out`.
    """
    _refuse_foreign_folder(out)
    with occupied(out):
        return _checked(runs, features, out, options, reporter or Quiet())


def _checked(
    runs: Sequence[Path], features: Path, out: Path, options: ExplainOptions, reporter: Reporter
) -> ExplainSummary:
    loaded = load_runs(runs, device=resolve_device(options.device))
    store = open_features(features)
    held = held_out(loaded, store.ids(), cohort_csv=options.cohort_csv, split=options.split)
    check_writable(out)
    truth = None
    if options.truth is not None:
        slides = [slide for unit in held.units for slide in held.slides[unit]]
        truth = TruthFolder.open(
            options.truth, loaded, slides, output=options.truth_output, margin_um=options.truth_margin_um
        )
    judge = Judge(
        runs=loaded,
        store=store,
        kinds=options.scores or SCORE_KINDS,
        truth=truth,
        held=held,
        config=options.config,
    )
    for name in _WRITTEN:  # of an earlier judgement, it would stand as if it were this one
        (out / name).unlink(missing_ok=True)
    failures: dict[str, str] = {}
    reporter.begin(f"{held.unit}s", len(held.units))
    for unit in held.units:
        interrupt.check()
        reporter.item(unit, 0)
        try:
            reporter.finish_item(judge.judge(unit))
        except (OutputError, ConfigError):
            raise  # concerns every slide
        except WsimilError as error:
            failures[unit] = str(error)
            reporter.finish_item(f"{unit}: FAILED: {error}")
    if not judge.rows:
        first = next(iter(failures.values()), "no score could be computed: " + "; ".join(judge.notes))
        raise CohortError(f"none of {len(held.units)} {held.unit}s could be judged; the first reason: {first}")
    return _conclude(judge, held, loaded, failures, out, options)


def _conclude(
    judge: Judge,
    held: Held,
    loaded: Sequence[CheckedRun],
    failures: Mapping[str, str],
    out: Path,
    options: ExplainOptions,
) -> ExplainSummary:
    order = {run.name: number for number, run in enumerate(loaded)}
    rows = tuple(sorted(judge.rows, key=lambda row: order[row.run]))
    maps = judge_maps(rows, options.config)
    notes = (*held.notes, *judge.notes)
    report = FaithfulnessReport(
        title=loaded[0].name if len(loaded) == 1 else f"{loaded[0].name} and {len(loaded) - 1} more",
        version=wsimil.__version__,
        unit=held.unit,
        task=loaded[0].trained.task.kind,
        units=len({row.unit for row in rows}),
        patients=len({row.patient for row in rows}),
        left_out=held.left_out,
        blind=all(run.learned.known for run in loaded),
        maps=maps,
        rows=rows,
        config=options.config,
        models={run.name: run.trained.digest for run in loaded},
        truth=None if judge.truth is None else judge.truth.output,
        truth_margin_um=options.truth_margin_um,
        failures=failures,
        notes=notes,
    )
    tree = faithfulness_tree(report)
    write_curves(out / "curves.parquet", judge.curves)
    write_text(out / "explain.json", json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(out / "explain.html", faithfulness_page(report, tree))
    return ExplainSummary(
        unit=held.unit,
        units=report.units,
        patients=report.patients,
        maps=maps,
        failures=failures,
        notes=notes,
        tree=tree,
    )


def _refuse_foreign_folder(out: Path) -> None:
    for name in (FACTS, ORIGIN):
        if (out / name).exists():
            raise ConfigError(f"{out} holds {name}; give the judgement of maps a folder of its own")
    if is_feature_folder(out):
        raise ConfigError(f"{out} holds features; give the judgement of maps a folder of its own")
