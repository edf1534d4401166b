"""Every order in which a few workers can do what they do to a plan, with their deaths, stalls and failures.

The work list itself is run: surveys, claims, ends and commits of `Worker`, `Ledger` and `commit`, burials of `Supervisor`.
Only `wsimil.worklist.disk`, all that they ask of a file system, is replaced by one in memory. A step is a change of the folder
with all that is asked until the next one (with `fine`, each question), and between any two everybody else may do anything; so a
change rests on what was seen before others did something.

What a worker does next follows from what it is about and the answers it got, so these make a tree: the package's code is run
once for each way down, and states go from node to node without it. A question depends on, and changes, no more than lies at the
paths that it names, so each is worked out once for what lies there, and so are steps. That is no reduction, only memory.

`reduced` leaves out states that tell nothing new; each of these is sound, and test_model.py compares with all states:

- Workers differ by name alone, and names are only compared, so of states that differ by a permutation of names one is visited.
- Receipts and verdicts stay and nobody here reads them: what they say is checked when they are written, and then dropped.
- Whatever can be done with less left of `budget` can be done with more: no state is visited again with less.
- An answer that nobody can change any more (that a name is taken; what a file says, as none is written twice) is the same at any
  later time and changes nothing, so asking is no step: whatever others do before it they can do after it as well.

`python explorer.py '{"budget": 2}'` explores more.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

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
NAME = re.compile(rb'"w([0-9]+)"')
CLAIM = re.compile(rf"{WORK}/claims/(u[0-9]+)\.[0-9]+")


class Memory:
    """A file system in memory, that answers as `wsimil.worklist.disk` does; `stale` are claims that are older than a lease."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()
        self.stale: set[str] = set()

    def names(self, folder: Path) -> tuple[str, ...]:
        start = f"{folder}/"
        return tuple(
            sorted({p[len(start) :].partition("/")[0] for p in (*self.files, *self.folders) if p.startswith(start)})
        )

    def exists(self, path: Path) -> bool:
        return str(path) in self.files or str(path) in self.folders

    def _add(self, path: str, data: bytes) -> bool:
        if path in self.files:
            return False
        self.files[path] = data
        return True

    def create(self, path: Path, data: bytes) -> bool:
        return self._add(str(path), data)

    def publish(self, data: bytes, target: Path) -> bool:
        return self._add(str(target), data)

    def adopt(self, source: Path, target: Path) -> bool:
        if str(source) not in self.files:
            raise OutputError(f"{source} is not there")
        return self._add(str(target), self.files[str(source)])

    def adopt_folder(self, source: Path, target: Path) -> bool:
        inside = [path for path in self.files if path.startswith(f"{source}/")]
        if not inside:
            raise OutputError(f"{source} is not there")
        if any(path.startswith(f"{target}/") for path in self.files):
            return False
        for path in inside:
            self.files[str(target) + path[len(str(source)) :]] = self.files.pop(path)
        return True

    def remove_folder(self, path: Path) -> None:
        self.folders.discard(str(path))
        for one in [one for one in self.files if one.startswith(f"{path}/")]:
            del self.files[one]

    def put(self, path: Path, data: bytes) -> None:
        """Written by whoever makes a unit, into a scratch folder of its own, if it is there."""
        if str(path.parents[2]) in self.folders:
            self.files[str(path)] = data

    def make_folder(self, path: Path) -> None:
        if "/scratch/" in str(path):
            self.folders.add(str(path))

    def sync_tree(self, folder: Path) -> list[Path]:
        return [Path(path) for path in sorted(self.files) if path.startswith(f"{folder}/")]

    def sha256_of(self, path: Path) -> str:
        return sha256(self.files[str(path)]).hexdigest()

    def content(self, path: Path) -> bytes | None:
        return self.files.get(str(path))

    def read_json(self, path: Path) -> dict[str, Any]:
        return dict(json.loads(self.content(path) or b"{}"))

    def age(self, path: Path) -> float:
        return 2.0 if str(path) in self.stale else 0.0


