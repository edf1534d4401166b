"""metrics.json: the tree of everything that a report says in numbers. The page shows no number that is not in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wsimil.evaluation.judgement import Agreement, Comparison, Judgement
from wsimil.evaluation.one_class import OneClass
from wsimil.evaluation.risk_groups import RiskGroups
from wsimil.export.report.report import ComparisonReport, ModelCard, Report
from wsimil.provenance import Json

SCHEMA = "wsimil/metrics/1"

_LEVEL = 0.95


def report_tree(report: Report) -> dict[str, Json]:
    """All of an evaluation, as plain JSON; what is not finite is null."""
    found = report.judgement
    tree: dict[str, object] = {
        **_head(report, positive=found.task.positive),
        "counted": {
            "rows": found.rows,
            f"{report.unit}s": found.slides,
            "patients": found.patients,
            "runs": max(len(found.runs), 1),
            "of": found.counts,
        },
        "intervals": {**_intervals(found), "kind": "bca"},
        "metrics": _records(found.estimates),
    }
    if found.spread:
        tree["over_runs"] = _records(found.spread)
    if found.classes:
        tree["classes"] = {one.name: _class(one) for one in found.classes}
    if found.confusion:
        tree["confusion"] = asdict(found.confusion)
    if found.agreement:
        tree["agreement"] = {one.name: _agreement(one) for one in found.agreement}
    if found.survival:
        tree["survival"] = _survival(found.survival)
    tree["groups"] = {one.column: [asdict(row) for row in one.groups] for one in found.groupings}
    tree["wrong"] = [{k: v for k, v in asdict(one).items() if k != "thumbnail"} for one in report.wrong]
    return _tree(tree)


def comparison_tree(report: ComparisonReport) -> dict[str, Json]:
    """All of a comparison, as plain JSON."""
    found = report.comparison
    tree: dict[str, object] = {
        **_head(report, positive=found.task.positive),
        "names": report.names,
        "counted": {"rows": found.rows, "patients": found.patients, "of": found.counts},
        "intervals": {**_intervals(found), "kind": "percentile"},
        "differences": _records(found.differences),
        "delong": {
            one.name: {"of": one.delong_of, **asdict(one.delong)} for one in found.classes if one.delong is not None
        },
    }
    if found.right is not None:
        tree["right"] = dict(zip(("both", "first_only", "second_only", "neither"), found.right, strict=True))
    return _tree(tree)


def plain(value: object) -> Json:
    """A value as JSON has it: tuples become lists, numbers that are not finite null."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Sequence):
        return [plain(one) for one in value]
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _tree(value: Mapping[str, object]) -> dict[str, Json]:
    return {key: plain(one) for key, one in value.items()}


def _head(report: Report | ComparisonReport, *, positive: str) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "wsimil_version": report.version,
        "title": report.title,
        "cohort": report.cohort,
        "task": report.models[0].task,
        "positive_class": positive or None,
        "unit": report.unit,
        "split": report.split,
        "notes": report.notes,
        "models": [_model(one) for one in report.models],
        "flow": [asdict(step) for step in report.flow],
    }


def _model(one: ModelCard) -> dict[str, object]:
    return {
        "name": one.name,
        "method": one.method,
        "weights_digest": one.digest,
        "wsimil_version": one.version,
        "config": one.config,
        "config_digest": one.config_digest,
        "training": one.training,
        "encoder": one.encoder,
        "tiling": one.tiling,
        "features_digest": one.features_digest,
        "thresholds": one.thresholds,
        "threshold_origin": one.threshold_origin,
        "threshold": None if one.threshold is None else one.threshold.to_json(),
        "learned_from_known": one.learned_known,
        "cohort": one.cohort,
    }


def _intervals(found: Judgement | Comparison) -> dict[str, object]:
    return {"level": _LEVEL, "replicates": found.replicates, "seed": found.seed, "over": "patients"}


def _records(found: Mapping[str, Any]) -> dict[str, object]:
    return {name: asdict(one) for name, one in found.items()}


def _class(one: OneClass) -> dict[str, object]:
    return {
        "rows": one.rows,
        "positive": one.positive,
        "threshold": one.threshold,
        "metrics": _records(one.estimates),
        "delong": None if one.delong is None else {"of": one.delong_of, **asdict(one.delong)},
        "ece_if_calibrated": _records(one.ece),
        "reliability": [asdict(row) for row in one.reliability],
        "histogram": {"without": one.histogram[0], "with": one.histogram[1]},
    }


def _agreement(one: Agreement) -> dict[str, object]:
    return {"unit": one.unit, "mean": one.mean, "sd": one.sd, "low": one.low, "high": one.high}


def _survival(found: RiskGroups) -> dict[str, object]:
    return {
        "groups": [
            {
                "name": one.name,
                "patients": one.patients,
                "events": one.events,
                "median": one.curve.median,
                "at_risk": one.at_risk,
            }
            for one in found.groups
        ],
        "at_times": found.at_times,
        "log_rank": asdict(found.log_rank),
        "calibration": [asdict(one) for one in found.calibration],
    }
