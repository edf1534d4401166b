"""The folder of claims: who does what, what came of it, and what may be taken over.

Everything is a file that is made once, by exclusive creation or by a hard link, and never changed, renamed or removed by
anyone; only the time of a claim moves on, for as long as its holder lives. So what a reader sees is at worst a little old, and a
process that was believed dead can do no harm: it can only make files that were not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wsimil.errors import OutputError
from wsimil.provenance import Json
from wsimil.worklist import disk
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
        self._token = self.card.with_suffix(".claims")
        self._made: set[str] = set()
        self._signature = self._signed({})

    def scan(self) -> dict[str, Attempts]:
        """The tries of every unit that has any: three folders are listed, no file is opened. Raises OutputError."""
        # Claims last: of a unit that is finished in between, the end may be missed, and never the beginning.
        done, bad = disk.names(self._done), disk.names(self._bad)
        return parse(disk.names(self._claims), done, bad)

    def look(self, unit_id: str) -> Attempts:
        """The tries of one unit, by asking for each name: newer than a scan, and dearer."""
        found = Attempts()
        while disk.exists(self._claims / f"{unit_id}.{found.newest + 1}"):
            found.newest += 1
        for number in range(1, found.newest + 1):
            for closing in CLOSINGS:
                if disk.exists(self._claims / f"{unit_id}.{number}.{closing}"):
                    found.closings[number] = closing
            if disk.exists(self._claims / f"{unit_id}.{number}.{FORGIVEN}"):
                found.forgiven = number
            if disk.exists(self._bad / f"{unit_id}.{number}"):
                found.bad = number
        found.done = disk.exists(self._done / unit_id)
        return found

    def claim(self, unit: Unit, attempts: Attempts | None = None, *, beside: bool = False) -> Attempt | None:
        """Claim a unit, None where somebody else has it, or it is finished, or set aside just now.

        `attempts` is what a scan saw of it, None where that was nothing. With `beside` it is wanted for a place among others:
        None too where it must be tried alone, as may have turned out since that scan. Raises OutputError.
        """
        number, alone = 1, False
        if attempts is not None:
            attempts = self.look(unit.id)
            if attempts.is_finished:
                return None
            silent = attempts.is_held
            if silent and not self.is_silent(unit.id, attempts.newest):
                return None
            number, alone = attempts.newest + 1, attempts.is_alone or silent
            if (alone and beside) or self._condemn(unit.id, attempts, newest_is_silent=silent):
                return None
        path = self._claims / f"{unit.id}.{number}"
        if not disk.claim(self._token, path, self._signature) and not self._is_ours(path):
            return None
        self._made.add(path.name)
        return Attempt(unit=unit, number=number, scratch=self._scratch / f"{unit.id}.{number}", alone=alone)

    def _is_ours(self, claim: Path) -> bool:
        """Whether the file system made a claim ours and lost the answer; it would be held for as long as we live."""
        return claim.name not in self._made and disk.is_name_of(self._token, claim)

    def beat(self, attempts: Iterable[Attempt]) -> None:
        """Say that we live and hold these."""
        for attempt in attempts:
            # A file system that is away for a moment is no reason to give up work; if it stays away, others take over.
            with suppress(OSError):
                disk.beat(self._claims / attempt.id)

    def now(self) -> float:
        """The file system's clock, seconds: that of our card, which is touched. Raises OutputError."""
        return disk.clock(self.card)

    def others_alive(self) -> bool:
        """Whether another worker was heard of within the time of a lease. Raises OutputError."""
        now = self.now()
        for name in disk.names(self.card.parent):
            if name.endswith(".json") and name[0] != "." and name != self.card.name:
                card = self.card.with_name(name)
                if disk.age(card, now) <= self.plan.lease_s and disk.read_json(card).get("left") == "":
                    return True
        return False

    def is_silent(self, unit_id: str, number: int, now: float | None = None) -> bool:
        """Whether the holder of that try was silent for the time of a lease before `now`, else the moment. Raises OutputError."""
        return disk.age(self._claims / f"{unit_id}.{number}", self.now() if now is None else now) > self.plan.lease_s

    def holder(self, unit_id: str, number: int) -> str:
        """The worker that made that try; empty where it died before it could say."""
        return str(disk.read_json(self._claims / f"{unit_id}.{number}").get("worker", ""))

    def close(
        self, attempt: Attempt, closing: Closing, reason: str, *, beside: Mapping[str, Json] | None = None
    ) -> None:
        """End a try of ours that made nothing, and set its unit aside where it must be. Raises OutputError.

        `beside` is written down with the reason.
        """
        self.close_of(attempt.unit.id, attempt.number, closing, reason, worker=self.worker, beside=beside)

    def close_of(
        self,
        unit_id: str,
        number: int,
        closing: Closing,
        reason: str,
        *,
        worker: str,
        beside: Mapping[str, Json] | None = None,
    ) -> None:
        """As `close`, for the try of a worker that cannot say it itself."""
        claim = self._claims / f"{unit_id}.{number}"
        note = claim.with_name(f"{claim.name}.{closing}")
        try:
            disk.publish(
                self._signed({**(beside or {}), "reason": reason, "worker": worker}), note, within=self._scratch
            )
        except OutputError:
            # A full disk takes one more name where it takes no new file; the claim tells the worker, if not the reason. Without
            # it the try would end in silence, and three workers with one full disk would condemn a unit that is good.
            disk.adopt(claim, note)
        self._condemn(unit_id, self.look(unit_id), newest_is_silent=False)

    def finish(self, attempt: Attempt, receipt: Mapping[str, Json]) -> bool:
        """Write the receipt of a unit whose results are out; False where another try was quicker. Raises OutputError."""
        return disk.publish(
            self._signed({"attempt": attempt.number, **receipt}), self._done / attempt.unit.id, within=self._scratch
        )

    def receipt(self, unit_id: str) -> Mapping[str, Json]:
        """The receipt of a unit that is done. Raises OutputError where it cannot be read."""
        found = disk.read_json(self._done / unit_id)
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
                    claim = disk.read_json(self._claims / f"{unit_id}.{number}")
                    told.append({**claim, "attempt": number, "kind": "silent", "reason": "its process fell silent"})
                continue
            note = disk.read_json(self._claims / f"{unit_id}.{number}.{kind}")
            told.append({"reason": "could not be written down", **note, "attempt": number, "kind": kind})
        return told

    def hand_backs(self, unit_id: str, attempts: Attempts) -> list[Mapping[str, Json]]:
        """What was written down, in the order of tries, by those who handed a unit back and are not forgiven."""
        return [disk.read_json(self._claims / f"{unit_id}.{k}.back") for k in attempts.counted("back")]

    def forgive(self, unit_id: str) -> bool:
        """Let a unit that was set aside be tried again; False where it is not."""
        found = self.look(unit_id)
        return found.is_bad and disk.publish(
            self._signed({}), self._claims / f"{unit_id}.{found.newest}.{FORGIVEN}", within=self._scratch
        )

    def failed_here(self, unit_id: str, attempts: Attempts) -> bool:
        """Whether this worker failed at the unit, or had a fault of its own at it."""
        return any(worker == self.worker for worker in self._workers(unit_id, attempts).values())

    def failed_on_host(self, unit_id: str, attempts: Attempts) -> bool:
        """Whether the unit failed on this host."""
        return any(
            disk.read_json(self._claims / f"{unit_id}.{k}.{attempts.closings[k]}").get("host") == self.host
            for k in attempts.counted("err", "fault")
        )

    def _workers(self, unit_id: str, attempts: Attempts) -> dict[int, str]:
        return {
            # Unreadable, as by a crash while it was written: its own number, so that it counts as one of its own.
            k: str(disk.read_json(self._claims / f"{unit_id}.{k}.{attempts.closings[k]}").get("worker", k))
            for k in attempts.counted("err", "fault")
        }

    def _condemn(self, unit_id: str, attempts: Attempts, *, newest_is_silent: bool) -> bool:
        if not attempts.condemned(self._workers(unit_id, attempts), newest_is_silent=newest_is_silent):
            return False
        reasons: dict[str, Json] = {"reasons": [dict(one) for one in self.reasons(unit_id, attempts)]}
        disk.publish(self._signed(reasons), self._bad / f"{unit_id}.{attempts.newest}", within=self._scratch)
        return True

    def _signed(self, said: Mapping[str, Json]) -> bytes:
        return json.dumps({"worker": self.worker, "host": self.host, **said}).encode()


def held_by(ledger: Ledger, worker: str, scanned: Mapping[str, Attempts]) -> Sequence[tuple[str, int]]:
    """Unit and try of everything that a worker holds."""
    return [
        (unit_id, one.newest)
        for unit_id, one in sorted(scanned.items())
        if one.is_held and ledger.holder(unit_id, one.newest) == worker
    ]
