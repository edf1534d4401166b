"""Which runs are judged by explain-check, on whose slides, and which of their slides they never saw."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsimil.cohort import BagUnit, read_patients
from wsimil.errors import CohortError, ConfigError, StoreError
from wsimil.evaluation.decision import load_decided
from wsimil.mil.saved import TrainedModel
from wsimil.provenance import sha256_json
from wsimil.stages.learned import Learned, learned_from
from wsimil.stages.predict import units_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckedRun:
    """One run; `method` names what runs are judged together by: the method, and its settings where these differ."""

    name: str
    folder: Path
    trained: TrainedModel
    learned: Learned
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is judged: for each slide (or patient) the names of the runs that never saw it; `slides` are those of a patient.

    `patients` says whose a unit is, `left_out` counts what is not judged, by reason.
    """

    unit: BagUnit
    units: Mapping[str, frozenset[str]]
    slides: Mapping[str, tuple[str, ...]]
    patients: Mapping[str, str]
    left_out: Mapping[str, int]
    notes: tuple[str, ...]


def load_runs(folders: Sequence[Path], *, device: str) -> tuple[CheckedRun, ...]:
    """Runs that answer one question. Raises ConfigError where they do not, ModelError, StoreError."""
    found = []
    for folder, name in zip(folders, _names(folders), strict=True):
        trained, _ = load_decided(folder, device=device)
        learned = learned_from(folder, trained.bag)
        found.append(CheckedRun(name=name, folder=folder, trained=trained, learned=learned, method=trained.method))
    first = found[0].trained
    for run in found[1:]:
        own = run.trained
        if own.bag != first.bag or own.task.kind != first.task.kind or own.task.outputs != first.task.outputs:
            raise ConfigError(
                f"{run.name} answers {own.task.kind} of {own.bag}s ({', '.join(own.task.outputs[:6])}), {found[0].name}"
                f" {first.task.kind} of {first.bag}s ({', '.join(first.task.outputs[:6])}); judge maps of one question together"
            )
    return tuple(_labelled(found))


def held_out(runs: Sequence[CheckedRun], ids: Sequence[str], *, cohort_csv: Path | None, split: str | None) -> Held:
    """The slides of `ids`, or patients, that a run neither learned from nor was chosen on, by the cohort that came with it.

    Raises CohortError where nothing is left, or where two files say that one slide is of two patients; ConfigError for a model
    of patients without a cohort file.
    """
    bag = runs[0].trained.bag
    owners = _owners(runs, cohort_csv)
    notes = []
    known = [slide for slide in ids if slide in owners] if cohort_csv is not None or bag == "patient" else [*ids]
    left_out = Counter({"not in the cohort file": len(ids) - len(known)})
    ownerless = [slide for slide in known if slide not in owners]
    if ownerless:
        notes.append(
            f"whose {len(ownerless)} slides are is not known, so each counts as a patient of its own; give --cohort if some share"
            " one"
        )
    patients = {slide: owners.get(slide, slide) for slide in known}
    partial: dict[str, str] = {}
    members, _ = units_of(known, owners if bag == "patient" else None, partial)
    left_out["lacking features of a slide"] = len(partial)
    units = {}
    for run in runs:
        run.learned.refuse_other_spellings(patients.values(), cohort_csv or run.folder)
    for unit, slides in members.items():
        owner = patients[slides[0]]
        blind = [run for run in runs if not run.learned.knows(unit, owner)]
        names = frozenset(run.name for run in blind if split is None or run.learned.splits.get(unit) == split)
        if names:
            units[unit] = names
        else:
            left_out["seen by every model in training" if not blind else f"not of the split {split!r}"] += 1
    unknown = [run.name for run in runs if not run.learned.known]
    if unknown:
        notes.append(
            f"what {', '.join(unknown)} learned from is not known (no cohort.csv came with it), so nothing could be left out; on"
            " slides that a model learned from, maps look more faithful than they are"
        )
    if not units:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise CohortError(
            f"no {bag} is left to judge maps on ({reasons or 'the features hold none'}); give features of slides that the model"
            " has not seen"
        )
    owned = {unit: patients[slides[0]] for unit, slides in members.items() if unit in units}
    return Held(
        unit=bag,
        units=units,
        slides={unit: slides for unit, slides in members.items() if unit in units},
        patients=owned,
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=tuple(notes),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as many parents as it takes to tell them apart. Raises ConfigError for a folder given twice."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) != len(resolved):
        raise ConfigError("a run is given twice; give each once")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) != len(resolved):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in resolved]


def _labelled(runs: Sequence[CheckedRun]) -> list[CheckedRun]:
    """The runs with names of their methods; where one method has several settings, each is numbered."""
    from dataclasses import replace

    settings: dict[str, list[str]] = {}
    for run in runs:
        digest = sha256_json(run.trained.model.config.model_dump(mode="json"))
        if digest not in settings.setdefault(run.method, []):
            settings[run.method].append(digest)
    named = []
    for run in runs:
        known = settings[run.method]
        number = known.index(sha256_json(run.trained.model.config.model_dump(mode="json"))) + 1
        named.append(run if len(known) == 1 else replace(run, method=f"{run.method} ({number})"))
    return named


def _owners(runs: Sequence[CheckedRun], cohort_csv: Path | None) -> dict[str, str]:
    """Slide -> patient, by the cohort file, else by the tables of the runs. Raises CohortError where they contradict."""
    if cohort_csv is None and runs[0].trained.bag == "patient":
        raise ConfigError(
            "these models answer for patients, so whose each slide is must be known; give --cohort, a CSV with slide_id and"
            " patient_id"
        )
    given = {} if cohort_csv is None else read_patients(cohort_csv)
    found = dict(given)
    for run in runs:
        for slide, patient in _table(run).items():
            if found.setdefault(slide, patient) != patient:
                raise CohortError(
                    f"slide {slide!r} belongs to patient {found[slide]!r}, and to {patient!r} in {run.folder / 'cohort.csv'}; use"
                    " one cohort for all, or what a model learned from cannot be told"
                )
    return found if cohort_csv is None else {slide: found[slide] for slide in given}


def _table(run: CheckedRun) -> dict[str, str]:
    path = run.folder / "cohort.csv"
    if not run.learned.known or run.trained.bag == "patient":
        return {}
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        return {row["slide_id"]: row["patient_id"] for row in rows}
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise StoreError(f"{path} cannot be read ({error}); copy the run again, whole") from error
