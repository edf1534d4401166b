"""How far a plan is, told by its folder alone, also when everybody who worked on it is dead."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

from wsimil.errors import OutputError
from wsimil.provenance import Json
from wsimil.worklist import disk
from wsimil.worklist.attempts import Attempts
from wsimil.worklist.ledger import Ledger
from wsimil.worklist.plan import Stage, Unit, WorkPlan, refuses

HANDED_BACK = 3
"""So many workers in a row must have handed a unit back, no further than before, to call their time too short for it."""


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
class HandedBack:
    """A unit that `times` workers in a row had for at least half of their lives and handed back, and the last no further than the
    first of these: at `place`, empty where each began anew. The longest of them had it for `held_s` and lived for `lived_s`.
    """

    unit_id: str
    name: str
    times: int
    held_s: float
    lived_s: float
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """Units of a stage by what became of them; they add up. `cost_done` is a share of the stage's cost, in [0, 1].

    `handed_back` are those to which no worker's time seems enough. `per_hour` are units at the pace of those at work now,
    `left_s` the time that the rest takes at that pace; None where nobody is at work or nothing is done yet. `refused` says that
    too many are bad for what comes after.
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
    handed_back: tuple[HandedBack, ...] = ()

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
    """All stages and workers of a plan.

    `is_own_clock` says that the folder could not be written, so that its file system could not be asked for the time: who is
    alive is told by this machine's clock, and is wrong where that differs by more than a lease. All else is as certain as ever.
    """

    stages: tuple[StageState, ...]
    workers: tuple[WorkerState, ...] = ()
    is_own_clock: bool = False


def plan_state(plan: WorkPlan, ledger: Ledger, *, most_troubles: int = 1000) -> PlanState:
    """Look at the folder of `plan`. Costs three listings, a file for each worker, claim at work, and failure.

    Raises OutputError where the folder cannot be read.
    """
    now, is_own_clock = _now(ledger)
    workers = tuple(_workers(plan, ledger, now))
    scanned = ledger.scan()
    states = []
    for stage in plan.stages:
        counts = dict.fromkeys(("done", "bad", "running", "stale", "todo"), 0)
        cost = stage.cost
        cost_done, cost_bad, extra = 0.0, 0.0, 0
        troubles: list[Trouble] = []
        handed_back: list[HandedBack] = []
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
                cost_bad += unit.cost
            elif not attempts.is_held:
                counts["todo"] += 1
            elif ledger.is_silent(unit.id, attempts.newest, now):
                counts["stale"] += 1
            else:
                counts["running"] += 1
            if not attempts.is_bad and (found := _handed_back(ledger, unit, attempts)) is not None:
                handed_back.append(found)
            if (attempts.is_bad or attempts.is_alone) and len(troubles) < most_troubles:
                reasons = tuple(ledger.reasons(unit.id, attempts))
                troubles.append(Trouble(unit_id=unit.id, name=unit.name, is_bad=attempts.is_bad, reasons=reasons))
        pace_cost, pace_units = _pace(stage, workers)
        left = cost - cost_done - cost_bad
        states.append(
            StageState(
                name=stage.name, **counts, cost_done=cost_done / cost if cost else 1.0, extra_attempts=extra,
                per_hour=pace_units * 3600 if pace_units else None,
                left_s=max(0.0, left) / pace_cost if pace_cost else None,
                refused=refuses(plan, stage, counts["bad"]), troubles=tuple(troubles), handed_back=tuple(handed_back),
            )
        )  # fmt: skip
    return PlanState(stages=tuple(states), workers=workers, is_own_clock=is_own_clock)


def _handed_back(ledger: Ledger, unit: Unit, attempts: Attempts) -> HandedBack | None:
    if len(attempts.counted("back")) < HANDED_BACK:
        return None
    # Who was told to go soon after it had begun says nothing of how long a unit takes.
    told = [
        (float(one["held_s"]), float(one["lived_s"]), str(one["place"]))  # type: ignore[arg-type]
        for one in ledger.hand_backs(unit.id, attempts)
        if "held_s" in one and 2 * float(one["held_s"]) >= float(one["lived_s"])  # type: ignore[arg-type]
    ]
    if not told:
        return None
    place = told[-1][2]
    stuck = list(takewhile(lambda one: one[2] == place, reversed(told)))
    if len(stuck) < HANDED_BACK:
        return None
    held_s, lived_s, _ = max(stuck)
    return HandedBack(unit_id=unit.id, name=unit.name, times=len(stuck), held_s=held_s, lived_s=lived_s, place=place)


def _now(ledger: Ledger) -> tuple[float, bool]:
    try:
        now = ledger.now()
    except OutputError:
        return time.time(), True
    with suppress(OSError):
        ledger.card.unlink()  # a look is not a worker
    return now, False


def _workers(plan: WorkPlan, ledger: Ledger, now: float) -> list[WorkerState]:
    found = []
    folder = plan.work / "workers"
    for name in sorted(disk.names(folder)):
        card = disk.read_json(folder / name) if name.endswith(".json") and name[0] != "." else {}
        if not card or name == ledger.card.name:
            continue
        silent = disk.age(folder / name, now)
        found.append(
            WorkerState(
                name=str(card["worker"]), host=str(card["host"]), device=str(card["device"]), stage=str(card["stage"]),
                held=tuple(card["held"]), left=str(card["left"]), silent_s=silent,  # type: ignore[arg-type]
                is_alive=not card["left"] and silent <= plan.lease_s, done=card["done"],  # type: ignore[arg-type]
            )
        )  # fmt: skip
    return found


def _pace(stage: Stage, workers: Sequence[WorkerState]) -> tuple[float, float]:
    """Cost and units a second of those that are at work on a stage, each at its own pace so far."""
    cost = units = 0.0
    for worker in workers:
        done = worker.done.get(stage.name)
        if worker.is_alive and worker.stage == stage.name and done and done["seconds"] > 0:
            cost += done["cost"] / done["seconds"]
            units += done["units"] / done["seconds"]
    return cost, units
