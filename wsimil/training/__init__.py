"""From labelled bags to a model: the loop, its schedule, its checkpoints."""

from wsimil.training.config import FitConfig
from wsimil.training.fit import fit
from wsimil.training.records import EpochRecord, FitResult

__all__ = ["EpochRecord", "FitConfig", "FitResult", "fit"]
