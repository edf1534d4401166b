"""report.html: one file that holds all it shows and asks no network, in which whatever others named is text and nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wsimil.export.report import figures
from wsimil.export.report.cells import Cells, brief, text
from wsimil.export.report.names import bounds_of, headlines, meaning_of, of_labels, title_of
from wsimil.export.report.report import ComparisonReport, Report
from wsimil.export.report.svg import Scale
from wsimil.provenance import Json

_CLASS_METRICS = ("auroc", "auprc", "sensitivity", "specificity", "ppv", "f1", "brier")
_GROUP_METRICS = 3
_STRATA = {
    "classification": ", within classes", "ordinal": ", within levels", "survival": ", events and censored ones apart",
}  # fmt: skip


def report_page(report: Report, tree: Mapping[str, Json]) -> str:
    """The page of an evaluation, of which `tree` is metrics.json; the same report gives the same text."""
    found, cells = report.judgement, Cells(tree=tree)
    names = [name for name in found.estimates if ":" not in name or not found.classes]
    drawn: dict[str, object] = {
        "discrimination": figures.discrimination(found.classes),
        "reliability": figures.reliability(found.classes),
        "decisions": figures.decisions(found.classes),
        "agreement": figures.agreement(found.agreement),
        "survival": None,
        "survival_calibration": (),
    }
    if found.survival is not None:
        unit = str(getattr(found.task, "unit", ""))
        drawn["survival"] = figures.survival(found.survival, unit)
        drawn["survival_calibration"] = tuple(
            figures.survival_calibration(one, unit) for one in found.survival.calibration
        )
    first = headlines(found.task.kind, found.estimates)
    delongs = [one.name for one in found.classes if one.delong is not None]
    sections = [
        ("cohort", "Who was judged", True),
        ("metrics", "All metrics", True),
        ("discrimination", "Discrimination", bool(drawn["discrimination"])),
        ("decisions", "Decisions", bool(found.classes)),
        ("calibration", "Calibration", bool(found.classes)),
        ("agreement", "Agreement", bool(found.agreement)),
        ("survival", "Survival", found.survival is not None),
        ("groups", "Groups", bool(found.groupings)),
        ("errors", "Worst answers", bool(report.wrong)),
        ("model", "Model and methods", True),
    ]
    return (
        environment()
        .get_template("report.html")
        .render(
            **functions(cells, positive=found.task.positive),
            report=report,
            sections=[(key, name) for key, name, there in sections if there],
            headlines=first,
            overall=names,
            counts=found.counts,
            strata=_STRATA.get(found.task.kind, ""),
            figures=drawn,
            delongs=delongs,
            delong_of_means=any(one.delong_of == "patients" for one in found.classes),
            class_metrics=[
                name for name in _CLASS_METRICS if found.classes and all(name in one.estimates for one in found.classes)
            ],
            pictures=any(one.thumbnail for one in report.wrong),
            group_metrics=first[:_GROUP_METRICS],
            of_labels=lambda metrics: of_labels(found.task.kind, metrics),
            bar=lambda path, name: cells.bar(path, _whole(name)),
            group_bar=lambda column, row, name: _group_bar(report, cells, column, row, name),
            shade=lambda t, d: _shade(found.confusion.counts[t] if found.confusion else (), d),
        )
    )


def comparison_page(report: ComparisonReport, tree: Mapping[str, Json]) -> str:
    """The page of a comparison, of which `tree` is metrics.json."""
    found, cells = report.comparison, Cells(tree=tree)
    names = [name for name in found.differences if ":" not in name or not found.classes]
    delongs = [one for one in found.classes if one.delong is not None]

    def difference_bar(name: str) -> Markup:
        one = found.differences[name]
        reach = max((abs(end) for end in (one.low, one.high) if end is not None), default=1.0) or 1.0
        if bounds_of(name) is not None:
            reach = max(reach, 0.25)
        scale = Scale(label="", low=-reach, high=reach, ticks=())
        return cells.bar(["differences", name], scale, value="difference", mark=0.0)

    return (
        environment()
        .get_template("compare.html")
        .render(
            **functions(cells, positive=found.task.positive),
            report=report,
            sections=[
                ("cohort", "Who was judged"), ("metrics", "Differences"), ("figures", "Figures"), ("model", "Models"),
            ],
            headlines=headlines(found.task.kind, found.differences),
            overall=names,
            counts=found.counts,
            figures={"two": figures.two_models(found, report.names)},
            delongs=[one.name for one in delongs],
            delong_of_means=any(one.delong_of == "patients" for one in delongs),
            difference_bar=difference_bar,
        )
    )  # fmt: skip


def clip(name: str, most: int = 60) -> str:
    """A name that is not too long to show, its middle left out."""
    return name if len(name) <= most else name[: most // 2] + "…" + name[-(most // 2) :]


def functions(cells: Cells, *, positive: str = "") -> dict[str, object]:
    """What every template may call; `positive` as `Task.positive`."""

    def estimate(path: Sequence[str | int]) -> Markup:
        value = cells.get(path)
        if not isinstance(value, Mapping):
            return cells.number(path)
        return Markup("{} <span class='small quiet'>({})</span>").format(
            cells.number([*path, "value"]), cells.interval(path)
        )

    return {
        "number": cells.number,
        "mark": cells.mark,
        "interval": cells.interval,
        "p_value": cells.p_value,
        "estimate": estimate,
        "text": text,
        "title": lambda name: title_of(name, positive=clip(positive, 40)),
        "class_title": title_of,
        "meaning": meaning_of,
        "bounded": lambda name: bounds_of(name) is not None,
        "image": lambda data: "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii"),
    }


def _whole(metric: str) -> Scale:
    """All that a metric with bounds can be."""
    low, high = bounds_of(metric) or (0.0, 1.0)
    return Scale(label="", low=low, high=high, ticks=())


def _group_bar(report: Report, cells: Cells, column: str, row: int, name: str) -> Markup:
    """A group's estimate on the axis of its table, beside the value of all rows."""
    found = report.judgement
    rows = next(grouping.groups for grouping in found.groupings if grouping.column == column)
    known = [one.estimates[name] for one in rows if name in one.estimates]
    ends = [end for one in (*known, found.estimates[name]) for end in (one.low, one.high, one.value) if end is not None]
    scale = Scale.around("", ends)
    return cells.bar(["groups", column, row, "estimates", name], scale, mark=found.estimates[name].value)


def _shade(row: Sequence[int], column: int) -> str:
    share = row[column] / sum(row) if sum(row) else 0.0
    return f"rgba(0,114,178,{0.05 + 0.45 * share:.3f})"


@cache
def environment() -> Environment:
    """Where the templates are, with names as text and nothing else."""
    environment = Environment(
        loader=PackageLoader("wsimil.export.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["clip"] = clip
    environment.filters["brief"] = brief
    return environment
