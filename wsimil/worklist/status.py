"""How far a plan is, told by its folder alone, also when everybody who worked on it is dead."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsimil.provenance import Json
from wsimil.worklist.ledger import Ledger, read_json
from wsimil.worklist.plan import Stage, WorkPlan
from wsimil.worklist.worker import refuses


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker as its card tells; `silent_s` is how long ago it was last heard of, `left` why it left, empty while there."""

    name: str
    host: str
    device: str
    stage: str
    held: tuple[str, ...]
    left: str
    silent_s: float
    is_alive: bool
    done: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A unit that was set aside, or failed and will be tried again, with everything that is known of why."""

    unit_id: str
    name: str
    is_bad: bool
    reasons: tuple[Mapping[str, Json], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """Units of a stage by what became of them; they add up. `cost_done` is a share of the stage's cost, in [0, 1].

    `per_hour` are units at the pace of those at work now, `left_s` the time that the rest takes at that pace; None where nobody
    is at work or nothing is done yet. `refused` says that too many are bad for what comes after.
    """

    name: str
    done: int = 0
    bad: int = 0
    running: int = 0
    stale: int = 0
    todo: int = 0
    cost_done: float = 0.0
    extra_attempts: int = 0
    per_hour: float | None = None
    left_s: float | None = None
    refused: bool = False
    troubles: tuple[Trouble, ...] = ()

    @property
    def units(self) -> int:
        """All."""
        return self.done + self.bad + self.running + self.stale + self.todo

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.done + self.bad == self.units


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanState:
    """All stages and workers of a plan."""

    stages: tuple[StageState, ...]
    workers: tuple[WorkerState, ...] = field(default=())


def plan_state(plan: WorkPlan, ledger: Ledger, *, most_troubles: int = 1000) -> PlanState:
    """Look at the folder of `plan`. Costs three listings, a file for each worker, claim at work, and failure."""
    try:
        now = ledger.now()
    finally:
        ledger.card.unlink(missing_ok=True)  # a look is not a worker
    workers = tuple(_workers(plan, ledger, now))
    scanned = ledger.scan()
    states = []
    for stage in plan.stages:
        counts = dict.fromkeys(("done", "bad", "running", "stale", "todo"), 0)
        cost_done, extra = 0.0, 0
        troubles: list[Trouble] = []
        for unit in stage.units:
            attempts = scanned.get(unit.id)
            if attempts is None:
                counts["todo"] += 1
                continue
            extra += max(0, attempts.newest - 1)
            if attempts.done:
                counts["done"] += 1
                cost_done += unit.cost
                continue
            if attempts.is_bad:
                counts["bad"] += 1
            elif not attempts.is_held:
                counts["todo"] += 1
            elif _silent(plan, unit.id, attempts.newest, now):
                counts["stale"] += 1
            else:
                counts["running"] += 1
            if (attempts.is_bad or attempts.is_alone) and len(troubles) < most_troubles:
                reasons = tuple(ledger.reasons(unit.id, attempts))
                troubles.append(Trouble(unit_id=unit.id, name=unit.name, is_bad=attempts.is_bad, reasons=reasons))
        pace_cost, pace_units = _pace(stage, workers)
        left = stage.cost - cost_done - sum(plan.units[one.unit_id].cost for one in troubles if one.is_bad)
        states.append(
            StageState(
                name=stage.name, **counts, cost_done=cost_done / stage.cost if stage.cost else 1.0, extra_attempts=extra,
                per_hour=pace_units * 3600 if pace_units else None,
                left_s=max(0.0, left) / pace_cost if pace_cost else None,
                refused=refuses(plan, stage, counts["bad"]), troubles=tuple(troubles),
            )
        )  # fmt: skip
    return PlanState(stages=tuple(states), workers=workers)


def _workers(plan: WorkPlan, ledger: Ledger, now: float) -> list[WorkerState]:
    found = []
    for entry in sorted(os.scandir(plan.work / "workers"), key=lambda entry: entry.name):
        if not entry.name.endswith(".json") or entry.name[0] == "." or entry.name == ledger.card.name:
            continue
        card = read_json(Path(entry.path))
        silent = now - entry.stat().st_mtime
        if card:
            found.append(
                WorkerState(
                    name=str(card["worker"]), host=str(card["host"]), device=str(card["device"]), stage=str(card["stage"]),
                    held=tuple(card["held"]), left=str(card["left"]), silent_s=silent,  # type: ignore[arg-type]
                    is_alive=not card["left"] and silent <= plan.lease_s, done=card["done"],  # type: ignore[arg-type]
                )
            )  # fmt: skip
    return found


def _silent(plan: WorkPlan, unit_id: str, number: int, now: float) -> bool:
    try:
        return now - (plan.work / "claims" / f"{unit_id}.{number}").stat().st_mtime > plan.lease_s
    except OSError:
        return False


def _pace(stage: Stage, workers: Sequence[WorkerState]) -> tuple[float, float]:
    """Cost and units a second of those that are at work on a stage, each at its own pace so far."""
    cost = units = 0.0
    for worker in workers:
        done = worker.done.get(stage.name)
        if worker.is_alive and worker.stage == stage.name and done and done["seconds"] > 0:
            cost += done["cost"] / done["seconds"]
            units += done["units"] / done["seconds"]
    return cost, units
