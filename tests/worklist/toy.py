"""Small plans, and a worker whose units do what their names say; `python toy.py FOLDER WORKER` is one process."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsimil.worklist.ledger import Attempt, Ledger
from wsimil.worklist.plan import Stage, Unit, WorkPlan, read_plan, write_plan
from wsimil.worklist.worker import Failed, Made, Outcome, Worker

Deed = Callable[[Attempt], Outcome]


def units(*names: str, letter: str = "e", last: Sequence[str] = ()) -> tuple[Unit, ...]:
    """Largest first, in this order."""
    return tuple(
        Unit(id=f"{letter}{i:05}", name=name, cost=float(len(names) - i), task={"number": i}, last=name in last)
        for i, name in enumerate(names)
    )


def plan_in(
    folder: Path, *names: str, lease_s: float = 60.0, max_bad: float = 1.0, last: Sequence[str] = ()
) -> WorkPlan:
    """A plan of one stage that is written."""
    stage = Stage(name="extract", units=units(*names, last=last))
    plan = WorkPlan(folder=folder, stages=(stage,), recipe={"side_px": 256}, lease_s=lease_s, max_bad=max_bad)
    write_plan(plan)
    return plan


def ledger_of(plan: WorkPlan, worker: str = "w1", host: str = "h1") -> Ledger:
    """What a worker of that name sees."""
    return Ledger(plan, worker=worker, host=host)


def let_lease_pass(plan: WorkPlan, *claims: str) -> None:
    """As if nobody had been heard of for longer than a lease who holds these, or anything."""
    for path in (plan.work / "claims").iterdir():
        if not claims or path.name in claims:
            past = path.stat().st_mtime - plan.lease_s - 1
            os.utime(path, (past, past))


def silence(plan: WorkPlan, *workers: str) -> None:
    """As if these had not been heard of for longer than a lease."""
    for worker in workers:
        path = plan.work / "workers" / f"{worker}.json"
        past = path.stat().st_mtime - plan.lease_s - 1
        os.utime(path, (past, past))


def make(attempt: Attempt) -> Outcome:
    """The results of a unit: a file, or a folder of two if its name begins with "run"."""
    name = attempt.unit.name
    if name.startswith("run"):
        folder = attempt.scratch / "runs" / attempt.unit.id
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(name)
        (folder / "metrics.json").write_text(name * 2)
        return Made(attempt=attempt, folders=(f"runs/{attempt.unit.id}",))
    (attempt.scratch / "features").mkdir(exist_ok=True)
    (attempt.scratch / "features" / f"{attempt.unit.id}.h5").write_text(name)
    return Made(attempt=attempt, summary={"tiles": len(name)})


def product(plan: WorkPlan, unit: Unit) -> Path:
    """Where the results of a unit are in the end."""
    if unit.name.startswith("run"):
        return plan.folder / "runs" / unit.id
    return plan.folder / "features" / f"{unit.id}.h5"


def do(attempt: Attempt) -> Outcome:
    """What the name of a unit asks for."""
    name = attempt.unit.name
    if name.startswith("boom"):
        return Failed(attempt=attempt, reason="cannot be read")
    if name.startswith("fault"):
        return Failed(attempt=attempt, reason="CUDA error", fault=True)
    if name.startswith("raise"):
        raise RuntimeError("out of order")
    if name.startswith("sig"):
        number = getattr(signal, name.partition("-")[0].upper())
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return make(attempt)


@dataclass(kw_only=True)
class Toy:
    """Runs units in the order they come, `ahead` of them asked for before the first is answered."""

    deed: Deed = do
    ahead: int = 1
    seen: list[str] = field(default_factory=list)
    together: list[int] = field(default_factory=list)

    def run(self, attempts: Iterator[Attempt]) -> Generator[Outcome, None, None]:
        waiting: list[Attempt] = []
        for attempt in attempts:
            waiting.append(attempt)
            self.seen.append(attempt.unit.name)
            if len(waiting) == self.ahead:
                self.together.append(len(waiting))
                yield self.deed(waiting.pop(0))
        while waiting:
            self.together.append(len(waiting))
            yield self.deed(waiting.pop(0))


@dataclass(kw_only=True)
class Notes:
    """Keeps what a person would read."""

    lines: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(text)


class Asked(BaseException):
    """A signal asked a toy to go."""


def main(folder: str, name: str) -> int:
    """One process that works on all stages."""

    def stop(number: int, _: object) -> None:
        for other in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(other, signal.SIG_IGN)
        raise Asked(number)

    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    plan = read_plan(Path(folder))

    def deed(attempt: Attempt) -> Outcome:
        if attempt.unit.name.startswith("wait"):
            # Says so to whoever started us, who will end this by a signal.
            with Path(os.environ["TOY_FIFO"]).open("w") as fifo:
                fifo.write(f"{os.environ['CUDA_VISIBLE_DEVICES']}\n")
            while True:
                signal.pause()
        return do(attempt)

    try:
        ahead = int(os.environ.get("TOY_AHEAD", "1"))
        worker = Worker(ledger=ledger_of(plan, name), runner=lambda _: Toy(deed=deed, ahead=ahead), watcher=Notes())
        return int(worker.run(plan.stages))
    except Asked:
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
