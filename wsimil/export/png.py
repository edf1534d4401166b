"""One picture of one heatmap on its slide, with all that is needed to read it: legend, scale bar, answer, what is not scored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil import __version__
from wsimil.export.heatmap import Heatmap
from wsimil.export.overlay import overlay, tint, unscored_swatch
from wsimil.export.page import Page, Style
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import effective_tiles_of
from wsimil.files import write_bytes
from wsimil.geometry import round_half_up

NOTICE = "Research use only. Not for diagnosis."

_IMAGE_PX = (1120, 880)
_MIN_SIDE_PX = 24
_MARGIN_PX = 28
_HEADER_PX = 76
_STRIP_PX = 44
_PANEL_PX = 320
_MIN_LEFT_PX = 300
_MAX_BAR_PX = 200
_ANSWERS_SHOWN = 8
_MODEL_LINES = 5

_TITLE = Style(size_px=22, bold=True)
_HEADING = Style(size_px=13, bold=True)
_BODY = Style(size_px=13)
_SMALL = Style(size_px=12, color=(0.38, 0.38, 0.38))
_NOTICE = Style(size_px=13, bold=True, color=(0.64, 0.11, 0.11))
_INK = (0.13, 0.13, 0.13)
_LINE = (0.62, 0.62, 0.62)
_TRACK = (0.91, 0.91, 0.91)
_BAR = (0.36, 0.42, 0.50)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the slide's level-0 frame lies on the page, px, and how many page px a level-0 px is from left to right."""

    x: int
    y: int
    width: int
    height: int
    scale: float


def write_png(path: Path, table: ScoreTable, heatmap: Heatmap, *, thumbnail: NDArray[np.uint8] | None = None) -> None:
    """Write `render_png` to `path` atomically. Raises OutputError."""
    write_bytes(path, render_png(table, heatmap, thumbnail=thumbnail))


def render_png(table: ScoreTable, heatmap: Heatmap, *, thumbnail: NDArray[np.uint8] | None = None) -> bytes:
    """The picture as PNG. `thumbnail` uint8 [h, w, 3] covers the whole level-0 frame exactly, in any size.

    A text chunk "wsimil" holds JSON: where the slide's frame lies in the picture (`frame_px`, x, y, w, h), and what is shown.
    """
    frame = _frame(table.slide_size0_px)
    left_px = max(frame.width, _MIN_LEFT_PX)
    rows = _panel_rows(table)
    page_width = 3 * _MARGIN_PX + left_px + _PANEL_PX
    page_height = _HEADER_PX + max(frame.height + _STRIP_PX, rows) + _MARGIN_PX
    page = Page(page_width, page_height)
    share = table.task.confidence(table.values)
    answer = table.predicted if share is None else f"{table.predicted}, probability {share:.3f}"
    inner = page_width - 2 * _MARGIN_PX
    page.text(_MARGIN_PX, 28, table.slide_id, _TITLE, width_px=inner)
    whose = f" for {table.answer_of}" if table.unit == "patient" else ""
    page.text(_MARGIN_PX, 54, f"Predicted{whose}: {answer}", _BODY, width_px=inner)
    page.picture(frame.x, frame.y, overlay(heatmap, thumbnail, shape=(frame.height, frame.width)))
    page.box(frame.x - 1, frame.y - 1, frame.width + 2, frame.height + 2, _LINE, line_px=1)
    _scale_bar(page, frame, table.mpp, left_px, no_picture=thumbnail is None)
    _panel(page, 2 * _MARGIN_PX + left_px, table, heatmap)
    facts = {
        "frame_px": [frame.x, frame.y, frame.width, frame.height],
        "slide": table.slide_id,
        "slide_size0_px": list(table.slide_size0_px),
        "shows": heatmap.label,
        "range": list(heatmap.range),
        "normalization": heatmap.normalization,
        "reading": heatmap.reading,
        "rule": heatmap.rule,
    }
    return page.png({"Software": f"wsimil {__version__}", "wsimil": json.dumps(facts)})


def _frame(size0_px: tuple[int, int]) -> _Frame:
    scale = min(_IMAGE_PX[0] / size0_px[0], _IMAGE_PX[1] / size0_px[1])
    width, height = (max(_MIN_SIDE_PX, round_half_up(side * scale)) for side in size0_px)
    return _Frame(_MARGIN_PX, _HEADER_PX, width, height, width / size0_px[0])


def _scale_bar(page: Page, frame: _Frame, mpp: float, width_px: int, *, no_picture: bool) -> None:
    px_per_um = frame.scale / mpp
    length_um = _round_length(_MAX_BAR_PX / px_per_um)
    bar_px = length_um * px_per_um
    y = frame.y + frame.height + 22
    page.box(frame.x, y - 2, bar_px, 4, _INK)
    page.box(frame.x, y - 6, 2, 12, _INK)
    page.box(frame.x + bar_px - 2, y - 6, 2, 12, _INK)
    name = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    page.text(frame.x + bar_px + 10, y, name, _BODY, width_px=90)
    if no_picture:
        room = width_px - bar_px - 100
        page.text(frame.x + width_px, y, "slide not shown", _SMALL, width_px=room, align="right")


