"""The range that the colors of a score span, the same on every slide of a cohort, so that slides can be compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsimil.export.heatmap import DISPLAY_PERCENTILE, Kind, display_range, raw_heatmap
from wsimil.export.scores import ScoreTable

MOST_SLIDES = 128
MOST_TILES = 20_000
"""Of each slide, evenly spaced: enough for a percentile, and little enough to begin at once with a large cohort."""

_UNITS = {"contribution": "logit", "attention": "× uniform attention"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortScore:
    """One score as all slides show it: colors span `range`, symmetric about 0 where `kind` is signed.

    `normalization` says in words where the range came from.
    """

    name: str
    label: str
    kind: Kind
    unit: str
    range: tuple[float, float]
    normalization: str


def sampled(slide_ids: tuple[str, ...]) -> tuple[str, ...]:
    """The slides that decide the ranges: all of a small cohort, evenly spaced ones of a large one."""
    if len(slide_ids) <= MOST_SLIDES:
        return slide_ids
    picked = np.linspace(0, len(slide_ids) - 1, MOST_SLIDES).round().astype(np.int64)
    return tuple(slide_ids[index] for index in np.unique(picked))


def cohort_scores(tables: Iterable[ScoreTable], *, slides: int) -> tuple[CohortScore, ...]:
    """Every score that occurs in `tables`, in the order in which they occur; `slides` is how many the cohort has."""
    pooled: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    labels: dict[str, str] = {}
    signed: set[str] = set()
    seen = 0
    for table in tables:
        seen += 1
        for name, shown in shown_scores(table).items():
            labels.setdefault(name, shown.label)
            signed |= {name} if shown.kind == "signed" else set()
            step = -(-len(table) // MOST_TILES)
            pooled[name].append(shown.values[::step])
    of = f"all {seen} slides" if seen == slides else f"{seen} of {slides} slides, evenly spaced"
    return tuple(_score(name, labels[name], name in signed, parts, of) for name, parts in pooled.items())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """A score as it is shown: attention as a multiple of uniform attention, all others raw; float32 [N], NaN = not scored."""

    label: str
    kind: Kind
    values: NDArray[np.float32]


def shown_scores(table: ScoreTable) -> Mapping[str, Shown]:
    """All scores of a slide; attention that is nowhere above 0 has no share of anything and is left out."""
    found = {}
    for name in table.score_names:
        try:
            heatmap = raw_heatmap(table, name)
        except ValueError:
            continue
        found[name] = Shown(label=heatmap.label, kind=heatmap.kind, values=heatmap.values)
    return found


def _score(name: str, label: str, signed: bool, parts: list[NDArray[np.float32]], of: str) -> CohortScore:
    kind: Kind = "signed" if signed else "sequential"
    percentile = f"{DISPLAY_PERCENTILE:g}th percentile"
    how = f"±{percentile} of |score|" if signed else f"0 to {percentile}"
    return CohortScore(
        name=name,
        label=label,
        kind=kind,
        unit=_UNITS.get(name.partition(":")[0], "score"),
        range=display_range(np.concatenate(parts), kind),
        normalization=f"{how} over the tiles of {of}; fixed for the cohort",
    )
