"""One process that takes units, largest first, until nothing is left of its stages."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import merge
from typing import Protocol, TypeAlias, cast, runtime_checkable

from wsimil.errors import OutputError, WsimilError
from wsimil.files import write_unsynced
from wsimil.provenance import Json
from wsimil.worklist import disk
from wsimil.worklist.attempts import Attempts, Closing
from wsimil.worklist.commit import begin, commit, sweep
from wsimil.worklist.faults import is_fault
from wsimil.worklist.ledger import Attempt, Ledger
from wsimil.worklist.plan import Stage, Unit, refuses

IN_A_ROW = 3
"""After so many faults of its own, with nothing done between them, a worker leaves."""
_BEATS = 6
_LONGEST_NAP_S = 5.0
_TELL_EVERY_S = 1.0


class Left(IntEnum):
    """Why a worker left, as an exit code."""

    FINISHED = 0
    REFUSED = 3
    FAULTY = 4
    IMPATIENT = 5
    RENEW = 76


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The results of a try lie in its scratch folder; each of `folders` in it is one piece. `summary` goes into the receipt."""

    attempt: Attempt
    folders: tuple[str, ...] = ()
    summary: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A try made nothing; `fault` says that the machine is to blame and not the unit."""

    attempt: Attempt
    reason: str
    fault: bool = False

    @classmethod
    def of(cls, attempt: Attempt, error: Exception) -> Failed:
        """As `error` tells; one that was not raised on purpose is told with its type."""
        reason = str(error) if isinstance(error, WsimilError) else f"{type(error).__name__}: {error}"
        return cls(attempt=attempt, reason=reason, fault=is_fault(error))


Outcome: TypeAlias = Made | Failed


class Runner(Protocol):
    """Does units of one stage, and keeps warm what they share."""

    def run(self, attempts: Iterator[Attempt]) -> Generator[Outcome, None, None]:
        """Answer every attempt once, in any order; the next may be asked for, from any thread, before the last is answered.

        Raises what concerns all units.
        """
        ...


@runtime_checkable
class GoesOn(Protocol):
    """A runner whose tries go on from where those before them were."""

    def place(self, attempt: Attempt) -> str:
        """Where the next try would go on if this one ended now; empty where it would begin anew."""
        ...


class Watcher(Protocol):
    """Hears what a worker does."""

    def note(self, text: str) -> None:
        """One line for a person."""
        ...


@dataclass(slots=True, kw_only=True)
class _Done:
    units: int = 0
    cost: float = 0.0
    bad: int = 0
    seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Board:
    """A stage as it was seen last, at `now` of the file system's clock."""

    now: float
    fresh: list[Unit] = field(default_factory=list)
    again: list[tuple[Unit, Attempts]] = field(default_factory=list)
    held: int = 0
    unfinished: int = 0
    bad: int = 0