def _round_length(most: float) -> float:
    """The largest of 1, 2, 5, 10, 20 ... that is not above `most`."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(power * max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))


def _panel_rows(table: ScoreTable) -> int:
    """Height that the panel needs, px: what `_panel` draws, added up."""
    count = len(table.values)
    answers = min(count, _ANSWERS_SHOWN) + (count > _ANSWERS_SHOWN)
    return 216 + 40 + 24 * answers + 42 + 22 * len(_slide_lines(table)) + 42 + 22 * len(_model_lines(table)) + 40


def _panel(page: Page, x: int, table: ScoreTable, heatmap: Heatmap) -> None:
    y = _legend(page, x, _HEADER_PX + 6, heatmap, table)
    y = _answers(page, x, y + 18, table)
    y = _lines(page, x, y + 18, "Tiles", _slide_lines(table))
    y = _lines(page, x, y + 18, "Model", _model_lines(table))
    page.text(x, y + 22, NOTICE, _NOTICE, width_px=_PANEL_PX)


def _legend(page: Page, x: int, y: int, heatmap: Heatmap, table: ScoreTable) -> int:
    low, high = heatmap.range
    page.text(x, y, heatmap.label[0].upper() + heatmap.label[1:], _HEADING, width_px=_PANEL_PX)
    ramp = np.linspace(low, high, _PANEL_PX, dtype=np.float32)[None].repeat(18, axis=0)
    white = np.full((*ramp.shape, 3), 250, np.float32)
    page.picture(x, y + 18, np.asarray(np.round(tint(ramp, heatmap.range, heatmap.kind, white)), np.uint8))
    page.box(x, y + 18, _PANEL_PX, 18, _LINE, line_px=1)
    values = heatmap.values[~np.isnan(heatmap.values)]
    below, above = bool((values < low).any()), bool((values > high).any())
    middle = (low + high) / 2
    page.text(x, y + 50, ("≤ " if below else "") + _number(low), _BODY, width_px=100)
    page.text(x + _PANEL_PX / 2, y + 50, _number(middle), _BODY, width_px=100, align="center")
    page.text(x + _PANEL_PX, y + 50, ("≥ " if above else "") + _number(high), _BODY, width_px=100, align="right")
    less, more = table.task.raises
    meaning = f"blue: {less}, orange: {more}" if heatmap.kind == "signed" else "violet: low, yellow: high"
    page.text(x, y + 76, meaning, _SMALL, width_px=_PANEL_PX)
    page.text(x, y + 96, f"colors: {heatmap.normalization}", _SMALL, width_px=_PANEL_PX)
    page.text(x, y + 116, heatmap.reading, _SMALL, width_px=_PANEL_PX)
    page.text(x, y + 136, f"made by: {heatmap.rule}" if heatmap.rule else "", _SMALL, width_px=_PANEL_PX)
    page.picture(x, y + 154, unscored_swatch((18, 34)))
    page.box(x, y + 154, 34, 18, _LINE, line_px=1)
    page.text(x + 44, y + 163, "not scored", _BODY, width_px=_PANEL_PX - 44)
    return y + 180


def _answers(page: Page, x: int, y: int, table: ScoreTable) -> int:
    """The numbers of the answer; probabilities of classes, the highest first, with a bar each."""
    columns = table.task.answers
    exclusive = table.task.kind == "classification"
    unit = table.unit
    heading = f"Probability of the {unit}" if all(c.probability for c in columns) else f"Answer for the {unit}"
    page.text(x, y, heading, _HEADING, width_px=_PANEL_PX)
    order = np.argsort(-table.values, kind="stable") if exclusive else np.arange(len(columns))
    names_px = 132 if exclusive else 162
    bar_px = _PANEL_PX - names_px - 64
    y += 24
    for index in order[:_ANSWERS_SHOWN]:
        column, value = columns[index], float(table.values[index])
        page.text(x, y, column.title, _BODY, width_px=names_px)
        if column.probability:
            page.box(x + names_px + 10, y - 6, bar_px, 12, _TRACK)
            page.box(x + names_px + 10, y - 6, bar_px * value, 12, _BAR)
        number = f"{value:.3f}" if column.probability else f"{value:.4g} {column.unit}".strip()
        width = 54 if column.probability else bar_px + 54
        page.text(x + _PANEL_PX, y, number, _BODY, width_px=width, align="right")
        y += 24
    rest = order[_ANSWERS_SHOWN:]
    if len(rest):
        together = exclusive or table.task.kind == "ordinal"
        page.text(x, y, f"{len(rest)} more{', together' if together else ''}", _SMALL, width_px=240)
        if together:
            share = float(table.values[rest].sum())
            page.text(x + _PANEL_PX, y, f"{share:.3f}", _BODY, width_px=54, align="right")
        y += 24
    return y


def _lines(page: Page, x: int, y: int, heading: str, lines: list[tuple[str, str]]) -> int:
    page.text(x, y, heading, _HEADING, width_px=_PANEL_PX)
    y += 24
    for name, value in lines:
        page.text(x, y, name, _SMALL, width_px=132)
        page.text(x + 142, y, value, _BODY, width_px=_PANEL_PX - 142)
        y += 22
    return y


def _slide_lines(table: ScoreTable) -> list[tuple[str, str]]:
    lines = [("number", f"{len(table):,}"), ("side", f"{table.size0 * table.mpp:.4g} µm")]
    effective = effective_tiles_of(table)
    if effective is not None:
        lines.append(("effective (1/Σa²)", f"{effective:,.1f}"))
    return [*lines, ("slide resolution", f"{table.mpp:.4g} µm/px")]


def _model_lines(table: ScoreTable) -> list[tuple[str, str]]:
    texts = [(str(key), str(value)) for key, value in table.model.items() if isinstance(value, str | int | float)]
    return [*texts[:_MODEL_LINES], ("wsimil", __version__)]


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "\u2212") if abs(value) < 99.5 else f"{value:.0f}".replace("-", "\u2212")
