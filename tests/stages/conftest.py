"""A small study of features whose classes differ, for stages that need no slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from wsimil.store import StoredHeader, open_store
from wsimil.store.hdf5 import Hdf5Store
from wsimil.testing.store_laws import make_bag

DIM = 6


@pytest.fixture
def feature_study(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """`write_study` into the folder of the test."""
    return partial(write_study, tmp_path)


@pytest.fixture
def headers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the slides whose headers are read of HDF5 from here on, one by one."""
    read: list[str] = []
    header = Hdf5Store.header

    def noted(self: Hdf5Store, slide_id: str) -> StoredHeader:
        read.append(slide_id)
        return header(self, slide_id)

    monkeypatch.setattr(Hdf5Store, "header", noted)
    return read


def replace_features(features: Path, slide_ids: Sequence[str]) -> None:
    """Other features of the same kind, of as many tiles, in the place of those of some slides."""
    store = open_store(features, mode="w")
    for slide_id in slide_ids:
        bag = store.read(slide_id)
        store.write(replace(bag, features=np.array(bag.features) + 1))


def write_study(
    root: Path, *, slides: int = 36, gap: float = 3.0, twins: bool = False, sites: int = 3
) -> tuple[Path, Path]:
    """Features of `slides` slides, two of every third patient, and their cohort: (features, cohort.csv).

    Class t differs from n by `gap` in one feature of half the tiles. With `twins`, two patients share one slide.
    """
    features = root / "features"
    store = open_store(features, mode="w")
    rows = ["slide_id,patient_id,label,site"]
    for number in range(slides):
        patient = number - (number % 3 == 1)
        label = "nt"[patient // 3 % 2]
        bag = make_bag(f"s{number}", n=10 + number % 4, dim=DIM, dtype="float32", seed=number)
        values = np.array(bag.features)
        values[::2, 0] += gap * (label == "t")
        content = 0 if twins and number == 6 else number
        made = replace(bag.provenance, slide_digest=f"{content:064x}")
        store.write(replace(bag, features=values, provenance=made))
        rows.append(f"s{number},p{patient},{label},site{patient % sites}")
    cohort = root / "cohort.csv"
    cohort.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return features, cohort
