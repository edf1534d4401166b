"""explain.html and explain.json: whether maps show what answers rest on, and what a map may be called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from wsimil.evaluation.bootstrap import Estimate
from wsimil.evaluation.faithfulness.cohort import FEW_PATIENTS, MeanCurve
from wsimil.evaluation.faithfulness.flipping import FlipConfig
from wsimil.evaluation.faithfulness.froc import RATES
from wsimil.evaluation.faithfulness.judged import JudgedMap, MapRow
from wsimil.export.report.cells import Cells
from wsimil.export.report.figures import Figure, Key
from wsimil.export.report.page import environment, functions
from wsimil.export.report.svg import COLORS, DASHES, QUIET, Plot, Scale, swatch
from wsimil.provenance import Json

_SCHEMA = "wsimil/explain-check/1"
_MOST_FIGURES = 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FaithfulnessReport:
    """All that the page and explain.json tell. `left_out` counts what was not judged, by reason; not `blind` where nobody knows
    what a model learned from; `models` are weights by run; `truth` is the output that pixels were labelled for, None where they
    were not, and lesions were grown by `truth_margin_um`.
    """

    title: str
    version: str
    unit: str
    task: str
    units: int
    patients: int
    left_out: Mapping[str, int]
    blind: bool
    maps: tuple[JudgedMap, ...]
    rows: tuple[MapRow, ...]
    config: FlipConfig
    models: Mapping[str, str]
    truth: str | None
    truth_margin_um: float
    failures: Mapping[str, str]
    notes: tuple[str, ...]


def faithfulness_tree(report: FaithfulnessReport) -> dict[str, Json]:
    """explain.json."""
    return {
        "schema": _SCHEMA,
        "wsimil_version": report.version,
        "task": report.task,
        "unit": report.unit,
        "units": report.units,
        "patients": report.patients,
        "left_out": dict(report.left_out),
        "settings": report.config.model_dump(mode="json"),
        "models": dict(report.models),
        "truth_output": report.truth,
        "truth_margin_um": report.truth_margin_um,
        "maps": [_map(one) for one in report.maps],
        "rows": [_row(one) for one in report.rows],
        "failures": dict(report.failures),
        "notes": list(report.notes),
    }


def faithfulness_page(report: FaithfulnessReport, tree: Mapping[str, Json]) -> str:
    """The page, of which `tree` is explain.json; the same report gives the same text."""
    cells = Cells(tree=tree)
    reach = max((abs(end) for one in report.maps for end in _ends(one.estimates["margin"])), default=1.0) or 1.0
    scale = Scale(label="", low=-reach, high=reach, ticks=())
    sections = [
        ("verdicts", "Verdicts", True),
        ("curves", "Flipping curves", True),
        ("tops", "Top tiles alone and taken away", bool(report.config.top)),
        ("checks", "Further checks", True),
        ("labels", "Where pixels are labelled", report.truth is not None),
        ("how", "How it was measured", True),
    ]
    return environment().get_template("explain.html").render(
        **functions(cells),
        report=report,
        sections=[(key, name) for key, name, there in sections if there],
        several=len({one.method for one in report.maps}) > 1,
        probabilities=report.maps[0].measure == "probability",
        figures=[_curves(one, report) for one in report.maps[:_MOST_FIGURES]],
        shown_figures=min(len(report.maps), _MOST_FIGURES),
        margin_bar=lambda i: cells.bar(["maps", i, "estimates", "margin"], scale, mark=0.0),
        has=lambda one, name: name in one.estimates,
        tiny=_tiny,
        any_has=lambda name: any(name in one.estimates for one in report.maps),
        tops=[f"{share:.4g}" for share in report.config.top],
        percent=lambda share: f"{100 * float(share):g} %",
        rates=[f"{rate:g}" for rate in RATES],
        few=report.patients < FEW_PATIENTS,
    )  # fmt: skip


def _map(one: JudgedMap) -> dict[str, Json]:
    return {
        "method": one.method,
        "score": one.score,
        "rules": list(one.rules),
        "runs": list(one.runs),
        "measure": one.measure,
        "rows": one.rows,
        "units": one.units,
        "patients": one.patients,
        "verdict": {"beats_random": one.verdict.beats_random, "words": one.verdict.words},
        "estimates": {name: asdict(estimate) for name, estimate in one.estimates.items()},
        "curves": {
            "most_first": _curve(one.most_first), "least_first": _curve(one.least_first), "random": _curve(one.random),
        },
        "pooled": dict(one.pooled),
        "froc": None if one.froc is None else {
            "at": {f"{rate:g}": value for rate, value in zip(RATES, one.froc.at, strict=True)},
            "mean": one.froc.mean, "slides": one.froc.slides, "lesions": one.froc.lesions,
            "false_alarms": list(one.froc.false_alarms), "sensitivity": list(one.froc.sensitivity),
        },
    }  # fmt: skip


def _row(one: MapRow) -> dict[str, Json]:
    return {
        "unit": one.unit,
        "patient": one.patient,
        "run": one.run,
        "method": one.method,
        "score": one.score,
        "rule": one.rule,
        "said": one.said,
        "measure": one.measure,
        "tiles": one.tiles,
        "numbers": {name: value if math.isfinite(value) else None for name, value in one.numbers.items()},
    }


def _curve(one: MeanCurve) -> dict[str, Json]:
    return {"mean": list(one.mean), "low": list(one.low), "high": list(one.high)}


def _ends(one: Estimate) -> list[float]:
    return [end for end in (one.low, one.high, one.value) if end is not None]


def _curves(one: JudgedMap, report: FaithfulnessReport) -> Figure:
    shares = report.config.shares
    title = f"{one.method}: {one.score}"
    label = "probability of what was said" if one.measure == "probability" else "value, in the way of what was said"
    lines = (
        ("least important first", one.least_first, COLORS[2], DASHES[1]),
        ("random order", one.random, QUIET, DASHES[2]),
        ("most important first", one.most_first, COLORS[1], DASHES[0]),
    )
    ends = [end for _, curve, _, _ in lines for end in (*curve.mean, *_known(curve.low), *_known(curve.high))]
    y = Scale.unit(label) if one.measure == "probability" else Scale.around(label, ends)
    plot = Plot(
        Scale.unit("share of tiles dropped"), y, title=title,
        description="What is left of the answer after tiles were dropped in the order of the map and in random orders.",
    )  # fmt: skip
    for name, curve, color, dash in lines:
        if all(low is not None and high is not None for low, high in zip(curve.low, curve.high, strict=True)):
            plot.band(shares, _known(curve.low), _known(curve.high), color)
        plot.line(shares, curve.mean, color, dash=dash, name=name)
    return Figure(
        title=title,
        reading=f"Mean over {one.rows} maps; shaded: 95 % interval over patients. A faithful map falls at once when its most"
        " important tiles go first, and stays up when they go last.",
        plot=plot.svg(),
        keys=tuple(Key(swatch=swatch(color, dash), name=name) for name, _, color, dash in lines),
    )


def _tiny(one: JudgedMap, name: str) -> str:
    """A number that may be far below 1."""
    estimate = one.estimates.get(name)
    return "–" if estimate is None or estimate.value is None else f"{estimate.value:.1e}"


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
