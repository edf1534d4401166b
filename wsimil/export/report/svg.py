"""A small plot as inline SVG: text stays text, whatever a name holds stays text, and the same data give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from markupsafe import Markup, escape

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A6A00")
"""Told apart by the color-blind: Okabe & Ito 2008, with a darker yellow, which is seen on white."""
DASHES = ("", "7 3", "2 2", "9 3 2 3", "4 2", "12 3", "1 3", "6 2 1 2")
INK, QUIET, FAINT = "#1b2530", "#5b6875", "#dfe4ea"

_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 46
_RIM = 6
"""What is seen beyond the axes, so that marks on them are whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An axis from `low` to `high` with a label and marked values."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def unit(cls, label: str) -> Self:
        """From 0 to 1."""
        return cls(label=label, low=0.0, high=1.0, ticks=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0))

    @classmethod
    def around(cls, label: str, values: Sequence[float], *, margin: float = 0.05) -> Self:
        """Round numbers around all of `values`."""
        low, high = (min(values), max(values)) if len(values) else (0.0, 1.0)
        spread = (high - low) or abs(high) or 1.0
        low, high = low - margin * spread, high + margin * spread
        step = round_step((high - low) / 5)
        first = int(np.ceil(low / step - 1e-9))
        ticks = tuple(round(k * step, 12) for k in range(first, int(np.floor(high / step + 1e-9)) + 1))
        return cls(label=label, low=low, high=high, ticks=ticks)


