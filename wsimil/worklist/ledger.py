"""The folder of claims: who does what, what came of it, and what may be taken over.

Everything is a file that is made once, by exclusive creation or by a hard link, and never changed, renamed or removed by
anyone; only the time of a claim moves on, for as long as its holder lives. So what a reader sees is at worst a little old, and a
process that was believed dead can do no harm: it can only make files that were not there.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wsimil.errors import OutputError
from wsimil.files import output_error, publish
from wsimil.provenance import Json
from wsimil.worklist.attempts import CLOSINGS, FORGIVEN, Attempts, Closing, parse
from wsimil.worklist.plan import Unit, WorkPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A claim that is ours: try `number` of `unit`, whose results are made in `scratch` first.

    `alone` asks that nothing else be tried beside it, in the most careful way.
    """

    unit: Unit
    number: int
    scratch: Path
    alone: bool

    @property
    def id(self) -> str:
        """The name of the claim."""
        return f"{self.unit.id}.{self.number}"


class Ledger:
    """What is written down of a plan; `worker` is the name that claims are made in, and is nobody else's."""

    def __init__(self, plan: WorkPlan, *, worker: str, host: str) -> None:
        self.plan, self.worker, self.host = plan, worker, host
        work = plan.work
        self._claims, self._done, self._bad, self._scratch = (
            work / name for name in ("claims", "done", "bad", "scratch")
        )
        self.card = work / "workers" / f"{worker}.json"

    def scan(self) -> dict[str, Attempts]:
        """The tries of every unit that has any: three folders are listed, no file is opened."""
        # Claims last: of a unit that is finished in between, the end may be missed, and never the beginning.
        done, bad = _names(self._done), _names(self._bad)
        return parse(_names(self._claims), done, bad)

    def look(self, unit_id: str) -> Attempts:
        """The tries of one unit, by asking for each name: newer than a scan, and dearer."""
        found = Attempts()
        while (self._claims / f"{unit_id}.{found.newest + 1}").exists():
            found.newest += 1
        for number in range(1, found.newest + 1):
            for closing in CLOSINGS:
                if (self._claims / f"{unit_id}.{number}.{closing}").exists():
                    found.closings[number] = closing
            if (self._claims / f"{unit_id}.{number}.{FORGIVEN}").exists():
                found.forgiven = number
            if (self._bad / f"{unit_id}.{number}").exists():
                found.bad = number
        found.done = (self._done / unit_id).exists()
        return found

    def claim(self, unit: Unit, attempts: Attempts | None = None) -> Attempt | None:
        """Claim a unit, None where somebody else has it, or it is finished, or set aside just now.

        `attempts` is what a scan saw of it, None where that was nothing. Raises OutputError.
        """
        number, alone = 1, False
        if attempts is not None:
            attempts = self.look(unit.id)
            if attempts.is_finished:
                return None
            silent = attempts.is_held
            if silent and not self.is_silent(unit.id, attempts.newest):
                return None
            if self._condemn(unit.id, attempts, newest_is_silent=silent):
                return None
            number, alone = attempts.newest + 1, attempts.is_alone or silent
        path = self._claims / f"{unit.id}.{number}"
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        except OSError as error:
            raise output_error(path, error) from error
        try:
            os.write(handle, self._signed({}))
        except OSError as error:
            raise output_error(path, error) from error
        finally:
            os.close(handle)
        return Attempt(unit=unit, number=number, scratch=self._scratch / f"{unit.id}.{number}", alone=alone)

    def beat(self, attempts: Iterable[Attempt]) -> None:
        """Say that we live and hold these."""
        for attempt in attempts:
            # A file system that is away for a moment is no reason to give up work; if it stays away, others take over.
            with suppress(OSError):
                os.utime(self._claims / attempt.id)

    def now(self) -> float:
        """The file system's clock, seconds: that of our card, which is touched. Raises OutputError."""
        try:
            self.card.touch()
            os.utime(self.card)
            return self.card.stat().st_mtime
        except OSError as error:
            raise output_error(self.card, error) from error

    def others_alive(self) -> bool:
        """Whether another worker was heard of within the time of a lease."""
        now = self.now()
        for entry in os.scandir(self.card.parent):
            if entry.name.endswith(".json") and entry.name[0] != "." and entry.name != self.card.name:
                with suppress(FileNotFoundError):
                    if (
                        now - entry.stat().st_mtime <= self.plan.lease_s
                        and read_json(Path(entry.path)).get("left") == ""
                    ):
                        return True
        return False

    def is_silent(self, unit_id: str, number: int) -> bool:
        """Whether the holder of that try has not been heard of for the time of a lease."""
        try:
            # Opened, as network file systems answer `stat` from memory and look anew when a file is opened.
            handle = os.open(self._claims / f"{unit_id}.{number}", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return self.now() - os.fstat(handle).st_mtime > self.plan.lease_s
        finally:
            os.close(handle)

    def holder(self, unit_id: str, number: int) -> str:
        """The worker that made that try; empty where it died before it could say."""
        return str(read_json(self._claims / f"{unit_id}.{number}").get("worker", ""))

    def close(self, attempt: Attempt, closing: Closing, reason: str) -> None:
        """End a try of ours that made nothing, and set its unit aside where it must be. Raises OutputError."""
        self.close_of(attempt.unit.id, attempt.number, closing, reason, worker=self.worker)

    def close_of(self, unit_id: str, number: int, closing: Closing, reason: str, *, worker: str) -> None:
        """As `close`, for the try of a worker that cannot say it itself."""
        note = self._signed({"reason": reason, "worker": worker})
        publish(note, self._claims / f"{unit_id}.{number}.{closing}", within=self._scratch)
        self._condemn(unit_id, self.look(unit_id), newest_is_silent=False)

    def finish(self, attempt: Attempt, receipt: Mapping[str, Json]) -> bool:
        """Write the receipt of a unit whose results are out; False where another try was quicker."""
        return publish(
            self._signed({"attempt": attempt.number, **receipt}), self._done / attempt.unit.id, within=self._scratch
        )

    def receipt(self, unit_id: str) -> Mapping[str, Json]:
        """The receipt of a unit that is done. Raises OutputError where it cannot be read."""
        found = read_json(self._done / unit_id)
        if not found:
            raise OutputError(f"receipt {self._done / unit_id} cannot be read")
        return found

    def reasons(self, unit_id: str, attempts: Attempts | None = None) -> list[Mapping[str, Json]]:
        """Why tries ended that made nothing and are not forgiven: attempt, kind, worker, host, reason."""
        found = attempts or self.look(unit_id)
        told: list[Mapping[str, Json]] = []
        for number in range(found.forgiven + 1, found.newest + 1):
            kind = found.closings.get(number)
            if kind == "back":
                continue
            if kind is None:
                if number < found.newest or found.is_bad:
                    claim = read_json(self._claims / f"{unit_id}.{number}")
                    told.append({**claim, "attempt": number, "kind": "silent", "reason": "its process fell silent"})
                continue
            told.append({**read_json(self._claims / f"{unit_id}.{number}.{kind}"), "attempt": number, "kind": kind})
        return told

    def forgive(self, unit_id: str) -> bool:
        """Let a unit that was set aside be tried again; False where it is not."""
        found = self.look(unit_id)
        return found.is_bad and publish(
            self._signed({}), self._claims / f"{unit_id}.{found.newest}.{FORGIVEN}", within=self._scratch
        )

    def failed_here(self, unit_id: str, attempts: Attempts) -> bool:
        """Whether this worker failed at the unit, or had a fault of its own at it."""
        return any(worker == self.worker for worker in self._workers(unit_id, attempts).values())

    def failed_on_host(self, unit_id: str, attempts: Attempts) -> bool:
        """Whether the unit failed on this host."""
        return any(
            read_json(self._claims / f"{unit_id}.{k}.{attempts.closings[k]}").get("host") == self.host
            for k in attempts.counted("err", "fault")
        )

    def _workers(self, unit_id: str, attempts: Attempts) -> dict[int, str]:
        return {
            # Unreadable, as by a crash while it was written: its own number, so that it counts as one of its own.
            k: str(read_json(self._claims / f"{unit_id}.{k}.{attempts.closings[k]}").get("worker", k))
            for k in attempts.counted("err", "fault")
        }

    def _condemn(self, unit_id: str, attempts: Attempts, *, newest_is_silent: bool) -> bool:
        if not attempts.condemned(self._workers(unit_id, attempts), newest_is_silent=newest_is_silent):
            return False
        reasons: dict[str, Json] = {"reasons": [dict(one) for one in self.reasons(unit_id, attempts)]}
        publish(self._signed(reasons), self._bad / f"{unit_id}.{attempts.newest}", within=self._scratch)
        return True

    def _signed(self, said: Mapping[str, Json]) -> bytes:
        return json.dumps({"worker": self.worker, "host": self.host, **said}).encode()


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def read_json(path: Path) -> Mapping[str, Json]:
    """What a file says; nothing where it is not there, or not whole."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def check_links(plan: WorkPlan, worker: str) -> None:
    """Raise OutputError where the file system has no hard links or lets two processes make one file."""
    probe, twin = (plan.work / "scratch" / f".probe.{worker}.{part}" for part in "ab")
    try:
        probe.write_bytes(b"")
        os.link(probe, twin)
        with suppress(FileExistsError):
            os.link(probe, twin)
            raise OutputError(
                f"{plan.work}: its file system makes one link twice, so results could be overwritten; use another one"
            )
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise OutputError(
                f"{plan.work}: its file system has no hard links, by which results are published once; put the study on another"
                " one (ext4, xfs, NFS, Lustre, GPFS and BeeGFS have them)"
            ) from error
        raise output_error(probe, error) from error
    finally:
        for path in (probe, twin):
            path.unlink(missing_ok=True)


def held_by(ledger: Ledger, worker: str, scanned: Mapping[str, Attempts]) -> Sequence[tuple[str, int]]:
    """Unit and try of everything that a worker holds."""
    return [
        (unit_id, one.newest)
        for unit_id, one in sorted(scanned.items())
        if one.is_held and ledger.holder(unit_id, one.newest) == worker
    ]