class Fact(NamedTuple):
    """A file with its content, a folder, or that a claim is older than a lease."""

    kind: str
    path: str
    data: bytes = b""


class Facts:
    """Sets of facts as bits of whole numbers: everything that a folder holds is one of these."""

    def __init__(self) -> None:
        self.all: list[Fact] = []
        self._bits: dict[Fact, int] = {}
        self.bits_within: dict[str, int] = {}
        self.claims = self.scratch = self.told = 0

    def bit(self, fact: Fact) -> int:
        found = self._bits.get(fact)
        if found is None:
            found = self._bits[fact] = 1 << len(self.all)
            self.all.append(fact)
            for root in self.bits_within:
                if fact.path == root or fact.path.startswith(f"{root}/"):
                    self.bits_within[root] |= found
            if fact.kind == "file" and "/claims/" in fact.path:
                self.claims |= found
            if "/scratch/" in fact.path:
                self.scratch |= found
            if fact.path.startswith((f"{WORK}/done/", f"{WORK}/bad/")):
                self.told |= found
        return found

    def within(self, root: str) -> int:
        """All that lies at a path or below it."""
        if root not in self.bits_within:
            self.bits_within[root] = sum(
                1 << i for i, fact in enumerate(self.all) if fact.path == root or fact.path.startswith(f"{root}/")
            )
        return self.bits_within[root]

    def of(self, bits: int) -> Iterator[Fact]:
        while bits:
            lowest = bits & -bits
            yield self.all[lowest.bit_length() - 1]
            bits ^= lowest

    def load(self, bits: int) -> Memory:
        memory = Memory()
        for kind, path, data in self.of(bits):
            if kind == "file":
                memory.files[path] = data
            else:
                (memory.folders if kind == "folder" else memory.stale).add(path)
        return memory

    def pack(self, memory: Memory) -> int:
        facts = [Fact("file", path, data) for path, data in memory.files.items()]
        facts += [Fact("folder", path) for path in memory.folders] + [Fact("stale", path) for path in memory.stale]
        return sum(map(self.bit, facts))

    def files(self, bits: int) -> dict[str, bytes]:
        return self.load(bits).files


ROOTS = {"adopt": (0, 1), "adopt_folder": (0, 1), "publish": (1,)}
CHANGES = frozenset({"create", "publish", "adopt", "adopt_folder", "remove_folder"})
"""What is a step. Folders and results are made by whoever holds a try, where nobody else looks but to clear away."""


class Question:
    """Something that is asked of the file system; `own` says that it is about what the asking worker made itself."""

    def __init__(self, facts: Facts, method: str, args: tuple[Any, ...], *, own: bool) -> None:
        self._facts, self._method, self._args = facts, method, args
        self.is_change = method in CHANGES and not own
        roots = [args[i] for i in ROOTS.get(method, (0,))]
        self.roots = [str(path.parents[2] if method == "put" else path) for path in roots]
        for root in self.roots:
            facts.within(root)
        self._answers: dict[int, tuple[Any, int, bool, bool]] = {}

    def answer(self, facts: int) -> tuple[Any, int, bool, bool]:
        """Whether it went well and what came of it; facts after it; whether it is a change; whether it is final.

        It is final where neither it nor anybody else can change the answer, or anything by it.
        """
        mine, within = 0, self._facts.bits_within
        for root in self.roots:
            mine |= within[root]
        part = facts & mine
        known = self._answers.get(part)
        if known is None:
            known = self._answers[part] = self._work_out(part)
        answer, after, is_change, is_final = known
        return answer, facts ^ part ^ after, is_change, is_final

    def _work_out(self, part: int) -> tuple[Any, int, bool, bool]:
        memory = self._facts.load(part)
        try:
            answer: tuple[bool, Any] = True, getattr(memory, self._method)(*self._args)
        except OutputError as error:
            answer = False, str(error)
        if isinstance(answer[1], list):
            answer = True, tuple(answer[1])
        after = self._facts.pack(memory)
        lasts = not any("/scratch/" in root for root in self.roots)
        is_final = lasts and (
            (self._method in ("exists", "age") and bool(answer[1]))
            or (self._method == "content" and answer[1] is not None)
            or (self._method in ("create", "publish") and answer[1] is False)
            or self._method == "sha256_of"
        )
        # What is not there is removed by nobody.
        is_change = self.is_change and not (self._method == "remove_folder" and not part)
        return answer, after, is_change, is_final


