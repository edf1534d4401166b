"""A disk that is full or read-only: one clear error, nothing half-written, and work goes on when there is room."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from wsimil.errors import OutputError
from wsimil.provenance import Provenance
from wsimil.store import Backend, open_store
from wsimil.store.base import read_headers
from wsimil.store.packing import write_pack
from wsimil.testing.store_laws import make_bag


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def handles() -> list[str]:
    """Paths of the files that this process holds open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(entry))  # noqa: PTH115  # a Path would drop " (deleted)"
    return found


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
@pytest.mark.parametrize("n", [2_000, 4_100, 100_000])
def test_a_full_disk_leaves_nothing_and_no_handle(disk: Path, backend: Backend, n: int) -> None:
    store = open_store(disk, mode="w", backend=backend)
    for _ in range(3):
        with pytest.raises(OutputError, match=r"cannot write .*/slide-1\..*: the disk is full: free space"):
            store.write(make_bag(n=n))
    gc.collect()
    assert list(disk.iterdir()) == []
    assert not [handle for handle in handles() if handle.startswith(str(disk))]
    store.write(make_bag(n=1))
    assert store.ids() == ["slide-1"]


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
def test_a_full_disk_keeps_the_older_bag(disk: Path, backend: Backend) -> None:
    store = open_store(disk, mode="w", backend=backend)
    store.write(make_bag(n=1))
    with pytest.raises(OutputError, match="the disk is full"):
        store.write(make_bag(n=4_100))
    assert len(store.read("slide-1")) == 1


@pytest.mark.parametrize("notes", [0, 30_000, 500_000])
def test_every_amount_of_room_ends_in_a_whole_file_or_none(disk: Path, notes: int) -> None:
    store = open_store(disk, mode="w", backend="hdf5")
    bag = make_bag(n=63)
    tree = bag.provenance.to_json() | {"pixels": {"notes": "x" * notes}}
    bag = replace(bag, provenance=Provenance.from_json(tree))
    outcomes = set()
    for room in range(0, 65_536, 4096):
        (disk / "filler").write_bytes(b"\0" * (65_536 - room))
        try:
            store.write(bag)
        except OutputError:
            assert store.ids() == []
            outcomes.add("refused")
        else:
            assert len(store.read("slide-1")) == 63
            store.path("slide-1").unlink()
            outcomes.add("written")
        (disk / "filler").unlink()
    assert outcomes == ({"refused"} if notes > 65_536 else {"refused", "written"})
    assert not [handle for handle in handles() if handle.startswith(str(disk))]


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
def test_a_disk_that_turns_read_only_is_an_output_error(disk: Path, backend: Backend) -> None:
    store = open_store(disk, mode="w", backend=backend)
    store.write(make_bag(n=1))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for call in (lambda: store.write(make_bag(n=2)), lambda: open_store(disk, mode="w")):
        with pytest.raises(OutputError, match="the file system is read-only: choose another output folder"):
            call()
    assert len(open_store(disk, mode="r").read("slide-1")) == 1


def test_a_pack_for_which_there_is_no_room_leaves_nothing_and_no_handle(disk: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path, mode="w")
    for slide_id in "abcd":
        store.write(make_bag(slide_id, n=1000))
    headers = list(read_headers(store, store.ids()).values())
    for _ in range(2):
        with pytest.raises(OutputError, match=r"cannot write .*/cohort\.zarr: the disk is full: free space"):
            write_pack(disk / "cohort.zarr", store, headers, on_written=str, on_verified=str)
    gc.collect()
    assert list(disk.iterdir()) == []
    assert not [handle for handle in handles() if handle.startswith(str(disk))]
