"""The figures of a report, each a plot with a legend and the one sentence that says how to read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from wsimil.evaluation.judgement import Agreement, Comparison
from wsimil.evaluation.one_class import BINS, OneClass
from wsimil.evaluation.risk_groups import RiskGroups, SurvivalCalibration
from wsimil.export.report.svg import COLORS, DASHES, INK, QUIET, Plot, Scale, swatch

MOST_CLASSES = 8
"""The most classes that a figure shows: as many as there are lines that can be told apart."""

_MOST_POINTS = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One line of a legend; `metric` is where in metrics.json the estimate stands that is shown beside it."""

    swatch: Markup
    name: str
    metric: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot, what it is, how to read it, and its legend."""

    title: str
    reading: str
    plot: Markup
    keys: tuple[Key, ...] = ()


def discrimination(classes: Sequence[OneClass]) -> tuple[Figure, ...]:
    """ROC and precision-recall, a line for each class."""
    shown = [one for one in classes if one.roc is not None][:MOST_CLASSES]
    if not shown:
        return ()
    return (_roc(shown, len(classes)), _pr(shown, len(classes)))


def reliability(classes: Sequence[OneClass]) -> tuple[Figure, ...]:
    """How often a class was true beside how probable it was said to be, one figure a class."""
    found = []
    for one in [one for one in classes if one.reliability][:MOST_CLASSES]:
        title = f"Reliability: {one.name}"
        plot = Plot(
            Scale.unit("predicted probability"), Scale.unit("observed share"), title=title,
            description="Observed share over mean predicted probability, in bins of equal size, with 95 % Wilson intervals.",
        )  # fmt: skip
        total = max(sum(row.rows for row in one.reliability), 1)
        without, of_class = one.histogram
        for i, rows in enumerate(np.add(without, of_class).tolist()):
            plot.bar(
                i / BINS + 0.004,
                (i + 1) / BINS - 0.004,
                0,
                0.5 * rows / total,
                QUIET,
                opacity=0.25,
                name=f"{rows} rows",
            )
        plot.line([0, 1], [0, 1], QUIET, dash="4 4", width_px=1.2)
        for row in one.reliability:
            plot.whisker(row.predicted, row.low, row.high, COLORS[0])
        x, y = [row.predicted for row in one.reliability], [row.observed for row in one.reliability]
        plot.line(x, y, COLORS[0], width_px=1.4, opacity=0.6)
        names = [f"{row.rows} rows: said {row.predicted:.3f}, true {row.observed:.3f}" for row in one.reliability]
        plot.points(x, y, COLORS[0], radius_px=4, names=names)
        found.append(
            Figure(
                title=title,
                reading="On the diagonal, probabilities happen as often as they say. Grey bars: how many rows have which.",
                plot=plot.svg(),
                keys=(
                    Key(swatch=swatch(COLORS[0]), name="observed, with 95 % interval"),
                    Key(swatch=swatch(QUIET, "4 4"), name="perfectly calibrated"),
                ),
            )
        )
    return tuple(found)


def decisions(classes: Sequence[OneClass]) -> tuple[Figure, ...]:
    """Decision curves, one figure a class that is decided by its probability; of one class its histogram too."""
    found = [_histogram(one) for one in classes if len(classes) == 1 and one.rows]
    for one, curve in [(one, one.decision) for one in classes if one.decision is not None][:MOST_CLASSES]:
        prevalence = one.positive / max(one.rows, 1)
        top = max(prevalence, max(curve.model), 0.05) * 1.08
        step = 0.05 if top < 0.3 else 0.1 if top < 0.6 else 0.2
        least = 0 if step > 0.2 * top else -1
        ticks = tuple(round(step * k, 6) for k in range(least, int(top / step) + 1))
        title = f"Decision curve: {one.name}"
        plot = Plot(
            Scale.unit("threshold probability"), Scale(label="net benefit", low=-0.2 * top, high=top, ticks=ticks),
            title=title, description="Net benefit of the model, of treating all and of treating none, over the threshold.",
        )  # fmt: skip
        plot.line([0, 1], [0, 0], INK, width_px=1.2, name="treat none")
        plot.line(curve.thresholds, curve.treat_all, COLORS[1], dash="7 3", name="treat all")
        if curve.low:
            low, high = (np.maximum(one_end, -0.2 * top).tolist() for one_end in (curve.low, curve.high))
            plot.band(curve.thresholds, low, high, COLORS[0])
        plot.line(curve.thresholds, curve.model, COLORS[0], name="model")
        found.append(
            Figure(
                title=title,
                reading="Where the model lies above both other lines, deciding by it gains, if its probabilities are calibrated.",
                plot=plot.svg(),
                keys=(
                    Key(swatch=swatch(COLORS[0]), name="model, with 95 % interval" if curve.low else "model"),
                    Key(swatch=swatch(COLORS[1], "7 3"), name="treat all"),
                    Key(swatch=swatch(INK), name="treat none"),
                ),
            )
        )
    return tuple(found)


def agreement(found: Sequence[Agreement]) -> tuple[Figure, ...]:
    """Predicted over true numbers, and their difference over their mean."""
    figures = []
    for one in found[:MOST_CLASSES]:
        unit = f" [{one.unit}]" if one.unit else ""
        rows = _thin(len(one.truth))
        truth, said = one.truth[rows], one.predicted[rows]
        both = Scale.around(f"true {one.name}{unit}", [*truth.tolist(), *said.tolist()])
        title = f"Predicted and true: {one.name}"
        plot = Plot(
            both, Scale(label=f"predicted {one.name}{unit}", low=both.low, high=both.high, ticks=both.ticks),
            title=title, description="Each dot is a row; on the diagonal the prediction is right.",
        )  # fmt: skip
        plot.line([both.low, both.high], [both.low, both.high], QUIET, dash="4 4", width_px=1.2)
        plot.points(truth.tolist(), said.tolist(), COLORS[0], radius_px=2.6, opacity=0.55)
        figures.append(Figure(title=title, reading="On the dashed diagonal predictions are exact.", plot=plot.svg()))
        title = f"Limits of agreement: {one.name}"
        off, middle = said - truth, (said + truth) / 2
        lines = [value for value in (one.mean, one.low, one.high) if value is not None]
        plot = Plot(
            Scale.around(f"mean of predicted and true{unit}", middle.tolist()),
            Scale.around(f"predicted − true{unit}", [*off.tolist(), *lines]),
            title=title, description="Difference of prediction and truth over their mean, with mean and limits of agreement.",
        )  # fmt: skip
        plot.points(middle.tolist(), off.tolist(), COLORS[0], radius_px=2.6, opacity=0.55)
        ends = [float(middle.min()) - 1e6, float(middle.max()) + 1e6]
        plot.line(ends, [one.mean, one.mean], INK, width_px=1.6)
        for limit in (one.low, one.high):
            if limit is not None:
                plot.line(ends, [limit, limit], COLORS[1], dash="7 3", width_px=1.6)
        figures.append(
            Figure(
                title=title,
                reading="Between the dashed lines lie about 95 % of the errors, if these are normal and alike everywhere.",
                plot=plot.svg(),
                keys=(
                    Key(swatch=swatch(INK), name="mean error"),
                    Key(swatch=swatch(COLORS[1], "7 3"), name="mean ± 1.96 standard deviations"),
                ),
            )
        )
    return tuple(figures)


def survival(found: RiskGroups, unit: str) -> Figure:
    """Kaplan-Meier curves of the two halves."""
    last = max((one.curve.times[-1] for one in found.groups), default=1.0) or 1.0
    tail = f" [{unit}]" if unit else ""
    title = "Survival by predicted risk"
    plot = Plot(
        Scale(label=f"time{tail}", low=0.0, high=last * 1.02, ticks=found.at_times), Scale.unit("free of the event"),
        title=title, description="Kaplan-Meier curves of patients above and below the middle risk, with 95 % intervals.",
        width_px=640,
    )  # fmt: skip
    keys = []
    for i, one in enumerate(found.groups):
        color, dash = COLORS[i], DASHES[i]
        told = [k for k, low in enumerate(one.curve.low) if low is not None and one.curve.high[k] is not None]
        if told:
            x = [v for k in told for v in (one.curve.times[k], (*one.curve.times[1:], one.curve.times[-1])[k])]
            low = [v for k in told for v in (one.curve.low[k] or 0.0,) * 2]
            high = [v for k in told for v in (one.curve.high[k] or 0.0,) * 2]
            plot.band(x, low, high, color)
        plot.line([0.0, *one.curve.times], [1.0, *one.curve.survival], color, dash=dash, steps=True, name=one.name)
        gone = [k for k, left in enumerate(one.curve.censored) if left]
        plot.points(
            [one.curve.times[k] for k in gone], [one.curve.survival[k] for k in gone], color, radius_px=1.6, opacity=0.7
        )
        keys.append(Key(swatch=swatch(color, dash), name=one.name))
    return Figure(
        title=title,
        reading="Halves at the middle of these patients' own risks; shaded: 95 % intervals; dots: patients who left (censored).",
        plot=plot.svg(),
        keys=tuple(keys),
    )


def survival_calibration(found: SurvivalCalibration, unit: str) -> Figure:
    """Observed over predicted survival at one time."""
    title = f"Calibration at {found.horizon:g}{f' {unit}' if unit else ''}"
    plot = Plot(
        Scale.unit("predicted survival"), Scale.unit("observed survival"), title=title,
        description="Kaplan-Meier survival over mean predicted survival, in groups of equal size, with 95 % intervals.",
    )  # fmt: skip
    plot.line([0, 1], [0, 1], QUIET, dash="4 4", width_px=1.2)
    for row in found.bins:
        if row.low is not None and row.high is not None:
            plot.whisker(row.predicted, row.low, row.high, COLORS[0])
    names = [f"{row.patients} patients: said {row.predicted:.3f}, seen {row.observed:.3f}" for row in found.bins]
    plot.points(
        [row.predicted for row in found.bins], [row.observed for row in found.bins], COLORS[0], radius_px=4, names=names
    )
    return Figure(title=title, reading="On the diagonal, survival is as predicted.", plot=plot.svg())


def two_models(found: Comparison, names: tuple[str, str]) -> tuple[Figure, ...]:
    """ROC of both models, class by class, and their scores beside each other."""
    figures = []
    for one in found.classes[:MOST_CLASSES]:
        if one.first_roc is None or one.second_roc is None:
            continue
        title = f"ROC: {one.name}"
        plot = _square(title, "1 − specificity", "sensitivity", f"ROC curves of two models for {one.name}.")
        plot.line([0, 1], [0, 1], QUIET, dash="4 4", width_px=1.2)
        plot.line(one.first_roc.x, one.first_roc.y, COLORS[0], name="first")
        plot.line(one.second_roc.x, one.second_roc.y, COLORS[1], dash=DASHES[1], name="second")
        path = ("delong", one.name)
        figures.append(
            Figure(
                title=title,
                reading="Towards the upper left is better; the diagonal is chance.",
                plot=plot.svg(),
                keys=(
                    Key(swatch=swatch(COLORS[0]), name=names[0], metric=(*path, "first") if one.delong else ()),
                    Key(
                        swatch=swatch(COLORS[1], DASHES[1]),
                        name=names[1],
                        metric=(*path, "second") if one.delong else (),
                    ),
                ),
            )
        )
    figures.append(_scores(found, names))
    return tuple(figures)


def _roc(shown: Sequence[OneClass], total: int) -> Figure:
    title = "ROC"
    plot = _square(title, "1 − specificity", "sensitivity", _spoken(shown, "AUROC", "auroc"))
    plot.line([0, 1], [0, 1], QUIET, dash="4 4", width_px=1.2, name="chance")
    for i, one in enumerate(shown):
        if one.roc is not None:
            plot.line(one.roc.x, one.roc.y, COLORS[i], dash=DASHES[i], name=one.name)
    for i, one in enumerate(shown):
        sensitivity, specificity = one.estimates["sensitivity"].value, one.estimates["specificity"].value
        if one.decides and sensitivity is not None and specificity is not None:
            name = "thresholds of the runs" if one.threshold is None else f"threshold {one.threshold:g}"
            plot.cross(1 - specificity, sensitivity, COLORS[i], name=name)
    return Figure(
        title=title + _of(shown, total),
        reading="Towards the upper left is better; the diagonal is chance; a dot marks the threshold.",
        plot=plot.svg(),
        keys=_keys(shown, "auroc"),
    )


def _pr(shown: Sequence[OneClass], total: int) -> Figure:
    title = "Precision and recall"
    plot = _square(title, "recall (sensitivity)", "precision (PPV)", _spoken(shown, "average precision", "auprc"))
    for i, one in enumerate(shown):
        if one.pr is None:
            continue
        share = one.positive / max(one.rows, 1)
        plot.line([0, 1], [share, share], COLORS[i], dash="4 4", width_px=1, opacity=0.6, name=f"chance: {one.name}")
        # Between two points precision is that of the right one.
        x, y = one.pr.x, one.pr.y
        plot.line(
            [v for k in range(len(x)) for v in (x[max(k - 1, 0)], x[k])], [v for v in y for _ in (0, 1)], COLORS[i],
            dash=DASHES[i], name=one.name,
        )  # fmt: skip
    return Figure(
        title=title + _of(shown, total),
        reading="Towards the upper right is better; the dashed level is chance, the share of rows of the class.",
        plot=plot.svg(),
        keys=_keys(shown, "auprc"),
    )


def _histogram(one: OneClass) -> Figure:
    title = f"Probabilities of {one.name}"
    shares = [np.array(counts) / max(sum(counts), 1) for counts in one.histogram]
    top = max(float(max(share.max() for share in shares)), 0.05) * 1.08
    plot = Plot(
        Scale.unit(f"predicted probability of {_short(one.name)}"),
        Scale(label="share of rows", low=0.0, high=top, ticks=Scale.around("", [0, top], margin=0).ticks),
        title=title, description="Histograms of the predicted probability, of rows that are of the class and of others.",
    )  # fmt: skip
    for k, (share, counts) in enumerate(zip(shares, one.histogram, strict=True)):
        for i, value in enumerate(share.tolist()):
            left = (i + 0.08 + 0.42 * k) / BINS
            plot.bar(left, left + 0.42 / BINS, 0, value, COLORS[k], opacity=0.85, name=f"{counts[i]} rows")
    if one.threshold is not None:
        plot.line([one.threshold] * 2, [0, top], INK, dash="2 2", width_px=1.4, name=f"threshold {one.threshold:g}")
    return Figure(
        title=title,
        reading="Each color adds up to 1; the dotted line is the threshold.",
        plot=plot.svg(),
        keys=(
            Key(swatch=swatch(COLORS[0]), name=f"not {one.name}"),
            Key(swatch=swatch(COLORS[1]), name=one.name),
        ),
    )


def _scores(found: Comparison, names: tuple[str, str]) -> Figure:
    rows = _thin(len(found.scores))
    scores = found.scores[rows]
    probability = found.scored.startswith("prob_")
    scales = [
        Scale.unit(f"{'first' if i == 0 else 'second'} model: {_short(found.scored)}")
        if probability
        else Scale.around(f"{'first' if i == 0 else 'second'} model: {_short(found.scored)}", scores[:, i].tolist())
        for i in (0, 1)
    ]
    title = "Answers of both models"
    plot = Plot(*scales, title=title, description="Each dot is a row, by what the two models say of it.")
    if probability:
        plot.line([0, 1], [0, 1], QUIET, dash="4 4", width_px=1.2)
    keys: tuple[Key, ...] = ()
    if found.classed:
        classed = np.array(found.classed)[rows]
        labels = list(found.counts)
        for c in (0, 1):
            own = scores[classed == c]
            plot.points(own[:, 0].tolist(), own[:, 1].tolist(), COLORS[c], radius_px=2.8, opacity=0.6)
        keys = tuple(Key(swatch=swatch(COLORS[c]), name=labels[c]) for c in (0, 1))
    else:
        plot.points(scores[:, 0].tolist(), scores[:, 1].tolist(), COLORS[0], radius_px=2.8, opacity=0.6)
    return Figure(
        title=title,
        reading=f"First: {names[0]}. Second: {names[1]}. Far from the diagonal the two disagree.",
        plot=plot.svg(),
        keys=keys,
    )


def _square(title: str, x: str, y: str, description: str) -> Plot:
    return Plot(Scale.unit(x), Scale.unit(y), title=title, description=description)


def _keys(shown: Sequence[OneClass], metric: str) -> tuple[Key, ...]:
    return tuple(
        Key(
            swatch=swatch(COLORS[i], DASHES[i]),
            name=one.name,
            metric=("classes", one.name, "metrics", metric),
        )
        for i, one in enumerate(shown)
    )


def _spoken(shown: Sequence[OneClass], what: str, metric: str) -> str:
    told = [(one.name, one.estimates[metric].value) for one in shown]
    return "; ".join(f"{name}: {what} {'undefined' if value is None else f'{value:.3f}'}" for name, value in told)


def _of(shown: Sequence[OneClass], total: int) -> str:
    return "" if len(shown) == total else f", {len(shown)} of {total} classes"


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most // 2] + "…" + name[-most // 2 :]


def _thin(count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """All rows, or so many evenly chosen ones that a page stays light."""
    if count <= _MOST_POINTS:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, _MOST_POINTS).astype(np.int64))
