"""Who is learned from, chosen on and tested on: drawn once, kept in a file with a digest, the same for every method."""

from wsimil.splits.making import SplitsConfig, make_plan
from wsimil.splits.plan import Round, SplitPlan, read_plan, write_plan
from wsimil.splits.published import read_published

__all__ = ["Round", "SplitPlan", "SplitsConfig", "make_plan", "read_plan", "read_published", "write_plan"]
