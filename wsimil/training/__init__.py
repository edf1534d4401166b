"""From labelled bags to a model: the loop, its schedule, its checkpoints."""

from wsimil.training.config import FitConfig
from wsimil.training.fit import EpochRecord, FitResult, fit

__all__ = ["EpochRecord", "FitConfig", "FitResult", "fit"]
