"""What a person reads of splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsimil.cohort import SPLITS
from wsimil.stages.text import say, say_json, table

if TYPE_CHECKING:
    from wsimil.stages.splits import SplitsSummary

_SHOWN = 30


def show_splits(summary: SplitsSummary, path: Path, *, as_json: bool) -> None:
    """Slides and patients of each side of each round."""
    plan = summary.plan
    if as_json:
        rounds = {one.name: {split: len(ids) for split, ids in one.sides()} for one in plan.rounds}
        say_json({"kind": plan.kind, "digest": plan.digest, "rounds": rounds, "contents": summary.compared_contents})
        return
    rows = []
    for one in plan.rounds[:_SHOWN]:
        sides = dict(one.sides())
        counts = [
            f"{len(sides[split])} / {len({plan.slides[s][0] for s in sides[split]})}" if sides[split] else "-"
            for split in SPLITS
        ]
        rows.append([one.name, *counts])
    say(f"{plan.kind}, {len(plan.rounds)} rounds; slides / patients:")
    table(["round", *SPLITS], rows)
    if len(plan.rounds) > _SHOWN:
        say(f"... and {len(plan.rounds) - _SHOWN} more rounds")
    missing = plan.made.get("not_in_cohort")
    if isinstance(missing, list) and missing:
        say(f"note: {len(missing)} published names are not in the cohort, such as {missing[0]}")
    drawn = plan.made.get("val_drawn_in")
    if isinstance(drawn, list) and drawn:
        say(
            f"note: the files hold no validation slides for {len(drawn)} rounds; they were drawn from training patients"
        )
    for finding in summary.cohort.findings:
        say(f"note: {finding}")
    if not summary.compared_contents:
        say("Contents were not compared: give --features to find one slide under two names.")
    say(f"No patient is on two sides. Digest {plan.digest[:12]} -> {path}")
