"""What a map shows of a score: its values, what they are called, in which unit, and what zero among them means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.calibration import Calibration, frozen_calibrations
from wsimil.export.scores import NOT_RECORDED, ScoreTable
from wsimil.targets.base import log_odds

Kind: TypeAlias = Literal["signed", "sequential"]

_ODDS = "log-odds; 0 = as likely as not"
_ODDS_BEFORE = "log-odds before calibration; 0 = a half"
_LABELS = {
    "contribution": ("contribution to {}", "0 = adds nothing"),
    "leave_one_out": ("what {} loses without the tile", "0 = loses nothing"),
    "integrated_gradients": ("integrated gradients of {}", "0 = as the mean tile"),
    "gradient_x_input": ("gradient x input of {}", "0 = as the mean tile"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """`values` float32 [N], NaN = not scored; `label` says what they are, `reading` the unit and what zero means.

    `line` (slope > 0, shift) says that they are `slope * raw + shift` of this slide's raw score; None where they are not.
    """

    values: NDArray[np.float32]
    kind: Kind
    label: str
    reading: str
    line: tuple[float, float] | None = (1.0, 0.0)

    def raw_range(self, span: tuple[float, float]) -> tuple[float, float] | None:
        """The raw scores of this slide that a range of values shown begins and ends at, where there are such."""
        if self.line is None:
            return None
        slope, shift = self.line
        return (span[0] - shift) / slope, (span[1] - shift) / slope


def shown(table: ScoreTable, name: str) -> Shown:
    """The raw score, but of two kinds a number beside it whose zero means the same on every slide.

    Attention that is a softmax is shown as a multiple of what uniform attention gives. `single` is shown as the log-odds of
    its output, were the tile all there is: of a class against the other classes, of a label or a level as it is, and 0 is as
    likely as not; calibrated as answers are, but not by steps, which have no log-odds. The zero of a risk, a hazard or a
    regressed value means nothing by itself: there it is shown less what the whole bag says. Raises KeyError where the table has
    no such score.
    """
    raw = table.score(name)
    kind, _, of = name.partition(":")
    if kind in _LABELS:
        label, zero = _LABELS[kind]
        return Shown(values=raw, kind="signed", label=label.format(of), reading=f"logits; {zero}")
    if kind == "attention":
        return _attention(raw, of, table.rule(name))
    if kind == "single":
        return _single(table, of, raw)
    # The method's own logits have a zero on every slide, also where none of its tiles lies below.
    signed = kind == "score" or bool((raw < 0).any())
    return Shown(values=raw, kind="signed" if signed else "sequential", label=name, reading="")


def effective_tiles(attention: NDArray[np.float32]) -> float:
    """How many tiles share the attention: `1 / (a ** 2).sum()` with `a = attention / attention.sum()`, in [1, N].

    Raises ValueError where attention is negative or nowhere above 0.
    """
    a = _share(attention)
    return 1.0 / float(np.square(a[~np.isnan(a)]).sum())


def effective_tiles_of(*tables: ScoreTable) -> float | None:
    """`effective_tiles` of the mean over heads, in all slides of a bag together; None without attention that is a softmax."""
    parts = []
    for table in tables:
        heads = [name for name in table.score_names if name.partition(":")[0] == "attention"]
        if not heads or not all(_is_softmax(table.rule(name)) for name in heads):
            return None
        parts.append(np.mean([table.score(name) for name in heads], axis=0, dtype=np.float32))
    return effective_tiles(np.concatenate(parts)) if parts else None


def _attention(raw: NDArray[np.float32], head: str, rule: str) -> Shown:
    of = f" of {head}" if head else ""
    # Weights that are no softmax may be negative, and of another sum on each slide. All slides show them alike: one range
    # and one legend are for all.
    other = rule != NOT_RECORDED and not _is_softmax(rule)
    if other or bool((raw < 0).any()) or not np.nansum(raw, dtype=np.float64) > 0:
        # Never signed: legends of signed scores say "for" and "against".
        return Shown(
            values=raw, kind="sequential", label=f"attention{of} (not evidence)", reading="weights as they are"
        )
    share = _share(raw)
    tiles = np.count_nonzero(~np.isnan(share))
    relative = share * tiles
    line = (tiles / float(np.nansum(raw, dtype=np.float64)), 0.0)
    label = f"attention{of} (not evidence), uniform = 1"
    reading = "share of all attention x tiles"
    return Shown(values=relative.astype(np.float32), kind="sequential", label=label, reading=reading, line=line)


def _single(table: ScoreTable, of: str, raw: NDArray[np.float32]) -> Shown:
    names = [f"single:{output}" for output in table.task.outputs]
    index = table.task.outputs.index(of) if of in table.task.outputs else None
    line: tuple[float, float] | None = (1.0, 0.0)
    calibration = _calibration(table, of)
    reading = _ODDS if calibration is None or calibration.temperature is not None else _ODDS_BEFORE
    if table.task.kind in ("multilabel", "ordinal"):
        values = raw
        if calibration is not None and calibration.temperature is not None:
            first, second = calibration.shifts or (0.0, 0.0)
            line = (1 / calibration.temperature, second - first)
            values = (raw * line[0] + line[1]).astype(np.float32)
    elif table.task.kind == "classification" and index is not None and set(names) <= set(table.score_names):
        logits = np.stack([table.score(name) for name in names], axis=1).astype(np.float64)
        moved = None if calibration is None else calibration.moved(logits)
        values, line = log_odds(logits if moved is None else moved, index).astype(np.float32), None
    elif index is not None:
        whole = "patient" if "patient" in table.model else "slide"
        values = (raw - table.logits[index]).astype(np.float32)
        reading, line = f"logits; 0 = as the whole {whole}", (1.0, -float(table.logits[index]))
    else:
        raise KeyError(
            f"slide {table.slide_id!r}: {of!r} is no output of its task, only {', '.join(table.task.outputs)}"
        )
    return Shown(values=values, kind="signed", label=f"{of}, were the tile alone", reading=reading, line=line)


def _calibration(table: ScoreTable, of: str) -> Calibration | None:
    """Of the model that made the table, or of one label; None where nothing was fitted, or where the table does not tell."""
    own, labels = frozen_calibrations(table.model)
    return labels.get(of, own)


def _is_softmax(rule: str) -> bool:
    return rule.startswith("softmax")


def _share(attention: NDArray[np.float32]) -> NDArray[np.float64]:
    values = attention.astype(np.float64)
    total = float(np.nansum(values))
    if not total > 0 or bool((values < 0).any()):
        raise ValueError("attention is at least 0 everywhere and above 0 somewhere; this one is not")
    return np.asarray(values / total)
