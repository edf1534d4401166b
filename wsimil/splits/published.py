"""Splits that papers published, in the files of their code: CLAM, TransMIL, ACMIL and xMIL.

MHIM-MIL publishes labels alone and draws its folds when it runs; such files are refused with what to do instead.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsimil.cohort import SPLITS, Cohort
from wsimil.errors import CohortError
from wsimil.provenance import Json
from wsimil.splits.making import with_val
from wsimil.splits.plan import Round, SplitPlan

_SIDES: Mapping[str, str] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_published(paths: Sequence[Path], cohort: Cohort, *, val_fraction: float, seed: int) -> SplitPlan:
    """The rounds of published files, one a file, or one for each fold number within it.

    Names in them are slide ids, or patient ids for all slides of a patient. Where a round has no validation slides they are drawn
    from its training patients, and `made` says so: the official code of some chose on the test fold, which is not done here.
    Raises CohortError for files without splits, names that the cohort does not know, or knows as a slide of one patient and as
    another patient, and patients on two sides.
    """
    by_patient: dict[str, list[str]] = defaultdict(list)
    for slide in cohort.slides:
        by_patient[slide.patient_id].append(slide.slide_id)
    known = {slide.slide_id: [slide.slide_id] for slide in cohort.slides}
    rounds: list[Round] = []
    unknown: set[str] = set()
    drawn: list[str] = []
    slides = {slide.slide_id: (slide.patient_id, slide.label) for slide in cohort.slides}
    both = {name for name in known.keys() & by_patient.keys() if slides[name][0] != name}
    for path in paths:
        for number, sides in _sides_of(path).items():
            name = number if len(paths) == 1 else ".".join(part for part in (_number(path), number) if part)
            found: dict[str, list[str]] = {split: [] for split in SPLITS}
            for side, names in sides.items():
                for one in names:
                    if one in both:
                        raise CohortError(
                            f"{path}: {one!r} is a slide of patient {slides[one][0]!r} in the cohort and another patient, too;"
                            " give the slides or the patients other ids in the cohort file and in this one"
                        )
                    ids = known.get(one) or by_patient.get(one)
                    if ids is None:
                        unknown.add(one)
                    else:
                        found[side] += ids
            if not found["train"]:
                raise CohortError(
                    f"{path}: none of its {len(sides['train'])} training names, e.g. {next(iter(sides['train']), None)!r}, is a"
                    f" slide or a patient of the cohort, e.g. {cohort.slides[0].slide_id!r}"
                )
            one_round = Round(name=name or "0", **{side: tuple(sorted(set(ids))) for side, ids in found.items()})
            plan = SplitPlan(kind="published", made={}, slides=slides, rounds=(one_round,))  # refuses what leaks
            if not plan.rounds[0].val:
                one_round = _with_val(one_round, cohort, val_fraction, seed)
                drawn.append(one_round.name)
            rounds.append(one_round)
    made: dict[str, Json] = {
        "files": [path.name for path in paths],
        "not_in_cohort": [*sorted(unknown)],
        "val_drawn_in": [*drawn],
        "val_fraction": val_fraction,
        "seed": seed,
    }
    return SplitPlan(kind="published", made=made, slides=slides, rounds=tuple(rounds))


def _with_val(one: Round, cohort: Cohort, fraction: float, seed: int) -> Round:
    owner = {slide.slide_id: slide.patient_id for slide in cohort.slides}
    patients = {owner[slide_id] for slide_id in one.train}
    drawn = with_val(cohort, patients, fraction, np.random.default_rng([seed, 3]))
    val = tuple(slide_id for slide_id in one.train if owner[slide_id] in drawn)
    return Round(name=one.name, train=tuple(s for s in one.train if owner[s] not in drawn), val=val, test=one.test)


def _sides_of(path: Path) -> dict[str, dict[str, list[str]]]:
    """Round name ("" for the only one) -> side -> names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return {"": _from_json(path, json.loads(text))}
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except FileNotFoundError:
        raise CohortError(f"splits file {path} does not exist") from None
    except (OSError, ValueError, csv.Error) as error:
        raise CohortError(f"splits file {path} cannot be read: {error}") from None
    if not rows:
        raise CohortError(f"splits file {path} is empty")
    header = [name.strip() for name in rows[0]]
    rows = [row + [""] * (len(header) - len(row)) for row in rows]  # some files end their rows at the last name
    sides = {index: _SIDES[name] for index, name in enumerate(header) if name in _SIDES}
    if {"train", "test"} <= set(sides.values()):
        return {"": _from_columns(path, rows[1:], sides)}
    column = next((header.index(name) for name in ("subset", "split_info", "split", "fold") if name in header), None)
    key = next((header.index(name) for name in ("slide_id", "case_id") if name in header), None)
    if column is None or key is None:
        raise CohortError(
            f"{path}: no splits in it: wanted columns train, val, test (CLAM, TransMIL), a column subset (xMIL) or split_info"
            f" (ACMIL), or JSON with train_names (ACMIL), got {', '.join(header[:8])}; where it holds labels alone, as MHIM-MIL's"
            " files do, make a cohort file of it and draw splits with `wsimil splits make`"
        )
    return _from_column(path, [(row[key].strip(), row[column].strip()) for row in rows[1:]])


def _from_json(path: Path, facts: object) -> dict[str, list[str]]:
    if not isinstance(facts, dict) or "train_names" not in facts:
        raise CohortError(f"{path}: wanted JSON with train_names, val_names and test_names, as ACMIL has it")
    return {side: [str(name) for name in facts.get(f"{side}_names", [])] for side in SPLITS}


def _from_columns(path: Path, rows: Sequence[Sequence[str]], sides: Mapping[int, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {side: [] for side in SPLITS}
    cells = {row[index].strip() for row in rows for index in sides} - {""}
    if cells <= {"True", "False"}:
        for row in rows:
            for index, side in sides.items():
                if row[index].strip() == "True":
                    found[side].append(row[0].strip())
        return found
    if all(cell.isdecimal() for cell in cells):
        raise CohortError(f"{path}: holds counts of classes, not slides; give the file beside it, such as splits_0.csv")
    for row in rows:
        for index, side in sides.items():
            if row[index].strip():
                found[side].append(row[index].strip())
    return found


def _from_column(path: Path, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, list[str]]]:
    values = sorted({value for _, value in pairs})
    if all(value.isdecimal() for value in values) and len(values) > 1:
        return {
            number: {
                "train": [name for name, value in pairs if value != number],
                "val": [],
                "test": [name for name, value in pairs if value == number],
            }
            for number in sorted(values, key=int)
        }
    wrong = [value for value in values if value not in _SIDES]
    if wrong:
        raise CohortError(f"{path}: {wrong[0]!r} is no side; wanted train, val, test or fold numbers")
    found: dict[str, list[str]] = {side: [] for side in SPLITS}
    for name, value in pairs:
        found[_SIDES[value]].append(name)
    return {"": found}


def _number(path: Path) -> str:
    numbers = re.findall(r"\d+", path.stem)
    return numbers[-1] if numbers else path.stem
