"""What a person reads of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from wsimil.export.report.cells import p_text, shown
from wsimil.stages.text import say, say_json, table

if TYPE_CHECKING:
    from wsimil.evaluation.bootstrap import Difference, Estimate
    from wsimil.stages.crossval import StudySummary
    from wsimil.stages.ensemble import EnsembleSummary
    from wsimil.stages.study_summary import StudyTables
    from wsimil.stages.work_items import WorkItem

_FIRST = ("auroc", "auroc_macro", "balanced_accuracy", "cohen_kappa_quadratic", "spearman", "mae", "harrell_c")


def show_items(items: Sequence[WorkItem], *, as_json: bool) -> None:
    """The runs of a study, before any of them."""
    if as_json:
        say_json([{"name": item.name, "command": item.command()} for item in items])
        return
    counts = [len(set(part)) for part in zip(*(item.name.split("/") for item in items), strict=True)]
    say(f"{len(items)} runs: {counts[0]} configs x {counts[1]} rounds x {counts[2]} seeds")
    for item in items:
        say(f"  {item.name}")


def show_study(summary: StudySummary, out: Path, *, as_json: bool) -> None:
    """Metrics of each config over its runs, and how far others are from the first."""
    tables = summary.tables
    if as_json:
        runs = {"done": list(summary.done), "before": list(summary.before), "failures": dict(summary.failures)}
        say_json({**runs, **asdict(tables)})
        return
    say(f"{len(summary.done)} runs done, {len(summary.before)} done before, {len(summary.failures)} failed -> {out}")
    rows = []
    for name, found in tables.configs.items():
        for metric in [one for one in _FIRST if one in found]:
            spread = found[metric]
            sd = "" if spread.sd is None else f" ± {shown(spread.sd)}"
            mean = "undefined" if spread.mean is None else f"{shown(spread.mean)}{sd}"
            rows.append([name, metric, str(spread.runs), mean, _shown(spread.averaged), _shown(spread.pooled)])
    if rows:
        table(["config", "metric", "runs", "mean ± sd", "mean [95 %]", "pooled [95 %]"], rows)
        say(
            f"Over patients of the test splits; all metrics are in {out}/summary.csv. The sd is between runs, which share slides."
        )
    _show_differences(tables, out)
    if summary.failures:
        table(["failed run", "reason"], list(summary.failures.items()))


def _show_differences(tables: StudyTables, out: Path) -> None:
    shown = [one for one in tables.differences if one.metric in _FIRST]
    if shown:
        rows = []
        for one in shown:
            of, anew = one.paired.difference, one.paired.retrained
            retrained = "" if anew is None else f"[{_plus(anew.low)}, {_plus(anew.high)}]"
            rows.append(
                [one.config, one.metric, str(one.paired.runs), _signed(of), retrained, p_text(one.retrained_p_holm)]
            )
        table([f"less {shown[0].less}", "metric", "runs", "mean [95 %]", "trained anew [95 %]", "p"], rows)
        say(
            "The first interval is over patients, of these models; the second and p count that training slides and seeds would be"
            f" others too. p is corrected for the number of configs, intervals are not. All are in {out}/differences.csv."
        )
    for name, reason in tables.apart.items():
        say(f"{name} is not held against {tables.less}: {reason}")


def show_ensemble(summary: EnsembleSummary, out: Path, *, as_json: bool) -> None:
    """What became one model."""
    if as_json:
        say_json(
            {"members": list(summary.members), "seen": summary.seen_patients, "decision": summary.decision.to_json()}
        )
        return
    say(f"{len(summary.members)} models in one -> {out}")
    say(f"{summary.seen_patients} patients were seen by one of them at least, and never count in its tests")
    for note in summary.decision.notes:
        say(f"note: {note}")


def _plus(value: float) -> str:
    return shown(value) if value <= 0 else f"+{shown(value)}"


def _signed(found: Difference) -> str:
    return _told(found.difference, found.low, found.high, _plus)


def _shown(estimate: Estimate) -> str:
    return _told(estimate.value, estimate.low, estimate.high, shown)


def _told(value: float | None, low: float | None, high: float | None, said: Callable[[float], str]) -> str:
    if value is None:
        return "undefined"
    return said(value) if low is None or high is None else f"{said(value)} [{said(low)}, {said(high)}]"
