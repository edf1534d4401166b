"""What a person reads at the end of `wsimil explain-check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsimil.export.report.cells import shown
from wsimil.stages.text import say, say_json, table

if TYPE_CHECKING:
    from pathlib import Path

    from wsimil.evaluation.faithfulness.judged import JudgedMap
    from wsimil.stages.explain_check import ExplainSummary


def show_explain_check(summary: ExplainSummary, out: Path, *, as_json: bool) -> None:
    """Which maps beat random order; JSON is explain.json."""
    if as_json:
        say_json(summary.tree)
        return
    say(*(f"note: {note}" for note in summary.notes))
    if summary.failures:
        table([f"failed {summary.unit}", "reason"], list(summary.failures.items()))
    several = len({one.method for one in summary.maps}) > 1
    rows = [
        (
            f"{one.method}: {one.score}" if several else one.score,
            shown(one.estimates["srg"].value),
            shown(one.estimates["random_srg"].value),
            _margin(one),
            {True: "yes", False: "no", None: "not told"}[one.verdict.beats_random],
        )
        for one in summary.maps
    ]
    head = f"{summary.units} {summary.unit}s of {summary.patients} patients"
    table([head, "SRG", "random", "above random (95 % CI)", "beats it"], rows)
    for one in summary.maps:
        say(f"{one.method}, {one.score}: {one.verdict.words}")
    say(f"report: {out / 'explain.html'}; all numbers: {out / 'explain.json'}, {out / 'curves.parquet'}")


def _margin(one: JudgedMap) -> str:
    margin = one.estimates["margin"]
    if margin.low is None or margin.high is None:
        return shown(margin.value)
    return f"{shown(margin.value)} ({shown(margin.low)} to {shown(margin.high)})"
