"""What every feature store must hold; run `LAWS` on your own store.

    @pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
    def test_my_store_is_a_feature_store(law, tmp_path):
        law(lambda folder, mode: MyStore(folder, mode), tmp_path)

Each law takes a function that opens a store in a folder ("r" or "w", as `wsimil.store.open_store`) and an empty folder.
It raises AssertionError, with what was got and wanted, where the store breaks it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.geometry import SlideInfo, TileGrid, TileSpec
from wsimil.provenance import Provenance
from wsimil.store.base import FeatureStore

OpenStore: TypeAlias = Callable[[Path, Literal["r", "w"]], FeatureStore]
Law: TypeAlias = Callable[[OpenStore, Path], None]

HOSTILE_IDS = (
    "", ".", "..", "../x", "a/b", "/etc/x", "a\\b", ".hidden", " padded", "padded ", "two\nlines", "nul\0", "bell\a",
    "right\u202eleft", "byte order\ufeff", "lone \udc80", "x" * 300, "é" * 101,
)  # fmt: skip
"""Ids that no store takes."""

ODD_IDS = (
    "TCGA-05-4244-01Z-00-DX1.d4ff32cd-38cf", "x.h5", "x.zarr", "x.h5.h5", "two words", "-rf", "~", "$HOME", "%2e%2e", "a:b",
    "Müller", "Mu\u0308ller", "切片一", "x" * 200, "None", "0", "c", "wsimil.tmp",
)  # fmt: skip
"""Ids that every store takes, and keeps apart."""


def make_bag(
    slide_id: str = "slide-1",
    *,
    n: int = 63,
    dim: int = 7,
    dtype: Literal["float16", "float32"] = "float16",
    seed: int = 0,
    quality: bool = False,
) -> FeatureBag:
    """A bag of random features on a slide that is not there, with numbers that text must keep to the last bit.

    With `quality`, numbers of its tiles too.
    """
    generator = np.random.default_rng(seed)
    spec = TileSpec(size_px=256, mpp=1 / 1.1, stride_px=200, min_tissue=0.1)
    mpp = 0.1 + 0.2 * 0.7
    columns = max(1, round(n**0.5))
    cells = np.arange(n)
    slide = SlideInfo(
        slide_id=slide_id,
        path=Path("/somewhere/private") / "Müller 1.svs",
        size0_px=(columns * 1000 + 2000, n * 1000 // columns + 2000),
        mpp=mpp,
        mpp_source="metadata",
        mpp_detail="openslide.mpp-x",
        level_downsamples=(1.0, 4.000123456789, 16.1),
        bounds0_px=(5, 0, 1000, 999),
        vendor="aperio",
        digest="d" * 64,
    )
    grid = TileGrid(
        slide=slide,
        spec=spec,
        xy0=np.stack([cells % columns * 777, cells // columns * 778], axis=1).astype(np.int64),
        tissue=generator.random(n, dtype=np.float32),
        read_level=0,
        read_px=round(spec.size_um / mpp),
    )
    provenance = Provenance(
        encoder={
            "name": "uni",
            "pooling": "cls",
            "dim": dim,
            "weights_sha256": "e" * 64,
            "transform": {"mean": [0.1, 1 / 3]},
        },
        tiling={"size_px": 256, "mpp": 1 / 1.1},
        pixels={"dtype": dtype, "autocast": None},
        slide={"mpp": mpp, "source": "metadata"},
        slide_digest="d" * 64,
        version="0.1.0",
    )
    features = generator.standard_normal((n, dim), dtype=np.float32).astype(dtype)
    names = ("sharpness", "pen", "dark") if quality else ()
    measured = {name: generator.random(n, dtype=np.float32) for name in names}
    return FeatureBag(grid=grid, features=features, provenance=provenance, quality=measured)


def what_was_written_is_read_back(open_store: OpenStore, folder: Path) -> None:
    """Bit for bit, for bags of 0, 1, 63 and 1000 instances, both types, with quality and without; paths lose their folders."""
    for n in (0, 1, 63, 1000):
        for dtype in ("float16", "float32"):
            bag = make_bag(
                f"slide-{n}-{dtype}", n=n, dtype="float16" if dtype == "float16" else "float32", seed=n, quality=n != 63
            )  # fmt: skip
            open_store(folder, "w").write(bag)
            got = open_store(folder, "r").read(bag.slide_id)
            _equal(got, bag)


def a_header_says_what_the_bag_says(open_store: OpenStore, folder: Path) -> None:
    """Id, rows, columns, type and provenance, without the arrays."""
    for bag in (make_bag("none", n=0), make_bag("some", n=63, dtype="float32", quality=True)):
        store = open_store(folder, "w")
        store.write(bag)
        header = store.header(bag.slide_id)
        got = (header.slide_id, header.n, header.dim, header.dtype, header.provenance.digest, header.provenance.version)
        wanted = (
            bag.slide_id,
            len(bag),
            bag.dim,
            str(bag.features.dtype),
            bag.provenance.digest,
            bag.provenance.version,
        )
        _hold(got == wanted, f"header {got}, wanted {wanted}")
        _hold(header.provenance == bag.provenance, "the header's provenance is not the bag's")
        _hold(header.quality == tuple(bag.quality), f"the header says quality {header.quality}")


def features_alone_are_those_of_the_bag(open_store: OpenStore, folder: Path) -> None:
    """`read_features` and `read` agree in every bit."""
    for n in (0, 1, 1000):
        bag = make_bag(n=n)
        store = open_store(folder, "w")
        store.write(bag)
        got = store.read_features(bag.slide_id)
        _hold(got.dtype == bag.features.dtype and got.shape == bag.features.shape, f"{got.dtype} {got.shape}")
        _hold(got.tobytes() == bag.features.tobytes(), "read_features differs from what was written")


def a_bag_laid_out_otherwise_in_memory_is_the_same(open_store: OpenStore, folder: Path) -> None:
    """Column-major and strided features are written by value."""
    bag = make_bag(n=63)
    strided = np.zeros((126, bag.dim), np.float16)[::2]
    strided[:] = bag.features
    for features in (np.array(bag.features, np.float16, order="F"), strided):
        store = open_store(folder, "w")
        store.write(replace(bag, features=features))
        _equal(store.read(bag.slide_id), bag)


def ids_are_sorted_and_only_of_slides(open_store: OpenStore, folder: Path) -> None:
    """Other files, folders, logs and the leftovers of crashed writers are not slides."""
    store = open_store(folder, "w")
    _hold(store.ids() == [], f"a new store has ids {store.ids()}")
    for slide_id in ("b", "a", "C", "a.1"):
        path = store.write(make_bag(slide_id))
    suffix = path.name.removeprefix("a.1")
    (folder / "failures.csv").write_text("slide_id,reason\n", encoding="utf-8")
    (folder / "log.jsonl").write_text("", encoding="utf-8")
    (folder / "thumbnails").mkdir()
    leftover = folder / f".d.host.1.abc.wsimil-tmp{suffix}"
    shutil.copytree(path, leftover) if path.is_dir() else shutil.copy(path, leftover)
    got = open_store(folder, "r").ids()
    _hold(got == ["C", "a", "a.1", "b"], f"ids {got}, wanted ['C', 'a', 'a.1', 'b']")
    _hold("a" in store and "d" not in store and "../a" not in store and 5 not in store, "`in` disagrees with ids")


def writing_again_replaces(open_store: OpenStore, folder: Path) -> None:
    """The last bag written is the one that is read, whatever size the one before had; nothing else is left behind."""
    store = open_store(folder, "w")
    for n, dim in ((1000, 7), (1, 63), (63, 3)):
        bag = make_bag(n=n, dim=dim, seed=n)
        path = store.write(bag)
        _equal(store.read(bag.slide_id), bag)
        _hold([entry.name for entry in folder.iterdir()] == [path.name], f"{list(folder.iterdir())} beside {path.name}")


def hostile_ids_are_refused(open_store: OpenStore, folder: Path) -> None:
    """Every method that takes an id raises StoreError naming it, and nothing is written anywhere."""
    inside = folder / "inside"
    store = open_store(inside, "w")
    for slide_id in HOSTILE_IDS:
        bag = make_bag(slide_id)
        for call in (store.path, store.header, store.read, store.read_features):
            with _refused("slide id"):
                call(slide_id)
        with _refused("slide id"):
            store.write(bag)
        _hold(slide_id not in store, f"{slide_id!r} is in the store")
    left = [str(path) for path in folder.rglob("*")]
    _hold(left == [str(inside)], f"files were written: {left}")


def odd_ids_are_kept_apart(open_store: OpenStore, folder: Path) -> None:
    """Ids with dots, spaces, suffixes, letters of any script are slides of their own (on a file system that can)."""
    store = open_store(folder, "w")
    for seed, slide_id in enumerate(ODD_IDS):
        store.write(make_bag(slide_id, n=3, seed=seed))
    _hold(store.ids() == sorted(ODD_IDS), f"ids {store.ids()}")
    for seed, slide_id in enumerate(ODD_IDS):
        _equal(store.read(slide_id), make_bag(slide_id, n=3, seed=seed))


def a_missing_slide_is_named(open_store: OpenStore, folder: Path) -> None:
    """StoreError says which slide and where it was looked for."""
    store = open_store(folder, "w")
    store.write(make_bag("there"))
    for call in (store.header, store.read, store.read_features):
        with _refused("'not-there'", str(folder)):
            call("not-there")


def a_store_open_for_reading_is_not_written(open_store: OpenStore, folder: Path) -> None:
    """`write` raises StoreError and leaves what is there."""
    bag = make_bag(seed=1)
    open_store(folder, "w").write(bag)
    store = open_store(folder, "r")
    with _refused("reading"):
        store.write(make_bag(seed=2))
    _equal(store.read(bag.slide_id), bag)


def a_renamed_file_is_not_another_slide(open_store: OpenStore, folder: Path) -> None:
    """The id inside the file decides: it is neither read nor replaced under another one."""
    store = open_store(folder, "w")
    store.write(make_bag("was")).rename(store.path("is"))
    for call in (store.header, store.read, store.read_features):
        with _refused("'was'", "'is'"):
            call("is")
    with _refused("'was'", "'is'"):
        store.write(make_bag("is"))


def damage_is_never_read_as_data(open_store: OpenStore, folder: Path) -> None:
    """Any byte changed, anywhere: StoreError, or the very same bag where the byte carries nothing."""
    store = open_store(folder, "w")
    bag = make_bag(n=63, quality=True)
    files = _files(store.write(bag))
    for file in files:
        whole = file.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 101)):
            for bits in (0xFF, 1 << position % 8):
                damaged = bytearray(whole)
                damaged[position] ^= bits
                file.write_bytes(damaged)
                _same_or_refused(store, bag, f"{file.name}, byte {position} of {len(whole)} xor {bits:#x}")
        file.write_bytes(whole)
    _equal(store.read(bag.slide_id), bag)


def a_truncated_file_is_refused(open_store: OpenStore, folder: Path) -> None:
    """Cut at any length, or a part of it gone; and writing the slide again mends it."""
    store = open_store(folder, "w")
    bag = make_bag(n=63)
    path = store.write(bag)
    for file in _files(path):
        whole = file.read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:length])
            with _refused(str(path)):
                store.read(bag.slide_id)
        file.unlink()
        with _refused(str(path)):
            store.read(bag.slide_id)
        store.write(bag)
        _equal(store.read(bag.slide_id), bag)


def a_file_of_another_program_is_left_alone(open_store: OpenStore, folder: Path) -> None:
    """What stands in a slide's place and is not a feature file is refused by name, with a remedy."""
    store = open_store(folder, "w")
    path = store.path("notes")
    path.write_text("shopping list", encoding="utf-8")
    for call in (store.header, store.read, store.read_features):
        with _refused(str(path)):
            call("notes")


