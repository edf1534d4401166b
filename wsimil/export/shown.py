"""What a map shows of a score: its values, what they are called, in which unit, and what zero among them means.

Everything made for eyes takes its values from here: pictures, pages, annotations and maps for other viewers. Raw scores stand in
`scores.parquet` and its CSV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.class_odds import score_of_odds
from wsimil.export.answers import AnswerRule
from wsimil.export.scores import NOT_RECORDED, ScoreTable
from wsimil.targets import Task

Kind: TypeAlias = Literal["signed", "sequential"]

_LABELS = {
    "contribution": ("contribution to {}", "adds nothing"),
    "single": ("{}, were the tile alone", "as likely as not"),
    "leave_one_out": ("what {} loses without the tile", "loses nothing"),
    "integrated_gradients": ("integrated gradients of {}", "as the baseline"),
    "gradient_x_input": ("gradient x input of {}", "as the baseline"),
    "score": ("{} by the method's own score", "a half"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """`values` float32 [N], NaN = not scored; `label` says what they are, `reading` the unit and what zero means."""

    values: NDArray[np.float32]
    kind: Kind
    label: str
    reading: str


def shown(table: ScoreTable, name: str) -> Shown:
    """The raw score, but of some kinds a number that follows from it whose zero means the same on every slide.

    Attention that is a softmax is shown as a multiple of what uniform attention over the bag gives, a patient's over all slides,
    or as it is where the table does not tell how many tiles these have. Scores of a class, a label or a level are
    shown as what they say of its log-odds, see `class_odds`: of a class against the other classes, whose scores the table must
    hold, too; calibrated as answers are, but not by steps, which have no log-odds, and not the method's own score of a tile, of
    which no answer need be made. Those of a risk, a hazard or a regressed value are shown as they are; `single`, whose zero means
    nothing there, less what the whole bag says. Raises KeyError where the table has no such score, and of `single` where its task
    has no such output.
    """
    raw = table.score(name)
    kind, _, of = name.partition(":")
    if kind in _LABELS:
        return _of_output(table, kind, of, raw)
    if kind == "attention":
        return _attention(table, of, raw, table.rule(name))
    signed = bool((raw < 0).any())
    return Shown(values=raw, kind="signed" if signed else "sequential", label=name, reading="")


def kind_of(table: ScoreTable, name: str) -> Kind:
    """The kind of what is shown of a score, mostly without its values. Raises KeyError where the table has no such score."""
    if name.partition(":")[0] in _LABELS:
        table.score(name)  # refuses a name that is not there
        return "signed"
    return shown(table, name).kind


def effective_tiles(attention: NDArray[np.float32]) -> float:
    """How many tiles share the attention: `1 / (a ** 2).sum()` with `a = attention / attention.sum()`, in [1, N].

    Raises ValueError where attention is negative or nowhere above 0.
    """
    a = _share(attention)
    return 1.0 / float(np.square(a[~np.isnan(a)]).sum())


def effective_tiles_of(*tables: ScoreTable) -> float | None:
    """`effective_tiles` of the mean over heads, in all slides of a bag together.

    None without attention that is a softmax, and of some slides of a patient without the others.
    """
    if not tables or sum(map(len, tables)) != tables[0].bag_tiles:
        return None
    parts = []
    for table in tables:
        heads = [name for name in table.score_names if name.partition(":")[0] == "attention"]
        if not heads or not all(_is_softmax(table.rule(name)) for name in heads):
            return None
        parts.append(np.mean([table.score(name) for name in heads], axis=0, dtype=np.float32))
    attention = np.concatenate(parts)
    return effective_tiles(attention) if np.nansum(attention) > 0 else None


def _attention(table: ScoreTable, head: str, raw: NDArray[np.float32], rule: str) -> Shown:
    of = f" of {head}" if head else ""
    # Weights that are no softmax may be negative, and of another sum on each slide. All slides show them alike: one range
    # and one legend are for all, so a slide on which no tile has any does not decide.
    other = rule != NOT_RECORDED and not _is_softmax(rule)
    tiles = table.bag_tiles
    if other or tiles is None or bool((raw < 0).any()):
        # Never signed: legends of signed scores say "for" and "against".
        return Shown(
            values=raw, kind="sequential", label=f"attention{of} (not evidence)", reading="weights as they are"
        )
    label, reading = f"attention{of} (not evidence), uniform = 1", "share of all attention x tiles"
    if table.unit == "patient":
        # It sums to 1 over all slides of the patient: on this one alone to what the slide has of it.
        relative, reading = raw.astype(np.float64) * tiles, "share of the patient's attention x its tiles"
    elif np.nansum(raw, dtype=np.float64) > 0:
        relative = _share(raw) * np.count_nonzero(~np.isnan(raw))
    else:
        relative = raw.astype(np.float64)
    return Shown(values=relative.astype(np.float32), kind="sequential", label=label, reading=reading)


def _of_output(table: ScoreTable, kind: str, of: str, raw: NDArray[np.float32]) -> Shown:
    label, zero = _LABELS[kind]
    if kind in ("integrated_gradients", "gradient_x_input"):
        rule = table.rule(f"{kind}:{of}")
        zero = " or ".join(f"as {one}" for one in ("the mean tile", "features of zero") if one in rule) or zero
    values, unit = raw, "logits"
    odds = _odds(table, kind, of)
    if odds is not None:
        values, calibrated = odds
        unit = "log-odds" if calibrated else "log-odds before calibration"
        if kind == "single" and not calibrated:
            zero = "a half"
    elif kind == "single":
        values = (raw - table.logits[_index(table, of)]).astype(np.float32)
        unit, zero = f"logits less the {table.unit}'s", f"as the whole {table.unit}"
    elif kind == "score":
        zero = "no meaning of its own"
    return Shown(
        values=values, kind="signed", label=label.format(_asked(table.task, of)), reading=f"{unit}; 0 = {zero}"
    )


def _odds(table: ScoreTable, kind: str, of: str) -> tuple[NDArray[np.float32], bool] | None:
    """What a score says of the log-odds of an output, and whether these are of the answer as it is given; None without odds."""
    outputs = table.task.outputs
    if of not in outputs:
        return None
    index, logits = outputs.index(of), table.logits
    if table.task.kind in ("multilabel", "ordinal"):
        # A sigmoid is the softmax of a logit beside 0.
        own = table.score(f"{kind}:{of}").astype(np.float64)
        scores, logits, index = np.stack([np.zeros_like(own), own], axis=1), np.array([0.0, logits[index]]), 1
    elif table.task.kind == "classification" and {f"{kind}:{name}" for name in outputs} <= set(table.score_names):
        scores = np.stack([table.score(f"{kind}:{name}") for name in outputs], axis=1).astype(np.float64)
    else:
        return None
    rule = AnswerRule.frozen(table.task, table.model)
    calibration = rule.labels.get(of, rule.calibration)
    # Tables of earlier versions do not tell how their answer was calibrated.
    known = (calibration is None or calibration.temperature is not None) and rule.explains(table)
    if kind == "score":
        return score_of_odds("single", scores, logits, index).astype(np.float32), known and calibration is None
    return score_of_odds(kind, scores, logits, index, calibration if known else None).astype(np.float32), known


def _asked(task: Task, of: str) -> str:
    """What an output answers: a step between levels is asked of what is above the step before alone, whatever else it says."""
    step = task.outputs.index(of) if task.kind == "ordinal" and of in task.outputs else 0
    return f"{of} given {task.outputs[step - 1]}" if step else of


def _index(table: ScoreTable, of: str) -> int:
    if of not in table.task.outputs:
        raise KeyError(
            f"slide {table.slide_id!r}: {of!r} is no output of its task, only {', '.join(table.task.outputs)}"
        )
    return table.task.outputs.index(of)


def _is_softmax(rule: str) -> bool:
    return rule.startswith("softmax")


def _share(attention: NDArray[np.float32]) -> NDArray[np.float64]:
    values = attention.astype(np.float64)
    total = float(np.nansum(values))
    if not total > 0 or bool((values < 0).any()):
        raise ValueError("attention is at least 0 everywhere and above 0 somewhere; this one is not")
    return np.asarray(values / total)
