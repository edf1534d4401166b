"""Packs: a feature store for reading, what other tools find in it, what is refused, and many processes at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr

from wsimil.bags import FeatureBag
from wsimil.errors import OutputError, StoreError
from wsimil.provenance import Provenance
from wsimil.store import Backend, FeatureStore, open_store, packing
from wsimil.store.base import StoredHeader, read_headers
from wsimil.store.packed import PackedStore
from wsimil.store.packing import refuse_mixed_kinds, write_pack
from wsimil.store.places import failed_ids, is_feature_place
from wsimil.store.shards import ShardedArray
from wsimil.testing import store_laws
from wsimil.testing.store_laws import Law, make_bag

SIZES = {"a": 63, "b": 0, "c": 1, "d": 1000, "e": 5}


def ignore(header: StoredHeader) -> None:
    """Nobody watches."""


def pack(source: FeatureStore, target: Path, *, ids: list[str] | None = None) -> Path:
    headers = list(read_headers(source, source.ids() if ids is None else ids).values())
    write_pack(target, source, headers, on_written=ignore, on_verified=ignore)
    return target


@pytest.fixture
def slides(tmp_path: Path) -> FeatureStore:
    store = open_store(tmp_path / "slides", mode="w")
    for seed, (slide_id, n) in enumerate(SIZES.items()):
        store.write(make_bag(slide_id, n=n, seed=seed))
    return store


@pytest.fixture
def packed(slides: FeatureStore, tmp_path: Path) -> Path:
    return pack(slides, tmp_path / "packs" / "cohort.zarr")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5 rows of 7 features, shards of 3 chunks: every slide but the smallest lies in several."""
    monkeypatch.setattr(packing, "CHUNK_BYTES", 5 * 14)
    monkeypatch.setattr(packing, "SHARD_BYTES", 3 * 5 * 14)


def same(ours: FeatureBag, theirs: FeatureBag) -> None:
    assert ours.grid.slide == theirs.grid.slide
    assert ours.grid.spec == theirs.grid.spec
    assert (ours.grid.read_level, ours.grid.read_px) == (theirs.grid.read_level, theirs.grid.read_px)
    assert ours.provenance == theirs.provenance
    assert ours.provenance.digest == theirs.provenance.digest
    for one, two in (
        (ours.features, theirs.features),
        (ours.grid.xy0, theirs.grid.xy0),
        (ours.grid.tissue, theirs.grid.tissue),
    ):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert one.tobytes() == two.tobytes()


# The laws of stores. A pack is written at once, so the store that they get is packed anew whenever a slide is written.


class Repacked:
    """Slides beside a pack of them. Only slides of one kind stay: those like the one written last."""

    def __init__(self, folder: Path, mode: Literal["r", "w"]) -> None:
        self._slides = folder.with_name(f"{folder.name} slides")
        self._pack = folder / "cohort.zarr"
        self._mode = mode

    def write(self, bag: FeatureBag) -> Path:
        if self._mode == "r":
            return open_store(self._pack, mode="r").write(bag)
        store = open_store(self._slides, mode="w")
        for header in read_headers(store, store.ids()).values():
            if (header.dim, header.dtype) != (bag.dim, bag.features.dtype):
                store.path(header.slide_id).unlink()
        store.write(bag)
        shutil.rmtree(self._pack, ignore_errors=True)
        return pack(store, self._pack)

    def __getattr__(self, name: str) -> object:
        return getattr(open_store(self._pack, mode="r"), name)