def reading_changes_nothing(open_store: OpenStore, folder: Path) -> None:
    """No byte and no file."""
    path = open_store(folder, "w").write(make_bag())
    before = {file: file.read_bytes() for file in _files(folder)}
    store = open_store(folder, "r")
    store.ids(), store.header("slide-1"), store.read("slide-1"), store.read_features("slide-1")
    _hold({file: file.read_bytes() for file in _files(folder)} == before, f"{path} changed when it was read")


def one_bag_makes_the_same_bytes(open_store: OpenStore, folder: Path) -> None:
    """No clock, no random name and no folder of this machine gets into a file."""
    contents = []
    for name in ("first", "second"):
        path = open_store(folder / name, "w").write(make_bag())
        contents.append({str(file.relative_to(path)): file.read_bytes() for file in _files(path)})
    _hold(contents[0] == contents[1], "the same bag gave two different files")
    for content in contents[0].values():
        _hold(b"private" not in content and bytes(folder) not in content, "a folder of this machine is in the file")


def writers_of_one_slide_leave_a_whole_one(open_store: OpenStore, folder: Path) -> None:
    """Four at once: the bag of one of them is there, and no leftovers."""
    bags = [make_bag(n=63, seed=seed) for seed in range(4)]
    store = open_store(folder, "w")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.write, bags * 4))
    got = store.read("slide-1")
    _hold(any(got.features.tobytes() == bag.features.tobytes() for bag in bags), "the bag is none of those written")
    _hold(len(list(folder.iterdir())) == 1, f"left behind: {list(folder.iterdir())}")


