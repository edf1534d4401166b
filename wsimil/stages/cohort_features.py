"""A cohort and the features of its slides, brought together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wsimil.cohort import BagUnit, Cohort, CohortSlide, Finding
from wsimil.errors import CohortError, StoreError
from wsimil.evaluation.patient import stacked
from wsimil.provenance import sha256_json
from wsimil.stages.contents import Contents, content_of
from wsimil.stages.failures import used_though_failed
from wsimil.stages.twins import alike, refuse_twins
from wsimil.store import FeatureStore, StoredHeader
from wsimil.store.base import InstanceStore
from wsimil.store.places import failed_ids
from wsimil.training.loading import Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBags:
    """Bags from a feature store, for training."""

    store: FeatureStore

    def load(self, slide_id: str) -> Instances:
        """The instances of one slide. Raises StoreError."""
        if isinstance(self.store, InstanceStore):
            found = self.store.read_instances(slide_id)
            return Instances(features=found.features, xy0=found.order_xy)
        bag = self.store.read(slide_id)
        return Instances(features=bag.features, xy0=bag.grid.xy0)

    def count(self, slide_id: str) -> int:
        """How many instances a slide has. Raises StoreError."""
        return self.store.header(slide_id).n


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientBags:
    """Bags of all slides of a patient, one slide after another, by patient id; `members` are the slides of each."""

    bags: StoredBags
    members: Mapping[str, tuple[str, ...]]

    def load(self, patient_id: str) -> Instances:
        """The instances of one patient. Raises StoreError."""
        parts = [self.bags.load(slide_id) for slide_id in self.members[patient_id]]
        features = np.concatenate([part.features for part in parts])
        return Instances(features=features, xy0=stacked([part.xy0 for part in parts]))

    def count(self, patient_id: str) -> int:
        """How many instances a patient has. Raises StoreError."""
        return sum(self.bags.count(slide_id) for slide_id in self.members[patient_id])


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedFeatures:
    """The slides of a cohort that have features, all of one kind and none empty; `header` is one of theirs.

    `contents` is a digest that differs where what is stored of any of them does (see `StoredHeader.content`), `stored` tells it
    by slide, as `seen` knows it; `digests` are those of the slides' own content, by slide, "" where it is not known.
    """

    cohort: Cohort
    header: StoredHeader
    contents: str
    stored: Mapping[str, str]
    digests: Mapping[str, str]
    seen: Contents


def match(cohort: Cohort, store: FeatureStore, *, where: Path, bag: BagUnit = "slide") -> MatchedFeatures:
    """Keep the slides of `cohort` that have a tile in `store`; what is left out becomes a finding of the cohort. Where a `bag` is
    a patient, one who lacks the features of a slide is left out, rather than learned from by the rest.

    Raises CohortError where nothing fits, and where slides of one content belong to several patients or classes; StoreError
    where features are broken or of more than one kind.
    """
    ids = store.ids()
    seen = Contents()
    headers = seen.headers(store, sorted(set(ids) & set(cohort.slide_ids)))
    # Some tools leave the width open where there is no tile: such a file mixes nothing in.
    _refuse_mixed_kinds({slide_id: header for slide_id, header in headers.items() if header.dim}, where)
    empty = [slide_id for slide_id, header in headers.items() if header.n == 0]
    matched = cohort.matched(ids, empty_ids=empty)
    if bag == "patient":
        matched = _of_whole_patients(matched, lacking=[s for s in cohort.slides if s.slide_id not in headers])
    used = {slide_id: headers[slide_id] for slide_id in matched.slide_ids}
    digests = {slide_id: header.provenance.slide_digest for slide_id, header in used.items()}
    groups = alike(digests)
    refuse_twins(groups, matched.slides)
    found = [*used_though_failed(failed_ids(where), used)]
    found += [Finding(what="slides have one content", slide_ids=group) for group in groups]
    return MatchedFeatures(
        cohort=replace(matched, findings=(*matched.findings, *found)),
        header=next(iter(used.values())),
        contents=sha256_json({slide_id: header.content for slide_id, header in used.items()}),
        stored={slide_id: content_of(header) for slide_id, header in used.items()},
        digests=digests,
        seen=seen,
    )


def _of_whole_patients(cohort: Cohort, *, lacking: Sequence[CohortSlide]) -> Cohort:
    """The cohort without patients of whom a slide is `lacking`, who become a finding."""
    lost_patients = {slide.patient_id for slide in lacking} & set(cohort.patients)
    if not lost_patients:
        return cohort
    partial = sorted(lost_patients)
    kept = tuple(slide for slide in cohort.slides if slide.patient_id not in lost_patients)
    lost = sorted(set(cohort.classes) - {slide.label for slide in kept})
    if lost or not kept:
        of = f" of class {lost}" if lost else ""
        raise CohortError(
            f"no patient{of} has features of all his slides ({len(partial)} patients lack some, e.g. {partial[0]!r} of slide"
            f" {next(s.slide_id for s in lacking if s.patient_id == partial[0])!r}); extract these, or drop their lines"
        )
    what = "patients lack the features of one of their slides and are left out"
    return replace(cohort, slides=kept, findings=(*cohort.findings, Finding(what=what, slide_ids=tuple(partial))))


def _refuse_mixed_kinds(headers: Mapping[str, StoredHeader], where: Path) -> None:
    first = next(iter(headers.values()), None)
    for header in headers.values():
        if first is not None and header.provenance.feature_digest != first.provenance.feature_digest:
            raise StoreError(
                f"features in {where} are of more than one kind: slides {first.slide_id!r} and {header.slide_id!r} differ in"
                f" {'; '.join(first.provenance.kind_differences(header.provenance))}; extract all slides with one config"
            )
