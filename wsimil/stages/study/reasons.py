"""Why a unit was set aside, in one line."""

from __future__ import annotations

from wsimil.worklist import Ledger
from wsimil.worklist.attempts import Attempts


def reason_of(ledger: Ledger, unit_id: str, attempts: Attempts) -> str:
    """What was said last of a unit that was set aside; with how often, where its process died each time."""
    told = ledger.reasons(unit_id, attempts)
    if not told:
        return "it was set aside and nothing tells why"
    return str(told[-1].get("reason", "")) or "no reason was written down"
