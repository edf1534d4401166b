"""What there is of a study and how far it is, and the units that are let go on, for somebody who does no unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wsimil.errors import ConfigError
from wsimil.worklist import Ledger, Stage, WorkPlan
from wsimil.worklist.attempts import Attempts
from wsimil.worklist.host import hostname, worker_name
from wsimil.worklist.status import PlanState, plan_state


def chosen_stages(plan: WorkPlan, names: Sequence[str]) -> list[Stage]:
    """Stages of those names, or all, in the order in which they are done. Raises ConfigError for unknown ones."""
    wanted = [plan.stage(name).name for name in names]
    return [stage for stage in plan.stages if not wanted or stage.name in wanted]


def retry(plan: WorkPlan, *, stages: Sequence[str], units: Sequence[str]) -> list[str]:
    """Let units that were set aside be tried again, by id or name, or all of `stages`; ids of those that are.

    Raises ConfigError for a unit that is unknown, and for those of a stage that was closed: its tables name them as failed, and
    what comes after was built without them.
    """
    ledger = looker(plan)
    known = {unit.id: unit for stage in chosen_stages(plan, stages) for unit in stage.units}
    names: dict[str, list[str]] = {}
    for unit in known.values():  # a slide's answer and its overlay have one name
        names.setdefault(unit.name, []).append(unit.id)
    wanted: list[str] = []
    for one in units:
        if one not in known and one not in names:
            raise ConfigError(
                f"unit {one!r}: {plan.folder} has none of that id or name; see `wsimil status {plan.folder}`"
            )
        wanted += [one] if one in known else names[one]
    scanned = ledger.scan()
    bad = [unit_id for unit_id in wanted or known if unit_id in scanned and scanned[unit_id].is_bad]
    for stage in plan.stages:
        closed = [unit for unit in stage.units if unit.last and unit.id in scanned]
        late = [unit.id for unit in stage.units if unit.id in bad and not unit.last]
        if late and closed:
            raise ConfigError(
                f"units {', '.join(late[:5])} of {stage.name} cannot be tried again: its tables ({closed[0].id}) were begun"
                " without them, and what comes after is built on these. Plan anew into another folder; features that are there"
                f" stay as they are: let `wsimil extract` add what is missing to {plan.folder / 'features'}, and give that as"
                " features"
            )
    return [unit_id for unit_id in bad if ledger.forgive(unit_id)]


def state(plan: WorkPlan, stages: Sequence[str]) -> PlanState:
    """How far `stages` are, or all."""
    chosen = replace(plan, stages=tuple(chosen_stages(plan, stages)))
    return plan_state(chosen, looker(plan))


def bad_units(plan: WorkPlan, stages: Sequence[str]) -> int:
    """How many units of `stages` are set aside."""
    scanned = looker(plan).scan()
    return sum(left_and_bad(stage, scanned)[1] for stage in chosen_stages(plan, stages))


def with_max_bad(plan: WorkPlan, max_bad: float | None) -> WorkPlan:
    """The plan with another share of units that may be bad."""
    return plan if max_bad is None else replace(plan, max_bad=max_bad)


def looker(plan: WorkPlan) -> Ledger:
    """What is written down, for somebody who does no unit."""
    return Ledger(plan, worker=worker_name(), host=hostname())


def left_and_bad(stage: Stage, scanned: Mapping[str, Attempts]) -> tuple[int, int]:
    """How many units of a stage are not finished, and how many are set aside."""
    seen = [scanned[unit.id] for unit in stage.units if unit.id in scanned]
    return len(stage.units) - sum(one.is_finished for one in seen), sum(one.is_bad for one in seen)
