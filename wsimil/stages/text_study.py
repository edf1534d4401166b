"""What a person reads of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from wsimil.stages.text import say, say_json, table

if TYPE_CHECKING:
    from wsimil.evaluation.bootstrap import Estimate
    from wsimil.stages.crossval import StudySummary
    from wsimil.stages.ensemble import EnsembleSummary
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
    """Metrics of each config over its runs."""
    if as_json:
        configs = {name: {m: asdict(s) for m, s in found.items()} for name, found in summary.configs.items()}
        runs = {"done": list(summary.done), "before": list(summary.before), "failures": dict(summary.failures)}
        say_json({**runs, "configs": configs})
        return
    say(f"{len(summary.done)} runs done, {len(summary.before)} done before, {len(summary.failures)} failed -> {out}")
    rows = []
    for name, found in summary.configs.items():
        for metric in [one for one in _FIRST if one in found]:
            spread = found[metric]
            sd = "" if spread.sd is None else f" ± {spread.sd:.3f}"
            mean = "undefined" if spread.mean is None else f"{spread.mean:.3f}{sd}"
            rows.append([name, metric, str(spread.runs), mean, _shown(spread.averaged), _shown(spread.pooled)])
    if rows:
        table(["config", "metric", "runs", "mean ± sd", "mean [95 %]", "pooled [95 %]"], rows)
        say(
            f"Over patients of the test splits; all metrics are in {out}/summary.csv. The sd is between runs, which share slides."
        )
    if summary.failures:
        table(["failed run", "reason"], list(summary.failures.items()))


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


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
