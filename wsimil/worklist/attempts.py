"""What the names of files say of a unit: how often it was tried, how each try ended, and what may be done with it now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

FAILED_BY = 2
"""So many different workers must have failed at a unit before it is set aside."""
FAULTY = 3
"""So many different workers may have had a fault of their own (a disk, a GPU) at a unit before it is taken for the unit's."""
SILENT = 3
"""So many tries may have ended in silence, their process gone with nobody to say why, before a unit is set aside."""

Closing: TypeAlias = Literal["back", "suspect", "fault", "err"]
"""How a try ended that made nothing: handed back; its process died and had others too; the worker failed; the unit failed.

A try that was interrupted while its end was written may have two: the later one in this list holds.
"""
CLOSINGS: tuple[Closing, ...] = get_args(Closing)
_RANKS = {kind: rank for rank, kind in enumerate(CLOSINGS)}
FORGIVEN = "forgiven"


@dataclass(slots=True, kw_only=True)
class Attempts:
    """All tries of a unit, numbered from 1; `newest` is 0 before the first. Tries up to `forgiven` count for nothing.

    `bad` is the try after which the unit was set aside, `done` whether its results are out, which outweighs all else: a try that
    was given up may end well.
    """

    newest: int = 0
    closings: dict[int, Closing] = field(default_factory=dict)
    forgiven: int = 0
    bad: int = 0
    done: bool = False

    @property
    def is_bad(self) -> bool:
        """Whether it is set aside."""
        return not self.done and self.bad > self.forgiven

    @property
    def is_finished(self) -> bool:
        """Whether nothing is to be done any more."""
        return self.done or self.is_bad

    @property
    def is_held(self) -> bool:
        """Whether the newest try has not ended, as far as its files tell."""
        return (
            self.newest > 0
            and not self.is_finished
            and self.newest not in self.closings
            and self.newest > self.forgiven
        )

    @property
    def is_alone(self) -> bool:
        """Whether it must be tried with nothing beside it: something went wrong, and it must be clear whether this was it."""
        return bool(self.counted("suspect", "err", "fault") or self.silent)

    @property
    def silent(self) -> tuple[int, ...]:
        """Tries that another one followed though they never ended."""
        return tuple(k for k in range(self.forgiven + 1, self.newest) if k not in self.closings)

    def counted(self, *kinds: Closing) -> tuple[int, ...]:
        """Tries that ended so and are not forgiven."""
        return tuple(k for k, kind in sorted(self.closings.items()) if k > self.forgiven and kind in kinds)

    def condemned(self, workers: Mapping[int, str], *, newest_is_silent: bool = False) -> bool:
        """Whether it is to be set aside; `workers` tells who made the tries of `counted("err", "fault")`."""
        failed = {workers[k] for k in self.counted("err")}
        faulty = {workers[k] for k in self.counted("err", "fault")}
        return len(failed) >= FAILED_BY or len(faulty) >= FAULTY or len(self.silent) + newest_is_silent >= SILENT


def parse(claims: list[str], done: list[str], bad: list[str]) -> dict[str, Attempts]:
    """The tries of every unit that has any, from the names of files in the three folders; temporary files are passed over."""
    found: dict[str, Attempts] = {}
    for name in claims:
        if name[0] == ".":
            continue
        unit_id, _, rest = name.partition(".")
        one = found.get(unit_id)
        if one is None:
            one = found[unit_id] = Attempts()
        number, _, ending = rest.partition(".")
        attempt = int(number)
        if not ending:
            one.newest = max(one.newest, attempt)
        elif ending == FORGIVEN:
            one.forgiven = max(one.forgiven, attempt)
        elif attempt not in one.closings or _RANKS[one.closings[attempt]] < _RANKS[ending]:  # type: ignore[index]
            one.closings[attempt] = ending  # type: ignore[assignment]  # only these are written
    for name in bad:
        if name[0] != ".":
            unit_id, _, number = name.partition(".")
            one = found.setdefault(unit_id, Attempts())
            one.bad = max(one.bad, int(number))
    for name in done:
        if name[0] != ".":
            found.setdefault(name, Attempts()).done = True
    return found
