"""Numbers as a page shows them, each read from the tree that metrics.json is, and marked with its place there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from wsimil.export.report.svg import Scale, interval_bar
from wsimil.provenance import Json

UNDEFINED = "–"
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """`tree` is metrics.json; a path names a number in it, key by key and row by row."""

    tree: Mapping[str, Json]

    def get(self, path: Sequence[str | int]) -> Json:
        """What stands there. Raises KeyError or IndexError."""
        node: Json = self.tree
        for part in path:
            node = node[part]  # type: ignore[index]  # a wrong path is an error of the program
        return node

    def number(self, path: Sequence[str | int]) -> Markup:
        """One number in a span that says where it stands in metrics.json."""
        value = self.get(path)
        text = shown(value)
        about = ' title="undefined here"' if text == UNDEFINED else ""
        return Markup('<span class="v" data-metric="{}"{}>{}</span>').format(pointer(path), Markup(about), text)  # noqa: S704

    def mark(self, path: Sequence[str | int]) -> Markup:
        """A round number, such as that of an axis, without zeros behind it."""
        return Markup('<span class="v" data-metric="{}">{}</span>').format(pointer(path), f"{self.get(path):g}")

    def p_value(self, path: Sequence[str | int]) -> Markup:
        """A p-value, the smallest as "<0.001"."""
        value = self.get(path)
        if not isinstance(value, float):
            return self.number(path)
        return Markup('<span class="v" data-metric="{}">{}</span>').format(pointer(path), p_text(value))

    def interval(self, path: Sequence[str | int], low: str = "low", high: str = "high") -> Markup:
        """The two ends of an interval, or a dash where there is none."""
        if self.get([*path, low]) is None or self.get([*path, high]) is None:
            return Markup('<span class="none" title="no interval can be told">{}</span>').format(UNDEFINED)
        return Markup("{} to {}").format(self.number([*path, low]), self.number([*path, high]))

    def bar(
        self, path: Sequence[str | int], scale: Scale, *, value: str = "value", mark: float | None = None
    ) -> Markup:
        """The estimate at `path` with its interval as a picture; empty without an interval."""
        middle, low, high = (self.get([*path, name]) for name in (value, "low", "high"))
        if not (isinstance(middle, int | float) and isinstance(low, int | float) and isinstance(high, int | float)):
            return Markup("")
        return interval_bar(middle, low, high, scale, mark=mark)


def shown(value: Json) -> str:
    """A number as text: whole ones as they are, others with three to four digits, and what rounding leaves of 0 as 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return UNDEFINED if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    size = abs(value)
    if size <= _ROUNDING:
        return "0.000"
    if size < 0.01:
        text = f"{size:.{2 - math.floor(math.log10(size))}f}" if size >= 1e-6 else f"{size:.2e}"
    else:
        text = f"{size:.3f}" if size < 10 else f"{size:.2f}" if size < 100 else f"{size:.1f}"
    return f"−{text}" if value < 0 else text


def brief(value: Json) -> str:
    """A setting as a person reads it: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def p_text(value: float | None) -> str:
    """A p-value as text, the smallest as "<0.001"."""
    return shown(value) if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def pointer(path: Sequence[str | int]) -> str:
    """A path as RFC 6901 writes it."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def text(value: str) -> Markup:
    """A name that others gave, in a box of its own direction, so that it does not turn its neighbors around."""
    return Markup("<bdi>{}</bdi>").format(escape(value))