def round_step(rough: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `rough` > 0."""
    scale = 10.0 ** np.floor(np.log10(rough))
    return float(next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough * (1 - 1e-9)))


class Plot:
    """Marks on two axes, in the order in which they are made. What lies outside of the axes is cut off."""

    def __init__(
        self, x: Scale, y: Scale, *, title: str, description: str, width_px: int = 400, height_px: int = 330
    ) -> None:
        self._x, self._y, self._title, self._description = x, y, title, description
        self._size = (width_px, height_px)
        self._area = (width_px - _LEFT - _RIGHT, height_px - _TOP - _BOTTOM)
        self._marks: list[str] = []

    def line(
        self,
        x: Sequence[float],
        y: Sequence[float],
        color: str,
        *,
        dash: str = "",
        width_px: float = 2.2,
        opacity: float = 1.0,
        steps: bool = False,
        name: str = "",
    ) -> None:
        """A line through the points; in `steps` a value holds until the next point."""
        points = self._places(x, y)
        if steps:
            points = [p for i, one in enumerate(points) for p in ([(one[0], points[i - 1][1]), one] if i else [one])]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        style += f' opacity="{opacity:g}"' if opacity < 1 else ""
        self._marks.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width_px:g}"'
            f' stroke-linejoin="round"{style}>{_tip(name)}</polyline>'
        )

    def band(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> None:
        """What lies between two lines."""
        there, back = self._places(x, high), self._places(x, low)[::-1]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in [*there, *back])
        self._marks.append(f'<polygon points="{path}" fill="{color}" opacity="0.14"/>')

    def points(self, x: Sequence[float], y: Sequence[float], color: str, *, radius_px: float = 3, opacity: float = 1.0, names: Sequence[str] = ()) -> None:  # fmt: skip  # noqa: E501
        """Dots; each of `names` shows where a dot is pointed at."""
        style = f' opacity="{opacity:g}"' if opacity < 1 else ""
        for i, (px, py) in enumerate(self._places(x, y)):
            tip = _tip(names[i]) if names else ""
            self._marks.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius_px:g}" fill="{color}"{style}>{tip}</circle>'
            )

    def whisker(self, x: float, low: float, high: float, color: str) -> None:
        """An upright interval."""
        (px, bottom), (_, top) = self._places([x, x], [low, high])
        self._marks.append(
            f'<path d="M{px:.1f} {bottom:.1f}V{top:.1f}M{px - 4:.1f} {bottom:.1f}h8M{px - 4:.1f} {top:.1f}h8"'
            f' stroke="{color}" stroke-width="1.4" fill="none"/>'
        )

    def bar(self, left: float, right: float, bottom: float, top: float, color: str, *, opacity: float = 1.0, name: str = "") -> None:  # fmt: skip  # noqa: E501
        """A filled box."""
        (x0, y0), (x1, y1) = self._places([left, right], [bottom, top])
        self._marks.append(
            f'<rect x="{min(x0, x1):.1f}" y="{min(y0, y1):.1f}" width="{abs(x1 - x0):.1f}" height="{abs(y1 - y0):.1f}"'
            f' fill="{color}" opacity="{opacity:g}">{_tip(name)}</rect>'
        )

    def cross(self, x: float, y: float, color: str, *, name: str) -> None:
        """One marked place: a ring with a white rim."""
        ((px, py),) = self._places([x], [y])
        self._marks.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5.5" fill="{color}" stroke="#fff" stroke-width="2">{_tip(name)}</circle>'
        )

    def svg(self) -> Markup:
        """The plot as one element that a page can hold."""
        width, height = self._size
        inner_w, inner_h = self._area
        parts = [
            f'<svg class="plot" role="img" viewBox="0 0 {width} {height}" aria-label="{escape(self._title)}">',
            f"<title>{escape(self._title)}</title><desc>{escape(self._description)}</desc>",
            *self._frame(),
            f'<svg x="{_LEFT - _RIM}" y="{_TOP - _RIM}" width="{inner_w + 2 * _RIM}" height="{inner_h + 2 * _RIM}"'
            f' viewBox="{-_RIM} {-_RIM} {inner_w + 2 * _RIM} {inner_h + 2 * _RIM}" overflow="hidden">',
            *self._marks,
            "</svg></svg>",
        ]
        return Markup("".join(parts))  # noqa: S704  # every text in it went through escape

    def _frame(self) -> list[str]:
        inner_w, inner_h = self._area
        found = []
        for tick in self._x.ticks:
            px = _LEFT + self._along(tick, self._x) * inner_w
            found.append(f'<path d="M{px:.1f} {_TOP}v{inner_h}" stroke="{FAINT}" stroke-width="1"/>')
            found.append(_text(px, _TOP + inner_h + 16, f"{tick:g}", anchor="middle"))
        for tick in self._y.ticks:
            py = _TOP + (1 - self._along(tick, self._y)) * inner_h
            found.append(f'<path d="M{_LEFT} {py:.1f}h{inner_w}" stroke="{FAINT}" stroke-width="1"/>')
            found.append(_text(_LEFT - 7, py + 4, f"{tick:g}".replace("-", "−"), anchor="end"))
        found.append(f'<path d="M{_LEFT} {_TOP}v{inner_h}h{inner_w}" fill="none" stroke="{QUIET}" stroke-width="1.2"/>')
        found.append(_text(_LEFT + inner_w / 2, _TOP + inner_h + 36, self._x.label, anchor="middle", size_px=12.5))
        middle = _TOP + inner_h / 2
        found.append(
            f'<text transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle" font-size="12.5"'
            f' fill="{INK}">{escape(self._y.label)}</text>'
        )
        return found

    def _places(self, x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
        inner_w, inner_h = self._area
        px = (np.asarray(x, dtype=np.float64) - self._x.low) / (self._x.high - self._x.low) * inner_w
        py = (1 - (np.asarray(y, dtype=np.float64) - self._y.low) / (self._y.high - self._y.low)) * inner_h
        # Far outside it is cut off anyway, and some readers choke on huge numbers.
        return [*zip(np.clip(px, -1e4, 1e4).tolist(), np.clip(py, -1e4, 1e4).tolist(), strict=True)]

    @staticmethod
    def _along(value: float, scale: Scale) -> float:
        return (value - scale.low) / (scale.high - scale.low)


def interval_bar(value: float, low: float, high: float, scale: Scale, *, mark: float | None = None) -> Markup:
    """A value with its interval on a line, small enough for the cell of a table; `mark` is a place to compare with."""
    width, height = 150, 18

    def at(number: float) -> float:
        return 4 + (width - 8) * min(max((number - scale.low) / (scale.high - scale.low), 0.0), 1.0)

    rule = "" if mark is None else f'<path d="M{at(mark):.1f} 1v16" stroke="{QUIET}" stroke-dasharray="2 2"/>'
    return Markup(  # noqa: S704  # numbers alone
        f'<svg class="bar" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<path d="M4 9h{width - 8}" stroke="{FAINT}"/>{rule}'
        f'<path d="M{at(low):.1f} 9H{at(high):.1f}" stroke="{COLORS[0]}" stroke-width="2.4"/>'
        f'<circle cx="{at(value):.1f}" cy="9" r="3.6" fill="{COLORS[0]}"/></svg>'
    )


def swatch(color: str, dash: str = "") -> Markup:
    """What a line looks like, for a legend."""
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return Markup(  # noqa: S704  # constants alone
        f'<svg class="swatch" viewBox="0 0 30 10" width="30" height="10" aria-hidden="true">'
        f'<path d="M1 5h28" stroke="{color}" stroke-width="3"{style}/></svg>'
    )


def _text(x: float, y: float, text: str, *, anchor: str, size_px: float = 11.5) -> str:
    color = QUIET if size_px < 12 else INK
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size_px:g}" fill="{color}">{escape(text)}</text>'


def _tip(name: str) -> str:
    return f"<title>{escape(name)}</title>" if name else ""
