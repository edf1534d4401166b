"""How a job finds what it runs: the planned file, or the copy on its node's own disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "pipelines" / "slurm"
SCRIPT = """
set -u
MOUNTS=() STAGE=() MODULES='' HF_HOME='' VENV='' CONTAINER='' CONTAINER_RUNTIME=apptainer STUDY=/study
. "$1"
. "$KIT/environment.sh"
wsimil_environment worker cpu || exit
printf '%s\\n' "${WSIMIL[@]}" -- ${NEAR[@]+"${NEAR[@]}"}
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "shared storage" / "weights.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights" * 1000)
    return path


def environment(tmp_path: Path, settings: str) -> tuple[list[str], list[str]]:
    """The words that run wsimil, and those that name copies, under these settings."""
    (tmp_path / "settings").write_text(f"KIT='{SLURM}'\n{settings}\n", encoding="utf-8")
    run = ["bash", "-c", SCRIPT, "bash", str(tmp_path / "settings")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    words = done.stdout.splitlines()
    return words[: words.index("--")], words[words.index("--") + 1 :]


def own(tmp_path: Path) -> str:
    """A small environment in a folder of its own, as the one of the tests is large."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return f"VENV='{tmp_path}/venv'"


def test_without_a_container_a_worker_is_told_where_the_copy_is(tmp_path: Path, weights: Path) -> None:
    _, near = environment(tmp_path, f"{own(tmp_path)} WEIGHTS='{weights}' STAGE_DIR='{tmp_path}/local'")
    option, copy = near
    assert option == "--encoder-weights"
    assert Path(copy).is_relative_to(tmp_path / "local")
    assert Path(copy).read_bytes() == weights.read_bytes()


def test_a_container_shows_the_copy_in_the_place_of_the_original(tmp_path: Path, weights: Path) -> None:
    settings = f"CONTAINER=registry/image:1 WEIGHTS='{weights}' STAGE_DIR='{tmp_path}/local'"
    words, near = environment(tmp_path, settings)
    assert near == []
    (bind,) = [word for word in words if word.endswith(f":{weights}")]
    copy = Path(bind.removesuffix(f":{weights}"))
    assert copy.is_relative_to(tmp_path / "local")
    assert copy.read_bytes() == weights.read_bytes()


def test_weights_are_shown_once_and_not_where_a_container_cannot_mount_their_name(
    tmp_path: Path, weights: Path
) -> None:
    settings = f"CONTAINER=registry/image:1 STAGE_DIR='{tmp_path}/local'"
    words, _ = environment(tmp_path, f"{settings} WEIGHTS='{weights}' STAGE=('{weights}')")
    assert sum(word.endswith(f":{weights}") for word in words) == 1
    odd = Path(shutil.copy(weights, weights.with_name("a,b.pth")))
    words, _ = environment(tmp_path, f"{settings} WEIGHTS='{odd}'")
    assert not [word for word in words if "a,b" in word]


@pytest.mark.parametrize("place", ["STAGE_DIR=''", "STAGE_DIR=/proc/nowhere"])
def test_where_nothing_can_be_copied_the_planned_file_is_used(tmp_path: Path, weights: Path, place: str) -> None:
    _, near = environment(tmp_path, f"{own(tmp_path)} WEIGHTS='{weights}' {place}")
    assert near in ([], ["--encoder-weights", str(weights)])


def test_a_study_of_published_weights_copies_none(tmp_path: Path) -> None:
    words, near = environment(tmp_path, f"{own(tmp_path)} WEIGHTS='' STAGE_DIR='{tmp_path}/local'")
    assert near == []
    assert Path(words[0]).is_relative_to(tmp_path / "local")
