"""A plan of splits: rounds of train, val and test, of slides whose patients and targets are written down with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wsimil.cohort import SPLITS, BagUnit, Cohort, Finding, Split
from wsimil.errors import CohortError, ConfigError
from wsimil.files import write_text
from wsimil.provenance import Json, sha256_json

_FORMAT, _VERSION = "wsimil splits", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One training: slide ids of each side, sorted. An inner round of a nested plan has no test slides."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()

    def sides(self) -> tuple[tuple[Split, tuple[str, ...]], ...]:
        """(split, its slide ids) of all three."""
        return tuple((split, getattr(self, split)) for split in SPLITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """`slides` are (patient_id, target as text) by slide id, `made` says how the rounds came to be.

    Raises CohortError for a patient or a slide on two sides of a round, slides that nobody knows, and rounds of one name.
    """

    kind: str
    made: Mapping[str, Json]
    slides: Mapping[str, tuple[str, str]]
    rounds: tuple[Round, ...]

    def __post_init__(self) -> None:
        names = [one.name for one in self.rounds]
        if not names or len(set(names)) != len(names):
            raise CohortError(f"rounds of a plan have names of their own, got {names}")
        for one in self.rounds:
            self._refuse_leaks(one)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the plan says."""
        return sha256_json(self._facts())

    def round(self, name: str | None) -> Round:
        """A round by its name; None is the only one there is. Raises ConfigError."""
        names = [one.name for one in self.rounds]
        if name is None and len(names) == 1:
            return self.rounds[0]
        for one in self.rounds:
            if one.name == name:
                return one
        shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
        raise ConfigError(f"round {name!r}: wanted one of {shown}; give it with --round")

    def in_round(self, cohort: Cohort, name: str | None, *, bag: BagUnit = "slide") -> Cohort:
        """The slides of `cohort` that are in a round, with their split; what is left out becomes a finding. Where a `bag` is a
        patient, all slides of his are where those are that the round lists.

        Raises CohortError where the cohort is not the one that the plan was made for: another patient or target of a slide,
        slides that the plan does not know, or a split column that tests on others.
        """
        chosen = self.round(name)
        self.refuse_changes(cohort, bag=bag)
        split_of: dict[str, Split] = {slide_id: split for split, ids in chosen.sides() for slide_id in ids}
        followed: dict[str, Split] = {}
        if bag == "patient":
            sides = {self.slides[slide_id][0]: split for slide_id, split in split_of.items()}
            others = [slide for slide in cohort.slides if slide.slide_id not in split_of]
            followed = {slide.slide_id: sides[slide.patient_id] for slide in others if slide.patient_id in sides}
            split_of |= followed
        for slide in cohort.slides:
            if slide.split is not None and (slide.split == "test") != (split_of.get(slide.slide_id) == "test"):
                raise CohortError(
                    f"slide {slide.slide_id!r} is {slide.split} in the cohort's split column and"
                    f" {split_of.get(slide.slide_id, 'left out')} in round {chosen.name} of the splits; drop the one or the other"
                )
        kept = tuple(
            replace(slide, split=split_of[slide.slide_id], fold=None)
            for slide in cohort.slides
            if slide.slide_id in split_of
        )
        if not kept:
            raise CohortError(f"round {chosen.name} of the splits holds none of the {len(cohort.slides)} slides")
        left_out = tuple(slide.slide_id for slide in cohort.slides if slide.slide_id not in split_of)
        here = {slide.slide_id for slide in cohort.slides}
        absent = tuple(sorted(set(split_of) - here))
        found = [
            Finding(what=f"slides are not in round {chosen.name} and follow their patients", slide_ids=tuple(followed)),
            Finding(what=f"slides are on no side of round {chosen.name} and are left out", slide_ids=left_out),
            Finding(
                what=f"slides of round {chosen.name} have no label or no features and are left out", slide_ids=absent
            ),
        ]
        findings = (*cohort.findings, *(finding for finding in found if finding.slide_ids))
        return replace(cohort, slides=kept, findings=findings).checked_splits()

    def refuse_changes(self, cohort: Cohort, *, bag: BagUnit = "slide") -> None:
        """Raises CohortError where a slide has another patient or target than the plan says, or is not in it; where a `bag` is a
        patient, where no slide of his is in it.
        """
        known = dict(self.slides)
        if bag == "patient":
            patients = {patient: (patient, label) for patient, label in known.values()}
            known = {s.slide_id: patients[s.patient_id] for s in cohort.slides if s.patient_id in patients} | known
        changed = [
            f"{slide.slide_id!r} ({was[0]}, {was[1]} -> {slide.patient_id}, {slide.label})"
            for slide in cohort.slides
            if (was := known.get(slide.slide_id)) is not None and was != (slide.patient_id, slide.label)
        ]
        new = [repr(slide.slide_id) for slide in cohort.slides if slide.slide_id not in known]
        for what, names in (("have another patient or target now", changed), ("are not in the splits", new)):
            if names:
                raise CohortError(
                    f"{len(names)} slides of the cohort {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}; the"
                    " splits were made for another cohort: make them anew, or give that cohort"
                )

    def refuse_twins(self, contents: Mapping[str, str]) -> None:
        """Raises CohortError where slides of one content (a digest by slide id, "" unknown) lie on two sides of a round."""
        for one in self.rounds:
            seen: dict[str, tuple[str, str]] = {}
            for split, ids in one.sides():
                for slide_id in ids:
                    content = contents.get(slide_id, "")
                    other = seen.setdefault(content, (split, slide_id)) if content else (split, slide_id)
                    if other[0] != split:
                        raise CohortError(
                            f"round {one.name}: slides {other[1]!r} ({other[0]}) and {slide_id!r} ({split}) are one and the same"
                            " image under two names; drop one of them from the cohort, and make the splits anew"
                        )

    def _refuse_leaks(self, one: Round) -> None:
        side_of: dict[str, str] = {}
        owner: dict[str, tuple[str, str]] = {}
        for split, ids in one.sides():
            for slide_id in ids:
                if slide_id not in self.slides:
                    raise CohortError(f"round {one.name}: slide {slide_id!r} is not among the slides of the plan")
                if slide_id in side_of:
                    raise CohortError(f"round {one.name}: slide {slide_id!r} is in {side_of[slide_id]} and in {split}")
                side_of[slide_id] = split
                patient = self.slides[slide_id][0]
                first = owner.setdefault(patient, (split, slide_id))
                if first[0] != split:
                    raise CohortError(
                        f"round {one.name}: patient {patient!r} is on two sides, with slide {first[1]!r} in {first[0]} and"
                        f" {slide_id!r} in {split}; all slides of a patient belong on one"
                    )

    def _facts(self) -> dict[str, Json]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": self.kind,
            "made": dict(self.made),
            "slides": {slide_id: list(known) for slide_id, known in sorted(self.slides.items())},
            "rounds": [{"name": one.name} | {split: list(ids) for split, ids in one.sides()} for one in self.rounds],
        }

    def to_json(self) -> dict[str, Json]:
        """What the file holds."""
        return {**self._facts(), "digest": self.digest}


