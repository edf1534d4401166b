"""What a node needs is copied to its own disk once, by one of its jobs; what goes wrong with that stops no job."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "slurm" / "stage_in.sh"


def start(folder: Path, source: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([SCRIPT, folder, source], stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def caught_in_the_act(job: subprocess.Popen[str], folder: Path) -> Path:
    """Stop a job once it has begun to copy; what it has made so far."""
    while not (parts := list(folder.glob("*/wsimil.sif"))):
        assert job.poll() is None
    os.killpg(job.pid, signal.SIGSTOP)
    return parts[0]


def staged(folder: Path, source: Path) -> tuple[Path, str]:
    """The path that a job would use, and what it was told."""
    process = start(folder, source)
    out, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    return Path(out.removesuffix("\n")), told


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "shared storage" / "wsimil.sif"
    path.parent.mkdir()
    path.write_bytes(os.urandom(1_000_003))
    return path


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    root = tmp_path / "shared storage" / "an environment"
    (root / "lib" / "empty").mkdir(parents=True)
    for number in range(63):
        (root / "lib" / f"module {number}.py").write_text(f"n = {number}\n", encoding="utf-8")
    (root / "lib64").symlink_to("lib")
    (root / "run").write_text("#!/bin/sh\n", encoding="utf-8")
    (root / "run").chmod(0o755)
    return root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here; needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_jobs_that_start_together_make_one_copy_of_an_image(image: Path, tmp_path: Path) -> None:
    jobs = [start(tmp_path / "local", image) for _ in range(5)]
    said = [job.communicate(timeout=60) for job in jobs]
    (place,) = {Path(out.strip("\n")) for out, _ in said}
    assert place.parts[: len(tmp_path.parts) + 1] == (tmp_path / "local").parts
    assert place.read_bytes() == image.read_bytes()
    assert sum("was copied" in told for _, told in said) == 1
    assert staged(tmp_path / "local", image) == (place, "")


def test_a_folder_is_copied_with_its_links_modes_and_empty_folders(venv: Path, tmp_path: Path) -> None:
    place, _ = staged(tmp_path / "local", venv)
    names = {path.relative_to(venv) for path in venv.rglob("*")}
    assert {path.relative_to(place) for path in place.rglob("*")} == names
    assert (place / "lib64").readlink() == Path("lib")
    assert os.access(place / "run", os.X_OK)


def test_another_content_is_another_copy(venv: Path, tmp_path: Path) -> None:
    before, _ = staged(tmp_path / "local", venv)
    (venv / "lib" / "module 3.py").write_text("n = 'three'\n", encoding="utf-8")
    after, _ = staged(tmp_path / "local", venv)
    assert before != after
    assert (after / "lib" / "module 3.py").read_text(encoding="utf-8") == "n = 'three'\n"
    assert (before / "lib" / "module 3.py").read_text(encoding="utf-8") == "n = 3\n"  # a job may still run from it


def test_a_copy_that_was_tidied_away_in_part_is_made_again(venv: Path, tmp_path: Path) -> None:
    before, _ = staged(tmp_path / "local", venv)
    (before / "lib" / "module 7.py").unlink()
    after, _ = staged(tmp_path / "local", venv)
    assert (after / "lib" / "module 7.py").is_file()


def test_a_copier_that_was_killed_is_followed_by_another_that_takes_its_room_back(image: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    os.truncate(image, 150_000_000)  # long enough to be caught in the act
    first = start(local, image)
    part = caught_in_the_act(first, local)
    second = start(local, image)
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    out, told = second.communicate(timeout=60)
    place = Path(out.strip("\n"))
    assert place.is_relative_to(local), told
    assert sha256(place.read_bytes()).digest() == sha256(image.read_bytes()).digest()
    assert not part.exists()


def test_what_changes_while_it_is_copied_is_used_from_where_it_is(image: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    os.truncate(image, 150_000_000)
    job = start(local, image)
    caught_in_the_act(job, local)
    os.truncate(image, 1_000_003)
    os.killpg(job.pid, signal.SIGCONT)
    out, told = job.communicate(timeout=60)
    assert out.strip("\n") == str(image)
    assert "it changed" in told
    assert not list(local.glob("*/wsimil.sif"))


def test_where_the_disk_is_full_the_shared_one_is_used_and_the_reason_is_told(image: Path, small_disk: Path) -> None:
    with image.open("ab") as file:
        file.write(os.urandom(1_000_000))
    place, told = staged(small_disk, image)
    assert place == image
    assert "it has 2000003 bytes, and" in told
    assert not list(small_disk.glob("*/wsimil.sif"))


def test_a_folder_of_another_user_is_not_trusted(image: Path, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a folder of another user is made by root")
    os.chown(local, 12345, 12345)
    place, told = staged(local, image)
    assert place == image
    assert "another user's" in told
