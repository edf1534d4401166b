"""How many slides came to be counted: from the cohort file to what is judged, and at each step who was left out and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsimil.evaluation.table import Row
from wsimil.export.report.report import FlowStep, Lost
from wsimil.stages.answered import Known, Run
from wsimil.store import open_store
from wsimil.store.places import failures, is_feature_place

_STEPS = (
    "in the cohort file",
    "with a label",
    "with features",
    "not learned from",
    "in the split",
    "answered: these count",
)
_UNTOLD = "of which nobody knows whether the model learned from them"
_SEEN = {"train": "the model learned from them (train)", "val": "the model was chosen on them (val)"}
_MOST_REASONS, _MOST_EXAMPLES = 8, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What an extraction left: slides with features, and slides that failed, with the reason."""

    slides: frozenset[str]
    failed: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The rows that count, in the order of the cohort file, why others do not (by unit), and the flow that says so."""

    rows: tuple[tuple[Run, Row], ...]
    lost: Mapping[str, str]
    flow: tuple[FlowStep, ...]


def read_extracted(features: Path) -> Extracted:
    """What lies in a feature folder. Raises StoreError."""
    if is_feature_place(features):
        ids = open_store(features, mode="r").ids()
    else:
        from wsimil.stages.features import open_features  # features of other tools need torch

        ids = open_features(features).ids()
    return Extracted(slides=frozenset(ids), failed=failures(features))


def count(runs: Sequence[Run], known: Known, *, split: str | None, extracted: Extracted | None) -> Counted:
    """Which answers count: of labelled units that no model of theirs has seen, in `split` where one is asked for.

    A unit counts in each run that did not learn from it, so that folds are judged by what each of them held out.
    """
    labelled = {unit.slide_id: unit for unit in known.cohort.slides}
    by_run = [{row.slide_id: row for row in run.rows} for run in runs]
    fates: dict[str, tuple[int, str]] = {}
    counted: list[tuple[Run, Row]] = []
    for unit in known.owners:
        if unit not in labelled:
            fates[unit] = (1, "no label")
            continue
        if extracted is not None and (why := _without_features(labelled[unit].members or (unit,), extracted)):
            fates[unit] = (2, why)
            continue
        seen = [run.learned.seen_in(unit, labelled[unit].patient_id) for run in runs]
        blind = [i for i, one in enumerate(seen) if one is None]
        if not blind:
            fates[unit] = (3, _SEEN["train" if "train" in seen else "val"])
            continue
        own = labelled[unit].split
        splits = {
            i: runs[i].learned.splits.get(unit) or (row.split if (row := by_run[i].get(unit)) else "") for i in blind
        }
        blind = [i for i in blind if split is None or (splits[i] or own) == split]
        if not blind:
            others = sorted({named for named in splits.values() if named} | ({own} if own else set()))
            fates[unit] = (4, f"in the split {', '.join(others)}" if others else "in no split")
            continue
        rows = [(i, row) for i in blind if (row := by_run[i].get(unit)) is not None]
        found = [(runs[i], row) for i, row in rows if row.values is not None]
        if not found:
            fates[unit] = (5, rows[0][1].status if rows else "not predicted")
            continue
        counted += found
    told = all(run.learned.known for run in runs)
    return Counted(
        rows=tuple(counted),
        lost={unit: why for unit, (_, why) in fates.items()},
        flow=_flow(fates, known, split=split, with_features=extracted is not None, told=told),
    )


def _without_features(slides: Sequence[str], extracted: Extracted) -> str | None:
    for slide in slides:
        if slide not in extracted.slides:
            reason = extracted.failed.get(slide)
            return "no features" if reason is None else f"extraction failed: {reason}"
    return None


def _flow(
    fates: Mapping[str, tuple[int, str]], known: Known, *, split: str | None, with_features: bool, told: bool
) -> tuple[FlowStep, ...]:
    left = dict(known.owners)
    labels = {unit.slide_id: unit.patient_id for unit in known.cohort.slides}
    left |= labels
    steps = []
    shown = [0, 1, *([2] if with_features else []), 3, *([4] if split else []), 5]
    for step in shown:
        what = f"in the split {split}" if step == 4 else _STEPS[step]
        what = _UNTOLD if step == 3 and not told else what
        gone = {unit: why for unit, (at, why) in fates.items() if at == step}
        lost = _reasons(gone, left)
        left = {unit: patient for unit, patient in left.items() if unit not in gone}
        steps.append(FlowStep(what=what, units=len(left), patients=len(set(left.values())), lost=lost))
    return tuple(steps)


def _reasons(gone: Mapping[str, str], owners: Mapping[str, str]) -> tuple[Lost, ...]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for unit, why in gone.items():
        by_reason[why].append(unit)
    ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    if len(ordered) > _MOST_REASONS:
        rest = [unit for _, units in ordered[_MOST_REASONS - 1 :] for unit in units]
        kinds = len(ordered) - _MOST_REASONS + 1
        ordered = [*ordered[: _MOST_REASONS - 1], (f"{kinds} other reasons, see predictions.csv", rest)]
    return tuple(
        Lost(
            reason=why,
            units=len(units),
            patients=len({owners[unit] for unit in units}),
            examples=tuple(units[:_MOST_EXAMPLES]),
        )
        for why, units in ordered
    )
