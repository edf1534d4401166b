"""Every order in which a few workers can do what they do to a plan, with their deaths, stalls and failures.

The work list itself is run: surveys, claims, ends and commits of `Worker`, `Ledger` and `commit`, burials of `Supervisor`.
Only `wsimil.worklist.disk`, all that they ask of a file system, is replaced by one in memory, whose state can be gone back to.
A worker goes from one change of the folder to the next (with `fine`, from one question to the next), and between any two of them
everybody else may do anything. What it was told so far is its position: it comes there again by being told the same.

States are the content of the folder, claims that are older than a lease, and positions.
`python explorer.py '{"budget": 2}'` explores more.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsimil.errors import OutputError
from wsimil.worklist import commit as commit_module
from wsimil.worklist import ledger as ledger_module
from wsimil.worklist import supervise as supervise_module
from wsimil.worklist import worker as worker_module
from wsimil.worklist.attempts import CLOSINGS, Attempts
from wsimil.worklist.commit import sweep
from wsimil.worklist.ledger import Attempt, Ledger
from wsimil.worklist.plan import Stage, Unit, WorkPlan
from wsimil.worklist.supervise import Supervisor
from wsimil.worklist.worker import Failed, Made, Worker

FOLDER = Path("/study")
WORK = str(FOLDER / "work")
NAME = re.compile(rb'"w[0-9]+"')
CLAIM = re.compile(rf"{WORK}/claims/u[0-9]+\.[0-9]+")


class Pause(BaseException):
    """The next thing to do is another step."""


class Choice(BaseException):
    """What comes now is one of several things, each of which costs something."""

    def __init__(self, costs: Sequence[int]) -> None:
        super().__init__(costs)
        self.costs = costs


class Memory:
    """A file system in memory, in the place of `wsimil.worklist.disk`."""

    def __init__(self, *, fine: bool) -> None:
        self.fine = fine
        self.own = ""
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()
        self.stale: set[str] = set()
        self.resume([])

    def resume(self, log: list[Any], *, whole: bool = False) -> None:
        """Answer as was answered before, then go on: for one step, or to the end."""
        self.log, self.cursor, self.whole, self.stepped = log, 0, whole, False

    def _do(self, what: Callable[[], Any], *, changes: bool) -> Any:
        if self.cursor == len(self.log):
            if self.stepped and not self.whole and (changes or self.fine):
                raise Pause
            try:
                answer = True, what()
            except OutputError as error:
                answer = False, str(error)
            self.stepped |= changes or self.fine
            self.log.append(answer)
        is_fine, value = self.log[self.cursor]
        self.cursor += 1
        if not is_fine:
            raise OutputError(value)
        return value

    def choose(self, costs: Sequence[int]) -> int:
        """One of so many things, all of which are tried; of one it is that."""
        if len(costs) == 1:
            return 0
        if self.cursor == len(self.log):
            raise Choice(costs)
        self.cursor += 1
        return int(self.log[self.cursor - 1])

    def names(self, folder: Path) -> tuple[str, ...]:
        start = f"{folder}/"
        return self._do(
            lambda: tuple(
                sorted({p[len(start) :].partition("/")[0] for p in (*self.files, *self.folders) if p.startswith(start)})
            ),
            changes=False,
        )

    def exists(self, path: Path) -> bool:
        return self._do(lambda: str(path) in self.files or str(path) in self.folders, changes=False)

    def _add(self, path: str, data: bytes) -> bool:
        if path in self.files:
            return False
        self.files[path] = data
        return True

    def create(self, path: Path, data: bytes) -> bool:
        return self._do(lambda: self._add(str(path), data), changes=True)

    def claim(self, token: Path, path: Path, data: bytes) -> bool:
        return self.create(path, data)

    def is_name_of(self, token: Path, path: Path) -> bool:
        return False  # it loses no answers

    def publish(self, data: bytes, target: Path, *, within: Path | None = None) -> bool:
        return self._do(lambda: self._add(str(target), data), changes=True)

    def adopt(self, source: Path, target: Path) -> bool:
        def link() -> bool:
            if str(source) not in self.files:
                raise OutputError(f"{source} is not there")
            return self._add(str(target), self.files[str(source)])

        return self._do(link, changes=True)

    def adopt_folder(self, source: Path, target: Path) -> bool:
        def rename() -> bool:
            inside = [path for path in self.files if path.startswith(f"{source}/")]
            if not inside:
                raise OutputError(f"{source} is not there")
            if any(path.startswith(f"{target}/") for path in self.files):
                return False
            for path in inside:
                self.files[str(target) + path[len(str(source)) :]] = self.files.pop(path)
            return True

        return self._do(rename, changes=True)

    def remove_folder(self, path: Path) -> None:
        def remove() -> None:
            self.folders.discard(str(path))
            for one in [one for one in self.files if one.startswith(f"{path}/")]:
                del self.files[one]

        # What is not there is not changed, and what we made ourselves we remove when all is said, in one step with the receipt.
        own = str(path).rpartition("/")[2] == self.own
        self._do(remove, changes=str(path) in self.folders and not own)

    def put(self, path: Path, data: bytes) -> None:
        """Written by whoever makes a unit, into a folder of its own: nobody else's business, so no step."""

        def write() -> None:
            if str(path.parents[2]) in self.folders:
                self.files[str(path)] = data

        self._do(write, changes=False)

    def make_folder(self, path: Path) -> None:
        self._do(lambda: self.folders.add(str(path)) if "/scratch/" in str(path) else None, changes=False)

    def sync_tree(self, folder: Path, *, entries: bool = True) -> list[Path]:
        found = self._do(lambda: tuple(sorted(p for p in self.files if p.startswith(f"{folder}/"))), changes=False)
        return [Path(path) for path in found]

    def sha256_of(self, path: Path) -> str:
        return self._do(lambda: sha256(self.files[str(path)]).hexdigest(), changes=False)

    def read_json(self, path: Path) -> dict[str, Any]:
        found = self._do(lambda: self.files.get(str(path)), changes=False)
        return {} if found is None else dict(json.loads(found))

    def clock(self, path: Path) -> float:
        return 0.0

    def age(self, path: Path, now: float) -> float:
        return 2.0 if self._do(lambda: str(path) in self.stale, changes=False) else 0.0


