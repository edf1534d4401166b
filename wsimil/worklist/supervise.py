"""Workers of one machine, a process for each GPU: started, watched, started again, and told to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import FrameType

from wsimil.errors import ConfigError, OutputError
from wsimil.files import write_unsynced
from wsimil.worklist.attempts import Closing
from wsimil.worklist.disk import read_json
from wsimil.worklist.host import hostname, worker_name
from wsimil.worklist.ledger import Ledger, held_by
from wsimil.worklist.plan import WorkPlan
from wsimil.worklist.worker import IN_A_ROW, Left, Watcher

REQUEUE = 75
"""Exit code of workers that gave their units back because they were asked to make room (SIGUSR1)."""
TERMINATED, INTERRUPTED = 143, 130
_CRASHED = 1
"""Exit code of a process upon an error that its worker did not foresee; no `Left` has it."""
STOPS: Mapping[int, int] = {signal.SIGUSR1: REQUEUE, signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}
"""Signals that end a worker in good order, with the exit code of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A place for one worker: what it is called, and what its environment has beside ours."""

    device: str
    env: Mapping[str, str]


def seats(gpus: str, workers: int | None, env: Mapping[str, str]) -> list[Seat]:
    """One seat for each GPU, or `workers` of them on the processor. Raises ConfigError.

    `gpus` is "auto" (all that are visible, else the processor), "all", "none" or how many.
    """
    visible = visible_gpus(env)
    if gpus in ("auto", "all"):
        chosen = visible
    elif gpus == "none":
        chosen = []
    elif gpus.isdigit() and int(gpus) > 0:
        chosen = visible[: int(gpus)]
        if len(chosen) < int(gpus):
            raise ConfigError(f"--gpus {gpus}: {len(visible)} are visible here; ask for fewer, or for all")
    else:
        raise ConfigError(f"--gpus {gpus!r}: wanted all, none or a number")
    if gpus == "all" and not chosen:
        raise ConfigError("--gpus all: none is visible here; leave it out to work on the processor")
    if chosen and workers is not None:
        raise ConfigError("--workers is for the processor; there is one worker for each GPU, and --gpus none for none")
    count = len(chosen) or workers or 1
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))} if count > 1 else {}
    if not chosen:
        return [Seat(device="cpu", env={"CUDA_VISIBLE_DEVICES": "", **threads}) for _ in range(count)]
    return [Seat(device=f"gpu {gpu}", env={"CUDA_VISIBLE_DEVICES": gpu, **threads}) for gpu in chosen]


def visible_gpus(env: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, else all that the driver shows; without asking the driver, which takes seconds."""
    named = env.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        # As CUDA reads it: what stands behind one that cannot be is not visible either.
        return list(
            takewhile(lambda one: one not in ("", "-1", "NoDevFiles"), (one.strip() for one in named.split(",")))
        )
    nodes = (re.fullmatch(r"nvidia([0-9]+)", path.name) for path in Path("/dev").iterdir())
    return sorted((found[1] for found in nodes if found), key=int)


@dataclass(kw_only=True)
class Supervisor:
    """Keeps one process in every seat; `command` is what runs a worker of a name, `watcher` hears of those that died."""

    plan: WorkPlan
    seats: Sequence[Seat]
    command: Callable[[str], Sequence[str]]
    watcher: Watcher
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _codes: dict[int, int] = field(default_factory=dict)
    # The main thread may be interrupted by one signal while it passes on another.
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _signals: list[int] = field(default_factory=list)

    def run(self) -> int:
        """Until all have left; the exit code for all of them."""
        with self._stopping():
            threads = [threading.Thread(target=self._keep, args=(index,)) for index in range(len(self.seats))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if self._signals:
            return STOPS[self._signals[0]]
        codes = set(self._codes.values())
        # Whoever saw all units finished speaks for all; else the most telling.
        for code in (Left.FINISHED, Left.REFUSED):
            if code in codes:
                return int(code)
        return max(codes - {int(Left.IMPATIENT)}, default=int(Left.IMPATIENT))

    def _keep(self, index: int) -> None:
        """Have a worker in a seat until one leaves for good, and note how."""
        code = int(Left.FAULTY)
        try:
            code = self._fill(index)
        except (OSError, OutputError) as error:
            self.watcher.note(f"{self.seats[index].device}: FAULT OF THIS WORKER: {error}")
        with self._lock:
            self._codes[index] = code

    def _fill(self, index: int) -> int:
        deaths, ever_worked = 0, False
        while True:
            name = worker_name()
            code = self._sit(index, name)
            if code < 0:
                worked, is_blamed = self._bury(name, -code)
                ever_worked |= worked
                if worked:
                    deaths = 0
                # A unit that kills whoever tries it alone is no fault of the seat, unless all do here, while others are at work.
                elif not is_blamed or (not ever_worked and self._others_alive(name)):
                    deaths += 1
                if deaths >= IN_A_ROW:
                    return int(Left.FAULTY)
            elif code == _CRASHED:
                self.watcher.note(
                    f"{name}: FAULT OF THIS WORKER: it ended with an error that nobody foresaw, see above"
                )
                return int(Left.FAULTY)
            if self._signals or (code >= 0 and code != Left.RENEW):
                return code

    def _sit(self, index: int, name: str) -> int:
        """Run one worker to its end; its exit code, negative for a signal."""
        seat = self.seats[index]
        with self._lock:
            if self._signals:
                return STOPS[self._signals[0]]
            env = {**os.environ, **seat.env, "WSIMIL_DEVICE": seat.device}
            child = subprocess.Popen(self.command(name), env=env)  # noqa: S603  # our own command
            self._children[index] = child
        code = child.wait()
        with self._lock:
            del self._children[index]
        return code

    def _bury(self, name: str, number: int) -> tuple[bool, bool]:
        """Write down what a worker held that died by a signal; whether it had done anything, and whether a unit is to blame."""
        ledger = Ledger(self.plan, worker=f"{name}-supervisor", host=hostname())
        held = held_by(ledger, name, ledger.scan())
        how = f"its process died by {_signal_name(number)}"
        if number == signal.SIGKILL:
            how += ", as where memory runs out"
        self.watcher.note(f"{name}: {how}, holding {', '.join(f'{unit}.{k}' for unit, k in held) or 'nothing'}")
        closing: Closing = "err" if len(held) == 1 else "suspect"
        if self._signals or number in STOPS:
            closing = "back"  # it was told to go, and went before it could hand back, or was in the midst of it
        for unit_id, attempt in held:
            ledger.close_of(unit_id, attempt, closing, how, worker=name)
        path = ledger.card.with_name(f"{name}.json")
        card = read_json(path)
        if card:
            write_unsynced(path, json.dumps({**card, "left": how, "held": []}).encode())
        done = card.get("done")
        worked = isinstance(done, dict) and any(one["units"] for one in done.values())
        return worked, closing == "err"

    def _others_alive(self, name: str) -> bool:
        ledger = Ledger(self.plan, worker=f"{name}-supervisor", host=hostname())
        try:
            return ledger.others_alive()
        finally:
            ledger.card.unlink(missing_ok=True)  # no worker's

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        def stop(number: int, _: FrameType | None) -> None:
            with self._lock:
                if number not in self._signals:
                    self._signals.append(number)
                    for child in self._children.values():
                        child.send_signal(number)

        before = {number: signal.signal(number, stop) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
