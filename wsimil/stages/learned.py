"""Which model made the answers in a folder, and whose slides it learned from: these are never among those it is judged by."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from wsimil.cohort import BagUnit
from wsimil.errors import CohortError, ConfigError, ModelError, StoreError
from wsimil.evaluation.decision import DECISION, load_decision
from wsimil.files import write_text
from wsimil.mil.facts import FACTS, ModelFacts, read_facts
from wsimil.provenance import Provenance
from wsimil.stages.deciding import frozen_with
from wsimil.targets import respelled

ORIGIN = "predictions.json"
_SCHEMA = "wsimil/predictions/1"
_SEEN = ("train", "val")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The run's own cohort: `splits` by slide, or by patient where that is a bag; `patients` are those that the model learned
    from ("train") or was chosen on ("val"), and `slides`, where a bag is a patient, their slides.

    Not `known` where the table of the cohort did not come with the model, as with one that was imported. `counts` are
    patients by split. `twins` are slides that were answered for and that it saw, in the split named, under another name.
    `contents` are the digests of slides that it saw, with their split; they stay with the run.
    """

    known: bool
    splits: Mapping[str, str]
    patients: Mapping[str, str]
    counts: Mapping[str, int]
    slides: Mapping[str, str] | None = None
    twins: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, name: Callable[[str], str]) -> Learned:
        """The same with `name` of every id, in the order of names: that of ids would tell whose they are."""
        splits = {name(slide_id): split for slide_id, split in self.splits.items()}
        patients = {name(patient_id): split for patient_id, split in self.patients.items()}
        slides = None if self.slides is None else {name(one): split for one, split in self.slides.items()}
        return replace(
            self,
            splits=dict(sorted(splits.items())),
            patients=dict(sorted(patients.items())),
            slides=None if slides is None else dict(sorted(slides.items())),
        )

    def knows(self, slide_id: str, patient_id: str | None) -> bool:
        """Whether the model learned from this slide or patient, or was chosen on it."""
        return self.seen_in(slide_id, patient_id) is not None

    def seen_in(self, slide_id: str, patient_id: str | None) -> str | None:
        """ "train" or "val" where the model saw this slide, or another one of its patient, there."""
        if patient_id is not None and patient_id in self.patients:
            return self.patients[patient_id]
        split = self.splits.get(slide_id)
        return split if split in _SEEN else self.twins.get(slide_id)

    def recognizing(self, contents: Mapping[str, str], owners: Mapping[str, str]) -> Learned:
        """The same, that also knows by `contents`, a digest by slide, what it saw under other names; `owners` are patients by
        slide."""
        twins = {
            slide_id: self.contents[content]
            for slide_id, content in contents.items()
            if content in self.contents
            and self._slide_seen_in(slide_id) is None
            and owners.get(slide_id) not in self.patients
        }
        return replace(self, twins=twins).among(owners)

    def among(self, owners: Mapping[str, str]) -> Learned:
        """The same, that also knows the patients one of whose slides it saw, by `owners`, patients by slide; in the order of
        names, as `renamed` has them."""
        seen = {
            patient: split
            for slide_id, patient in owners.items()
            if (split := self._slide_seen_in(slide_id)) is not None
        }
        return replace(self, patients=dict(sorted((seen | {**self.patients}).items())))

    def _slide_seen_in(self, slide_id: str) -> str | None:
        split = (self.splits if self.slides is None else self.slides).get(slide_id)
        return split if split in _SEEN else self.twins.get(slide_id)

    def refuse_other_spellings(self, patients: Iterable[str], where: Path) -> None:
        """Raises CohortError where the id of one of `patients`, those in `where`, is that of one whom the model saw but for what
        `respelled` passes over."""
        spelled = {respelled(patient): patient for patient in self.patients}
        for patient in patients:
            seen = spelled.get(respelled(patient), patient)
            if patient not in self.patients and patient != seen:
                raise CohortError(
                    f"patient {patient!a} of {where} and {seen!a}, whom the model learned from or was chosen on, differ in case,"
                    " a final .0, zeros before a number or how Unicode writes them alone; spell a patient one way in both cohort"
                    " files, or name two patients apart, so that none is learned from and tested on"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who answered: a model by its facts, and what it learned from; `alike` are groups of those answered for whose slides have
    one content."""

    model: ModelFacts
    learned: Learned
    alike: tuple[tuple[str, ...], ...] = ()


def learned_from(run: Path, bag: BagUnit) -> Learned:
    """What the table of the run says; not known where it was not copied with the model. Raises StoreError for a broken one."""
    path = run / "cohort.csv"
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        seen = [row for row in rows if row["split"] in _SEEN]
        patients = {row["patient_id"]: row["split"] for row in seen}
        contents = {digest: row["split"] for row in seen if (digest := row.get("slide_digest"))}
        counts = {
            split: len({row["patient_id"] for row in rows if row["split"] == split})
            for split in sorted({row["split"] for row in rows})
        }
        splits = {row[f"{bag}_id"]: row["split"] for row in rows}
        slides = {row["slide_id"]: row["split"] for row in seen} if bag == "patient" else None
        return Learned(known=True, splits=splits, patients=patients, counts=counts, slides=slides, contents=contents)
    except FileNotFoundError:
        return Learned(known=False, splits={}, patients={}, counts={})
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise StoreError(f"{path} cannot be read ({error}); copy the run again, whole") from error


def write_origin(out: Path, run: Path, learned: Learned, *, alike: Sequence[Sequence[str]] = ()) -> None:
    """Write predictions.json beside answers of the model in `run`, so that they can be judged without it. Raises OutputError."""
    facts = _facts(run)
    if facts["features"] is not None:
        # Runs of earlier versions tell of a slide that the model learned from: its file's name and its digests.
        facts["features"] = Provenance.from_json(facts["features"]).without_slide().to_json()
    tree = {
        "schema": _SCHEMA,
        "model": facts,
        # Without digests, which would tell who holds a slide what its pseudonym is.
        "learned_from": {name: value for name, value in asdict(learned).items() if name != "contents"},
        "alike": alike,
    }
    write_text(out / ORIGIN, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def read_origin(folder: Path, *, model: Path | None = None, option: str = "--model") -> Origin:
    """Who made the answers in `folder`, which `wsimil train` or `wsimil predict` wrote; `model` is the run where neither says,
    as `option` gave it. How answers were calibrated and decided, and what they know was learned from, is what was frozen with
    them, whatever the run says by now.

    Raises ConfigError where nobody knows, or where `model` is another one; ModelError, StoreError.
    """
    found = _of_predictions(folder) if (folder / ORIGIN).is_file() else None
    if found is None and (folder / FACTS).is_file():
        found = _of_run(folder)
    if model is None:
        if found is None:
            raise ConfigError(
                f"{folder} does not say which model answered: it holds neither {ORIGIN} nor {FACTS}; give {option} RUN, the"
                " folder that wsimil train wrote, or predict again"
            )
        return found
    given = _of_run(model)
    if found is not None and found.model.digest != given.model.digest:
        raise ConfigError(
            f"{option} {model}: its weights are not those that answered in {folder} ({given.model.digest[:12]} !="
            f" {found.model.digest[:12]}); leave {option} out, or give the run that was predicted with"
        )
    if found is None:
        return given
    # Predictions know more than the run: twins, and pseudonyms for ids.
    return found if found.learned.known else replace(found, learned=given.learned)


def _facts(run: Path) -> dict[str, Any]:
    """model.json, and in its training facts the thresholds and calibrations that were frozen with it."""
    facts = read_facts(run)
    decision = load_decision(run)
    frozen = {} if decision is None else frozen_with(decision)
    if decision is None or not frozen:
        return facts
    if decision.model != facts["weights_digest"]:
        raise ModelError(f"{run / DECISION} belongs to other weights than {FACTS} beside it; copy the whole run folder")
    return {**facts, "training": {**facts["training"], **frozen}}


def _of_run(run: Path) -> Origin:
    facts = ModelFacts.of(_facts(run), str(run / FACTS))
    return Origin(model=facts, learned=learned_from(run, facts.bag))


def _of_predictions(folder: Path) -> Origin:
    path = folder / ORIGIN
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if tree["schema"] != _SCHEMA:
            raise StoreError(f"{path} has schema {tree['schema']!r}, wanted {_SCHEMA!r}; update wsimil")
        model = ModelFacts.of(tree["model"], str(path))
        # Predictions of earlier versions tell of a model of patients no slides that it saw.
        unsaid: dict[str, Any] = {"slides": {} if model.bag == "patient" else None}
        return Origin(
            model=model,
            learned=Learned(**{**unsaid, **tree["learned_from"]}),
            alike=tuple(tuple(group) for group in tree.get("alike", ())),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); predict again") from error
