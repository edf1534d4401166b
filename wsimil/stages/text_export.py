"""What a person reads of an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsimil.stages.text import say, say_json, table

if TYPE_CHECKING:
    from wsimil.stages.export import ExportSummary


def show_export(summary: ExportSummary, out: Path, *, as_json: bool) -> None:
    """How many slides went into each form, and which did not."""
    if as_json:
        say_json(
            {
                "slides": summary.slides,
                "written": dict(summary.written),
                "failures": [{"slide_id": f.slide_id, "form": f.form, "reason": f.reason} for f in summary.failures],
                "notes": list(summary.notes),
            }
        )
        return
    counts = ", ".join(f"{name} {count}" for name, count in summary.written.items())
    say(f"{summary.slides} slides: {counts} -> {out}")
    for note in summary.notes:
        say(f"note: {note}")
    if summary.failures:
        table(["failed slide", "form", "reason"], [(f.slide_id, f.form or "all", f.reason) for f in summary.failures])
        say(f"The list is also in {out}/failures.csv; mend and run the same command again.")