Wants = tuple[tuple[int, bool, bool], ...]
Held = tuple[tuple[int, int, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Of a worker: what it wants (unit, whether it was tried before, whether beside others), what it holds (unit, try, whether
    alone), and what it was told since it began to claim, or to end, one of them."""

    name: int
    wants: Wants = ()
    held: Held = ()
    log: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that can make a difference from now on."""

    files: frozenset[tuple[str, bytes]]
    folders: frozenset[str]
    stale: frozenset[str]
    workers: tuple[Position, ...]
    budget: int
    newest_name: int


@dataclass(kw_only=True)
class Explorer:
    """`budget` is how many deaths, stalls, failures, hand-backs and retries there may be in all; `poison` kills who runs it."""

    workers: int = 3
    units: int = 2
    budget: int = 3
    poison: int | None = None
    supervised: bool = False
    fine: bool = False
    deeds: tuple[str, ...] = ("kill", "stall", "err", "fault", "back", "raise", "retry")
    states: int = 0
    transitions: int = 0
    ends: int = 0

    def __post_init__(self) -> None:
        self.stage = Stage(
            name="extract",
            units=tuple(Unit(id=f"u{i}", name=f"u{i}", cost=float(9 - i), task={}) for i in range(self.units)),
        )
        self.plan = WorkPlan(folder=FOLDER, stages=(self.stage,), recipe={}, lease_s=1.0)
        self.disk = Memory(fine=self.fine)
        self._completed: set[int] = set()

    def explore(self) -> None:
        """Visit every state; AssertionError where one must not be."""
        start = State(
            files=frozenset(), folders=frozenset(), stale=frozenset(), budget=self.budget, newest_name=self.workers,
            workers=tuple(Position(name=i + 1) for i in range(self.workers)),
        )  # fmt: skip
        seen, queue = {self.key(start)}, deque([start])
        with self.in_memory():
            while queue:
                state = queue.popleft()
                self.states += 1
                self.check_nothing_is_lost(state)
                for following in self.following(state):
                    self.transitions += 1
                    self.check_step(state, following)
                    key = self.key(following)
                    if key not in seen:
                        seen.add(key)
                        queue.append(following)

    def key(self, state: State) -> Any:
        """What of a state makes a difference: workers are alike but for what is written in their names, and so are results.

        Names are numbered as they first come up in the files, which are sorted by paths without names.
        """
        names: dict[bytes, bytes] = {}

        def said(found: re.Match[bytes]) -> bytes:
            return names.setdefault(found[0], b"%d" % len(names))

        def renamed(answer: Any) -> Any:
            if not isinstance(answer, tuple):
                return answer
            value = answer[1]
            if isinstance(value, bytes):
                return NAME.sub(lambda found: names.get(found[0], b"?"), value)
            return "digest" if isinstance(value, str) else value

        files = tuple(
            (path, NAME.sub(said, data)) if "/claims/" in path else (path,) for path, data in sorted(state.files)
        )
        workers = sorted(
            repr((names.get(b'"w%d"' % one.name), one.wants, one.held, tuple(map(renamed, one.log))))
            for one in state.workers
        )
        return hash((files, state.folders, state.stale, tuple(workers), state.budget))

    @contextmanager
    def in_memory(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module in (ledger_module, commit_module, worker_module):
                patch.setattr(module, "disk", self.disk)
            patch.setattr(supervise_module, "read_json", lambda _: {})
            patch.setattr(supervise_module, "hostname", lambda: "h")
            patch.setattr(commit_module, "remove_stale", lambda _: 0)
            patch.setattr(worker_module, "write_unsynced", lambda *_: None)
            patch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: 0.0))
            yield

    def load(self, state: State) -> None:
        self.disk.files, self.disk.folders, self.disk.stale = dict(state.files), set(state.folders), set(state.stale)

    def kept(self, state: State, **changes: Any) -> State:
        """`state` with the folder as it is now."""
        return replace(
            state,
            files=frozenset(self.disk.files.items()), folders=frozenset(self.disk.folders), stale=frozenset(self.disk.stale),
            **changes,
        )  # fmt: skip

    def worker(self, name: int, held: Held) -> Worker:
        worker = Worker(
            ledger=Ledger(self.plan, worker=f"w{name}", host="h"),
            runner=lambda _: SimpleNamespace(),  # type: ignore[arg-type,return-value]
            watcher=SimpleNamespace(note=lambda _: None),  # type: ignore[arg-type]
        )
        worker._stage = self.stage.name
        worker._done[self.stage.name] = worker_module._Done()
        for index, number, alone in held:
            attempt = self.attempt(index, number, alone)
            worker._held[attempt.id] = attempt, 0.0
        return worker

    def attempt(self, index: int, number: int, alone: bool) -> Attempt:
        unit = self.stage.units[index]
        return Attempt(
            unit=unit, number=number, alone=alone, scratch=self.plan.work / "scratch" / f"{unit.id}.{number}"
        )

    def following(self, state: State) -> Iterator[State]:
        for place, position in enumerate(state.workers):
            yield from self.stepped(state, place, position)
            if state.budget and (position.held or position.wants):
                if "kill" in self.deeds:
                    yield self.killed(state, place, state.budget - 1)
                if "stall" in self.deeds:
                    self.load(state)
                    if self.age(position.name):
                        yield self.kept(state, budget=state.budget - 1)
        if state.budget and "retry" in self.deeds:
            for unit in self.stage.units:
                self.load(state)
                self.disk.resume([], whole=True)
                if Ledger(self.plan, worker="user", host="h").forgive(unit.id):
                    yield self.kept(state, budget=state.budget - 1)

    def age(self, name: int) -> bool:
        """Let a lease pass without a beat of that worker."""
        mine = json.dumps({"worker": f"w{name}", "host": "h"}).encode()
        claims = {path for path, data in self.disk.files.items() if data == mine and CLAIM.fullmatch(path)}
        fresh = {path for path in claims - self.disk.stale if not self.is_ended(path)}
        self.disk.stale |= fresh
        return bool(fresh)

    def is_ended(self, claim: str) -> bool:
        unit_id = claim.rpartition("/")[2].partition(".")[0]
        return f"{WORK}/done/{unit_id}" in self.disk.files or any(
            f"{claim}.{end}" in self.disk.files for end in CLOSINGS
        )

    def killed(self, state: State, place: int, budget: int) -> State:
        """A worker dies, and in its place another begins; with a supervisor it is buried at once, else a lease passes."""
        position = state.workers[place]
        self.load(state)
        self.disk.resume([], whole=True)
        if self.supervised:
            supervisor = Supervisor(
                plan=self.plan, seats=(), command=lambda _: (), watcher=SimpleNamespace(note=lambda _: None)
            )  # type: ignore[arg-type]
            supervisor._bury(f"w{position.name}", 9)
        self.age(position.name)
        workers = list(state.workers)
        workers[place] = Position(name=state.newest_name + 1)
        return self.kept(state, workers=tuple(workers), budget=budget, newest_name=state.newest_name + 1)

    def stepped(self, state: State, place: int, position: Position) -> Iterator[State]:
        """A worker goes on until the next change, or choice."""
        self.load(state)
        log = list(position.log)
        self.disk.resume(log)
        run = self.claim if position.wants else self.end if position.held else self.look

        def at(new: Position, budget: int = state.budget) -> State:
            workers = list(state.workers)
            workers[place] = new
            return self.kept(state, workers=tuple(workers), budget=budget)

        worker = self.worker(position.name, position.held)
        try:
            wants = run(worker, position)
        except Pause:
            yield at(replace(position, log=tuple(log)))
        except Choice as choice:
            for i, cost in enumerate(choice.costs):
                if cost <= state.budget:
                    # Nothing was changed before it, and nobody can tell when it was made: no step of its own.
                    spent = replace(state, budget=state.budget - cost)
                    yield from self.stepped(spent, place, replace(position, log=(*log, i)))
        else:
            if wants is None:
                yield self.killed(self.kept(state), place, state.budget)
                return
            held = tuple(
                (self.stage.units.index(one.unit), one.number, one.alone) for one, _ in sorted(
                    worker._held.values(), key=lambda pair: pair[0].id
                )
            )  # fmt: skip
            yield at(Position(name=position.name, wants=wants, held=held))

    def look(self, worker: Worker, position: Position) -> Wants | None:
        """See what may be done: one unit, or two side by side."""
        board = worker._survey(self.stage.units)
        if not board.unfinished:
            sweep(worker.ledger)
            return ()
        again = [(self.stage.units.index(unit), True, not worker_module._is_alone(one)) for unit, one in board.again]
        beside = [(self.stage.units.index(unit), False, True) for unit in board.fresh] + [
            one for one in again if one[2]
        ]
        wants = [(one,) for one in beside] + list(combinations(beside, 2)) + [(one,) for one in again if not one[2]]
        return wants[self.disk.choose([0] * len(wants))] if wants else ()

    def claim(self, worker: Worker, position: Position) -> Wants | None:
        """Claim what it wants, if nobody was quicker; of what a look saw of them, a claim asks only whether it saw any try."""
        for index, tried, beside in position.wants:
            worker._claim(self.stage.units[index], Attempts() if tried else None, beside=beside)
        return ()

    def end(self, worker: Worker, position: Position) -> Wants | None:
        """Come to an end with one of those that are held; None where it is the end of the worker."""
        attempt = self.attempt(*position.held[self.disk.choose([0] * len(position.held))])
        if self.poison is not None and attempt.unit is self.stage.units[self.poison]:
            return None
        ways = ["made", *(deed for deed in ("err", "fault", "back", "raise") if deed in self.deeds)]
        way = ways[self.disk.choose([way != "made" for way in ways])]
        if way == "made":
            # Nobody makes the same twice here, so that it shows whose results lie where.
            self.make(attempt, str(attempt.number))
            worker._keep(self.stage, Made(attempt=attempt, folders=self.folders(attempt)))
            return ()
        if way == "back":
            for one, _ in list(worker._held.values()):
                worker._end(one, "back", "USR1")
        elif way == "raise":
            worker._blame(ValueError("no"))
        else:
            worker._fail(Failed(attempt=attempt, reason="no", fault=way == "fault"))
        return ()

    def folders(self, attempt: Attempt) -> tuple[str, ...]:
        """Results of the second unit are one piece."""
        return (f"r/{attempt.unit.id}",) if attempt.unit.id == "u1" else ()

    def make(self, attempt: Attempt, text: str) -> None:
        """A file, or a folder of two."""
        self.disk.own = attempt.id
        for part in "ab"[: 1 + (attempt.unit.id == "u1")]:
            self.disk.put(attempt.scratch / "r" / attempt.unit.id / part, f"{part} {text}".encode())

    def check_step(self, before: State, after: State) -> None:
        """What is written stays; results are whole when they are called so; a unit is set aside by the rule alone."""
        old, new = dict(before.files), dict(after.files)
        for path, data in old.items():
            if "/scratch/" not in path:
                assert new.get(path) == data, f"{path} was changed"
        for path in new.keys() - old.keys():
            if path.startswith(f"{WORK}/done/"):
                self.check_receipt(new, path)
            if path.startswith(f"{WORK}/bad/"):
                unit_id, _, number = path.removeprefix(f"{WORK}/bad/").partition(".")
                if self.poison is not None and not self.budget:
                    assert unit_id == f"u{self.poison}", f"{unit_id} is innocent"
                assert self.by_the_rule(new, after.stale, unit_id, int(number)), f"{path} by no rule: {sorted(new)}"

    def check_receipt(self, files: dict[str, bytes], path: str) -> None:
        products = json.loads(files[path])["products"]
        unit_id = path.rpartition("/")[2]
        wanted = {f"r/{unit_id}/a", f"r/{unit_id}/b"} if unit_id == "u1" else {f"r/{unit_id}/a"}
        assert set(products) == wanted, f"{path} names {products}"
        for name, digest in products.items():
            assert sha256(files[f"{FOLDER}/{name}"]).hexdigest() == digest

    def by_the_rule(self, files: dict[str, bytes], stale: frozenset[str], unit_id: str, newest: int) -> bool:
        """The rule once more, said in another way than the package does."""
        claims = f"{WORK}/claims/{unit_id}"
        tries = list(range(1, newest + 1))
        forgiven = max((k for k in tries if f"{claims}.{k}.forgiven" in files), default=0)
        tries = tries[forgiven:]
        by = {
            kind: {
                json.loads(files[f"{claims}.{k}.{kind}"])["worker"] for k in tries if f"{claims}.{k}.{kind}" in files
            }
            for kind in ("err", "fault")
        }
        # Of an orphan that ended after it had been given up, what it says now does not undo the decision.
        silent = [k for k in tries if f"{claims}.{k}" in stale]
        return len(by["err"]) >= 2 or len(by["err"] | by["fault"]) >= 3 or len(silent) >= 3

    def check_nothing_is_lost(self, state: State) -> None:
        """If all workers die now, fresh ones finish every unit, and no innocent one is set aside by them."""
        key = self.key(replace(state, workers=(), stale=frozenset(), budget=0))
        if key in self._completed:
            return
        self._completed.add(key)
        self.ends += 1
        self.load(state)
        for position in state.workers:
            self.age(position.name)
        ledger = Ledger(self.plan, worker="last", host="h")
        self.disk.resume([], whole=True)
        before = ledger.scan()
        name = state.newest_name
        for _ in range(6 * self.units):
            name += 1
            worker = self.worker(name, ())
            board = worker._survey(self.stage.units)
            if not board.unfinished:
                break
            unit, attempts = ([(unit, None) for unit in board.fresh] + board.again)[0]
            attempt = worker._claim(unit, attempts)
            if attempt is not None and self.poison is not None and unit is self.stage.units[self.poison]:
                self.age(name)
            elif attempt is not None:
                self.make(attempt, "last")
                worker._keep(self.stage, Made(attempt=attempt, folders=self.folders(attempt)))
        else:
            raise AssertionError(f"units are lost: {sorted(state.files)}")
        sweep(ledger)
        after = ledger.scan()
        for index, unit in enumerate(self.stage.units):
            one = after[unit.id]
            if one.done:
                self.check_receipt(self.disk.files, f"{WORK}/done/{unit.id}")
            elif index != self.poison and not (unit.id in before and before[unit.id].is_bad):
                assert self.by_the_rule(self.disk.files, frozenset(self.disk.stale), unit.id, one.bad)
        assert not any("/scratch/" in path for path in (*self.disk.files, *self.disk.folders)), "scratch is left"


if __name__ == "__main__":
    begun = time.perf_counter()
    one = Explorer(**json.loads(sys.argv[1]))
    one.explore()
    print(f"{one.states} states, {one.transitions} transitions, {one.ends} ends, {time.perf_counter() - begun:.0f} s")  # noqa: T201
