"""From which probability on a class is said, and where that number came from: the one place where reports read both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wsimil.errors import ModelError
from wsimil.evaluation.decision import Decision
from wsimil.evaluation.threshold import Threshold
from wsimil.mil.facts import ModelFacts
from wsimil.provenance import Json
from wsimil.targets import Classification, MultiLabel

_FROZEN = "and frozen before these slides were judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """`thresholds` of the second of two classes, or of each label; empty where none decides. `origin` is for people."""

    thresholds: tuple[float, ...]
    origin: str
    chosen: Threshold | None = None


def deciding_of(model: ModelFacts) -> Deciding:
    """The thresholds that were frozen with the model, as `frozen_with` puts them into its training facts; else the task's.

    Raises ModelError where what stands there is none.
    """
    own = model.task.decides_at
    if not own:
        return Deciding(thresholds=(), origin="not needed: no answer is decided by a threshold")
    stored = model.training.get("threshold")
    if isinstance(model.task, Classification) and isinstance(stored, Mapping):
        chosen = _threshold(stored)
        origin = f"chosen by {chosen.rule} on {chosen.rows} rows of the split {chosen.fitted_on!r} {_FROZEN}"
        return Deciding(thresholds=(chosen.value,), origin=origin, chosen=chosen)
    several = model.training.get("thresholds")
    if isinstance(model.task, MultiLabel) and isinstance(several, Mapping) and several:
        return _of_labels(model.task, several)
    half = "above 0.5" if isinstance(model.task, Classification) else "0.5"
    return Deciding(
        thresholds=own,
        origin=f"not chosen: {half}, as the validation split was too small for a threshold, or none was wanted",
    )


def frozen_with(decision: Decision) -> dict[str, Json]:
    """The facts of training by which answers are made and decided: "threshold" and "calibration" of classes, "thresholds" and
    "calibrations" by label of several labels, each as its `to_json` has it; `deciding_of` reads the thresholds."""
    if decision.labels:
        thresholds = {
            name: one.threshold.to_json() for name, one in decision.labels.items() if one.threshold is not None
        }
        return {**({"thresholds": thresholds} if thresholds else {}), **decision.calibration_facts}
    threshold = decision.threshold
    return {**({} if threshold is None else {"threshold": threshold.to_json()}), **decision.calibration_facts}


def _of_labels(task: MultiLabel, stored: Mapping[str, object]) -> Deciding:
    found = {name: _threshold(one) for name, one in stored.items()}
    each = [f"{name} by {one.rule} on {one.rows} rows" for name, one in found.items()]
    left = [name for name in task.labels if name not in found]
    rest = f"; 0.5 for {', '.join(left)}, of which that split has too few" if left else ""
    return Deciding(
        thresholds=tuple(
            found[name].value if name in found else half
            for name, half in zip(task.labels, task.decides_at, strict=True)
        ),
        origin=f"chosen on the split {next(iter(found.values())).fitted_on!r} {_FROZEN}: {', '.join(each)}{rest}",
    )


def _threshold(stored: object) -> Threshold:
    try:
        if not isinstance(stored, Mapping):
            raise TypeError(f"got {stored!r}")  # noqa: TRY301 - one message for all that can be wrong
        return Threshold.from_json(stored)
    except TypeError as error:
        raise ModelError(f"model.json: training.threshold is no threshold ({error}); train again") from error


def pooled_thresholds(models: Mapping[str, ModelFacts]) -> tuple[float, ...] | Mapping[str, tuple[float, ...]] | None:
    """The thresholds of several runs by name: the same for all, or each run's own. None where none decides."""
    found = {name: deciding_of(model).thresholds for name, model in models.items()}
    same = next(iter(found.values()))
    if all(one == same for one in found.values()):
        return same or None
    return found