LAWS = (
    store_laws.what_was_written_is_read_back,
    store_laws.a_header_says_what_the_bag_says,
    store_laws.features_alone_are_those_of_the_bag,
    store_laws.a_bag_laid_out_otherwise_in_memory_is_the_same,
    store_laws.writing_again_replaces,
    store_laws.odd_ids_are_kept_apart,
    store_laws.a_missing_slide_is_named,
    store_laws.a_store_open_for_reading_is_not_written,
    store_laws.damage_is_never_read_as_data,
    store_laws.a_truncated_file_is_refused,
    store_laws.reading_changes_nothing,
    store_laws.one_bag_makes_the_same_bytes,
)
"""All but those about names of entries in a folder, and about writers of one slide."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_packs_hold(law: Law, tmp_path: Path) -> None:
    folder = tmp_path / "packs"
    folder.mkdir()
    law(Repacked, folder)  # type: ignore[arg-type]  # the rest of a store is taken from the pack


@pytest.mark.parametrize("slide_id", store_laws.HOSTILE_IDS)
def test_ids_that_no_store_takes_are_refused(packed: Path, slide_id: str) -> None:
    store = open_store(packed, mode="r")
    for call in (store.path, store.header, store.read, store.read_features, lambda s: store.write(make_bag(s))):
        with pytest.raises(StoreError, match="slide id"):
            call(slide_id)
    assert slide_id not in store


# What is in a pack.


@pytest.mark.parametrize("place", ["cohort.zarr", "."])
@pytest.mark.parametrize("backend", [None, "hdf5", "zarr"])
def test_a_pack_and_the_folder_where_it_is_alone_hold_the_same_slides(
    slides: FeatureStore, packed: Path, place: str, backend: Backend | None
) -> None:
    (packed.parent / "failures.csv").touch()
    (packed.parent / "thumbnails").mkdir()
    store = open_store(packed.parent / place, mode="r", backend=backend)
    assert store.ids() == sorted(SIZES)
    for slide_id in SIZES:
        same(store.read(slide_id), slides.read(slide_id))
        assert store.header(slide_id) == slides.header(slide_id)
        assert store.read_features(slide_id).tobytes() == slides.read_features(slide_id).tobytes()
        assert slide_id in store
        assert store.path(slide_id).resolve() == packed
    assert "f" not in store
    assert 5 not in store


@pytest.mark.usefixtures("small_shards")
def test_slides_across_many_shards_are_the_same(slides: FeatureStore, tmp_path: Path) -> None:
    packed = pack(slides, tmp_path / "cohort.zarr")
    assert sum(file.is_file() for file in (packed / "features").iterdir()) > 70
    for slide_id in SIZES:
        same(open_store(packed, mode="r").read(slide_id), slides.read(slide_id))


@pytest.mark.usefixtures("small_shards")
def test_other_tools_read_a_zarr_3_group_with_all_slides_one_behind_the_other(
    slides: FeatureStore, tmp_path: Path
) -> None:
    group = zarr.open_group(pack(slides, tmp_path / "cohort.zarr"), mode="r")
    bags = [slides.read(slide_id) for slide_id in sorted(SIZES)]
    for name, parts in (
        ("features", [bag.features for bag in bags]),
        ("coords", [bag.grid.xy0 for bag in bags]),
        ("tissue", [bag.grid.tissue for bag in bags]),
    ):
        assert np.array_equal(group[name][:], np.concatenate(parts))
        assert group[name].dtype == parts[0].dtype
    heading, *lines = group["slides"][:].tobytes().decode().split("\n")
    assert heading.split("\t") == ["slide_id", "n", "crc32_json", "slide_json", "grid_json", "provenance_json"]
    assert {line.split("\t")[0]: int(line.split("\t")[1]) for line in lines} == SIZES
    assert json.loads(lines[0].split("\t")[5]) == bags[0].provenance.to_json()
    assert (group.attrs["encoder"]["name"], group.attrs["tiling"]["size_px"]) == ("uni", 256)
    assert group.attrs["feature_digest"] == bags[0].provenance.feature_digest
    assert list(group.attrs)[-1] == "complete"


@pytest.mark.usefixtures("small_shards")
def test_any_rows_are_those_that_zarr_reads(slides: FeatureStore, tmp_path: Path) -> None:
    packed = pack(slides, tmp_path / "cohort.zarr")
    generator = np.random.default_rng(0)
    for name in ("features", "coords", "tissue"):
        ours, theirs = ShardedArray(packed / name), zarr.open_group(packed, mode="r")[name]
        assert ours.shape == theirs.shape
        for _ in range(200):
            start, stop = np.sort(generator.integers(0, theirs.shape[0] + 1, 2))
            assert ours.read(start, stop).tobytes() == theirs[start:stop].tobytes()


@pytest.mark.usefixtures("small_shards")
def test_chunks_in_another_order_within_a_shard_are_found_by_its_index(slides: FeatureStore, tmp_path: Path) -> None:
    packed = pack(slides, tmp_path / "cohort.zarr")
    shard = packed / "features" / "c.2.0"
    whole = shard.read_bytes()
    index = np.frombuffer(whole[3 * 70 : -4], "<u8").reshape(3, 2)
    turned = whole[140:210] + whole[:140] + np.ascontiguousarray(index[[1, 2, 0]]).tobytes()
    shard.write_bytes(turned + zarr_crc32c(turned[210:]))
    assert shard.read_bytes() != whole
    assert np.array_equal(zarr.open_group(packed, mode="r")["features"][30:45], slides.read("a").features[30:45])
    same(open_store(packed, mode="r").read("a"), slides.read("a"))


def zarr_crc32c(data: bytes) -> bytes:
    """The checksum of a shard's index."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def test_a_cohort_without_a_tile_is_a_pack(tmp_path: Path) -> None:
    store = open_store(tmp_path / "slides", mode="w")
    for slide_id in "ab":
        store.write(make_bag(slide_id, n=0))
    opened = open_store(pack(store, tmp_path / "cohort.zarr"), mode="r")
    same(opened.read("b"), store.read("b"))
    assert opened.header("a").n == 0


