"""What a person reads of a work list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from wsimil.stages.text import say, say_json, table, warn

if TYPE_CHECKING:
    from wsimil.worklist import Unit, WorkPlan
    from wsimil.worklist.status import HandedBack, PlanState, StageState, Trouble

_MOST_TROUBLES = 20
_MOST_WORKERS = 16


def show_work_plan(plan: WorkPlan, *, written: bool | None, as_json: bool) -> None:
    """The list of units; `written` is None for one that only would be, False for one that was there already."""
    if as_json:
        stages = [{"name": stage.name, "units": len(stage.units)} for stage in plan.stages]
        say_json({"folder": str(plan.folder), "fingerprint": plan.fingerprint, "written": written, "stages": stages})
        return
    what = {None: "would be planned in", False: "were planned before in", True: "planned in"}[written]
    say(f"{len(plan.units)} units {what} {plan.folder} ({plan.fingerprint[:12]})")
    table(["stage", "units", "largest first"], [[s.name, str(len(s.units)), _largest(s.units)] for s in plan.stages])
    if written is not None:
        say(f"Start workers, here or on any machine that sees the folder: wsimil worker {plan.folder}")


def show_status(plan: WorkPlan, state: PlanState, *, as_json: bool) -> None:
    """How far it is, who is at work, and what went wrong."""
    if as_json:
        say_json(
            {
                "folder": str(plan.folder), "fingerprint": plan.fingerprint,
                "finished": all(stage.is_finished for stage in state.stages),
                "stages": [
                    {**asdict(stage), "units": stage.units, "finished": stage.is_finished} for stage in state.stages
                ],
                "workers": [asdict(worker) for worker in state.workers],
            }
        )  # fmt: skip
        return
    head = ["stage", "done", "bad", "running", "stale", "to do", "cost", "an hour", "left"]
    table(head, [_row(stage) for stage in state.stages])
    alive = [worker for worker in state.workers if worker.is_alive]
    gone = Counter(worker.left or "silent" for worker in state.workers if not worker.is_alive)
    say(
        f"{len(alive)} workers at work" + "".join(f", {count} left: {why}" for why, count in gone.most_common(5))
        if state.workers
        else "no worker has been here"
    )
    for worker in alive[:_MOST_WORKERS]:
        held = ", ".join(worker.held[:3]) + (" ..." if len(worker.held) > 3 else "")
        say(
            f"  {worker.host} {worker.device}: {worker.stage} {held or 'waiting'}, heard of {worker.silent_s:.0f} s ago"
        )
    if len(alive) > _MOST_WORKERS:
        say(f"  and {len(alive) - _MOST_WORKERS} more")
    for stage in state.stages:
        _show_troubles(stage)
        if stage.refused:
            say(
                f"GATE: {_too_many(plan, stage)}. Mend them and `wsimil retry {plan.folder}`, or allow more with --max-bad."
            )


def show_refusal(plan: WorkPlan, state: PlanState) -> None:
    """Why no worker goes on, in one line for its log."""
    stage = next((one for one in state.stages if one.refused), None)
    if stage is not None:
        warn(
            f"wsimil: {plan.folder}: {_too_many(plan, stage)}; `wsimil status {plan.folder}` says what is wrong, mend it and"
            f" `wsimil retry {plan.folder}`, or allow more with --max-bad"
        )


def _too_many(plan: WorkPlan, stage: StageState) -> str:
    return (
        f"{stage.bad} of {stage.units} units of {stage.name} are bad, more than {plan.max_bad:.1%}: nothing is built on the"
        " rest"
    )


def _show_troubles(stage: StageState) -> None:
    bad = [one for one in stage.troubles if one.is_bad]
    again = [one for one in stage.troubles if not one.is_bad]
    for one in bad[:_MOST_TROUBLES]:
        say(f"BAD {one.unit_id} {one.name}: {_why(one)}")
    if stage.bad > _MOST_TROUBLES:
        say(f"and {stage.bad - _MOST_TROUBLES} more bad units of {stage.name}; all with --json")
    for handed in stage.handed_back[:_MOST_TROUBLES]:
        _show_handed_back(handed)
    if len(stage.handed_back) > _MOST_TROUBLES:
        say(f"and {len(stage.handed_back) - _MOST_TROUBLES} more units of {stage.name} handed back; all with --json")
    for one in again[:_MOST_TROUBLES]:
        say(f"failed, to be tried again: {one.unit_id} {one.name}: {_why(one)}")


def _show_handed_back(one: HandedBack) -> None:
    begins = f"stayed at {one.place}" if one.place else "began anew each time"
    say(
        f"HANDED BACK {one.times} times in a row: {one.unit_id} {one.name}: {begins}; held for up to {one.held_s:.0f} s of"
        f" {one.lived_s:.0f} s that its worker had. Unless it was made to leave early, give workers a longer time limit: with"
        " this one it will be begun again and again"
    )


def _why(trouble: Trouble) -> str:
    told = [f"{one.get('reason')} (try {one.get('attempt')}, {one.get('host', '?')})" for one in trouble.reasons]
    return "; ".join(dict.fromkeys(told))


def _row(stage: StageState) -> list[str]:
    counts = [f"{stage.done}/{stage.units}", stage.bad, stage.running, stage.stale, stage.todo]
    pace = "" if stage.per_hour is None else f"{stage.per_hour:,.0f}"
    left = "" if stage.left_s is None or stage.is_finished else _duration(stage.left_s)
    return [stage.name, *map(str, counts), f"{stage.cost_done:.0%}", pace, left]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _largest(units: Sequence[Unit]) -> str:
    ordered = sorted(units, key=lambda unit: -unit.cost)
    return ", ".join(unit.name for unit in ordered[:2])
