"""What a person reads of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from wsimil.stages.text import say, say_json, table

if TYPE_CHECKING:
    from wsimil.stages.search import SearchPlan, SearchSummary, Trial, Value

_SHOWN = 5


def show_search_plan(planned: SearchPlan, *, as_json: bool) -> None:
    """What would be tried, and on what."""
    names = [one.name for one in planned.rounds.rounds]
    space = planned.config.model_dump(mode="json")["space"]
    if as_json:
        say_json({"space": space, "trials": planned.config.trials, "rounds": names, "monitor": planned.monitor})
        return
    say(
        f"{planned.config.trials} trials x {len(names)} rounds ({', '.join(names)}), by {planned.monitor} of validation"
    )
    say(f"{len(planned.held_out)} slides are in none of these rounds and are never opened")
    for key, one in space.items():
        say(f"  {key}: {', '.join(f'{name} {value}' for name, value in one.items())}")


def show_search(found: SearchSummary, out: Path, *, as_json: bool) -> None:
    """The best trials."""
    if as_json:
        say_json(asdict(found))
        return
    failed = sum(trial.value is None for trial in found.trials)
    say(f"{len(found.trials)} trials, {found.before} of them done before, {failed} failed -> {out}")
    good = [trial for trial in found.trials if trial.value is not None]
    better = -1 if (found.best.value or 0) >= max(trial.value or 0 for trial in good) else 1
    ranked = sorted(good, key=lambda trial: better * (trial.value or 0))[:_SHOWN]
    table(["trial", f"val {found.monitor}", "setting"], [_row(trial) for trial in ranked])
    say(
        f"Means over {len(found.rounds)} rounds, chosen as the best of {len(good)}: too high for new slides. The best setting is"
    )
    say(f"{out}/best.yaml; judge it with wsimil crossval -c on test splits that had no part here.")


def _row(trial: Trial) -> list[str]:
    return [str(trial.number), f"{trial.value:.4f}", _setting(trial.parameters)]


def _setting(parameters: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in parameters.items()
    )