LAWS: tuple[Law, ...] = (
    what_was_written_is_read_back,
    a_header_says_what_the_bag_says,
    features_alone_are_those_of_the_bag,
    a_bag_laid_out_otherwise_in_memory_is_the_same,
    ids_are_sorted_and_only_of_slides,
    writing_again_replaces,
    hostile_ids_are_refused,
    odd_ids_are_kept_apart,
    a_missing_slide_is_named,
    a_store_open_for_reading_is_not_written,
    a_renamed_file_is_not_another_slide,
    damage_is_never_read_as_data,
    a_truncated_file_is_refused,
    a_file_of_another_program_is_left_alone,
    reading_changes_nothing,
    one_bag_makes_the_same_bytes,
    writers_of_one_slide_leave_a_whole_one,
)


def _equal(got: FeatureBag, wanted: FeatureBag) -> None:
    kept = replace(wanted.grid.slide, path=Path(wanted.grid.slide.path.name))
    _hold(got.grid.slide == kept, f"slide {got.grid.slide}, wanted {kept}")
    _hold(got.grid.spec == wanted.grid.spec, f"tiling {got.grid.spec}, wanted {wanted.grid.spec}")
    for name in ("read_level", "read_px"):
        _hold(getattr(got.grid, name) == getattr(wanted.grid, name), f"{name} {getattr(got.grid, name)}")
    for name, ours, theirs in (
        ("features", got.features, wanted.features),
        ("xy0", got.grid.xy0, wanted.grid.xy0),
        ("tissue", got.grid.tissue, wanted.grid.tissue),
        *((f"quality {name}", got.quality[name], wanted.quality[name]) for name in wanted.quality),
    ):
        _hold(ours.dtype == theirs.dtype and ours.shape == theirs.shape, f"{name}: {ours.dtype} {ours.shape}")
        _hold(ours.tobytes() == theirs.tobytes(), f"{name} differ from what was written")
    _hold(tuple(got.quality) == tuple(wanted.quality), f"quality {tuple(got.quality)}, wanted {tuple(wanted.quality)}")
    _hold(got.provenance == wanted.provenance, f"{wanted.provenance.differences(got.provenance)}")
    _hold(got.provenance.digest == wanted.provenance.digest, "the provenance has another digest")


def _same_or_refused(store: FeatureStore, bag: FeatureBag, where: str) -> None:
    try:
        got, header, features = store.read(bag.slide_id), store.header(bag.slide_id), store.read_features(bag.slide_id)
    except StoreError:
        return
    _hold(header.provenance.digest == bag.provenance.digest and header.n == len(bag), f"header altered: {where}")
    _hold(features.tobytes() == bag.features.tobytes(), f"features altered: {where}")
    _equal(got, bag)


@contextmanager
def _refused(*texts: str) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        for text in texts:
            _hold(text in str(error), f"the message lacks {text!r}: {error}")
    else:
        raise AssertionError(f"nothing was raised, wanted StoreError with {texts}")


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _hold(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
