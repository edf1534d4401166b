"""The work list: every unit of every stage, written once and never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from wsimil.errors import ConfigError
from wsimil.files import check_writable, publish
from wsimil.provenance import Json, sha256_json

SCHEMA = "wsimil/worklist/1"
WORK, PLAN, UNITS = "work", "plan.json", "units.tsv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A piece of work that one process does at a time.

    `id` names its files and sorts within its stage, `name` is for people, `cost` is relative within a stage and positive; `task`
    is what the stage needs to do it. A `last` unit is begun when all others of its stage are finished.
    """

    id: str
    name: str
    cost: float
    task: Mapping[str, Json]
    last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Units that may be done in any order, and by anyone; stages are done one after another."""

    name: str
    units: tuple[Unit, ...]

    @property
    def cost(self) -> float:
        """Of all units."""
        return sum(unit.cost for unit in self.units)


@dataclass(frozen=True, kw_only=True)
class WorkPlan:
    """What is to be done in `folder`; `recipe` is all that decides the results, `fingerprint` names it with its units.

    A claim whose holder was silent for `lease_s` seconds is anybody's. Beyond `max_bad`, a share of the units of a stage in
    [0, 1], the stages after it are not begun.
    """

    folder: Path
    stages: tuple[Stage, ...]
    recipe: Mapping[str, Json]
    lease_s: float = 120.0
    max_bad: float = 0.05

    @property
    def work(self) -> Path:
        """Where claims, receipts and all else lies that is no result."""
        return self.folder / WORK

    @cached_property
    def units(self) -> dict[str, Unit]:
        """All units by id."""
        return {unit.id: unit for stage in self.stages for unit in stage.units}

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises ConfigError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise ConfigError(f"{self.folder} has no stage {name!r}; it has {known}")

    @cached_property
    def fingerprint(self) -> str:
        """Of the recipe and the list of units."""
        return sha256_json({"recipe": dict(self.recipe), "units": sha256(_lines(self.stages).encode()).hexdigest()})


def write_plan(plan: WorkPlan) -> bool:
    """Write the list into its folder; False where the same one is there already.

    Raises ConfigError where another one is there, or results that no plan accounts for, OutputError where the folder cannot be
    written or its file system has no hard links, by which results are published.
    """
    check_writable(plan.work)
    target = plan.work / PLAN
    if not target.exists():
        stray = sorted(path.name for path in plan.folder.iterdir() if path.name not in (WORK, "logs"))
        if stray:
            raise ConfigError(
                f"{plan.folder} holds {', '.join(stray[:5])} and no work list; a result that is there already would be taken for"
                " one of this plan, so give it a folder of its own"
            )
        for name in ("claims", "done", "bad", "workers", "scratch"):
            (plan.work / name).mkdir(exist_ok=True)
        lines = _lines(plan.stages)
        head = {
            "schema": SCHEMA,
            "fingerprint": plan.fingerprint,
            "lease_s": plan.lease_s,
            "max_bad": plan.max_bad,
            "stages": [stage.name for stage in plan.stages],
            "units_sha256": sha256(lines.encode()).hexdigest(),
            "recipe": dict(plan.recipe),
        }
        # Whoever comes second finds the list of the first; the head is last, and there is no plan before it.
        publish(lines.encode(), plan.work / UNITS)
        if publish((json.dumps(head, indent=1) + "\n").encode(), target):
            return True
    there = read_plan(plan.folder)
    if there.fingerprint != plan.fingerprint:
        raise ConfigError(
            f"{plan.folder} holds another plan ({there.fingerprint[:12]}, wanted {plan.fingerprint[:12]}): a config, a slide or a"
            " split is not what it was; go on with the one that is there, or give the new one a folder of its own"
        )
    return False


def read_plan(folder: Path) -> WorkPlan:
    """The list in `folder`. Raises ConfigError where there is none, or one that is broken."""
    path = folder / WORK / PLAN
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        lines = (folder / WORK / UNITS).read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no work list; write one with `wsimil plan STUDY.yaml -o {folder}`") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"work list {path} cannot be read: {error}") from None
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        raise ConfigError(
            f"work list {path}: wanted schema {SCHEMA}, got {head.get('schema') if isinstance(head, dict) else head!r}"
        )
    if sha256(lines).hexdigest() != head["units_sha256"]:
        raise ConfigError(
            f"work list {path.parent / UNITS} is not the one that was written; plan anew into another folder"
        )
    return WorkPlan(
        folder=folder,
        stages=_stages(head["stages"], lines.decode()),
        recipe=head["recipe"],
        lease_s=head["lease_s"],
        max_bad=head["max_bad"],
    )


def _lines(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        for unit in stage.units:
            last = "last" if unit.last else ""
            rows.append(
                "\t".join([unit.id, stage.name, repr(float(unit.cost)), last, json.dumps([unit.name, dict(unit.task)])])
            )
    return "\n".join([*rows, ""])


def _stages(names: Sequence[str], lines: str) -> tuple[Stage, ...]:
    units: dict[str, list[Unit]] = {name: [] for name in names}
    rows = [line.split("\t") for line in lines.splitlines()]
    # One parse of all tasks takes a third of the time of one for each.
    tasks = json.loads(f"[{','.join(row[4] for row in rows)}]")
    for (unit_id, stage, cost, last, _), (name, task) in zip(rows, tasks, strict=True):
        units[stage].append(Unit(id=unit_id, name=name, cost=float(cost), task=task, last=bool(last)))
    return tuple(Stage(name=name, units=tuple(found)) for name, found in units.items())
