"""Figures of a report, read as a person reads them: every mark by the numbers at its axes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.stages.made_runs import answers
from wsimil.evaluation.curves import decision_curve
from wsimil.evaluation.judgement import Judged, compare, judge
from wsimil.evaluation.one_class import OneClass
from wsimil.evaluation.risk_groups import RiskGroup, RiskGroups
from wsimil.evaluation.survival import LogRank, kaplan_meier
from wsimil.export.report import figures
from wsimil.export.report.figures import Figure
from wsimil.targets import Survival, Task

Points = NDArray[np.float64]
CLOSE = 0.002
"""A tenth of a px of some hundred, of an axis that is 1 long."""


@dataclass(frozen=True)
class Seen:
    """What a figure shows, in the numbers of its axes: `dots`, `bars` (left, right, bottom, top), `lines` by the words that
    stand where they are pointed at, and the outlines of `bands`.
    """

    dots: Points
    bars: Points
    lines: dict[str, Points]
    bands: list[Points]
    y_marks_px: dict[float, float]


def seen(figure: Figure) -> Seen:
    root = ET.fromstring(figure.plot)
    marks = {"middle": {}, "end": {}}  # where numbers stand: below the axis in the middle of a mark, and before it
    for one in root.findall("text"):
        if re.fullmatch(r"[−-]?[\d.]+", one.text or ""):
            anchor = one.attrib["text-anchor"]
            at = float(one.attrib["x"]) if anchor == "middle" else float(one.attrib["y"]) - 4
            marks[anchor][float((one.text or "").replace("−", "-"))] = at
    area = root.find("svg")
    assert area is not None
    left, top = (
        float(area.attrib[name]) - float(shift)
        for name, shift in zip(("x", "y"), area.attrib["viewBox"].split(), strict=False)
    )
    x, y = (np.polyfit([*marks[anchor].values()], [*marks[anchor]], 1) for anchor in ("middle", "end"))

    def numbers(places: Sequence[Sequence[float]]) -> Points:
        px = np.array(places, np.float64).reshape(-1, 2)
        return np.stack([np.polyval(x, px[:, 0] + left), np.polyval(y, px[:, 1] + top)], axis=1)

    def points(one: ET.Element) -> Points:
        return numbers([[float(v) for v in pair.split(",")] for pair in one.attrib["points"].split()])

    drawn = area.findall("polyline")
    lines = {line.findtext("title") or f"line {i}": points(line) for i, line in enumerate(drawn)}
    bands = [points(band) for band in area.findall("polygon")]
    dots = numbers([[float(dot.attrib[name]) for name in ("cx", "cy")] for dot in area.findall("circle")])
    boxes = np.array([[float(bar.attrib[k]) for k in ("x", "y", "width", "height")] for bar in area.findall("rect")])
    boxes = boxes.reshape(-1, 4)
    low, high = numbers(boxes[:, :2] + boxes[:, 2:] * [0, 1]), numbers(boxes[:, :2] + boxes[:, 2:] * [1, 0])
    bars = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return Seen(dots=dots, bars=bars, lines=lines, bands=bands, y_marks_px=marks["end"])


def judged(task: Task, labels: Sequence[str], values: Sequence[Points | None]) -> Judged:
    names = tuple(f"s{i}" for i in range(len(labels)))
    shares = np.array(values, np.float64)
    return Judged(
        task=task, slide_ids=names, patients=names, runs=("run",) * len(names), labels=tuple(labels), values=shares
    )


def test_discrimination_is_drawn_of_the_class_and_its_decisions() -> None:
    task, labels, values = answers("two", 80)
    tumor, share = np.array(labels) == "tumor", np.array(values)[:, 1]
    found = judge(judged(task, labels, values), thresholds=[0.6], groups={}, replicates=150)
    roc, pr = (seen(figure) for figure in figures.discrimination(found.classes))
    called = share >= 0.6
    place = [(called & ~tumor).sum() / (~tumor).sum(), (called & tumor).sum() / tumor.sum()]
    np.testing.assert_allclose(roc.dots, [place], atol=CLOSE)
    wanted = [[(share >= t)[~tumor].mean(), (share >= t)[tumor].mean()] for t in share]
    line = roc.lines["tumor"]
    assert np.abs(line[:, None] - [[0, 0], *wanted]).max(axis=2).min(axis=1).max() < CLOSE
    np.testing.assert_allclose(roc.lines["chance"], [[0, 0], [1, 1]], atol=CLOSE)
    np.testing.assert_allclose(pr.lines["chance: tumor"][:, 1], tumor.mean(), atol=CLOSE)
    recall, precision = (called & tumor).sum() / tumor.sum(), tumor[called].mean()
    assert np.abs(pr.lines["tumor"] - [recall, precision]).max(axis=1).min() < CLOSE


def test_dots_of_reliability_are_what_was_said_and_what_was_true() -> None:
    task, labels, values = answers("two", 80)
    found = judge(judged(task, labels, values), groups={}, replicates=150)
    (figure,) = figures.reliability(found.classes)
    share = np.array(values)[:, 1]
    order = np.argsort(share)
    parts = np.array_split(order, len(seen(figure).dots))
    wanted = [[share[part].mean(), (np.array(labels)[part] == "tumor").mean()] for part in parts]
    np.testing.assert_allclose(seen(figure).dots, wanted, atol=CLOSE)


def test_bars_are_as_many_rows_as_have_these_probabilities() -> None:
    task, labels, values = answers("two", 80)
    tumor, share = np.array(labels) == "tumor", np.array(values)[:, 1]
    found = judge(judged(task, labels, values), thresholds=[0.6], groups={}, replicates=150)
    histogram, grey = seen(figures.decisions(found.classes)[0]), seen(figures.reliability(found.classes)[0])
    without, of_class = (np.histogram(share[rows], 20, (0, 1))[0] for rows in (~tumor, tumor))
    heights = [*without / without.sum(), *of_class / of_class.sum(), *(without + of_class) / 80 / 2]
    bars = np.concatenate([histogram.bars, grey.bars])
    np.testing.assert_allclose(bars[:, 3] - bars[:, 2], heights, atol=CLOSE)
    np.testing.assert_allclose(bars[:, 2], 0, atol=CLOSE)
    edges = np.tile(np.arange(20) / 20, 3)
    assert (bars[:, 0] >= edges).all()
    assert (bars[:, 1] <= edges + 0.05).all()
    assert (bars[:, 0] < bars[:, 1]).all()
    np.testing.assert_allclose(histogram.lines["threshold 0.6"][:, 0], 0.6, atol=CLOSE)
    curve = seen(figures.decisions(found.classes)[1])
    (band,) = curve.bands
    model = curve.lines["model"]
    high, low = band[: len(model), 1], band[len(model) :, 1][::-1]
    inside = model[:, 1] > -0.02  # what lies lower is hardly shown
    assert inside.sum() > 50
    assert (low <= model[:, 1] + CLOSE)[inside].all()
    assert (model[:, 1] <= high + CLOSE)[inside].all()
    three = judge(judged(*answers("three", 60)), groups={}, replicates=150)
    assert figures.decisions(three.classes) == ()


def test_numbers_are_drawn_predicted_over_true_and_off_over_the_middle_of_both() -> None:
    task, labels, values = answers("number", 60)
    true, said = np.array([float(label) for label in labels]), np.array(values)[:, 0]
    found = judge(judged(task, labels, values), groups={}, replicates=150)
    drawn = figures.agreement(found.agreement)
    assert ">true ki67 [%]<" in drawn[0].plot
    assert ">predicted ki67 [%]<" in drawn[0].plot
    both, off = map(seen, drawn)
    np.testing.assert_allclose(both.dots, np.stack([true, said], axis=1), atol=0.1)
    np.testing.assert_allclose(off.dots, np.stack([(true + said) / 2, said - true], axis=1), atol=0.1)
    middle, spread = (said - true).mean(), (said - true).std(ddof=1)
    heights = [line[0, 1] for line in off.lines.values()]
    np.testing.assert_allclose(heights, [middle, middle - 1.96 * spread, middle + 1.96 * spread], atol=0.1)


def test_two_models_are_drawn_the_first_to_the_right_and_the_second_upwards() -> None:
    task, labels, values = answers("two", 60)
    other = answers("two", 60, seed=1, noise=3.0)[2]
    found = compare(judged(task, labels, values), judged(task, labels, other), replicates=150)
    roc, scores = figures.two_models(found, ("a", "b"))
    wanted = np.stack([np.array(values)[:, 1], np.array(other)[:, 1]], axis=1)
    tumor = np.array(labels) == "tumor"
    np.testing.assert_allclose(seen(scores).dots, [*wanted[~tumor], *wanted[tumor]], atol=CLOSE)
    assert [key.name for key in scores.keys] == ["normal", "tumor"]
    for name, share in zip(("first", "second"), wanted.T, strict=True):
        line = seen(roc).lines[name]
        rates = [[(share >= t)[~tumor].mean(), (share >= t)[tumor].mean()] for t in share]
        assert np.abs(line[:, None] - [[0, 0], *rates]).max(axis=2).min(axis=1).max() < CLOSE


def test_survival_of_a_group_falls_where_its_events_are() -> None:
    task = Survival(model="cox", unit="months", horizons=(3.0,), baseline=(0.5,))
    times = np.array([1, 2, 3, 4, 5, 6, 7, 8])
    labels = [task.read([str(time), "0" if time in (2, 6) else "1"]) or "" for time in times]
    values = list(task.values(np.array([2, 2, 2, 2, -2, -2, -2, -2.0])[:, None]))
    found = judge(judged(task, labels, values), groups={}, replicates=150)
    assert found.survival is not None
    lines = seen(figures.survival(found.survival, "months")).lines
    low, high = (next(line for name, line in lines.items() if name.startswith(word)) for word in ("low", "high"))
    wanted = {"high": ([1, 3, 4], [3 / 4, 3 / 8, 0]), "low": ([5, 7, 8], [3 / 4, 3 / 8, 0])}
    for line, (falls, left) in zip((low, high), (wanted["low"], wanted["high"]), strict=True):
        for time, share in zip(falls, left, strict=True):
            assert np.abs(line - [time, share]).max(axis=1).min() < 0.02


def test_the_interval_of_a_group_ends_where_its_curve_does() -> None:
    """It went on to the end of the other group, over months in which nobody of its own was followed."""
    times, events = np.array([1.0, 2, 3, 4, 5, 6, 10, 20, 30, 40]), np.ones(10, bool)
    events[[4, 9]] = False
    groups = []
    for name, rows in (("lower risk", np.arange(5, 10)), ("higher risk", np.arange(5))):
        curve = kaplan_meier(times[rows], events[rows])
        groups.append(RiskGroup(name=name, patients=5, events=4, curve=curve, at_risk=(5,)))
    log_rank = LogRank(groups=2, statistic=None, p_value=None)
    found = RiskGroups(groups=tuple(groups), log_rank=log_rank, at_times=(0.0, 20.0, 40.0), calibration=())
    drawn = seen(figures.survival(found, "months"))
    for one, band, line in zip(groups, drawn.bands, drawn.lines.values(), strict=True):
        begins = next(time for time, low in zip(one.curve.times, one.curve.low, strict=True) if low is not None)
        assert (band[:, 0].min(), band[:, 0].max()) == pytest.approx((begins, line[:, 0].max()), abs=0.01)
        half = len(band) // 2
        for time, low, high in zip(one.curve.times, one.curve.low, one.curve.high, strict=True):
            for edge, end in ((band[:half], high), (band[half:], low)):
                assert end is None or np.abs(edge - [time, end]).max(axis=1).min() < 0.01


@pytest.mark.parametrize("positive", [1, 7, 10, 25, 40, 63, 98])
def test_every_mark_of_net_benefit_lies_on_its_axis(positive: int) -> None:
    """A mark below 0 was drawn under the axis, over its label, where so little benefit is not shown."""
    targets = (np.arange(100) < positive).astype(np.int64)
    one = OneClass(
        name="tumor",
        rows=100,
        positive=positive,
        decides=True,
        threshold=0.5,
        estimates={},
        delong=None,
        delong_of="rows",
        roc=None,
        pr=None,
        reliability=(),
        ece={},
        decision=decision_curve(targets, np.linspace(0.9, 0.1, 100)),
        histogram=((0,) * 20, (0,) * 20),
    )
    shown = seen(figures.decisions([one])[-1])
    assert len(shown.y_marks_px) >= 2
    assert 0 in shown.y_marks_px
    assert all(12 <= px <= 284 for px in shown.y_marks_px.values()), shown.y_marks_px
    # Where all are treated net benefit is the prevalence at a threshold of 0.
    assert shown.lines["treat all"][0, 1] == pytest.approx(positive / 100, abs=0.02)
