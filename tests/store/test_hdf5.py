"""The HDF5 layout: what other tools find in it, and what is refused with which words."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.store import FeatureStore, open_store
from wsimil.store.layout import READ_BACK
from wsimil.testing.store_laws import make_bag


@pytest.fixture
def bag() -> FeatureBag:
    return make_bag("TCGA-05.é", n=63, dim=7)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return open_store(tmp_path / "features", mode="w", backend="hdf5")


@pytest.fixture
def path(store: FeatureStore, bag: FeatureBag) -> Path:
    return store.write(bag)


def test_clam_reads_features_and_coords(path: Path, bag: FeatureBag) -> None:
    with h5py.File(path, "r") as file:
        features, coords = file["features"][:], file["coords"][:]
    assert features.dtype == np.float16
    assert np.array_equal(features, bag.features)
    assert coords.dtype == np.int64
    assert np.array_equal(coords, bag.grid.xy0)


def test_trident_finds_its_attributes_as_whole_numbers(path: Path, bag: FeatureBag) -> None:
    with h5py.File(path, "r") as file:
        coords, features = dict(file["coords"].attrs), dict(file["features"].attrs)
    wanted = {
        "patch_size": 256,
        "patch_size_level0": 970,  # 256 px of 1 / 1.1 µm on a slide of 0.24 µm
        "level0_magnification": 42,
        "overlap": 56,
        "level0_width": bag.grid.slide.size0_px[0],
        "level0_height": bag.grid.slide.size0_px[1],
    }
    for name, value in wanted.items():
        assert isinstance(coords[name], np.int64), name
        assert coords[name] == value, name
    assert coords["target_magnification"] == pytest.approx(11)
    for attributes in (coords, features):
        assert (attributes["name"], attributes["savetodir"]) == ("TCGA-05.é", "")
        assert type(attributes["name"]) is str
    assert features["encoder"] == "uni"


def test_torchmil_reads_a_slice_and_the_tile_size(path: Path, bag: FeatureBag) -> None:
    with h5py.File(path, "r") as file:
        assert np.array_equal(file["features"][5:17], bag.features[5:17])
        assert int(file["coords"].attrs["patch_size_level0"]) == bag.grid.size0_px


def test_it_opens_as_stamp_opens_files(path: Path) -> None:
    with h5py.File(path, "r", swmr=True, libver="latest") as file:
        assert file["features"].shape == (63, 7)


def test_arrays_are_contiguous_so_that_one_read_fetches_them(path: Path) -> None:
    with h5py.File(path, "r") as file:
        for name in ("features", "coords", "tissue"):
            assert file[name].chunks is None
            assert file[name].compression is None
        assert file["tissue"].dtype == np.float32


def test_file_attributes_say_how_the_features_were_made(path: Path, bag: FeatureBag) -> None:
    with h5py.File(path, "r") as file:
        attributes = dict(file.attrs)
    wanted: dict[str, object] = {
        "format_version": 1,
        "mpp": bag.grid.slide.mpp,
        "tile_mpp": 1 / 1.1,
        "tile_size_um": 256 / 1.1,
        "tile_effective_mpp": bag.grid.effective_mpp,
        "read_level": 0,
        "read_px": bag.grid.read_px,
        "encoder": "uni",
        "encoder_pooling": "cls",
        "encoder_weights_sha256": "e" * 64,
        "transform_json": json.dumps({"mean": [0.1, 1 / 3]}, separators=(",", ":")),
        "dtype": "float16",
        "slide_quickhash": "d" * 64,
        "provenance_digest": bag.provenance.digest,
        "complete": True,
    }
    assert {name: attributes[name] for name in wanted} == wanted
    assert json.loads(attributes["provenance_json"]) == bag.provenance.to_json()
    assert json.loads(attributes["slide_json"])["path"] == "Müller 1.svs"


def test_texts_that_wsimil_reads_lie_within_the_checksums_of_hdf5(path: Path) -> None:
    # Texts of any length lie outside of them; a bit flipped in the length of one made HDF5 2.0 read for ever.
    with h5py.File(path, "r") as file:
        for name in READ_BACK:
            assert not file.attrs.get_id(name).get_type().is_variable_str(), name
        assert type(file.attrs["encoder"]) is str
    assert path.read_bytes()[8] == 2, "a superblock without a checksum"


def test_other_tools_read_an_empty_slide(store: FeatureStore) -> None:
    with h5py.File(store.write(make_bag(n=0, dim=7)), "r") as file:
        assert file["features"][:].shape == (0, 7)
        assert file["coords"][:].shape == (0, 2)
        assert file["coords"].attrs["patch_size_level0"] == 970


def test_weights_that_have_no_digest_are_an_empty_text(store: FeatureStore) -> None:
    bag = make_bag()
    provenance = type(bag.provenance).from_json(
        bag.provenance.to_json() | {"encoder": {"name": "x", "weights_sha256": None}}
    )
    bag = FeatureBag(grid=bag.grid, features=bag.features, provenance=provenance)
    with h5py.File(store.write(bag), "r") as file:
        assert file.attrs["encoder_weights_sha256"] == ""
        assert file.attrs["encoder_pooling"] == ""
    assert store.read("slide-1").provenance == provenance


def test_a_provenance_larger_than_an_object_header_is_kept(store: FeatureStore) -> None:
    bag = make_bag()
    tree = bag.provenance.to_json() | {"pixels": {"notes": "µ" * 200_000}}
    bag = FeatureBag(grid=bag.grid, features=bag.features, provenance=type(bag.provenance).from_json(tree))
    store.write(bag)
    assert store.header("slide-1").provenance == bag.provenance


# What is refused, and with which words.


def edited(path: Path, edit: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)


def replace_dataset(name: str, data: object) -> Callable[[h5py.File], object]:
    def edit(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=data).attrs.update(attributes)

    return edit


def set_value(name: str, index: tuple[int, int], value: float) -> Callable[[h5py.File], object]:
    return lambda file: file[name].__setitem__(index, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replace_dataset("features", np.zeros((62, 7), np.float16)), r"coords are int64 \[63, 2\], wanted int64 \[62, 2\]"),
        (replace_dataset("coords", np.zeros((62, 2), np.int64)), r"coords are int64 \[62, 2\], wanted int64 \[63, 2\]"),
        (replace_dataset("coords", np.zeros((63, 2), np.int32)), "coords are int32"),
        (replace_dataset("features", np.zeros((63, 7))), r"features are float64 \[63, 7\], wanted float16 or float32 \[N, D\]"),
        (replace_dataset("features", np.zeros(63, np.float16)), r"features are float16 \[63\], wanted"),
        (replace_dataset("tissue", np.zeros((63, 1), np.float32)), r"tissue are float32 \[63, 1\], wanted float32 \[63\]"),
        (replace_dataset("features", np.ones((63, 7), np.float16)), "CRC-32 of features is [0-9a-f]{8}, wanted [0-9a-f]{8}"),
        (set_value("features", (40, 3), np.nan), "CRC-32 of features"),
        (set_value("coords", (40, 0), 5), "CRC-32 of coords"),
        (lambda file: file.pop("tissue"), "tissue"),
        (lambda file: (file.pop("features"), file.create_group("features")), "features is not a dataset"),
        (lambda file: file.attrs.pop("slide_json"), "slide_json"),
        (lambda file: file.attrs.__setitem__("slide_json", "{}"), "CRC-32 of slide_json"),
        (lambda file: file.attrs.__setitem__("crc32_json", "no json"), "cannot be understood"),
        (lambda file: file.attrs.__setitem__("format_version", "one"), "format_version is 'one', wanted a number"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(
    store: FeatureStore, bag: FeatureBag, path: Path, edit: Callable[[h5py.File], object], message: str
) -> None:
    edited(path, edit)
    with pytest.raises(StoreError, match=message) as caught:
        store.read(bag.slide_id)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert str(caught.value).endswith("; delete it and run wsimil extract again")
    store.write(bag)
    assert np.array_equal(store.read_features(bag.slide_id), bag.features)


def test_features_that_are_not_finite_are_refused_even_with_a_right_checksum(
    store: FeatureStore, bag: FeatureBag, path: Path
) -> None:
    features = bag.features.copy()
    features[40, 3] = np.nan
    wrong = object.__new__(FeatureBag)  # a writer without the check that every FeatureBag makes
    fields = {"grid": bag.grid, "features": features, "provenance": bag.provenance, "quality": {}}
    for name, value in fields.items():
        object.__setattr__(wrong, name, value)
    store.write(wrong)
    x, y = bag.grid.xy0[40]
    with pytest.raises(
        StoreError, match=f"1 of 63 feature rows hold NaN or infinity, the first at level-0 x={x}, y={y}"
    ):
        store.read(bag.slide_id)


def test_a_newer_format_asks_for_a_newer_wsimil(store: FeatureStore, bag: FeatureBag, path: Path) -> None:
    edited(path, lambda file: file.attrs.__setitem__("format_version", 2))
    with pytest.raises(StoreError, match=r"has format version 2, this wsimil reads up to 1: install a newer wsimil$"):
        store.header(bag.slide_id)


@pytest.mark.parametrize(
    "edit", [lambda file: file.attrs.pop("complete"), lambda file: file.attrs.__setitem__("complete", False)]
)
def test_a_file_without_its_last_mark_is_incomplete(
    store: FeatureStore, bag: FeatureBag, path: Path, edit: Callable[[h5py.File], object]
) -> None:
    edited(path, edit)
    with pytest.raises(StoreError, match=r"is incomplete .*: delete it and run wsimil extract again"):
        store.header(bag.slide_id)


@pytest.fixture
def foreign(store: FeatureStore, bag: FeatureBag) -> Path:
    """Features as TRIDENT writes them."""
    path = store.path(bag.slide_id)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=bag.features, chunks=(1, 7), maxshape=(None, 7)).attrs["encoder"] = (
            "uni_v1"
        )
        file.create_dataset("coords", data=bag.grid.xy0).attrs["patch_size_level0"] = 512
    return path


def test_a_file_of_another_program_is_neither_read_nor_replaced(
    store: FeatureStore, bag: FeatureBag, foreign: Path
) -> None:
    before = foreign.read_bytes()
    for call in (store.header, store.read, store.read_features, lambda _: store.write(bag)):
        with pytest.raises(
            StoreError, match=rf"^{re.escape(str(foreign))} was not written by wsimil .* move this file away$"
        ):
            call(bag.slide_id)
    assert foreign.read_bytes() == before


@pytest.mark.parametrize("data", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n", b"\x00" * 5000])
def test_what_is_not_hdf5_is_damaged_and_may_be_replaced(store: FeatureStore, bag: FeatureBag, data: bytes) -> None:
    path = store.path(bag.slide_id)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged: it cannot be read as a feature file") as caught:
        store.read(bag.slide_id)
    assert "\n" not in str(caught.value)
    store.write(bag)
    assert np.array_equal(store.read_features(bag.slide_id), bag.features)


def test_a_folder_in_the_place_of_a_file_is_refused(store: FeatureStore, bag: FeatureBag) -> None:
    store.path(bag.slide_id).mkdir()
    with pytest.raises(StoreError, match="damaged"):
        store.read(bag.slide_id)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_file_that_may_not_be_read_is_not_called_damaged(store: FeatureStore, bag: FeatureBag, path: Path) -> None:
    path.chmod(0)
    with pytest.raises(StoreError, match="cannot be read: Permission denied; check its permissions"):
        store.read(bag.slide_id)


def test_changed_headers_are_called_damaged_and_not_foreign(store: FeatureStore, bag: FeatureBag, path: Path) -> None:
    whole = path.read_bytes()
    position = whole.index(b"format_version")
    path.write_bytes(whole[:position] + b"F" + whole[position + 1 :])
    with pytest.raises(StoreError, match="is damaged"):
        store.header(bag.slide_id)
    store.write(bag)
    assert store.header(bag.slide_id).n == 63
