"""What the page is told: an index of the cohort and each slide with its tiles, as plain JSON without a NaN.

Of a slide it holds the id, the geometry and what the model said; no path and no property of the file.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from wsimil import __version__
from wsimil.export.answers import AnswerRule
from wsimil.export.scores import ScoreTable, Tissue
from wsimil.export.shown import effective_tiles, shown
from wsimil.export.viewer.ranges import CohortScore
from wsimil.export.viewer.what_if import Mix, NotCalibratedError, NotClosedError, closed_form
from wsimil.mil.facts import ModelFacts
from wsimil.provenance import Json
from wsimil.targets import MultiLabel, Task

NOTICE = "Research use only. Not for diagnosis."
NO_SCORES = "no tile scores"
_UNKNOWN_LABEL = "=?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCase:
    """One line of the list: a slide, and the answer for it or for its patient; empty text is not known.

    `tiles` is None where nobody has counted; `scored` says whether the slide has a score table.
    """

    slide_id: str
    patient_id: str
    values: NDArray[np.float64] | None
    label: str
    split: str
    status: str
    unusual: bool | None
    tiles: int | None
    scored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """All that the list is made of; `rule` is how the model answers, `thresholds` are those it decides by."""

    model: ModelFacts
    rule: AnswerRule
    thresholds: tuple[float, ...]
    scores: tuple[CohortScore, ...]
    cases: tuple[ListedCase, ...]


def index_json(cohort: Cohort) -> dict[str, Json]:
    """The index of a cohort."""
    task = cohort.rule.task
    return {
        "version": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "notice": NOTICE,
        "unit": cohort.model.bag,
        "model": _model(cohort.model),
        "task": {
            "kind": task.kind,
            "answers": [
                {"name": one.name, "title": one.title, "unit": one.unit, "probability": one.probability}
                for one in task.answers
            ],
            "outputs": list(task.outputs),
            "raises": list(task.raises),
        },
        "thresholds": list(cohort.thresholds),
        "scores": [
            {
                "name": one.name,
                "label": one.label,
                "kind": one.kind,
                "unit": one.unit,
                "zero": one.zero,
                "rule": one.rule,
                "range": list(one.range),
                "normalization": one.normalization,
            }
            for one in cohort.scores
        ],
        "cases": [_listed(index, case, task) for index, case in enumerate(cohort.cases)],
    }


def case_json(index: int, table: ScoreTable, *, what_if: Mapping[str, Json]) -> dict[str, Json]:
    """A slide with its tiles, but for its picture and crops, which whoever has the slide adds."""
    names = list(table.score_names)
    values = {name: shown(table, name).values for name in names}
    # Of one slide of a patient they would not be those of the patient's answer.
    counted = values if table.bag_tiles == len(table) else {}
    return {
        "index": index,
        "slide_id": table.slide_id,
        "size0_px": list(table.slide_size0_px),
        "bounds0_px": list(table.bounds0_px) if table.bounds_known else None,
        "mpp": table.mpp,
        "tile": {"size0": table.size0, "stride0": table.stride0, "mpp": table.tile_mpp},
        "tiling": table.tiling,
        "xy0": packed(table.xy0.astype("<i4")),
        "scores": {name: packed(one.astype("<f4")) for name, one in values.items()},
        "main_score": table.main_score if names and table.main_score in names else (names[0] if names else None),
        "values": numbers(table.values),
        "logits": numbers(table.logits),
        "bias": numbers(table.bias),
        "predicted": table.predicted,
        "effective_tiles": {
            name: _finite(effective_tiles(np.abs(one))) for name, one in counted.items() if np.nansum(np.abs(one)) > 0
        },
        "whatif": dict(what_if),
        "pyramid": None,
        "pyramid_note": None,
        "crops": None,
        "tissue": tissue_json(table.tissue),
    }


def what_if_json(table: ScoreTable, *, mix: Mix | None, rule: AnswerRule, recomputed: bool) -> dict[str, Json]:
    """How the page finds a slide's answer without some of its tiles: itself, by the server (`recomputed`), or not, and why."""
    try:
        form = closed_form(table, mix, rule)
    except NotCalibratedError as reason:
        return {"form": None, "reason": f"{reason}"}
    except NotClosedError as reason:
        return {"form": "server"} if recomputed else {"form": None, "reason": f"{reason}"}
    return {
        "form": "closed",
        "mix": "single" if form.mix == "uniform" else form.mix,
        "attention": [packed(column.astype("<f4")) for column in form.attention.T],
        "logit_parts": {
            name: packed(column.astype("<f4")) for name, column in zip(table.task.outputs, form.parts.T, strict=True)
        },
        "link": rule.link(),
    }


def tissue_json(tissue: Tissue) -> dict[str, Json] | None:
    """Tissue as a MultiPolygon in level-0 px, its rings closed; None where none is known."""
    polygons: list[Json] = [[_closed(ring).tolist() for ring in polygon] for polygon in tissue]
    return {"type": "MultiPolygon", "coordinates": polygons} if polygons else None


def numbers(values: NDArray[np.float64]) -> list[Json]:
    """Numbers as JSON takes them: what is not finite is null."""
    return [_finite(float(value)) for value in values]


def packed(values: NDArray[np.generic]) -> str:
    """The bytes of an array, row after row, as base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def shown_status(status: str) -> str:
    """A status without its reason, which may name files of the one who predicted."""
    kind, colon, _ = status.partition(":")
    return f"{kind}; see failures.csv" if colon else kind


def uncertainty(values: NDArray[np.float64], task: Task) -> float | None:
    """Entropy of the probabilities as a share of the most that there can be, in [0, 1]; of labels its mean; None without any."""
    if task.kind in ("classification", "ordinal"):
        return _entropy(values) / math.log(len(values))
    if isinstance(task, MultiLabel):
        return float(np.mean([_entropy(np.array([p, 1 - p])) / math.log(2) for p in values]))
    return None


def _closed(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    return ring if bool((ring[0] == ring[-1]).all()) else np.concatenate([ring, ring[:1]])


def _listed(index: int, case: ListedCase, task: Task) -> dict[str, Json]:
    predicted = None if case.values is None else task.decided(case.values)
    return {
        "index": index,
        "slide_id": case.slide_id,
        "patient_id": case.patient_id or None,
        "label": case.label or None,
        "split": case.split or None,
        "predicted": predicted,
        "right": _right(predicted, case.label, task),
        "values": None if case.values is None else numbers(case.values),
        "confidence": None if case.values is None else task.confidence(case.values),
        "uncertainty": None if case.values is None else uncertainty(case.values, task),
        "unusual": case.unusual,
        "tiles": case.tiles,
        "scored": case.scored,
        "status": shown_status(case.status),
    }


def _right(predicted: str | None, label: str, task: Task) -> bool | None:
    """None where nothing is decided, or the truth is not known in full."""
    if not task.decides or predicted is None or not label or _UNKNOWN_LABEL in label:
        return None
    return set(predicted.split(";")) == set(label.split(";")) if isinstance(task, MultiLabel) else predicted == label


def _model(model: ModelFacts) -> dict[str, Json]:
    encoder = model.features.encoder.get("name") if model.features else None
    facts = {
        "method": model.method,
        "weights": model.digest[:12],
        "trained with": f"wsimil {model.version}" if model.version else "",
        "encoder": str(encoder or ""),
    }
    return {name: text for name, text in facts.items() if text}


def _entropy(shares: NDArray[np.float64]) -> float:
    known = shares[shares > 0]
    return max(0.0, float(-(known * np.log(known)).sum()))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
