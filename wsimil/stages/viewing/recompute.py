"""A slide's logits without some of its tiles, by the model itself on the reduced bag: for methods without a closed form."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import ModelError, StoreError
from wsimil.evaluation.patient import predict_patient
from wsimil.evaluation.predictor import predict
from wsimil.export.scores import ScoreTable
from wsimil.mil.saved import TrainedModel, load_model
from wsimil.stages.features import open_features
from wsimil.store import FeatureStore

_SAME = 1e-3
"""How far logits of one bag may be apart, relative to 1 + the largest: float32 sums in another order, on another device."""


class Recompute:
    """The model of a run and the features that it was predicted on. Raises WsimilError where they cannot be opened.

    It is asked for logits alone: how these are calibrated may have been fitted anew in the run since it answered.
    """

    def __init__(self, run: Path, features: Path) -> None:
        self._trained: TrainedModel = load_model(run)
        self._store: FeatureStore = open_features(features)
        self._lock = threading.Lock()  # one bag at a time: they may be large
        self._same: set[str] = set()

    def without(
        self, table: ScoreTable, kept: NDArray[np.bool_], *, others: tuple[str, ...] = ()
    ) -> NDArray[np.float64]:
        """The logits [C] for the tiles `kept`, together with the `others` slides of its patient.

        Raises ValueError where none has a tile, StoreError or ModelError where features are not those that were predicted.
        """
        if table.model.get("digest") != self._trained.digest:
            raise ModelError(f"slide {table.slide_id!r} was predicted by another model than that of --run")
        with self._lock:
            bag = self._store.read(table.slide_id)
            if not np.array_equal(bag.grid.xy0, table.xy0):
                raise StoreError(
                    f"slide {table.slide_id!r}: the tiles of --features are not those that were predicted; predict again"
                )
            bags = {name: bag if name == table.slide_id else self._store.read(name) for name in others}
            if not kept.any() and not any(len(other) for other in bags.values() if other is not bag):
                raise ValueError("nothing is left to judge: keep a tile")
            if table.slide_id not in self._same:
                _refuse_other_logits(table, self._logits(table, bag, bags))
                self._same.add(table.slide_id)
            return self._logits(table, _reduced(bag, kept), bags)

    def _logits(self, table: ScoreTable, bag: FeatureBag, bags: Mapping[str, FeatureBag]) -> NDArray[np.float64]:
        """With `bag` in the place of the slide's own among those of its patient."""
        if self._trained.bag == "slide":
            return next(predict(self._trained, [bag], kinds=())).logits
        patient = [bag if name == table.slide_id else other for name, other in bags.items()]
        return predict_patient(self._trained, str(table.model.get("patient", "")), patient, kinds=())[0].logits


def _refuse_other_logits(table: ScoreTable, found: NDArray[np.float64]) -> None:
    """Raise StoreError where all features together do not give the logits of the table any more."""
    apart = float(np.abs(found - table.logits).max())
    if apart > _SAME * (1 + float(np.abs(table.logits).max())):
        got, wanted = (", ".join(f"{value:.4g}" for value in values) for values in (found, table.logits))
        raise StoreError(
            f"slide {table.slide_id!r}: of all tiles together the features of --features give the logits {got}, the predictions"
            f" have {wanted}: features of this slide, or of another one of its patient, are not those that were predicted; give"
            " these, or predict again"
        )


def _reduced(bag: FeatureBag, kept: NDArray[np.bool_]) -> FeatureBag:
    grid = replace(bag.grid, xy0=bag.grid.xy0[kept], tissue=bag.grid.tissue[kept])
    return replace(bag, grid=grid, features=bag.features[kept], quality={})