def test_a_pack_can_be_packed_again_in_part(packed: Path, tmp_path: Path) -> None:
    store = open_store(packed, mode="r")
    part = open_store(pack(store, tmp_path / "part.zarr", ids=["a", "d"]), mode="r")
    assert part.ids() == ["a", "d"]
    same(part.read("d"), store.read("d"))


def test_opening_needs_neither_torch_nor_a_library_of_a_backend(packed: Path) -> None:
    code = """
import sys
from pathlib import Path
import wsimil.store
store = wsimil.store.open_store(Path(sys.argv[1]), mode="r")
assert len(store.read("d")) == 1000
assert not {"torch", "zarr", "h5py"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(packed)], check=True)


# What is refused.


def test_a_pack_is_not_written_to_and_says_what_to_do(packed: Path) -> None:
    with pytest.raises(StoreError, match="reading only: extract into a folder of slides and pack that again"):
        open_store(packed, mode="r").write(make_bag("new"))
    for path in (packed, packed.parent):
        with pytest.raises(
            StoreError, match=r"cohort\.zarr is a pack, which is only read: choose another output folder"
        ):
            open_store(path, mode="w")


@pytest.mark.usefixtures("small_shards")
def test_quality_stays_with_the_slides_where_it_was_measured(tmp_path: Path) -> None:
    store = open_store(tmp_path / "slides", mode="w")
    bags = {name: make_bag(name, n=n, seed=n, quality=n > 5) for name, n in SIZES.items()}
    for bag in bags.values():
        store.write(bag)
    again = open_store(pack(store, tmp_path / "packs" / "cohort.zarr").parent, mode="r")
    assert {name: tuple(again.read(name).quality) for name in bags} == {n: tuple(b.quality) for n, b in bags.items()}
    for name in ("a", "d"):
        found, wanted = again.read(name).quality, bags[name].quality
        assert all(found[column].tobytes() == wanted[column].tobytes() for column in wanted)


def test_slides_of_which_other_things_were_measured_are_named(slides: FeatureStore, tmp_path: Path) -> None:
    one, other = make_bag("one", quality=True), make_bag("other", quality=True)
    for bag in (one, replace(other, quality={"sharpness": other.quality["sharpness"]})):
        slides.write(bag)
    with pytest.raises(
        StoreError, match=r"slide 'one' has sharpness, pen, dark, slide 'other' has sharpness; extract all"
    ):
        refuse_mixed_kinds(list(read_headers(slides, slides.ids()).values()))


def test_slides_of_another_kind_are_named_with_what_differs(slides: FeatureStore, tmp_path: Path) -> None:
    bag = make_bag("c", n=1)
    tree = bag.provenance.to_json() | {"tiling": {"size_px": 256, "mpp": 0.5}}
    slides.write(replace(bag, provenance=Provenance.from_json(tree)))
    with pytest.raises(
        StoreError, match=r"one kind and type: 'c' differ from the 4 others \('a' != 'c': tiling.mpp: 0.909"
    ):
        pack(slides, tmp_path / "cohort.zarr")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["slides"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [(make_bag("b", dtype="float32"), "dtype: float16 != float32"), (make_bag("b", dim=9), "dim: 7 != 9")],
)
def test_slides_of_another_type_or_width_are_named(
    slides: FeatureStore, tmp_path: Path, other: FeatureBag, expected: str
) -> None:
    slides.write(other)
    with pytest.raises(StoreError, match=f"'b' differ from the 4 others .*{expected}"):
        pack(slides, tmp_path / "cohort.zarr")


def test_a_damaged_slide_leaves_the_older_pack_and_nothing_else(
    slides: FeatureStore, packed: Path, tmp_path: Path
) -> None:
    path = slides.path("d")
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    for target in (packed, tmp_path / "packs" / "second.zarr"):
        with pytest.raises(StoreError, match=r"d\.h5 is damaged: the CRC-32"):
            pack(slides, target)
    assert [entry.name for entry in packed.parent.iterdir()] == ["cohort.zarr"]
    assert len(open_store(packed, mode="r").read("d")) == 1000


def test_a_slide_that_changed_since_its_header_was_read_is_refused(slides: FeatureStore, tmp_path: Path) -> None:
    headers = list(read_headers(slides, slides.ids()).values())
    slides.write(make_bag("d", n=999))
    with pytest.raises(StoreError, match="'d' changed while they were packed: wait until the extraction has ended"):
        write_pack(tmp_path / "cohort.zarr", slides, headers, on_written=ignore, on_verified=ignore)


@pytest.mark.usefixtures("small_shards")
def test_what_a_disk_gives_back_otherwise_than_written_gets_no_name(slides: FeatureStore, tmp_path: Path) -> None:
    target = tmp_path / "packs" / "cohort.zarr"

    def rot(header: StoredHeader) -> None:
        if header.slide_id == "e":
            (shard,) = target.parent.glob(".*.zarr/features/c.5.0")
            whole = shard.read_bytes()
            shard.write_bytes(whole[:7] + bytes([whole[7] ^ 1]) + whole[8:])

    headers = list(read_headers(slides, slides.ids()).values())
    with pytest.raises(OutputError, match=r"cohort\.zarr: what was written is not what is read back; check the disk"):
        write_pack(target, slides, headers, on_written=rot, on_verified=ignore)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("array", ["features", "coords", "tissue", "slides"])
@pytest.mark.usefixtures("small_shards")
def test_a_pack_copied_in_part_is_refused_at_opening(slides: FeatureStore, tmp_path: Path, array: str) -> None:
    packed = pack(slides, tmp_path / "cohort.zarr")
    shards = sorted(path.name for path in (packed / array).glob("c.*"))[-5:]
    for name in shards:
        (packed / array / name).unlink()
    with pytest.raises(
        StoreError, match=rf"is incomplete: it lacks {array}/c\.\d+.* and 2 more; copy it again, or delete"
    ):
        open_store(packed, mode="r")


@pytest.mark.parametrize("where", [".", "features", "slides"])
def test_a_pack_without_one_of_its_descriptions_is_refused(packed: Path, where: str) -> None:
    (packed / where / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"cohort\.zarr.*copy it again"):
        open_store(packed, mode="r")


def edit(packed: Path, array: str, **values: object) -> None:
    path = packed / array / "zarr.json"
    tree = json.loads(path.read_text())
    part = tree["attributes"] if array == "." else tree
    part |= values
    path.write_text(json.dumps({**tree, "attributes": {k: v for k, v in tree["attributes"].items() if v is not None}}))


@pytest.mark.parametrize(
    ("array", "values", "message"),
    [
        (".", {"complete": None}, r"is incomplete \(it has no mark complete\)"),
        (
            ".",
            {"pack_format_version": 2},
            "has pack format version 2, this wsimil reads up to 1: install a newer wsimil",
        ),
        (".", {"pack_format_version": "one"}, "is damaged: pack_format_version is 'one', wanted a number"),
        (".", {"rows": 7}, "numbers of slides and rows, and shapes of its arrays, are"),
        (".", {"dtype": "float32"}, "are .*'float16'.*, wanted .*'float32'"),
        (".", {"crc32_slides": 5}, "the CRC-32 of its table of slides"),
        ("features", {"shape": [1060, 7]}, "numbers of slides and rows"),
        ("tissue", {"codecs": [{"name": "bytes"}]}, "is damaged: it cannot be read as a feature file"),
        (
            "features",
            {"chunk_key_encoding": {"name": "v2"}},
            "array features is laid out otherwise than wsimil pack does",
        ),
    ],
)
def test_a_pack_that_contradicts_itself_is_refused(
    packed: Path, array: str, values: dict[str, object], message: str
) -> None:
    edit(packed, array, **values)
    with pytest.raises(StoreError, match=message):
        open_store(packed, mode="r")


@pytest.mark.usefixtures("small_shards")
def test_a_chunk_that_its_shard_says_is_empty_is_not_read_as_zeros(slides: FeatureStore, tmp_path: Path) -> None:
    packed = pack(slides, tmp_path / "cohort.zarr")
    shard = packed / "features" / "c.2.0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:210] + b"\xff" * 48 + whole[258:])
    with pytest.raises(StoreError, match=r"is damaged: .*for a chunk, wanted 70.*; copy it again"):
        open_store(packed, mode="r").read("a")


def test_damage_names_the_slide(packed: Path) -> None:
    shard = packed / "features" / "c.0.0"
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    store = open_store(packed, mode="r")
    for read in (store.read, store.read_features):
        with pytest.raises(StoreError, match=r"cohort\.zarr is damaged: slide 'a': the CRC-32 of features"):
            read("a")
    assert len(store.read("d")) == 1000


# A pack and other Zarr groups.


def test_one_slide_in_a_folder_of_groups_is_no_pack(tmp_path: Path) -> None:
    path = open_store(tmp_path, mode="w", backend="zarr").write(make_bag())
    assert not isinstance(open_store(tmp_path, mode="r"), PackedStore)
    assert open_store(tmp_path, mode="r").ids() == ["slide-1"]
    open_store(tmp_path, mode="w").write(make_bag("slide-2"))
    with pytest.raises(StoreError, match=r"slide-1\.zarr is a Zarr group but no pack of a cohort: give the folder"):
        open_store(path, mode="r")


def test_a_pack_among_slides_is_neither_read_nor_replaced_as_one(packed: Path) -> None:
    (packed.parent / "moved").mkdir()
    folder = packed.parent / "moved"
    open_store(folder, mode="w", backend="zarr").write(make_bag("slide-1"))
    packed.rename(folder / "cohort.zarr")
    store = open_store(folder, mode="w")
    for call in (store.header, store.read, store.read_features, lambda s: store.write(make_bag(s))):
        with pytest.raises(
            StoreError, match=r"cohort\.zarr is a pack of a whole cohort, not the features of one slide"
        ):
            call("cohort")
    assert len(open_store(folder / "cohort.zarr", mode="r").ids()) == 5


def test_a_place_of_features_is_told_from_others(packed: Path, slides: FeatureStore, tmp_path: Path) -> None:
    assert is_feature_place(packed)
    assert is_feature_place(packed.parent)
    assert is_feature_place(tmp_path / "slides")
    assert not is_feature_place(tmp_path)
    assert not is_feature_place(slides.path("a"))
    assert not is_feature_place(tmp_path / "absent")


def test_failed_slides_stay_known_in_a_pack(slides: FeatureStore, tmp_path: Path) -> None:
    headers = list(read_headers(slides, slides.ids()).values())
    target = tmp_path / "packs" / "cohort.zarr"
    write_pack(target, slides, headers, failed_ids=["d", "a"], on_written=ignore, on_verified=ignore)
    assert failed_ids(target) == failed_ids(target.parent) == {"a", "d"}
    assert failed_ids(tmp_path) == set()


# Many readers, and memory.


def read_all(store: FeatureStore) -> list[bytes]:
    """All features, twice."""
    return [store.read(slide_id).features.tobytes() for slide_id in [*store.ids(), *reversed(store.ids())]]


@pytest.mark.usefixtures("small_shards")
def test_threads_that_share_a_pack_read_the_same(slides: FeatureStore, tmp_path: Path) -> None:
    store = open_store(pack(slides, tmp_path / "cohort.zarr"), mode="r")
    with ThreadPoolExecutor(8) as pool:
        assert all(result == read_all(slides) for result in pool.map(read_all, [store] * 16))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_got_an_open_pack_read_the_same(slides: FeatureStore, packed: Path, method: str) -> None:
    code = """
import multiprocessing, sys
from pathlib import Path
from wsimil.store import open_store
pack, slides = (open_store(Path(path), mode="r") for path in sys.argv[2:])
ids = pack.ids() * 6
pack.read(ids[0])
with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
    got = pool.map(pack.read_features, ids, chunksize=1)
assert [g.tobytes() for g in got] == [slides.read_features(slide_id).tobytes() for slide_id in ids]
"""
    folder = slides.path("a").parent
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, method, str(packed), str(folder)], check=True, timeout=60
    )


def test_packing_holds_a_slide_and_a_shard_and_not_the_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    megabyte = 2**20
    monkeypatch.setattr(packing, "SHARD_BYTES", megabyte)
    store = open_store(tmp_path / "slides", mode="w")
    for number in range(24):
        store.write(make_bag(f"{number:02}", n=1000, dim=512, seed=number))  # 1 MB each
    headers = list(read_headers(store, store.ids()).values())
    tracemalloc.start()
    write_pack(tmp_path / "cohort.zarr", store, headers, on_written=ignore, on_verified=ignore)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(file.stat().st_size for file in (tmp_path / "cohort.zarr").rglob("c.*")) > 24_000_000
    assert peak < 12 * megabyte
