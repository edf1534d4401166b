"""The work list: every unit of every stage, written once and never changed."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from wsimil.errors import ConfigError, OutputError
from wsimil.files import check_writable, output_error, publish
from wsimil.provenance import Json, sha256_json

SCHEMA = "wsimil/worklist/1"
WORK, PLAN, UNITS = "work", "plan.json", "units.tsv"
_names_files = re.compile(r"[A-Za-z0-9_-]+").fullmatch


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

    def __post_init__(self) -> None:
        if not _names_files(self.id):
            raise ValueError(f"unit {self.name!r}: its id {self.id!r} names files; wanted letters, digits, _ and -")
        if not (math.isfinite(self.cost) and self.cost > 0):
            raise ValueError(f"unit {self.id} ({self.name!r}): cost {self.cost}, wanted a positive number")


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

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lease_s) and self.lease_s > 0):
            raise ValueError(f"lease_s {self.lease_s}, wanted a positive number of seconds")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad {self.max_bad}, wanted a share from 0 to 1")
        for what, found in (
            ("stage", [stage.name for stage in self.stages]),
            ("unit", [unit.id for stage in self.stages for unit in stage.units]),
        ):
            if len(set(found)) < len(found):
                twice = next(one for one in found if found.count(one) > 1)
                raise ValueError(f"two {what}s of a plan are called {twice!r}; each needs a name of its own")
        for stage in self.stages:
            if not _names_files(stage.name):
                raise ValueError(f"stage {stage.name!r}: wanted letters, digits, _ and - in its name")

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
    refuse_foreign_folder(plan.folder)
    check_writable(plan.work)
    target = plan.work / PLAN
    lines = _lines(plan.stages).encode()
    first = False
    if not target.exists():
        for name in ("claims", "done", "bad", "workers", "scratch"):
            (plan.work / name).mkdir(exist_ok=True)
        check_links(plan.work / "scratch")
        head = {
            "schema": SCHEMA,
            "fingerprint": plan.fingerprint,
            "lease_s": plan.lease_s,
            "max_bad": plan.max_bad,
            "stages": [stage.name for stage in plan.stages],
            "units_sha256": sha256(lines).hexdigest(),
            "recipe": dict(plan.recipe),
        }
        # The head says whose plan it is; of two writers the second finds out before it writes units that are not of that plan.
        first = publish((json.dumps(head, indent=1) + "\n").encode(), target)
    there = str(_head(plan.folder).get("fingerprint"))
    if there != plan.fingerprint:
        raise ConfigError(
            f"{plan.folder} holds another plan ({there[:12]}, wanted {plan.fingerprint[:12]}): a config, a slide or a"
            " split is not what it was; go on with the one that is there, or give the new one a folder of its own"
        )
    publish(lines, plan.work / UNITS)  # also where the writer of the head died before it could
    read_plan(plan.folder)
    return first


def refuses(plan: WorkPlan, stage: Stage, bad: int) -> bool:
    """Whether more units of a stage are set aside than the plan allows, so that nothing is built on the rest."""
    # A share is rounded as what it is held against: 0.29 * 100 is less than 29, and 29 / 100 is 0.29.
    return bad > 0 and bad / len(stage.units) > plan.max_bad


def refuse_foreign_folder(folder: Path) -> None:
    """Raise ConfigError where a folder holds anything and no work list."""
    if (folder / WORK / PLAN).exists() or not folder.is_dir():
        return
    stray = sorted(path.name for path in folder.iterdir() if path.name not in (WORK, "logs") and path.name[0] != ".")
    if stray:
        raise ConfigError(
            f"{folder} holds {', '.join(ascii(name)[1:-1] for name in stray[:5])} and no work list; a result that is there"
            " already would be taken for one of this plan, so give it a folder of its own"
        )


def check_links(folder: Path) -> None:
    """Raise OutputError where the file system of `folder` has no hard links or lets two processes make one file."""
    probe = folder / f".probe.{secrets.token_hex(8)}"
    twin = probe.with_suffix(".twin")
    try:
        probe.write_bytes(b"")
        os.link(probe, twin)
        with suppress(FileExistsError):
            os.link(probe, twin)
            raise OutputError(
                f"{folder}: its file system makes one link twice, so results could be overwritten; use another"
            )
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise OutputError(
                f"{folder}: its file system has no hard links, by which results are published once; put the study on another one"
                " (ext4, xfs, NFS, Lustre, GPFS and BeeGFS have them)"
            ) from error
        raise output_error(probe, error) from error
    finally:
        for path in (probe, twin):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def read_plan(folder: Path) -> WorkPlan:
    """The list in `folder`. Raises ConfigError where there is none, or one that is broken."""
    head, path = _head(folder), folder / WORK / UNITS
    try:
        lines = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"work list {path} is not there: whoever planned is still writing it or died; run the same `wsimil plan` again"
        ) from None
    except OSError as error:
        raise ConfigError(f"work list {path} cannot be read: {error}") from None
    if sha256(lines).hexdigest() != head["units_sha256"]:
        raise ConfigError(f"work list {path} is not the one that was written; plan anew into another folder")
    with _no_collection():
        stages = _stages(head["stages"], lines.decode())
    return WorkPlan(
        folder=folder,
        stages=stages,
        recipe=head["recipe"],
        lease_s=head["lease_s"],
        max_bad=head["max_bad"],
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python looks for cycles whenever so many objects were made; those of a plan have none, and ten thousand units take twice as
    long with it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _head(folder: Path) -> Any:
    path = folder / WORK / PLAN
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no work list; write one with `wsimil plan STUDY.yaml -o {folder}`") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"work list {path} cannot be read: {error}") from None
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        got = head.get("schema") if isinstance(head, dict) else head
        raise ConfigError(f"work list {path}: wanted schema {SCHEMA}, got {got!r}")
    return head


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
