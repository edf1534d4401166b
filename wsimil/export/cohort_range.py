"""One range of colors for all slides of a cohort, found slide by slide without holding their scores.

Pictures, annotations, windows of DICOM maps and the viewer all take it from here, so that a color is one amount everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

from wsimil.export.heatmap import DISPLAY_PERCENTILE
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import Kind, shown
from wsimil.provenance import Json

_LEVELS = 513


class CohortRange:
    """The ends of the colors of each kind of score: the 99th percentile of |value shown| over all scored tiles of all slides.

    Every tile weighs the same, so that a slide of few tiles, each of which contributes much, does not pale all others. A slide
    is kept as its values of |value shown| at 513 evenly spaced quantiles, interpolated, each of which stands for a 513th of its
    tiles; up to 513 tiles are kept as they are. So the end lies between the 98.8th and the 99.2th percentile of all tiles, and is
    exact where slides are small. Where that percentile is 0 the end is the largest value, and 1 where all are 0. Slides
    that show another output of the same kind, such as the class that each is predicted to be, share one range; it is that of what
    each slide's answer rests on, so that outputs which nothing speaks for do not narrow it.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[NDArray[np.float32]]] = {}
        self._weights: dict[str, list[float]] = {}
        self._ends: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    @classmethod
    def from_json(cls, tree: Mapping[str, Json]) -> CohortRange:
        """The range that `to_json` told of; nothing can be added to it."""
        found = cls()
        for kind, said in tree.items():
            end, slides = cast("tuple[float, int]", said)
            found._ends[kind], found._counts[kind] = end, slides
        return found

    def to_json(self) -> dict[str, Json]:
        """The end of each kind of score, and of how many slides it is."""
        return {kind: [self._end(kind), len(parts)] for kind, parts in self._values.items()}

    def add(self, table: ScoreTable, name: str) -> None:
        """Count in what maps of the kind of this score show of one slide. Raises KeyError where the table has no such score.

        That is the kind's score of what the slide is answered to be, and all of the kind where there is none, as of heads.
        """
        kind = _kind(name)
        values = np.concatenate([shown(table, one).values for one in _counted(table, name)])
        sizes = np.abs(values[~np.isnan(values)])
        if not len(sizes):
            return
        kept = sizes if len(sizes) <= _LEVELS else np.quantile(sizes, np.linspace(0, 1, _LEVELS)).astype(np.float32)
        self._values.setdefault(kind, []).append(kept)
        self._weights.setdefault(kind, []).append(len(sizes) / len(kept))
        self._ends.pop(kind, None)

    def add_each(self, table: ScoreTable, names: Iterable[str]) -> None:
        """Count in each kind of these scores, once. Raises KeyError."""
        for name in {_kind(name): name for name in names}.values():
            self.add(table, name)

    def slides(self, name: str) -> int:
        """How many slides were counted in for the kind of this score."""
        kind = _kind(name)
        return self._counts.get(kind, len(self._values.get(kind, [])))

    def span(self, name: str, kind: Kind) -> tuple[float, float]:
        """The two ends: symmetric about 0 for signed values, else from 0. (-1, 1) or (0, 1) where no slide was counted in."""
        group = _kind(name)
        if group not in self._ends:  # asked for once a slide, and a sort of all that was counted in
            self._ends[group] = self._end(group)
        high = self._ends[group]
        return (-high, high) if kind == "signed" else (0.0, high)

    def _end(self, kind: str) -> float:
        parts = self._values.get(kind)
        if not parts:
            return 1.0
        values = np.concatenate(parts).astype(np.float64)
        weights = np.repeat(self._weights[kind], [len(part) for part in parts])
        order = np.argsort(values, kind="stable")
        share = np.cumsum(weights[order])
        place = int(np.searchsorted(share, DISPLAY_PERCENTILE / 100 * share[-1] * (1 - 1e-12)))
        return float(values[order][place]) or float(values[order][-1]) or 1.0


def _counted(table: ScoreTable, name: str) -> list[str]:
    table.score(name)  # refuses a name that is not there
    answered = f"{_kind(name)}:{table.task.main_output(table.values)}"
    if answered in table.score_names:
        return [answered]
    return [one for one in table.score_names if _kind(one) == _kind(name)]


def _kind(name: str) -> str:
    return name.partition(":")[0]
