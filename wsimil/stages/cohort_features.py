"""A cohort and the features of its slides, brought together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wsimil.cohort import Cohort, Finding
from wsimil.errors import StoreError
from wsimil.store import FeatureStore, StoredHeader
from wsimil.store.base import read_headers
from wsimil.store.places import failed_ids
from wsimil.training.fit import Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBags:
    """Bags from a feature store, for training."""

    store: FeatureStore

    def load(self, slide_id: str) -> Instances:
        """The instances of one slide. Raises StoreError."""
        bag = self.store.read(slide_id)
        return Instances(features=bag.features, xy0=bag.grid.xy0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedFeatures:
    """The slides of a cohort that have features, all of one kind and none empty; `header` is one of theirs."""

    cohort: Cohort
    header: StoredHeader


def match(cohort: Cohort, store: FeatureStore, *, where: Path) -> MatchedFeatures:
    """Keep the slides of `cohort` that have a tile in `store`; what is left out becomes a finding of the cohort.

    Raises CohortError where nothing fits, StoreError where features are broken or of more than one kind.
    """
    ids = store.ids()
    headers = read_headers(store, sorted(set(ids) & set(cohort.slide_ids)))
    _refuse_mixed_kinds(headers, where)
    empty = [slide_id for slide_id, header in headers.items() if header.n == 0]
    matched = cohort.matched(ids, empty_ids=empty)
    doubtful = sorted(failed_ids(where) & {slide.slide_id for slide in matched.slides})
    if doubtful:
        what = "slides failed in the last extraction, and are used with the features of an earlier one"
        finding = Finding(what=what, slide_ids=tuple(doubtful))
        matched = replace(matched, findings=(*matched.findings, finding))
    return MatchedFeatures(cohort=matched, header=headers[matched.slides[0].slide_id])


def _refuse_mixed_kinds(headers: Mapping[str, StoredHeader], where: Path) -> None:
    first = next(iter(headers.values()), None)
    for header in headers.values():
        if first is not None and header.provenance.feature_digest != first.provenance.feature_digest:
            raise StoreError(
                f"features in {where} are of more than one kind: slides {first.slide_id!r} and {header.slide_id!r} differ in"
                f" {'; '.join(first.provenance.kind_differences(header.provenance))}; extract all slides with one config"
            )
