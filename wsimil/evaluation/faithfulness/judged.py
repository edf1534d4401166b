"""All slides of one score of one method: what is told of it, in numbers with intervals and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.bootstrap import Estimate
from wsimil.evaluation.cases import Floats
from wsimil.evaluation.faithfulness.cohort import MeanCurve, Verdict, mean_curve, means, verdict
from wsimil.evaluation.faithfulness.flipping import FlipConfig
from wsimil.evaluation.faithfulness.froc import Alarms, Froc, froc, tile_ranking
from wsimil.evaluation.faithfulness.said import READINGS

ABOVE_ATTENTION = "above_attention"
_Attention: TypeAlias = Mapping[tuple[str, str], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labelled:
    """The tiles of a bag of which the truth is known: `positive` bool [N], the map's `scores` [N] for what is true there, and
    the `alarms` of each slide whose lesions are known.
    """

    positive: NDArray[np.bool_]
    scores: Floats
    alarms: tuple[Alarms, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapRow:
    """One map of one slide, by one run. Curves [S] of the answer's strength; `random` is their mean over random orders."""

    unit: str
    patient: str
    run: str
    method: str
    score: str
    rule: str
    said: str
    measure: str
    tiles: int
    most_first: Floats
    least_first: Floats
    random: Floats
    numbers: Mapping[str, float]
    labelled: Labelled | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedMap:
    """One score of one method over all slides and runs: means over rows, with 95 % intervals over patients.

    `pooled`: AUROC and average precision of all labelled tiles together, which also compares slides with each other.
    """

    method: str
    score: str
    rules: tuple[str, ...]
    runs: tuple[str, ...]
    measure: str
    rows: int
    units: int
    patients: int
    verdict: Verdict
    estimates: Mapping[str, Estimate]
    most_first: MeanCurve
    least_first: MeanCurve
    random: MeanCurve
    froc: Froc | None
    pooled: Mapping[str, float | None]


def judge_maps(rows: Sequence[MapRow], config: FlipConfig) -> tuple[JudgedMap, ...]:
    """One judgement for each method and score, in the order of the rows; with attention, each score also beside attention."""
    attention = {(row.unit, row.run): row.numbers for row in rows if row.score == "attention"}
    groups: dict[tuple[str, str], list[MapRow]] = {}
    for row in rows:
        groups.setdefault((row.method, row.score), []).append(row)
    return tuple(_judge(group, attention, config) for group in groups.values())


def _judge(rows: Sequence[MapRow], attention: _Attention, config: FlipConfig) -> JudgedMap:
    first, patients = rows[0], [row.patient for row in rows]
    numbers = [{**row.numbers, **_beside(row, attention), **_ranked(row)} for row in rows]
    estimates = means(numbers, patients, replicates=config.replicates, seed=config.seed)

    def curve(name: str) -> MeanCurve:
        curves = np.stack([getattr(row, name) for row in rows])
        return mean_curve(curves, patients, replicates=config.replicates, seed=config.seed)

    labelled = [row.labelled for row in rows if row.labelled is not None]
    found = [alarms for one in labelled for alarms in one.alarms]
    return JudgedMap(
        method=first.method,
        score=first.score,
        rules=tuple(dict.fromkeys(row.rule for row in rows if row.rule)),
        runs=tuple(dict.fromkeys(row.run for row in rows)),
        measure=first.measure,
        rows=len(rows),
        units=len({row.unit for row in rows}),
        patients=len(set(patients)),
        verdict=verdict(estimates["margin"], patients=len(set(patients)), evidence=first.score != "attention"),
        estimates=estimates,
        most_first=curve("most_first"),
        least_first=curve("least_first"),
        random=curve("random"),
        froc=froc(found) if found else None,
        pooled=_pooled(labelled),
    )


def _beside(row: MapRow, attention: _Attention) -> dict[str, float]:
    other = attention.get((row.unit, row.run))
    if other is None or row.score == "attention":
        return {}
    return {f"{ABOVE_ATTENTION}{tail}": row.numbers[f"srg{tail}"] - other[f"srg{tail}"] for tail in READINGS}


def _ranked(row: MapRow) -> dict[str, float]:
    if row.labelled is None:
        return {}
    auroc, auprc = tile_ranking(row.labelled.positive, row.labelled.scores)
    return {"tile_auroc": auroc, "tile_auprc": auprc}


def _pooled(labelled: Sequence[Labelled]) -> dict[str, float | None]:
    if not labelled:
        return {}
    positive = np.concatenate([one.positive for one in labelled])
    found = tile_ranking(positive, np.concatenate([one.scores for one in labelled]))
    names = ("tile_auroc", "tile_auprc")
    return {name: value if np.isfinite(value) else None for name, value in zip(names, found, strict=True)}
