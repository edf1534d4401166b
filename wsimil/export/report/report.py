"""What a report tells: everything that stands in metrics.json, and from it in the page and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wsimil.evaluation.judgement import Comparison, Judgement
from wsimil.evaluation.threshold import Threshold
from wsimil.provenance import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Units that did not get further, with the reason and the ids of a few of them."""

    reason: str
    units: int
    patients: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStep:
    """How many units and patients came this far, and who was lost on the way here, from the step before."""

    what: str
    units: int
    patients: int
    lost: tuple[Lost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One model as far as it knows itself; `name` is that of its folder, `cohort` its slides and patients by split.

    `thresholds` are those it decides by, `threshold_origin` says in words where they came from.
    """

    name: str
    task: Mapping[str, Json]
    method: str
    digest: str
    version: str
    config: Mapping[str, Json]
    config_digest: str
    training: Mapping[str, Json]
    encoder: Mapping[str, Json]
    tiling: Mapping[str, Json]
    features_digest: str
    thresholds: tuple[float, ...]
    threshold_origin: str
    threshold: Threshold | None
    learned_known: bool
    cohort: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongCase:
    """One of the worst answers, for a person: `thumbnail` is a JPEG of its slide, empty where there is none."""

    unit: str
    patient: str
    run: str
    of: str
    truth: str
    said: str
    number: float
    means: str
    thumbnail: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """One evaluation. `unit` is "slide" or "patient"; `notes` are what a reader must know before the numbers."""

    title: str
    unit: str
    version: str
    cohort: str
    split: str | None
    judgement: Judgement
    flow: tuple[FlowStep, ...]
    models: tuple[ModelCard, ...]
    wrong: tuple[WrongCase, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparisonReport:
    """Two models, or the runs of two studies, on the slides that both answered; `models` are of the first, then of the second."""

    title: str
    unit: str
    version: str
    cohort: str
    split: str | None
    comparison: Comparison
    flow: tuple[FlowStep, ...]
    models: tuple[ModelCard, ...]
    names: tuple[str, str]
    notes: tuple[str, ...]
