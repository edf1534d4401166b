"""A slide's answer without some of its tiles, by the model itself on the reduced bag: for methods without a closed form."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import ModelError, StoreError
from wsimil.evaluation.decision import load_decided
from wsimil.evaluation.patient import predict_patient
from wsimil.evaluation.predictor import predict
from wsimil.export.scores import ScoreTable
from wsimil.mil.saved import TrainedModel
from wsimil.stages.features import open_features
from wsimil.store import FeatureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What the model says of a reduced bag, in the order of the task's answers and outputs."""

    values: NDArray[np.float64]
    logits: NDArray[np.float64]


class Recompute:
    """The model of a run and the features that it was predicted on. Raises WsimilError where they cannot be opened."""

    def __init__(self, run: Path, features: Path) -> None:
        self._trained: TrainedModel = load_decided(run)[0]
        self._store: FeatureStore = open_features(features)
        self._lock = threading.Lock()  # one bag at a time: they may be large

    def without(self, table: ScoreTable, kept: NDArray[np.bool_], *, others: tuple[str, ...] = ()) -> Recomputed:
        """The answer for the tiles `kept`, together with the `others` slides of its patient.

        Raises ValueError where no tile is kept, StoreError or ModelError where features are not those that were predicted.
        """
        if not kept.any():
            raise ValueError("nothing is left to judge: keep a tile")
        if table.model.get("digest") != self._trained.digest:
            raise ModelError(f"slide {table.slide_id!r} was predicted by another model than that of --run")
        with self._lock:
            bag = self._store.read(table.slide_id)
            if not np.array_equal(bag.grid.xy0, table.xy0):
                raise StoreError(
                    f"slide {table.slide_id!r}: the tiles of --features are not those that were predicted; predict again"
                )
            reduced = _reduced(bag, kept)
            if self._trained.bag == "patient":
                patient = str(table.model.get("patient", ""))
                bags = [reduced if name == table.slide_id else self._store.read(name) for name in others]
                found = predict_patient(self._trained, patient, bags)[0]
            else:
                found = next(predict(self._trained, [reduced]))
        return Recomputed(values=found.values, logits=found.logits)


def _reduced(bag: FeatureBag, kept: NDArray[np.bool_]) -> FeatureBag:
    grid = replace(bag.grid, xy0=bag.grid.xy0[kept], tissue=bag.grid.tissue[kept])
    return replace(bag, grid=grid, features=bag.features[kept], quality={})