Ways = list[tuple[int, "Node", int]]
"""Each way to go on: its cost, where it leads, and what the folder holds then, or what of that was changed."""


class Walked:
    """Ways from one place, by what lies at `roots`, all that is asked for on them."""

    def __init__(self, facts: Facts, roots: frozenset[str]) -> None:
        self.roots = roots
        self._facts, self._size, self._mine = facts, -1, 0
        self._ways: tuple[dict[int, Ways], dict[int, Ways]] = ({}, {})

    def _part(self, facts: int) -> int:
        if self._size != len(self._facts.all):
            self._size, self._mine = len(self._facts.all), 0
            for root in self.roots:
                self._mine |= self._facts.within(root)
        return facts & self._mine

    def get(self, facts: int, whole: bool) -> Ways | None:
        return self._ways[whole].get(self._part(facts))

    def put(self, facts: int, whole: bool, ways: Ways) -> None:
        self._ways[whole][self._part(facts)] = ways


Wants = tuple[tuple[int, bool, bool], ...]
Held = tuple[tuple[int, int, bool], ...]


class Program(NamedTuple):
    """What somebody does: `look`, `claim`, `end`; a worker wants units (unit, whether it was tried before, whether beside
    others) and holds some (unit, try, whether alone). `bury` is for a worker that died, `forgive` for the unit of index `name`.
    """

    kind: str
    name: int
    wants: Wants = ()
    held: Held = ()


@dataclass(slots=True, eq=False)
class Node:
    """Somebody within a program, by the answers it got: at a question, at a choice, at its end, or where nobody was yet."""

    program: Program
    number: int
    parent: Node | None = None
    answer: Any = None
    question: Question | None = None
    costs: tuple[int, ...] | None = None
    result: Node | str | None = None
    children: dict[Any, Node] = field(default_factory=dict)
    renamed: dict[Any, Node] = field(default_factory=dict)
    ways: tuple[dict[int, Ways], dict[int, Ways]] = field(default_factory=lambda: ({}, {}))
    walked: list[Walked] = field(default_factory=list)

    @property
    def is_known(self) -> bool:
        return self.question is not None or self.costs is not None or self.result is not None

    def log(self) -> list[Any]:
        """All answers that lead here."""
        found = []
        node = self
        while node.parent is not None:
            found.append(node.answer)
            node = node.parent
        return found[::-1]


DIED, ENDED = "died", "ended"


class Pause(BaseException):
    """The next thing to do is another step, or one of several."""


State = tuple[int, tuple[Node, ...]]
"""What the folder holds, and where each worker is."""