@dataclass(kw_only=True)
class Worker:
    """Pulls units of `ledger`; `device` is said to whoever watches, `patience_s` is how long it waits for others' units."""

    ledger: Ledger
    runner: Callable[[Stage], Runner]
    watcher: Watcher
    device: str = "cpu"
    patience_s: float = math.inf
    _held: dict[str, tuple[Attempt, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: dict[str, _Done] = field(default_factory=dict)
    _in_a_row: int = 0
    _faults: int = 0
    _succeeded: bool = False
    _stage: str = ""
    _runner: Runner | None = None
    _begun: float = field(default_factory=time.monotonic)
    _stage_begun: float = 0.0
    _told: float = 0.0
    _ending: threading.Event = field(default_factory=threading.Event)

    def run(self, stages: Sequence[Stage]) -> Left:
        """Work until all units of `stages` are finished, or there is a reason to leave. What it holds then is handed back."""
        left: Left | None = None
        why = "interrupted"
        try:
            with self._beating():
                for stage in stages:
                    left = self._work(stage)
                    if left is not Left.FINISHED:
                        break
                left = Left.FINISHED if left is None else left
                why = left.name.lower()
                return left
        except BaseException as error:
            why = f"{type(error).__name__}: {error}" if str(error) else "interrupted"
            raise
        finally:
            self._ending.set()
            while self._held:
                # Whoever presses Ctrl-C twice waits for these few notes all the same: without them others wait for a lease.
                with suppress(KeyboardInterrupt):
                    self._hand_back(*next(iter(self._held.values())), why)
            with suppress(OutputError):
                self._write_card(left=why)

    def _work(self, stage: Stage) -> Left:
        self._stage, self._runner = stage.name, None
        waited_since: float | None = None
        nap = 0.05
        units = sorted(stage.units, key=lambda unit: (-unit.cost, unit.id))
        self._stage_begun = time.monotonic()
        while True:
            try:
                board = self._survey(units)
            except OutputError as error:
                self._stumble(str(error))
                if self._must_leave():
                    return Left.FAULTY
                self._ending.wait(nap)
                continue
            if refuses(self.ledger.plan, stage, board.bad):
                return Left.REFUSED
            if not board.unfinished:
                with suppress(OutputError):  # the results are out; what is left lying takes room and no more
                    sweep(self.ledger)
                return Left.FINISHED
            with self._lock:
                before = self._done.setdefault(stage.name, _Done()).units, self._in_a_row
            if board.fresh or board.again:
                try:
                    runner = self._runner = self._runner or self.runner(stage)
                except Exception as error:
                    if not is_fault(error):
                        raise
                    self._stumble(f"{type(error).__name__}: {error}")
                    return Left.FAULTY
                left = self._pull_and_answer(stage, runner, board)
                if left is not None:
                    return left
                if before != (self._done[stage.name].units, self._in_a_row):
                    waited_since, nap = None, 0.05
                    continue
            now = time.monotonic()
            waited_since = waited_since or now
            alone = not board.held and not board.fresh and not board.again
            if alone and (now - waited_since > self.ledger.plan.lease_s or not self._others_alive()):
                return Left.RENEW  # what is left failed in this very process, and there is nobody else to try it
            if now - waited_since > self.patience_s:
                return Left.IMPATIENT
            self._ending.wait(nap)
            nap = min(2 * nap, _LONGEST_NAP_S, self.ledger.plan.lease_s / 4)

    def _survey(self, units: Sequence[Unit]) -> _Board:
        """What of `units`, in that order, can be claimed; what failed on this host last. Raises OutputError."""
        scanned = self.ledger.scan()
        board = _Board(now=self.ledger.now())
        last: list[Unit] = []
        for unit in units:
            attempts = scanned.get(unit.id)
            if attempts is not None and attempts.is_finished:
                board.bad += attempts.is_bad
            elif unit.last:
                last.append(unit)
            else:
                self._sort(board, unit, attempts)
        if not board.unfinished:
            for unit in last:
                self._sort(board, unit, scanned.get(unit.id))
        elif last:
            board.unfinished += len(last)
        board.again.sort(key=lambda pair: self.ledger.failed_on_host(pair[0].id, pair[1]))
        return board

    def _sort(self, board: _Board, unit: Unit, attempts: Attempts | None) -> None:
        board.unfinished += 1
        if attempts is None:
            board.fresh.append(unit)
        elif attempts.is_held and not self.ledger.is_silent(unit.id, attempts.newest, board.now):
            board.held += 1
        elif not self.ledger.failed_here(unit.id, attempts):
            board.again.append((unit, attempts))

    def _pull_and_answer(self, stage: Stage, runner: Runner, board: _Board) -> Left | None:
        """All that the board shows: what may be done side by side in one stream, then each of the others alone."""
        beside = [pair for pair in board.again if not _is_alone(pair[1])]
        left = self._answer(stage, runner, self._claims(stage, board.fresh, beside))
        for unit, attempts in board.again:
            if left is not None:
                return left
            if _is_alone(attempts):
                attempt = self._claim(unit, attempts)
                if attempt is not None:
                    left = self._answer(stage, runner, iter([attempt]))
                elif self._must_leave():
                    left = Left.FAULTY
        return left

    def _claims(self, stage: Stage, fresh: list[Unit], beside: list[tuple[Unit, Attempts]]) -> Iterator[Attempt]:
        """Claim one after the other as they are asked for; ends where a look at the folder is due, or something must be alone."""
        due = time.monotonic() + self.ledger.plan.lease_s / 2
        new: list[tuple[Unit, Attempts | None]] = [(unit, None) for unit in fresh]
        for unit, attempts in merge(new, beside, key=lambda pair: (-pair[0].cost, pair[0].id)):
            if self._ending.is_set() or time.monotonic() > due or self._faults >= IN_A_ROW:
                return
            attempt = self._claim(unit, attempts, beside=True)
            if attempt is not None:
                yield attempt

    def _claim(self, unit: Unit, attempts: Attempts | None, *, beside: bool = False) -> Attempt | None:
        try:
            attempt = self.ledger.claim(unit, attempts, beside=beside)
        except OutputError as error:
            self._stumble(str(error))
            return None
        if attempt is None:
            return None
        with self._lock:
            self._held[attempt.id] = attempt, time.monotonic()
        try:
            begin(attempt)
        except OutputError as error:
            self._fail(Failed(attempt=attempt, reason=str(error), fault=True))
            return None
        return attempt

    def _answer(self, stage: Stage, runner: Runner, attempts: Iterator[Attempt]) -> Left | None:
        try:
            with closing(runner.run(attempts)) as outcomes:
                for outcome in outcomes:
                    if isinstance(outcome, Made):
                        self._keep(stage, outcome)
                    else:
                        self._fail(outcome)
                    if self._must_leave():
                        return Left.FAULTY
        except Exception as error:  # noqa: BLE001 - it ends this stream, and counts against this worker
            self._blame(error)
        if self._held:
            # We live and would hold them for ever.
            self._blame(WsimilError("the stage ended without an answer for what it had asked for"))
        return Left.FAULTY if self._must_leave() else None

    def _keep(self, stage: Stage, made: Made) -> None:
        attempt = made.attempt
        begun = self._held[attempt.id][1]
        seconds = time.monotonic() - begun
        try:
            first = commit(self.ledger, attempt, folders=made.folders, summary=made.summary, seconds=seconds)
        except OutputError as error:
            self._fail(Failed(attempt=attempt, reason=str(error), fault=True))
            return
        with self._lock:
            del self._held[attempt.id]
            self._in_a_row, self._faults, self._succeeded = 0, 0, True
            done = self._done[stage.name]
            done.units, done.cost = done.units + 1, done.cost + attempt.unit.cost
            done.seconds = time.monotonic() - self._stage_begun
        # Small units by the hundred a second would be less work than to tell of each.
        if done.units == 1 or time.monotonic() - self._told > _TELL_EVERY_S:
            with suppress(OutputError):
                self._write_card()
        late = "" if first else ", which another worker had done meanwhile"
        self.watcher.note(f"{attempt.id} {attempt.unit.name}: done in {seconds:.1f} s{late}")

    def _fail(self, failed: Failed) -> None:
        attempt, reason = failed.attempt, failed.reason
        try:
            found = self.ledger.look(attempt.unit.id)
            if (found.is_finished or found.forgiven >= attempt.number) and not disk.exists(attempt.scratch):
                # Others finished it, or set it aside, and cleared away what we were making: nobody's failure.
                self.watcher.note(f"{attempt.id} {attempt.unit.name}: too late: {reason}")
                self._end(attempt, "back", reason)
                return
        except OSError as error:
            reason = f"{reason}; and then {error}"
        self.watcher.note(
            f"{attempt.id} {attempt.unit.name}: {'FAULT OF THIS WORKER' if failed.fault else 'FAILED'}: {reason}"
        )
        with self._lock:
            self._in_a_row += 1
            self._faults += failed.fault
            self._done[self._stage].bad += 1
        self._end(attempt, "fault" if failed.fault else "err", reason)

    def _hand_back(self, attempt: Attempt, begun: float, why: str) -> None:
        """End a try as this worker leaves, and write down what shows whether any worker has the time to finish its unit."""
        place, runner = "", cast("object", self._runner)
        if isinstance(runner, GoesOn):
            with suppress(Exception):  # it is for people, and must not keep the unit from others
                place = runner.place(attempt)
        now = time.monotonic()
        beside: dict[str, Json] = {
            "held_s": round(now - begun, 1), "lived_s": round(now - self._begun, 1), "place": place,
        }  # fmt: skip
        self._end(attempt, "back", f"its worker left: {why}", beside=beside)

    def _end(
        self, attempt: Attempt, closing: Closing, reason: str, *, beside: Mapping[str, Json] | None = None
    ) -> None:
        """Close a try that made nothing; one whose end cannot be written down ends in silence, which others will notice."""
        try:
            self.ledger.close(attempt, closing, reason, beside=beside)
        except OutputError as error:
            self.watcher.note(f"{attempt.id}: its end could not be written down: {error}")
        with self._lock:
            self._held.pop(attempt.id, None)

    def _stumble(self, reason: str) -> None:
        """A fault of this worker that no unit had a part in."""
        with self._lock:
            self._in_a_row += 1
            self._faults += 1
        self.watcher.note(f"FAULT OF THIS WORKER: {reason}")

    def _blame(self, error: Exception) -> None:
        """What concerned all units of a stream: one that was alone has caused it, of several nobody knows which."""
        with self._lock:
            held = [attempt for attempt, _ in self._held.values()]
        reason = str(error) if isinstance(error, WsimilError) else f"unexpected {type(error).__name__}: {error}"
        if len(held) == 1:
            self._fail(Failed(attempt=held[0], reason=reason, fault=is_fault(error)))
            return
        if not held and not is_fault(error):
            raise error
        self._stumble(reason)
        for attempt in held:
            self._end(attempt, "suspect", reason)

    def _must_leave(self) -> bool:
        if self._faults >= IN_A_ROW:
            return True
        # Slides that are bad are no reason, unless nothing ever succeeded here while others are at work.
        return self._in_a_row >= IN_A_ROW and not self._succeeded and self._others_alive()

    def _others_alive(self) -> bool:
        try:
            return self.ledger.others_alive()
        except OutputError:
            return True  # nobody can be asked; that a folder cannot be read is no reason to do anything

    @contextmanager
    def _beating(self) -> Iterator[None]:
        self._write_card()
        thread = threading.Thread(target=self._beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            thread.join()

    def _beat(self) -> None:
        while not self._ending.wait(self.ledger.plan.lease_s / _BEATS):
            with self._lock:
                held = [attempt for attempt, _ in self._held.values()]
            self.ledger.beat(held)
            with suppress(OutputError):
                self._write_card()

    def _write_card(self, *, left: str = "") -> None:
        with self._lock:
            card: dict[str, Json] = {
                "worker": self.ledger.worker,
                "host": self.ledger.host,
                "pid": os.getpid(),
                "device": self.device,
                "stage": self._stage,
                "held": list(self._held),
                "left": left,
                "lived_s": round(time.monotonic() - self._begun, 1),
                "done": {
                    name: {"units": one.units, "cost": one.cost, "failed": one.bad, "seconds": round(one.seconds, 3)}
                    for name, one in self._done.items()
                },
            }
            self._told = time.monotonic()
        # Not worth a sync: it is written anew at the next beat.
        write_unsynced(self.ledger.card, json.dumps(card).encode())


def _is_alone(attempts: Attempts) -> bool:
    return attempts.is_alone or attempts.is_held
