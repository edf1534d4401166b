"""Work that many processes share through a folder: a list of units, claims on them, results, and what went wrong.

No server, no lock, no clock but the file system's: a unit is done at least once, and its result is published once.
"""

from wsimil.worklist.ledger import Ledger
from wsimil.worklist.plan import Stage, Unit, WorkPlan, read_plan, write_plan

__all__ = ["Ledger", "Stage", "Unit", "WorkPlan", "read_plan", "write_plan"]