@dataclass(kw_only=True)
class Explorer:
    """`budget` is how many deaths, stalls, failures, hand-backs and retries there may be in all; `poison` kills who runs it."""

    workers: int = 3
    units: int = 2
    budget: int = 3
    poison: int | None = None
    supervised: bool = False
    fine: bool = False
    reduced: bool = True
    traced: bool = False
    deeds: tuple[str, ...] = ("kill", "stall", "err", "fault", "back", "raise", "retry")
    states: int = 0
    transitions: int = 0

    def __post_init__(self) -> None:
        self.stage = Stage(
            name="extract",
            units=tuple(Unit(id=f"u{i}", name=f"u{i}", cost=float(9 - i), task={}) for i in range(self.units)),
        )
        self.plan = WorkPlan(folder=FOLDER, stages=(self.stage,), recipe={}, lease_s=1.0)
        self.facts = Facts()
        self.disk = Disk(self)
        self._questions: dict[Any, Question] = {}
        self._roots: dict[Program, Node] = {}
        self._nodes = 0
        self._told: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._permuted: dict[tuple[tuple[int, ...], int], int] = {}
        self._aged: dict[tuple[int, int], int] = {}
        self._asked: set[str] = set()
        self._completed: set[int] = set()
        self._safe: set[int] = set()
        self._finals: set[int] = set()
        self._changes: set[tuple[int, int]] = set()

    @property
    def ends(self) -> int:
        """How many folders there were from which all was finished by fresh workers."""
        return len(self._completed)

    @property
    def changes(self) -> set[tuple[frozenset[Fact], frozenset[Fact]]]:
        """The folder before and after each change, if `traced`, with workers numbered as they come up."""
        met = {facts for change in self._changes for facts in change}
        told = {facts: frozenset(self.facts.of(self.canonical((facts, ()))[0])) for facts in met}
        return {(told[before], told[after]) for before, after in self._changes}

    @property
    def finals(self) -> set[frozenset[Fact]]:
        """All that it held when everything was finished."""
        return {frozenset(self.facts.of(facts)) for facts in self._finals}

    def explore(self) -> None:
        """Visit every state; AssertionError where one must not be."""
        start = 0, tuple(self.root(Program("look", i + 1)) for i in range(self.workers))
        queues: list[deque[State]] = [deque() for _ in range(self.budget + 1)]
        seen: dict[State, int] = {}

        def meet(state: State, budget: int) -> None:
            if self.reduced:
                state = self.canonical(state)
                known = seen.get(state, -1) >= budget
            else:
                known = seen.get(state, 0) >> budget & 1 == 1
            if not known:
                seen[state] = budget if self.reduced else seen.get(state, 0) | 1 << budget
                queues[budget].append(state)

        with self.in_memory(), without_garbage():
            meet(start, self.budget)
            for budget in range(self.budget, -1, -1):
                queue = queues[budget]
                while queue:
                    state = queue.popleft()
                    self.states += 1
                    self.check_nobody_shares(state[1])
                    self.check_nothing_is_lost(state)
                    for cost, following in self.following(state, budget):
                        self.transitions += 1
                        self.check_step(state[0], following[0])
                        if self.traced and following[0] != state[0]:
                            self._changes.add((state[0], following[0]))
                        meet(following, budget - cost)

    # Names

    def canonical(self, state: State) -> State:
        """The one of all states like this that is visited: workers are numbered as they come up in the claims, by paths."""
        facts, nodes = state
        facts, order = self.told(facts)
        facts = self.permuted(facts, order)
        free, places = len(order) + 1, {name: i + 1 for i, name in enumerate(order)}
        known, others = [], []
        for node in nodes:
            place = places.get(node.program.name)
            if place is not None:
                known.append(self.renamed(node, order, place))
            else:
                others.append(self.renamed(node, order, free))
        others.sort(key=lambda node: node.number)
        known += [self.renamed(node, tuple(range(1, free)), free + i) for i, node in enumerate(others)]
        return facts, tuple(sorted(known, key=lambda node: node.number))

    def told(self, facts: int) -> tuple[int, tuple[int, ...]]:
        """Facts without what is checked and read by nobody, and the names in claims, as they first come up."""
        part = facts & (self.facts.claims | self.facts.told)
        found = self._told.get(part)
        if found is None:
            kept = sum(
                self.facts.bit(fact._replace(data=b"")) if "/claims/" not in fact.path else self.facts.bit(fact)
                for fact in self.facts.of(part)
            )
            claims = sorted((fact.path, fact.data) for fact in self.facts.of(part & self.facts.claims))
            names = dict.fromkeys(int(name) for _, data in claims for name in NAME.findall(data))
            found = self._told[part] = kept, tuple(names)
        return facts ^ part | found[0], found[1]

    def permuted(self, facts: int, order: tuple[int, ...]) -> int:
        """Facts where each worker's name is its place in `order`, from 1."""
        if order == tuple(range(1, len(order) + 1)):
            return facts
        part = facts & self.facts.claims
        found = self._permuted.get((order, part))
        if found is None:
            found = self._permuted[order, part] = sum(
                self.facts.bit(fact._replace(data=said_by(fact.data, order))) for fact in self.facts.of(part)
            )
        return facts ^ part | found

    def renamed(self, node: Node, order: tuple[int, ...], name: int) -> Node:
        """Where a worker of that name would be."""
        found = node.renamed.get((order, name))
        if found is None:
            if node.parent is None:
                found = self.root(node.program._replace(name=name))
            else:
                is_fine, value = node.answer if isinstance(node.answer, tuple) else (None, node.answer)
                if isinstance(value, bytes):
                    value = said_by(value, order)
                found = self.child(
                    self.renamed(node.parent, order, name), value if is_fine is None else (is_fine, value)
                )
            node.renamed[order, name] = found
        return found

    # Steps

    def root(self, program: Program) -> Node:
        if program not in self._roots:
            self._roots[program] = Node(program, self._numbered())
        return self._roots[program]

    def child(self, node: Node, answer: Any) -> Node:
        found = node.children.get(answer)
        if found is None:
            found = node.children[answer] = Node(node.program, self._numbered(), node, answer)
        return found

    def _numbered(self) -> int:
        self._nodes += 1
        return self._nodes

    def question(self, method: str, args: tuple[Any, ...], *, own: bool) -> Question:
        if (method, args, own) not in self._questions:
            self._questions[method, args, own] = Question(self.facts, method, args, own=own)
        return self._questions[method, args, own]

    def asked(self, question: Question, facts: int, stepped: bool, whole: bool) -> tuple[Any, int, bool] | None:
        """The answer, facts after it, and whether a step is made; None where it belongs to the next one."""
        self._asked.update(question.roots)
        answer, after, is_change, is_final = question.answer(facts)
        tells = not (is_final and self.reduced)
        if tells and stepped and not whole and (is_change or self.fine):
            return None
        return answer, after, stepped or tells

    def walk(self, node: Node, facts: int, *, whole: bool = False) -> Ways:
        """Go on for a step, or to the end: each way with its cost, where it leads, and what the folder holds then."""
        ways = node.ways[whole].get(facts)
        if ways is None:
            ways = node.ways[whole][facts] = self._walked(node, facts, whole)
        return ways

    def _walked(self, node: Node, facts: int, whole: bool) -> Ways:
        for seen in node.walked:
            known = seen.get(facts, whole)
            if known is not None:
                return [(cost, found, facts ^ changed) for cost, found, changed in known]
        self._asked = set()
        ways = self._walk(node, facts, whole)
        roots = frozenset(self._asked)
        seen = next((one for one in node.walked if one.roots == roots), None)
        if seen is None:
            seen = Walked(self.facts, roots)
            node.walked.append(seen)
        seen.put(facts, whole, [(cost, found, facts ^ after) for cost, found, after in ways])
        return ways

    def _walk(self, node: Node, facts: int, whole: bool) -> Ways:
        ways, found = [(0, node, facts, False)], []
        while ways:
            cost, node, facts, stepped = ways.pop()
            while True:
                if not node.is_known:
                    node, facts, stepped = self.disk.learn(node, facts, stepped, whole)
                if node.question is None:
                    break
                asked = self.asked(node.question, facts, stepped, whole)
                if asked is None:
                    break
                answer, facts, stepped = asked
                node = node.children.get(answer) or self.child(node, answer)
            if node.costs is not None:
                # Nothing was changed since the last step, and nobody can tell when it was made: no step of its own.
                ways += [(cost + more, self.child(node, i), facts, stepped) for i, more in enumerate(node.costs)]
            else:
                found.append((cost, node, facts))
        return found

    def following(self, state: State, budget: int) -> Iterator[tuple[int, State]]:
        """All that may come next, with what it costs."""
        facts, nodes = state
        for place, node in enumerate(nodes):
            for cost, new, after in self.walk(node, facts):
                if cost > budget:
                    continue
                if new.result == DIED:
                    yield cost, self.killed((after, nodes), place)
                else:
                    following = new.result if isinstance(new.result, Node) else new
                    yield cost, (after, (*nodes[:place], following, *nodes[place + 1 :]))
            if budget and (node.program.held or node.program.wants):
                if "kill" in self.deeds:
                    yield 1, self.killed(state, place)
                if "stall" in self.deeds:
                    aged = self.aged(facts, node.program.name)
                    if aged != facts:
                        yield 1, (aged, nodes)
        if budget and "retry" in self.deeds:
            for index in range(self.units):
                ((_, _, after),) = self.walk(self.root(Program("forgive", index)), facts, whole=True)
                if after != facts:
                    yield 1, (after, nodes)

    def aged(self, facts: int, name: int) -> int:
        """Let a lease pass without a beat of that worker."""
        found = self._aged.get((facts, name))
        if found is None:
            mine = json.dumps({"worker": f"w{name}", "host": "h"}).encode()
            memory = self.facts.load(facts)
            fresh = {
                path
                for path, data in memory.files.items()
                if data == mine and CLAIM.fullmatch(path) and not is_ended(memory.files, path)
            }
            found = self._aged[facts, name] = facts | sum(
                self.facts.bit(Fact("stale", path)) for path in fresh - memory.stale
            )
        return found

    def killed(self, state: State, place: int) -> State:
        """A worker dies, and in its place another begins; with a supervisor it is buried at once, else a lease passes."""
        facts, nodes = state
        name = nodes[place].program.name
        if self.supervised:
            ((_, _, facts),) = self.walk(self.root(Program("bury", name)), facts, whole=True)
        facts = self.aged(facts, name)
        another = self.root(Program("look", self.unused(facts, nodes)))
        return facts, (*nodes[:place], another, *nodes[place + 1 :])

    def unused(self, facts: int, nodes: Sequence[Node]) -> int:
        return max((*self.told(facts)[1], *(node.program.name for node in nodes)), default=0) + 1

    # What is done, by the package's own code

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

    def run(self, program: Program) -> Node | str:
        """What is done from the beginning of a program to its end, and where it leads."""
        kind, name, wants, held = program
        if kind == "forgive":
            Ledger(self.plan, worker="user", host="h").forgive(self.stage.units[name].id)
            return ENDED
        if kind == "bury":
            supervisor = Supervisor(
                plan=self.plan, seats=(), command=lambda _: (), watcher=SimpleNamespace(note=lambda _: None)
            )  # type: ignore[arg-type]
            supervisor._bury(f"w{name}", 9)
            return ENDED
        worker = self.worker(name, held)
        if kind == "look":
            chosen = self.look(worker)
            return self.root(Program("claim" if chosen else "look", name, chosen))
        if kind == "claim":
            self.claim(worker, wants)
        elif not self.end(worker, held):
            return DIED
        left = tuple(
            (self.stage.units.index(one.unit), one.number, one.alone)
            for one, _ in sorted(worker._held.values(), key=lambda pair: pair[0].id)
        )
        return self.root(Program("end" if left else "look", name, (), left))

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

    def look(self, worker: Worker) -> Wants:
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

    def claim(self, worker: Worker, wants: Wants) -> None:
        """Claim what it wants, if nobody was quicker; of what a look saw of them, a claim asks only whether it saw any try."""
        for index, tried, beside in wants:
            worker._claim(self.stage.units[index], Attempts() if tried else None, beside=beside)

    def end(self, worker: Worker, held: Held) -> bool:
        """Come to an end with one of those that are held; False where it is the end of the worker."""
        attempt = self.attempt(*held[self.disk.choose([0] * len(held))])
        if self.poison is not None and attempt.unit is self.stage.units[self.poison]:
            return False
        ways = ["made", *(deed for deed in ("err", "fault", "back", "raise") if deed in self.deeds)]
        way = ways[self.disk.choose([way != "made" for way in ways])]
        if way == "made":
            self.make(attempt)
            worker._keep(self.stage, Made(attempt=attempt, folders=pieces(attempt)))
        elif way == "back":
            for one, _ in list(worker._held.values()):
                worker._end(one, "back", "USR1")
        elif way == "raise":
            worker._blame(ValueError("no"))
        else:
            worker._fail(Failed(attempt=attempt, reason="no", fault=way == "fault"))
        return True

    def make(self, attempt: Attempt) -> None:
        """A file, or a folder of two. Nobody makes the same twice here, so that it shows whose results lie where."""
        self.disk.own = attempt.id
        for part in "ab"[: 1 + (attempt.unit.id == "u1")]:
            self.disk.put(attempt.scratch / "r" / attempt.unit.id / part, f"{part} {attempt.number}".encode())

    # What must be so

    def check_nobody_shares(self, nodes: Sequence[Node]) -> None:
        """A try is held by one."""
        held = [(index, number) for node in nodes for index, number, _ in node.program.held]
        assert len(set(held)) == len(held), f"held by two: {held}"

    def check_step(self, before: int, after: int) -> None:
        """What is written stays; results are whole when they are called so; a unit is set aside by the rule alone."""
        lost = before & ~after & ~self.facts.scratch
        assert not lost, f"{sorted(fact.path for fact in self.facts.of(lost))} was changed"
        new = after & ~before & self.facts.told
        if not new:
            return
        memory = self.facts.load(after)
        for _, path, _ in self.facts.of(new):
            if path.startswith(f"{WORK}/done/"):
                self.check_receipt(memory.files, path)
            else:
                unit_id, _, number = path.removeprefix(f"{WORK}/bad/").partition(".")
                if self.poison is not None and not self.budget:
                    assert unit_id == f"u{self.poison}", f"{unit_id} is innocent"
                by_the_rule = self.by_the_rule(memory.files, memory.stale, unit_id, int(number))
                assert by_the_rule, f"{path} by no rule: {sorted(memory.files)}"

    def check_receipt(self, files: dict[str, bytes], path: str) -> None:
        products = json.loads(files[path])["products"]
        unit_id = path.rpartition("/")[2]
        wanted = {f"r/{unit_id}/a", f"r/{unit_id}/b"} if unit_id == "u1" else {f"r/{unit_id}/a"}
        assert set(products) == wanted, f"{path} names {products}"
        for name, digest in products.items():
            assert sha256(files[f"{FOLDER}/{name}"]).hexdigest() == digest

    def by_the_rule(self, files: dict[str, bytes], stale: set[str], unit_id: str, newest: int) -> bool:
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
        """If all workers die now, fresh ones finish every unit, and set none aside but by the rule."""
        facts, nodes = state
        if facts in self._safe:
            return
        self._safe.add(facts)
        for node in nodes:
            facts = self.aged(facts, node.program.name)
        passed: list[int] = []
        while True:
            facts, _ = self.canonical((facts, ()))
            if facts in self._completed:
                break
            passed.append(facts)
            assert len(passed) < 6 * self.units, f"units are lost: {sorted(self.facts.files(facts))}"
            worker = self.root(Program("look", self.unused(facts, ())))
            # The first way is that of what is wanted first, where nothing else befalls.
            _, claiming, after = self.walk(worker, facts, whole=True)[-1]
            node = claiming.result
            assert isinstance(node, Node)
            if not node.program.wants:
                self.check_end(after)
                break
            ((_, claimed, after),) = self.walk(node, after, whole=True)
            node = claimed.result
            assert isinstance(node, Node)
            if node.program.held:
                _, made, after = self.walk(node, after, whole=True)[-1]
                if made.result == DIED:
                    after = self.aged(after, node.program.name)
            self.check_step(facts, after)
            facts = after
        self._completed.update(passed)

    def check_end(self, facts: int) -> None:
        """Nothing is left to do, nor lying about."""
        assert not facts & self.facts.scratch, "scratch is left"
        names = self.facts.files(facts)
        for unit in self.stage.units:
            is_bad = any(name.startswith(f"{WORK}/bad/{unit.id}.") for name in names)
            assert f"{WORK}/done/{unit.id}" in names or is_bad, f"{unit.id} is lost"
        self._finals.add(facts)


