"""Atomic writes: whole and at its name, or not there."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wsimil.errors import OutputError
from wsimil.files import (
    atomic_directory,
    atomic_path,
    check_writable,
    output_error,
    publish,
    publish_file,
    publish_folder,
    remove_folder,
    remove_stale,
    sync_tree,
    write_bytes,
    write_text,
    write_unsynced,
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of 64 KiB; called again it changes the mount's options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", f"size=64k{options}", "tmpfs", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


def run_until_ready(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that has printed a line and now waits to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_after(write: Callable[[], object], error: type[BaseException]) -> None:
    write()
    raise error


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "x.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
        assert temporary.name.startswith(".")
    assert target.read_text() == "half"
    assert names(target.parent) == ["x.txt"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.zarr"
    with atomic_directory(target) as temporary:
        (temporary / "a").mkdir()
        (temporary / "a" / "b").write_text("1")
        assert not target.exists()
    assert (target / "a" / "b").read_text() == "1"
    assert names(tmp_path) == ["x.zarr"]


@pytest.mark.parametrize("old", [True, False])
def test_an_error_inside_leaves_what_was_there(tmp_path: Path, old: bool) -> None:
    if old:
        write_text(tmp_path / "x.txt", "old")
        with atomic_directory(tmp_path / "x.zarr") as folder:
            (folder / "old").touch()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x.txt") as temporary:
        fail_after(functools.partial(temporary.write_text, "new"), ZeroDivisionError)
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "x.zarr") as temporary:
        fail_after((temporary / "new").touch, KeyboardInterrupt)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert not old or (tmp_path / "x.txt").read_text() == "old"


def test_a_folder_replaces_a_full_one_and_nothing_of_the_old_stays(tmp_path: Path) -> None:
    target = tmp_path / "x.zarr"
    for name in ("first", "second"):
        with atomic_directory(target) as temporary:
            (temporary / name).touch()
    assert names(target) == ["second"]
    assert names(tmp_path) == ["x.zarr"]


def test_a_folder_replaces_a_file(tmp_path: Path) -> None:
    target = tmp_path / "x.zarr"
    target.write_text("not a folder")
    with atomic_directory(target) as temporary:
        (temporary / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["x.zarr"]


@pytest.mark.parametrize("writer", ["atomic_path", "atomic_directory"])
def test_kill_9_in_the_middle_leaves_nothing_at_the_name_and_its_leftovers_are_swept(
    tmp_path: Path, writer: str
) -> None:
    code = f"""
        import signal, sys
        from pathlib import Path
        from wsimil.files import {writer}
        with {writer}(Path(sys.argv[1])) as temporary:
            (temporary / "part" if temporary.is_dir() else temporary).write_bytes(b"x" * 100_000)
            print("ready", flush=True)
            signal.pause()
    """
    process = run_until_ready(code, str(tmp_path / "x.h5"))
    assert remove_stale(tmp_path) == 0, "the writer is still at work"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".x.")
    assert remove_stale(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_kill_9_at_any_moment_never_shows_a_part(tmp_path: Path) -> None:
    code = """
        import itertools, sys
        from pathlib import Path
        from wsimil.files import write_bytes, atomic_directory
        print("ready", flush=True)
        for i in itertools.count():
            write_bytes(Path(sys.argv[1], "x.bin"), bytes([i % 251]) * 300_000)
            with atomic_directory(Path(sys.argv[1], "x.zarr")) as folder:
                for name in "ab":
                    (folder / name).write_bytes(bytes([i % 251]) * 1000)
    """
    for moment in range(5):
        process = run_until_ready(code, str(tmp_path))
        # Waits for a state of the folder, not for time: the moment is given by how often the file was replaced.
        seen: set[int] = set()
        while len(seen) <= moment * 3:
            if (tmp_path / "x.bin").exists():
                seen.add((tmp_path / "x.bin").stat().st_mtime_ns)
        process.kill()
        process.communicate()
        data = (tmp_path / "x.bin").read_bytes()
        assert data == data[:1] * 300_000
        if (tmp_path / "x.zarr").exists():
            parts = {(tmp_path / "x.zarr" / name).read_bytes() for name in "ab"}
            assert len(parts) == 1
        remove_stale(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {"x.bin", "x.zarr"}


def test_a_leftover_of_another_host_is_swept_after_a_day(tmp_path: Path) -> None:
    young, old, ours = (tmp_path / f".x.{name}.wsimil-tmp.h5" for name in ("far.1.ab", "far.2.ab", "far.3.ab"))
    folder = tmp_path / ".y.far.4.ab.wsimil-tmp.zarr"
    folder.mkdir()
    (folder / "zarr.json").touch()
    for path in (young, old, ours):
        path.touch()
    for path in (old, folder):
        os.utime(path, (0, 0))
    assert remove_stale(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, ours.name])


def test_a_leftover_whose_process_number_lives_again_is_swept_after_a_day(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "x.h5") as temporary:
        leftover = temporary
    leftover.touch()
    assert remove_stale(tmp_path) == 0
    os.utime(leftover, (0, 0))
    assert remove_stale(tmp_path) == 1


def test_what_is_written_outside_of_a_container_is_no_leftover_in_it(tmp_path: Path) -> None:
    """Process numbers are others there: a file that was being written was swept, and its writer ended with an error."""
    sweep = "import sys; from pathlib import Path; from wsimil.files import remove_stale; print(remove_stale(Path(sys.argv[1])))"
    container = ["unshare", "--pid", "--fork"]
    if subprocess.run([*container, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespace of processes can be made here")
    with atomic_path(tmp_path / "x.h5") as temporary:
        swept = subprocess.run(
            [*container, sys.executable, "-c", sweep, str(tmp_path)], check=True, capture_output=True, text=True
        )
        assert temporary.exists()
    assert swept.stdout == "0\n"


def test_sweeping_leaves_everything_else(tmp_path: Path) -> None:
    for name in (".hidden", "x.h5", "x.wsimil-tmp.h5", ".wsimil", "failures.csv"):
        (tmp_path / name).touch()
    assert remove_stale(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 5
    assert remove_stale(tmp_path / "is not there") == 0


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_and_folders_get_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "x.txt", "x")
        with atomic_directory(tmp_path / "x.zarr"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "x.zarr").stat().st_mode & 0o777 == 0o777 & ~mask


def test_many_threads_do_not_change_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: write_text(tmp_path / f"{i}.txt", "x"), range(63)))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_concurrent_writers_of_one_name_leave_one_whole_result(tmp_path: Path, kind: str) -> None:
    start = threading.Barrier(4)

    def write(number: int) -> None:
        start.wait()
        for _ in range(16):
            if kind == "file":
                write_bytes(tmp_path / "x", bytes([number]) * 10_000)
            else:
                with atomic_directory(tmp_path / "x") as folder:
                    for name in "ab":
                        (folder / name).write_bytes(bytes([number]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    whole = (
        (tmp_path / "x").read_bytes() if kind == "file" else b"".join((tmp_path / "x" / n).read_bytes() for n in "ab")
    )
    assert len(set(whole)) == 1
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("stem", ["x" * 250, "片" * 80, "é" * 120, "🧬" * 60, "a.b" * 80])
def test_a_name_that_the_file_system_takes_is_written(tmp_path: Path, stem: str) -> None:
    write_text(tmp_path / f"{stem}.h5", "x")
    assert names(tmp_path) == [f"{stem}.h5"]


def test_a_name_that_the_file_system_does_not_take_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        write_text(tmp_path / ("x" * 256), "x")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error_and_nothing_is_left(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("")
    with pytest.raises(OutputError, match=r"x\.bin: the disk is full: free space"):
        write_bytes(folder / "x.bin", b"x" * 100_000)
    with (
        pytest.raises(OutputError, match=r"x\.zarr: the disk is full"),
        atomic_directory(folder / "x.zarr") as temporary,
    ):
        (temporary / "part").write_bytes(b"x" * 100_000)
    assert list(folder.iterdir()) == []


def test_a_read_only_disk_is_an_output_error(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk(",ro")
    for write in (
        lambda: write_text(folder / "x", "x"),
        lambda: check_writable(folder),
        lambda: check_writable(folder / "new"),
    ):
        with pytest.raises(OutputError, match="read-only: choose another output folder"):
            write()
    with pytest.raises(OutputError, match="read-only"), atomic_directory(folder / "x"):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_where_the_folder_should_be_is_an_output_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for write in (lambda: check_writable(tmp_path / name), lambda: write_text(tmp_path / name / "x", "x")):
        with pytest.raises(OutputError, match="choose another output folder"):
            write()


def test_a_folder_where_the_file_should_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*x: Is a directory"):
        write_text(tmp_path / "x", "x")
    assert names(tmp_path) == ["x"]


def test_checking_a_folder_makes_it_and_leaves_it_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EDQUOT, errno.EROFS, errno.ENOSPC])
def test_an_output_error_names_the_place_and_a_remedy(code: int) -> None:
    text = str(output_error(Path("/out/x.h5"), OSError(code, os.strerror(code))))
    assert text.startswith("cannot write /out/x.h5: ")
    assert "choose another output folder" in text


def test_what_is_published_stays_and_the_second_is_told(tmp_path: Path) -> None:
    assert publish(b"first", tmp_path / "a")
    assert not publish(b"second", tmp_path / "a", within=tmp_path)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_of_many_that_publish_at_once_one_is_told_that_it_was_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        firsts = list(pool.map(lambda i: publish(b"%d" % i, tmp_path / "a"), range(64)))
    assert [str(i).encode() for i, first in enumerate(firsts) if first] == [(tmp_path / "a").read_bytes()]


def test_a_link_whose_answer_was_lost_counts_as_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    link = os.link

    def lost(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", lost)
    assert publish_file(tmp_path / "a", tmp_path / "b")
    monkeypatch.undo()
    assert not publish_file(tmp_path / "a", tmp_path / "b")
    with pytest.raises(OutputError):
        publish_file(tmp_path / "nothing", tmp_path / "c")


def test_a_folder_is_published_onto_nothing_or_an_empty_one_only(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "empty").mkdir()
    assert publish_folder(tmp_path / "one", tmp_path / "place")
    assert publish_folder(tmp_path / "two", tmp_path / "empty")
    assert not publish_folder(tmp_path / "three", tmp_path / "place")
    assert (tmp_path / "place" / "file").read_text() == "one"
    with pytest.raises(OutputError):
        publish_folder(tmp_path / "nothing", tmp_path / "c")


def test_a_file_that_is_not_synced_is_whole_all_the_same(tmp_path: Path) -> None:
    write_unsynced(tmp_path / "a.json", b"1")
    write_unsynced(tmp_path / "a.json", b"2")
    assert (tmp_path / "a.json").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(OutputError):
        write_unsynced(tmp_path / "nowhere" / "a.json", b"1")


def test_a_folder_that_is_removed_is_gone_and_one_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_folder(tmp_path / "a")
    remove_folder(tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entries", [True, False])
def test_a_tree_is_synced_file_by_file_and_its_folders_if_they_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: bool
) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/y", "a", "b/x"):
        (tmp_path / name).touch()
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())), fsync(handle))
    )
    assert sync_tree(tmp_path, entries=entries) == [tmp_path / "a", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    folders = [str(tmp_path), str(tmp_path / "b")] if entries else []
    assert sorted(synced) == sorted([str(tmp_path / name) for name in ("a", "b/x", "b/y")] + folders)
