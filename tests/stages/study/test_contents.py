"""Features that were replaced are told by their headers, and headers are read once."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.stages.study.conftest import Material
from wsimil.errors import ConfigError
from wsimil.stages.contents import Contents
from wsimil.stages.features import open_features
from wsimil.stages.study.unchanged import refuse_replaced
from wsimil.store import Backend, FeatureStore, open_store
from wsimil.store.base import read_headers
from wsimil.store.packing import write_pack


def copied(store: FeatureStore, folder: Path, backend: Backend) -> FeatureStore:
    """Three slides of `store` in a store of another kind."""
    other = open_store(folder, mode="w", backend=backend)
    for slide_id in store.ids()[:3]:
        other.write(store.read(slide_id))
    return other


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
def test_the_same_features_are_the_same_wherever_they_lie(material: Material, tmp_path: Path, backend: Backend) -> None:
    store = open_store(material.features, mode="r")
    other = copied(store, tmp_path / "other", backend)
    ids = other.ids()
    wanted = Contents().of(store, ids)
    assert len(set(wanted.values())) == 3
    assert all(len(content) == 16 for content in wanted.values())
    assert Contents().replaced(other, wanted, ids) == ""
    headers = list(read_headers(other, ids).values())
    write_pack(tmp_path / "all.zarr", other, headers, on_written=lambda _: None, on_verified=lambda _: None)
    assert Contents().of(open_features(tmp_path / "all.zarr"), ids) == wanted


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
def test_one_changed_number_in_features_that_were_looked_at_before_is_refused(
    material: Material, tmp_path: Path, backend: Backend
) -> None:
    store = copied(open_store(material.features, mode="r"), tmp_path / "other", backend)
    contents, ids = Contents(), store.ids()
    wanted = contents.of(store, ids)
    bag = store.read(ids[1])
    features = np.array(bag.features)
    features[-1, -1] += 1
    store.write(dataclasses.replace(bag, features=features))
    with pytest.raises(ConfigError, match=rf"slide '{ids[1]}' .*wanted {wanted[ids[1]]}.*restore these"):
        refuse_replaced(contents, store, wanted, ids)
    refuse_replaced(contents, store, wanted, [ids[0], ids[2]])


def test_headers_are_read_again_only_of_files_that_changed(material: Material, headers_read: list[str]) -> None:
    store, contents = open_store(material.features, mode="r"), Contents()
    before = contents.of(store, store.ids())
    headers_read.clear()
    os.utime(store.path("s7"), (1, 1))
    assert contents.of(store, store.ids()) == before
    assert headers_read == ["s7"]


def test_features_that_cannot_be_read_are_told_by_whoever_needs_them(material: Material) -> None:
    store, contents = open_store(material.features, mode="r"), Contents()
    wanted = contents.of(store, store.ids())
    store.path("s7").write_bytes(b"")
    assert contents.replaced(store, wanted, store.ids()) == ""
    assert contents.of(store, ["s7"]) == {"s7": ""}


def test_files_of_other_tools_are_told_by_their_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "h5_files").mkdir()
    path = tmp_path / "h5_files" / "a.h5"

    def write(values: np.ndarray) -> None:
        with h5py.File(path, "w") as file:
            file["features"], file["coords"] = values, np.arange(8).reshape(4, 2) * 256
            file["coords"].attrs.update(patch_size=256, patch_size_level0=256)
            file["features"].attrs["encoder"] = "uni"

    write(np.ones((4, 3), np.float32))
    os.utime(path, (1, 1))
    store, contents = open_features(tmp_path), Contents()
    wanted = contents.of(store, store.ids())
    assert list(wanted) == ["a"]
    assert len(wanted["a"]) == 16
    assert contents.replaced(store, wanted, ["a"]) == ""
    write(np.zeros((4, 3), np.float32))
    assert "slide 'a' (got" in contents.replaced(store, wanted, ["a"])