class Disk:
    """In the place of `wsimil.worklist.disk` while a program is run: answers as it was answered before, then goes on."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer
        self.own = ""

    def learn(self, node: Node, facts: int, stepped: bool, whole: bool) -> tuple[Node, int, bool]:
        """Run the program of `node` until its next step, or choice, or to its end."""
        self._log, self._cursor, self.own = node.log(), 0, ""
        self._node, self._facts, self._stepped, self._whole = node, facts, stepped, whole
        try:
            result = self._explorer.run(node.program)
        except Pause:
            pass
        else:
            self._node.result = result
        return self._node, self._facts, self._stepped

    def choose(self, costs: Sequence[int]) -> int:
        """One of so many things, all of which are tried; of one it is that."""
        if len(costs) == 1:
            return 0
        if self._cursor == len(self._log):
            self._node.costs = tuple(costs)
            raise Pause
        self._cursor += 1
        return int(self._log[self._cursor - 1])

    def _ask(self, method: str, *args: Any) -> Any:
        if self._cursor == len(self._log):
            # What we made ourselves we remove when all is said, in one step with the receipt.
            own = method == "remove_folder" and args[0].name == self.own
            node = self._node
            node.question = self._explorer.question(method, args, own=own)
            asked = self._explorer.asked(node.question, self._facts, self._stepped, self._whole)
            if asked is None:
                raise Pause
            answer, self._facts, self._stepped = asked
            self._node = self._explorer.child(node, answer)
            self._log.append(answer)
        is_fine, value = self._log[self._cursor]
        self._cursor += 1
        if not is_fine:
            raise OutputError(value)
        return value

    def __getattr__(self, method: str) -> Any:
        return partial(self._ask, method)

    def claim(self, token: Path, path: Path, data: bytes) -> bool:
        return bool(self._ask("create", path, data))

    def is_name_of(self, token: Path, path: Path) -> bool:
        return False  # it loses no answers

    def publish(self, data: bytes, target: Path, *, within: Path | None = None) -> bool:
        return bool(self._ask("publish", data, target))

    def sync_tree(self, folder: Path, *, entries: bool = True) -> list[Path]:
        return list(self._ask("sync_tree", folder))

    def read_json(self, path: Path) -> dict[str, Any]:
        found = self._ask("content", path)
        return {} if found is None else dict(json.loads(found))

    def clock(self, path: Path) -> float:
        return 0.0

    def age(self, path: Path, now: float) -> float:
        return float(self._ask("age", path))


@contextmanager
def without_garbage() -> Iterator[None]:
    """Nothing here is garbage before the end, and to look for it again and again would take a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def pieces(attempt: Attempt) -> tuple[str, ...]:
    """Results of the second unit are one piece."""
    return (f"r/{attempt.unit.id}",) if attempt.unit.id == "u1" else ()


def is_ended(files: dict[str, bytes], claim: str) -> bool:
    unit_id = claim.rpartition("/")[2].partition(".")[0]
    return f"{WORK}/done/{unit_id}" in files or any(f"{claim}.{end}" in files for end in CLOSINGS)


def said_by(data: bytes, order: tuple[int, ...]) -> bytes:
    """`data` with each name's place in `order`, from 1."""
    return NAME.sub(lambda found: b'"w%d"' % (order.index(int(found[1])) + 1), data)


if __name__ == "__main__":
    begun = time.perf_counter()
    one = Explorer(**json.loads(sys.argv[1]))
    one.explore()
    seconds = time.perf_counter() - begun
    print(  # noqa: T201
        f"{one.states} states, {one.transitions} transitions, {len(one.finals)} finals, {one.ends} ends, {seconds:.0f} s"
    )
