"""What a person reads at the end of `wsimil evaluate` and `wsimil compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsimil.export.report.cells import p_text, shown
from wsimil.export.report.names import headlines, title_of
from wsimil.stages.text import say, say_json, table

if TYPE_CHECKING:
    from pathlib import Path

    from wsimil.export.report.report import FlowStep
    from wsimil.stages.compare import CompareSummary
    from wsimil.stages.evaluate import EvaluateSummary


def show_evaluation(summary: EvaluateSummary, out: Path, *, as_json: bool) -> None:
    """How good the answers are; JSON is metrics.json."""
    if as_json:
        say_json(summary.tree)
        return
    found = summary.judgement
    _show_flow(summary.flow, summary.unit, summary.notes)
    rows = [
        (
            title_of(name, positive=found.task.positive),
            shown(found.estimates[name].value),
            _interval(found.estimates[name].low, found.estimates[name].high),
        )
        for name in headlines(found.task.kind, found.estimates)
    ]
    table([f"{found.slides} {summary.unit}s of {found.patients} patients", "value", "95 % CI over patients"], rows)
    for grouping in found.groupings:
        few = [row for row in grouping.groups if row.too_few]
        if few:
            say(
                f"by {grouping.column}: {len(few)} of {len(grouping.groups)} groups have too few patients to be judged in full"
            )
    say(
        f"report: {out / 'report.html'}; all numbers: {out / 'metrics.json'}; {out / 'MODEL_CARD.md'} awaits its author"
    )


def show_comparison(summary: CompareSummary, out: Path, *, as_json: bool) -> None:
    """How two models differ; JSON is metrics.json."""
    if as_json:
        say_json(summary.tree)
        return
    found = summary.comparison
    _show_flow(summary.flow, summary.unit, summary.notes)
    say(f"first: {summary.names[0]}, second: {summary.names[1]}")
    rows = []
    for name in headlines(found.task.kind, found.differences):
        one = found.differences[name]
        values = (shown(one.first), shown(one.second), shown(one.difference))
        rows.append(
            (title_of(name, positive=found.task.positive), *values, _interval(one.low, one.high), p_text(one.p_value))
        )
    table(["", "first", "second", "difference", "95 % CI over patients", "p"], rows)
    for of in found.classes:
        if of.delong is not None and of.delong.p_value is not None:
            means = " of the mean of a patient's slides" if of.delong_of == "patients" else ""
            differs = f"AUROC{means} differs by {shown(of.delong.difference)}"
            say(f"DeLong, {of.name}: {differs}, p {p_text(of.delong.p_value)}")
    say(f"report: {out / 'report.html'}; all numbers: {out / 'metrics.json'}")


def _show_flow(flow: Sequence[FlowStep], unit: str, notes: Sequence[str]) -> None:
    for step in flow:
        for lost in step.lost:
            say(f"{lost.units:>6} left out: {lost.reason}")
        say(f"{step.units:>6} {unit}s {step.what}")
    say(*(f"note: {note}" for note in notes))


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{shown(low)} to {shown(high)}"
