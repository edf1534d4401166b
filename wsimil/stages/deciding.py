"""From which probability on a class is said, and where that number came from: the one place where reports read both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wsimil.errors import ModelError
from wsimil.evaluation.threshold import Threshold
from wsimil.mil.facts import ModelFacts
from wsimil.targets import Classification, MultiLabel, Task

_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """`thresholds` of the second of two classes, or of each label; empty where none decides. `origin` is for people."""

    thresholds: tuple[float, ...]
    origin: str
    chosen: Threshold | None = None


def deciding_of(model: ModelFacts) -> Deciding:
    """The threshold that was frozen with the model, in `training["threshold"]` as `Threshold.to_json` has it; else a half.

    Raises ModelError where what stands there is none.
    """
    labels = _labels(model.task)
    if not labels:
        return Deciding(thresholds=(), origin="not needed: no answer is decided by a threshold")
    stored = model.training.get("threshold")
    if labels == 1 and isinstance(stored, Mapping):
        try:
            chosen = Threshold.from_json(stored)
        except TypeError as error:
            raise ModelError(f"model.json: training.threshold is no threshold ({error}); train again") from error
        origin = (
            f"chosen by {chosen.rule} on {chosen.rows} rows of the split {chosen.fitted_on!r} and frozen before these slides"
            " were judged"
        )
        return Deciding(thresholds=(chosen.value,), origin=origin, chosen=chosen)
    return Deciding(
        thresholds=(_HALF,) * labels,
        origin="not chosen: 0.5, as the validation split was too small for a threshold, or none was wanted",
    )


def _labels(task: Task) -> int:
    if isinstance(task, MultiLabel):
        return len(task.labels)
    return 1 if isinstance(task, Classification) and len(task.classes) == 2 else 0


def pooled_thresholds(models: Mapping[str, ModelFacts]) -> tuple[float, ...] | Mapping[str, float] | None:
    """The thresholds of several runs by name: the same for all, or of two classes each run's own. None where none decides."""
    found = {name: deciding_of(model).thresholds for name, model in models.items()}
    same = next(iter(found.values()))
    if all(one == same for one in found.values()):
        return same or None
    return {name: one[0] for name, one in found.items()}
