"""A page measured in px from the top-left, to draw text, boxes and pictures on, free of matplotlib's global state."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

Color = tuple[float, float, float]

_DPI = 100
_FAMILY = "DejaVu Sans"
_UNKNOWN = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How text looks: height in px, weight, grey or colored."""

    size_px: float = 13
    bold: bool = False
    color: Color = (0.13, 0.13, 0.13)


class Page:
    """A white page of fixed size."""

    def __init__(self, width_px: int, height_px: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._size = (width_px, height_px)
        self._figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)

    def picture(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        """Put `pixels` [h, w, 3] down one to one, top-left at (x, y)."""
        self._figure.figimage(pixels, x, self._size[1] - y - len(pixels), origin="upper", resize=False)

    def box(self, x: float, y: float, width: float, height: float, color: Color, *, line_px: float = 0) -> None:
        """A filled box, or its outline where `line_px` is above 0."""
        from matplotlib.patches import Rectangle

        corner = (x / self._size[0], 1 - (y + height) / self._size[1])
        patch = Rectangle(
            corner,
            width / self._size[0],
            height / self._size[1],
            transform=self._figure.transFigure,
            facecolor="none" if line_px else color,
            edgecolor=color if line_px else "none",
            linewidth=line_px * 72 / _DPI,
            snap=True,
        )
        self._figure.add_artist(patch)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        style: Style,
        *,
        width_px: float,
        align: Literal["left", "center", "right"] = "left",
    ) -> None:
        """One line with its middle at `y`, cut in the middle to `width_px`. Nothing in `text` is markup."""
        self._figure.text(
            x / self._size[0],
            1 - y / self._size[1],
            shorten(text, style, width_px),
            fontproperties=_font(style),
            color=style.color,
            ha=align,
            va="center_baseline",
            parse_math=False,
            usetex=False,
        )

    def png(self, facts: Mapping[str, str]) -> bytes:
        """The page as PNG, with `facts` as its text chunks; the same page gives the same bytes."""
        self._canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib leaves it bare
        pixels = np.asarray(self._canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]  # as above
        info = PngImagePlugin.PngInfo()
        for key, value in facts.items():
            info.add_itxt(key, value)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", pnginfo=info, compress_level=4)
        return buffer.getvalue()


def text_width(text: str, style: Style) -> float:
    """Width of one line in px."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(_font(style)))
    font.set_size(style.size_px * 72 / _DPI, _DPI)
    font.set_text(text, 0.0)
    return float(font.get_width_height()[0]) / 64


def shorten(text: str, style: Style, width_px: float) -> str:
    """`text` as it can be drawn: letters that the font lacks replaced, its middle left out where it is too long."""
    text = _drawable(text, style)
    if text_width(text, style) <= width_px:
        return text
    keep, too_many = 1, len(text)
    while too_many - keep > 1:
        middle = (keep + too_many) // 2
        if text_width(_cut(text, middle), style) <= width_px:
            keep = middle
        else:
            too_many = middle
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    tail = keep // 2
    return text[: keep - tail] + "…" + text[len(text) - tail :]


def _drawable(text: str, style: Style) -> str:
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont(_font(style))).get_charmap()
    # Longer than any line that fits: what follows cannot change what is drawn but costs time.
    text = text if len(text) <= 1000 else text[:500] + text[-500:]
    return "".join(c if c.isprintable() and ord(c) in known else _UNKNOWN for c in text)


def _font(style: Style) -> FontProperties:
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=_FAMILY, weight="bold" if style.bold else "normal", size=style.size_px * 72 / _DPI)
