"""What a user may choose about a training run; read without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, JsonValue, field_validator

from wsimil.cohort import BagUnit
from wsimil.config import FrozenConfig
from wsimil.evaluation.decision import DecisionConfig
from wsimil.targets.config import TaskConfig
from wsimil.training.config import FitConfig


def _default_method() -> dict[str, JsonValue]:
    return {"name": "abmil"}


class SplitConfig(FrozenConfig):
    """How slides without a split get one, always by patient; splits and folds in the cohort file are kept.

    `val_fraction` and `test_fraction` are shares of all patients. With `folds`, fold number `fold` (from 0) is the test split.
    `file` is one that `wsimil splits make` wrote, `round` names one of its rounds; then nothing is drawn. `digest` is that of the
    file, filled in by a run: where it is given and another, the run is refused.
    """

    val_fraction: float = Field(0.15, gt=0, lt=0.9)
    test_fraction: float = Field(0.15, ge=0, lt=0.9)
    folds: int | None = Field(None, ge=2)
    fold: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    file: Path | None = None
    round: str | None = None
    digest: str | None = None

    @field_validator("round", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """YAML reads a round named 0 as a number, and 1.3 too."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class TrainConfig(FrozenConfig):
    """Everything about a training run but the features, the cohort and the output folder.

    `task`: what is to be learned, and from which columns of the cohort. `bag`: "slide", or "patient", all slides of a patient
    one after another in the order of their ids, so that answers are of patients; their labels must agree, and one of them
    suffices. `method`: its name, and hyperparameters of its own (`wsimil list methods`). `decision`: what is fitted on the
    validation split afterwards. `device`: "auto" takes CUDA where there is one.
    """

    task: TaskConfig = TaskConfig()
    bag: BagUnit = "slide"
    method: dict[str, JsonValue] = Field(default_factory=_default_method)
    fit: FitConfig = FitConfig()
    split: SplitConfig = SplitConfig()
    decision: DecisionConfig = DecisionConfig()
    device: str = "auto"
