"""The range that the colors of a score span, the same on every slide of a cohort, so that slides can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from wsimil.export.cohort_range import CohortRange
from wsimil.export.heatmap import DISPLAY_PERCENTILE
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import Kind, Shown, kind_of, shown

T = TypeVar("T")
MOST_SLIDES = 128
"""Enough for a percentile, and few enough to begin at once with a large cohort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortScore:
    """One score as all slides show it, as `wsimil.export.shown` has it: colors span `range`, symmetric about 0 where `kind` is
    signed.

    `zero` says what zero means, or nothing, `rule` how the score was made, `normalization` in words where the range came from.
    """

    name: str
    label: str
    kind: Kind
    unit: str
    zero: str
    rule: str
    range: tuple[float, float]
    normalization: str


def sampled(slides: Sequence[T]) -> Sequence[T]:
    """The slides that decide the ranges: all of a small cohort, evenly spaced ones of a large one."""
    if len(slides) <= MOST_SLIDES:
        return slides
    picked = np.linspace(0, len(slides) - 1, MOST_SLIDES).round().astype(np.int64)
    return [slides[index] for index in np.unique(picked)]


def cohort_scores(tables: Iterable[ScoreTable], *, slides: int) -> tuple[CohortScore, ...]:
    """Every score that occurs in `tables`, in the order in which they occur; `slides` is how many the cohort has.

    Ranges are those of pictures where all slides are among `tables`.
    """
    cohort = CohortRange()
    first: dict[str, Shown] = {}
    rules: dict[str, str] = {}
    signed: set[str] = set()
    seen = 0
    for table in tables:
        seen += 1
        cohort.add_each(table, table.score_names)
        for name in table.score_names:
            kind = kind_of(table, name) if name in first else None
            if kind is None:
                first[name], rules[name] = shown(table, name), table.rule(name)
                kind = first[name].kind
            signed |= {name} if kind == "signed" else set()
    some = "evenly spaced" if slides > MOST_SLIDES else "whose scores can be shown"
    of = f"all {seen} slides" if seen == slides else f"{seen} of {slides} slides, {some}"
    return tuple(_score(name, one, rules[name], name in signed, cohort, of) for name, one in first.items())


def _score(name: str, one: Shown, rule: str, signed: bool, cohort: CohortRange, of: str) -> CohortScore:
    kind: Kind = "signed" if signed else "sequential"
    percentile = f"{DISPLAY_PERCENTILE:g}th percentile"
    unit, _, zero = one.reading.partition("; ")
    how = f"±{percentile} of |score|" if signed else f"0 to {percentile}"
    return CohortScore(
        name=name,
        label=one.label,
        kind=kind,
        unit=unit or "score",
        zero=zero,
        rule=rule,
        range=cohort.span(name, kind),
        normalization=f"{how} over the tiles of {of}, of what each is answered to be; fixed for the cohort",
    )
