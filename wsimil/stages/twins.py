"""Slides of one content under several names: which they are, and where two patients or two labels would make them count twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from wsimil.cohort import CohortSlide
from wsimil.errors import CohortError


def alike(contents: Mapping[str, str], owners: Mapping[str, str] | None = None) -> list[tuple[str, ...]]:
    """Groups of slides that have one content, by `contents`, a digest by slide ("" is not known); with `owners`, patient by
    slide, groups of patients that share a slide."""
    same: dict[str, dict[str, None]] = {}
    for slide_id, content in contents.items():
        if content and (owners is None or slide_id in owners):
            same.setdefault(content, {})[slide_id if owners is None else owners[slide_id]] = None
    return [tuple(group) for group in same.values() if len(group) > 1]


def at_odds(groups: Iterable[Sequence[str]], units: Iterable[CohortSlide]) -> Iterator[tuple[str, str]]:
    """Pairs of slides (or patients) of one of `groups`, which have one content, that differ in patient or label."""
    known = {unit.slide_id: unit for unit in units}
    for group in groups:
        here = [known[one] for one in group if one in known]
        for other in here[1:]:
            if (here[0].patient_id, here[0].label) != (other.patient_id, other.label):
                yield here[0].slide_id, other.slide_id


def refuse_twins(groups: Iterable[Sequence[str]], units: Sequence[CohortSlide]) -> None:
    """Raises CohortError where `at_odds` finds a pair."""
    for pair in at_odds(groups, units):
        first, second = (next(unit for unit in units if unit.slide_id == one) for one in pair)
        raise CohortError(
            f"{_told(first, second)} one and the same image: it would be learned from and tested on, count for two patients, or"
            " bear two labels; drop one of them from the cohort file, or give both one patient_id and label"
        )


def _told(first: CohortSlide, second: CohortSlide) -> str:
    if first.members:
        return f"patients {first.patient_id!r} ({first.label!r}) and {second.patient_id!r} ({second.label!r}) share"
    return (
        f"slides {first.slide_id!r} (patient {first.patient_id!r}, {first.label!r}) and {second.slide_id!r} (patient"
        f" {second.patient_id!r}, {second.label!r}) are"
    )
