"""The Zarr layout: what other tools find in it, and how many files it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from wsimil.errors import StoreError
from wsimil.store import FeatureStore, open_store
from wsimil.store.zarr import chunk_rows
from wsimil.testing.store_laws import make_bag


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return open_store(tmp_path / "features", mode="w", backend="zarr")


def files(path: Path) -> int:
    return sum(file.is_file() for file in path.rglob("*"))


def test_other_tools_read_a_zarr_3_group(store: FeatureStore) -> None:
    bag = make_bag()
    path = store.write(bag)
    assert path.name == "slide-1.zarr"
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == 3
    assert np.array_equal(group["features"][:], bag.features)
    assert np.array_equal(group["coords"][:], bag.grid.xy0)
    assert np.array_equal(group["tissue"][:], bag.grid.tissue)
    assert group["coords"].attrs["patch_size_level0"] == 970
    assert group["features"].attrs["encoder"] == "uni"
    assert group.attrs["tile_size_um"] == 256 / 1.1
    assert json.loads(group.attrs["provenance_json"]) == bag.provenance.to_json()
    assert list(group.attrs)[-1] == "complete"


def test_both_backends_hold_the_same_attributes(store: FeatureStore, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    bag = make_bag()
    group = zarr.open_group(store.write(bag), mode="r")
    with h5py.File(open_store(tmp_path / "hdf5", mode="w").write(bag), "r") as file:
        plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
        assert plain == dict(group.attrs)
        for name in ("features", "coords", "tissue"):
            assert dict(file[name].attrs) == dict(group[name].attrs)


@pytest.mark.parametrize(("n", "dim", "wanted"), [(0, 7, 4), (1, 7, 7), (1000, 7, 7), (20_000, 512, 8)])
def test_a_slide_is_a_handful_of_files(store: FeatureStore, n: int, dim: int, wanted: int) -> None:
    assert files(store.write(make_bag(n=n, dim=dim))) == wanted


@pytest.mark.parametrize("n", [1, 63, 1000, 100_000, 3_000_000])
def test_the_largest_slides_have_no_more_than_64_chunks_and_small_ones_no_tiny_chunks(n: int) -> None:
    features = np.broadcast_to(np.float16(0), (n, 2560))
    rows = chunk_rows(features)
    assert -(-n // rows) <= 64
    assert rows == n or rows * 5120 > 16 * 2**20 - 5120


def test_a_chunk_that_is_gone_is_not_read_as_zeros(store: FeatureStore) -> None:
    path = store.write(make_bag())
    (path / "features" / "c" / "0" / "0").unlink()
    for read in (store.read, store.read_features):
        with pytest.raises(StoreError, match="damaged: the CRC-32 of features"):
            read("slide-1")


def test_chunks_of_two_bags_are_not_read_as_one(store: FeatureStore, tmp_path: Path) -> None:
    path = store.write(make_bag(seed=1))
    other = open_store(tmp_path / "other", mode="w", backend="zarr").write(make_bag(seed=2))
    (other / "features" / "c" / "0" / "0").replace(path / "features" / "c" / "0" / "0")
    with pytest.raises(StoreError, match="CRC-32 of features"):
        store.read("slide-1")


@pytest.mark.parametrize("array", ["features", "coords", "tissue"])
def test_an_array_that_is_gone_is_named(store: FeatureStore, array: str) -> None:
    path = store.write(make_bag())
    (path / array / "zarr.json").unlink()
    with pytest.raises(StoreError, match=f"{path} is damaged: .*{array}"):
        store.header("slide-1")


def test_a_group_of_another_program_is_neither_read_nor_replaced(store: FeatureStore) -> None:
    bag = make_bag()
    path = store.path("slide-1")
    zarr.create_group(path, attributes={"spatialdata_attrs": {"version": "0.2"}})
    for call in (store.header, store.read, lambda _: store.write(bag)):
        with pytest.raises(StoreError, match="was not written by wsimil"):
            call("slide-1")
    assert zarr.open_group(path, mode="r").attrs["spatialdata_attrs"]


def test_a_newer_format_asks_for_a_newer_wsimil(store: FeatureStore) -> None:
    path = store.write(make_bag())
    zarr.open_group(path, mode="r+").attrs["format_version"] = 2
    with pytest.raises(StoreError, match="has format version 2, this wsimil reads up to 1: install a newer wsimil"):
        store.header("slide-1")


def test_a_group_copied_in_part_is_refused(store: FeatureStore) -> None:
    path = store.write(make_bag())
    tree = json.loads((path / "zarr.json").read_text())
    del tree["attributes"]["complete"]
    (path / "zarr.json").write_text(json.dumps(tree))
    with pytest.raises(StoreError, match="is incomplete"):
        store.read("slide-1")
