"""Workers that are killed and stopped at random, with clocks that are hours apart: `python chaos.py FOLDER SEED...`

A line of JSON for each seed tells what came of it. Workers are forks of this process, which imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from wsimil.worklist.ledger import Attempt, Ledger
from wsimil.worklist.plan import Stage, Unit, WorkPlan, write_plan
from wsimil.worklist.worker import Left, Made, Worker

WORKERS, UNITS, LEASE_S = 8, 500, 0.5
KILLS, STALLS = 12, 8


def content(unit: Unit) -> bytes:
    """The result of a unit, whoever makes it."""
    return sha256(unit.name.encode()).hexdigest().encode() * 8


class Maker:
    """Makes a file, and of every fifth unit a folder, with up to three units at once."""

    def run(self, attempts: Iterator[Attempt]) -> Generator[Made, None, None]:
        waiting: list[Attempt] = []
        for attempt in attempts:
            waiting.append(attempt)
            if len(waiting) == 3 or attempt.alone:
                yield self.make(waiting.pop(0))
        while waiting:
            yield self.make(waiting.pop(0))

    def make(self, attempt: Attempt) -> Made:
        place = product(attempt.scratch, attempt.unit)
        if attempt.number > 1 and int(attempt.unit.id[1:]) % 2:
            time.sleep(LEASE_S / 3)  # so that orphans wake up while another is still at their units
        with suppress(FileNotFoundError):  # a scratch folder that was cleared away: the commit will say so
            place.parent.mkdir(parents=True, exist_ok=attempt.scratch.exists())
            place.write_bytes(content(attempt.unit))
        return Made(attempt=attempt, folders=(f"runs/{attempt.unit.id}",) if place.name == "run.bin" else ())


def product(root: Path, unit: Unit) -> Path:
    """Where the result of a unit lies below `root`."""
    return root / "runs" / unit.id / "run.bin" if int(unit.id[1:]) % 5 == 0 else root / "features" / f"{unit.id}.h5"


class Silent:
    """Nobody listens."""

    def note(self, text: str) -> None:
        """Do nothing."""


def work(plan: WorkPlan, name: str, skew_s: float) -> int:
    """A worker whose clock is wrong by `skew_s`."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + skew_s
    time.time_ns = lambda: right_ns() + int(skew_s * 1e9)
    return int(
        Worker(ledger=Ledger(plan, worker=name, host="h"), runner=lambda _: Maker(), watcher=Silent()).run(plan.stages)
    )


@dataclass(kw_only=True)
class Chaos:
    """One study, and who does what to its workers."""

    plan: WorkPlan
    rng: random.Random
    alive: dict[int, float | None] = field(default_factory=dict)
    begun: int = 0
    kills: int = 0
    stalls: int = 0

    def start(self) -> None:
        """One more worker."""
        self.begun += 1
        skew_s = self.rng.uniform(-20, 20) * 3600
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = work(self.plan, f"w{self.begun}", skew_s)
            finally:
                os._exit(code)
        self.alive[pid] = None

    def run(self) -> None:
        """Until nobody is left, and everything is finished."""
        for _ in range(WORKERS):
            self.start()
        finished = False
        while self.alive or not finished:
            self.wake()
            self.disturb()
            pid, status = os.waitpid(-1, os.WNOHANG) if self.alive else (0, 0)
            if pid:
                del self.alive[pid]
                code = os.waitstatus_to_exitcode(status)
                if code not in (Left.FINISHED, Left.RENEW, -signal.SIGKILL):
                    raise RuntimeError(f"a worker left with {code}")
                finished |= code == Left.FINISHED
                if code != Left.FINISHED and not finished:
                    self.start()
            else:
                time.sleep(0.002)  # a beat of chaos: nothing is waited for

    def wake(self) -> None:
        """Let those go on whose time has come."""
        for pid, until in self.alive.items():
            if until is not None and time.monotonic() > until:
                os.kill(pid, signal.SIGCONT)
                self.alive[pid] = None

    def disturb(self) -> None:
        """Kill or stop one, now and then."""
        awake = [pid for pid, until in self.alive.items() if until is None]
        if not awake or self.rng.random() > 0.1:
            return
        pid = self.rng.choice(awake)
        if self.kills < KILLS and self.rng.random() < KILLS / (KILLS + STALLS):
            self.kills += 1
            os.kill(pid, signal.SIGKILL)
        elif self.stalls < STALLS:
            self.stalls += 1
            os.kill(pid, signal.SIGSTOP)
            self.alive[pid] = time.monotonic() + LEASE_S * self.rng.uniform(1.1, 3.0)


