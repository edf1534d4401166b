"""A feature store under pseudonyms: whoever reads from it never learns the ids, not even from an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.pseudonyms import Pseudonyms
from wsimil.store.base import FeatureStore, InstanceStore, OrderedFeatures, StoredHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class RenamedStore:
    """The slides of `store` by the names of their ids; it is only read."""

    store: FeatureStore
    names: Pseudonyms
    slides: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slides", {self.names.name(slide_id): slide_id for slide_id in self.store.ids()})

    def ids(self) -> list[str]:
        """See `FeatureStore.ids`: names, sorted."""
        return sorted(self.slides)

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self.slides

    def path(self, slide_id: str) -> Path:
        """See `FeatureStore.path`; the place itself has the id in its name."""
        return self.store.path(self._real(slide_id))

    def header(self, slide_id: str) -> StoredHeader:
        """See `FeatureStore.header`."""
        with self._inert(slide_id) as real:
            return replace(self.store.header(real), slide_id=slide_id)

    def read(self, slide_id: str) -> FeatureBag:
        """See `FeatureStore.read`."""
        with self._inert(slide_id) as real:
            bag = self.store.read(real)
        slide = replace(bag.grid.slide, slide_id=slide_id, path=Path(slide_id))
        return replace(bag, grid=replace(bag.grid, slide=slide))

    def read_features(self, slide_id: str) -> NDArray[np.float16] | NDArray[np.float32]:
        """See `FeatureStore.read_features`."""
        with self._inert(slide_id) as real:
            return self.store.read_features(real)

    def write(self, bag: FeatureBag) -> Path:
        """Raises StoreError: under names nothing is written."""
        raise StoreError(f"slide {bag.slide_id!r}: a store under pseudonyms is only read")

    def _real(self, slide_id: str) -> str:
        if slide_id not in self.slides:
            raise StoreError(f"slide {slide_id!r}: there are no features of this name")
        return self.slides[slide_id]

    @contextmanager
    def _inert(self, slide_id: str) -> Iterator[str]:
        """The id; what is raised speaks of the name, and of no folder."""
        real = self._real(slide_id)
        try:
            yield real
        except StoreError as error:
            raise StoreError(self.names.inert(str(error), [real], folder=self.store.path(real).parent)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenamedInstances(RenamedStore):
    """The same of a store whose tiles may have no place."""

    def read_instances(self, slide_id: str) -> OrderedFeatures:
        """See `InstanceStore.read_instances`."""
        with self._inert(slide_id) as real:
            if not isinstance(self.store, InstanceStore):
                raise StoreError(f"slide {slide_id!r}: its store places every tile; read the bag")
            return self.store.read_instances(real)


def renamed(store: FeatureStore, names: Pseudonyms) -> FeatureStore:
    """`store` under the names of its slides."""
    return (RenamedInstances if isinstance(store, InstanceStore) else RenamedStore)(store=store, names=names)
