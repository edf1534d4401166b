"""A cohort's features as a folder of HDF5 files, as a folder of Zarr groups, and as one pack: files, bytes, opening, reading.

    python benchmarks/store.py [--slides 2000] [--tiles 50] [--dim 320] [--rounds 5] [--folder FOLDER] [--json FILE]

Opening is `open_store`, its ids and the headers of all slides: what `wsimil train` does before its first epoch. Reading is every
bag once, with its checks, in an order that is drawn anew for each round and is the same for all three; "features by rows" leaves
out the bag and its checks, and reads the features of the pack beside zarr-python doing so. Contestants take turns in every
round, in an order that rotates; figures are medians over rounds. "cold" means that the system was told to forget the content of
the files (not their names and inodes), "warm" that they are in memory. --folder chooses the file system.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from wsimil.stages.pack import pack
from wsimil.store import FeatureStore, open_store
from wsimil.store.base import read_headers
from wsimil.store.shards import ShardedArray
from wsimil.testing.store_laws import make_bag

KINDS = ("hdf5", "zarr", "pack")


def make(folder: Path, *, slides: int, tiles: int, dim: int) -> dict[str, Path]:
    """The same bags in all three forms; sizes vary by up to half around `tiles`."""
    sizes = np.random.default_rng(0).integers(tiles // 2, tiles * 3 // 2 + 1, slides)
    hdf5 = open_store(folder / "hdf5", mode="w", backend="hdf5")
    zarrs = open_store(folder / "zarr", mode="w", backend="zarr")
    bags = {int(n): make_bag(n=int(n), dim=dim, seed=int(n)) for n in set(sizes)} if slides > len(set(sizes)) else {}
    for number, n in enumerate(sizes):
        bag = bags.get(int(n)) or make_bag(n=int(n), dim=dim, seed=number)
        slide = replace(bag.grid.slide, slide_id=f"slide-{number:05}")
        bag = replace(bag, grid=replace(bag.grid, slide=slide))
        hdf5.write(bag)
        zarrs.write(bag)
    pack(folder / "hdf5", folder / "cohort.zarr")
    return {"hdf5": folder / "hdf5", "zarr": folder / "zarr", "pack": folder / "cohort.zarr"}


def files_of(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def forget(path: Path) -> None:
    """Ask the system to drop what it holds of the files' content."""
    for file in files_of(path):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def open_all(path: Path) -> FeatureStore:
    store = open_store(path, mode="r")
    read_headers(store, store.ids())
    return store


def read_bags(store: FeatureStore, ids: list[str]) -> None:
    for slide_id in ids:
        store.read(slide_id)


def rows_by_pack(path: Path, bounds: list[tuple[int, int]]) -> None:
    array = ShardedArray(path / "features")
    for start, stop in bounds:
        array.read(start, stop)


def rows_by_zarr(path: Path, bounds: list[tuple[int, int]]) -> None:
    array = zarr.open_array(path / "features", mode="r")
    for start, stop in bounds:
        array[start:stop]


def bounds_of(path: Path, ids: list[str]) -> list[tuple[int, int]]:
    store = open_store(path, mode="r")
    ends = np.cumsum([0, *(store.header(slide_id).n for slide_id in store.ids())])
    found = dict(zip(store.ids(), zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True), strict=True))
    return [found[slide_id] for slide_id in ids]


def one_round(places: dict[str, Path], kinds: list[str], order: list[str]) -> dict[str, dict[str, float]]:
    """Seconds of every contestant by what it did."""
    taken: dict[str, dict[str, float]] = {}

    def timed(what: str, kind: str, work: Callable[..., object], *arguments: object) -> None:
        began = time.perf_counter()
        work(*arguments)
        taken.setdefault(what, {})[kind] = time.perf_counter() - began

    for kind in kinds:
        forget(places[kind])
        timed("open, cold", kind, open_all, places[kind])
        timed("open, warm", kind, open_all, places[kind])
        store = open_store(places[kind], mode="r")
        forget(places[kind])
        timed("read, cold", kind, read_bags, store, order)
        timed("read, warm", kind, read_bags, store, order)
    bounds = bounds_of(places["pack"], order)
    timed("features by rows, warm", "pack", rows_by_pack, places["pack"], bounds)
    timed("features by rows, warm", "pack by zarr-python", rows_by_zarr, places["pack"], bounds)
    return taken


def measure(places: dict[str, Path], rounds: int) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    ids = open_store(places["pack"], mode="r").ids()
    taken = []
    for number in range(rounds + 1):  # the first warms up and is not counted
        kinds = [KINDS[(number + index) % len(KINDS)] for index in range(len(KINDS))]
        order = [ids[index] for index in generator.permutation(len(ids))]
        taken.append(one_round(places, kinds, order))
    taken = taken[1:]
    figures: dict[str, Any] = {}
    for what, by_kind in taken[0].items():
        against = "hdf5" if "hdf5" in by_kind else "pack by zarr-python"
        figures[what] = {
            kind: {
                "seconds": round(statistics.median(found[what][kind] for found in taken), 4),
                "least_and_most": [round(pick(found[what][kind] for found in taken), 4) for pick in (min, max)],
            }
            for kind in by_kind
        }
        ratio = statistics.median(found[what][against] / found[what]["pack"] for found in taken)
        figures[what][f"{against} over pack"] = round(ratio, 2)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=2000)
    parser.add_argument("--tiles", type=int, default=50)
    parser.add_argument("--dim", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make the cohort; a temporary folder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        places = make(Path(scratch), slides=args.slides, tiles=args.tiles, dim=args.dim)
        sizes = {kind: [file.stat().st_size for file in files_of(path)] for kind, path in places.items()}
        result = {
            "slides": args.slides,
            "tiles_mean": args.tiles,
            "dim": args.dim,
            "dtype": "float16",
            "rounds": args.rounds,
            "files": {kind: len(found) for kind, found in sizes.items()},
            "megabytes": {kind: round(sum(found) / 1e6, 1) for kind, found in sizes.items()},
            "figures": measure(places, args.rounds),
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "disk": "local"},
            "versions": {
                "python": sys.version.split()[0],
                "h5py": h5py.__version__,
                "zarr": zarr.__version__,
                "numpy": np.__version__,
            },
        }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