def by_the_rule(plan: WorkPlan, unit: Unit) -> bool:
    """Whether three tries of a unit have no end; nothing fails here."""
    claims = {path.name for path in (plan.work / "claims").glob(f"{unit.id}.*")}
    return sum(f"{unit.id}.{k}" in claims and f"{unit.id}.{k}.back" not in claims for k in range(1, 10)) >= 3


def judge(plan: WorkPlan, chaos: Chaos) -> dict[str, object]:
    """What is wrong in the end, and how much had happened."""
    ledger = Ledger(plan, worker="judge", host="h")
    # As anybody does who runs it again: nothing is left to do but to tidy up after those that were killed at the very end.
    assert work(plan, "last", 0.0) == Left.FINISHED
    scanned = ledger.scan()
    wrong: list[str] = []
    places = set()
    for unit in plan.stages[0].units:
        one, place = scanned[unit.id], product(plan.folder, unit)
        places.add(place)
        if one.is_bad:
            wrong += [] if by_the_rule(plan, unit) else [f"{unit.id} set aside by no rule"]
        elif not one.done:
            wrong.append(f"{unit.id} lost")
        elif place.read_bytes() != content(unit):
            wrong.append(f"{unit.id} differs")
        elif ledger.receipt(unit.id)["products"] != {
            str(place.relative_to(plan.folder)): sha256(content(unit)).hexdigest()
        }:
            wrong.append(f"{unit.id} has another receipt")
    files = {path for path in plan.folder.rglob("*") if path.is_file() and plan.work not in path.parents}
    wrong += [f"{path} is nobody's" for path in files - places]
    wrong += [f"{path} is left" for path in plan.folder.rglob("*.wsimil-tmp*")]
    wrong += [f"{path} is left" for path in (plan.work / "scratch").iterdir()]
    return {
        "wrong": wrong, "bad": sum(one.is_bad for one in scanned.values()), "done": len(list((plan.work / "done").iterdir())),
        "kills": chaos.kills, "stalls": chaos.stalls, "workers": chaos.begun,
        "tries": sum(one.newest for one in scanned.values()),
        "orphans": sum(
            one.done and ledger.receipt(unit_id)["attempt"] != one.newest for unit_id, one in scanned.items()
        ),
        "late": len(list((plan.work / "claims").glob("*.back"))),
        "heavy": sorted({"torch", "numpy", "pydantic"} & set(sys.modules)),
    }  # fmt: skip


def main(folder: Path, seeds: list[int]) -> None:
    """One after another."""
    for seed in seeds:
        units = tuple(Unit(id=f"e{i:05}", name=f"slide {i} of {seed}", cost=1.0 + i % 7, task={}) for i in range(UNITS))
        root = folder / f"seed-{seed}"
        plan = WorkPlan(
            folder=root, stages=(Stage(name="extract", units=units),), recipe={}, lease_s=LEASE_S, max_bad=1.0
        )
        write_plan(plan)
        chaos, begun = Chaos(plan=plan, rng=random.Random(seed)), time.monotonic()
        chaos.run()
        seconds = round(time.monotonic() - begun, 2)
        print(json.dumps({"seed": seed, "seconds": seconds, **judge(plan, chaos)}), flush=True)  # noqa: T201
        shutil.rmtree(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