def write_plan(path: Path, plan: SplitPlan) -> None:
    """Write a plan as JSON, a slide and a side of a round to the line. Raises OutputError."""
    facts = plan.to_json()
    slides = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in facts["slides"].items())  # type: ignore[union-attr]
    rounds = ",\n".join(f"  {json.dumps(one)}" for one in facts["rounds"])  # type: ignore[union-attr]
    head = "".join(
        f"{json.dumps(k)}: {json.dumps(facts[k])},\n" for k in ("format", "version", "kind", "made", "digest")
    )
    write_text(path, f'{{{head}"slides": {{\n{slides}\n}},\n"rounds": [\n{rounds}\n]}}\n')


def read_plan(path: Path) -> SplitPlan:
    """Read a plan. Raises CohortError where it is none, was changed by hand, or leaks."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        kind_of_file = (facts["format"], facts["version"])
        plan = SplitPlan(
            kind=facts["kind"],
            made=facts["made"],
            slides={slide_id: (known[0], known[1]) for slide_id, known in facts["slides"].items()},
            rounds=tuple(
                Round(name=one["name"], train=tuple(one["train"]), val=tuple(one["val"]), test=tuple(one["test"]))
                for one in facts["rounds"]
            ),
        )
        said = facts["digest"]
    except FileNotFoundError:
        raise CohortError(f"splits file {path} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CohortError(f"{path} is no splits file of wsimil ({error!r}); `wsimil splits make` writes one") from None
    except CohortError as error:
        raise CohortError(f"{path}: {error}") from None
    if kind_of_file != (_FORMAT, _VERSION):
        raise CohortError(f"{path}: {kind_of_file[0]!r} of version {kind_of_file[1]!r} is not known here")
    if said != plan.digest:
        raise CohortError(
            f"{path}: its digest is not that of what it says ({said[:12]} != {plan.digest[:12]}): it was changed after it was"
            " made; make the splits anew with `wsimil splits make`"
        )
    return plan
