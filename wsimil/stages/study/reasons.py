"""Why a unit was set aside, in one line."""

from __future__ import annotations

from wsimil.worklist import Ledger
from wsimil.worklist.attempts import Attempts

_STEPS = ("list", "open", "encode", "write")


def reason_of(ledger: Ledger, unit_id: str, attempts: Attempts) -> str:
    """What was said last of a unit that was set aside."""
    told = ledger.reasons(unit_id, attempts)
    if not told:
        return "it was set aside and nothing tells why"
    return str(told[-1].get("reason", "")) or "no reason was written down"


def failure_of(ledger: Ledger, unit_id: str, attempts: Attempts) -> tuple[str, str]:
    """The step at which a slide failed, empty where nobody could say, and the reason."""
    reason = reason_of(ledger, unit_id, attempts)
    step, _, rest = reason.partition(": ")
    return (step, rest) if step in _STEPS else ("", reason)
