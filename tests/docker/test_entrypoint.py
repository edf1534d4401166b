"""`wsimil` of the images runs for any user id, with whatever a cluster's environment brings along."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import ROOT, SOMEONE

Start = Callable[..., "Started"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What the command was started with: `words` after the name of the program, its environment, and what was said."""

    code: int
    words: list[str]
    environment: dict[str, str]
    said: str


@pytest.fixture
def place(open_folder: Path, request: pytest.FixtureRequest, as_someone: list[str]) -> Path:
    """A folder for one test, owned by the user without a name."""
    folder = open_folder / request.node.name.replace("[", "-").rstrip("]")
    folder.mkdir()
    os.chown(folder, SOMEONE, SOMEONE)
    return folder


@pytest.fixture
def start(place: Path, open_folder: Path, as_someone: list[str]) -> Start:
    """Runs the script as the image has it, with a program in Python's place that prints what it was given."""
    image = open_folder / "image"
    if not image.exists():
        (image / "command").mkdir(parents=True)
        shutil.copy(ROOT / "docker" / "entrypoint.sh", image / "command" / "wsimil")
        (image / "bin").mkdir()
        (image / "bin" / "python").write_text('#!/bin/sh\nfor word in "$@"; do echo "word=$word"; done\nexec env\n')
        (image / "bin" / "python").chmod(0o755)

    def run(*words: str, **environment: str) -> Started:
        done = subprocess.run(
            [*as_someone, "wsimil", *words], cwd="/", capture_output=True, text=True,
            env={"PATH": f"{image / 'command'}:/usr/bin:/bin", "TMPDIR": str(place), **environment},
        )  # fmt: skip
        pairs = [line.split("=", 1) for line in done.stdout.splitlines()]
        return Started(
            code=done.returncode,
            words=[value for key, value in pairs if key == "word"],
            environment={key: value for key, value in pairs if key != "word"},
            said=done.stderr,
        )

    return run


def test_words_reach_wsimil_as_they_are(start: Start) -> None:
    assert start("extract", "my slides/", "--set", "a=*").words == [
        "-m",
        "wsimil",
        "extract",
        "my slides/",
        "--set",
        "a=*",
    ]


@pytest.mark.parametrize("home", [{}, {"HOME": "/"}, {"HOME": "/not/mounted"}, {"HOME": "/root"}])
def test_a_user_without_a_name_or_a_home_gets_both(start: Start, place: Path, home: dict[str, str]) -> None:
    started = start(**home)
    found = Path(started.environment["HOME"])
    assert found == place / f"wsimil-{SOMEONE}"
    assert (found.stat().st_uid, found.stat().st_mode & 0o777) == (SOMEONE, 0o700)
    assert started.environment["USER"] == started.environment["LOGNAME"] == f"user{SOMEONE}"
    assert started.said == ""


def test_every_cache_can_be_written_to(start: Start) -> None:
    found = start().environment
    for name in (
        "XDG_CACHE_HOME",
        "HF_HOME",
        "TORCH_HOME",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "MPLCONFIGDIR",
    ):
        assert Path(found[name]).is_relative_to(found["HOME"])


def test_what_is_set_and_can_be_used_stays(start: Start, place: Path) -> None:
    mine = {name: str(place / name) for name in ("HOME", "HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR", "XDG_CACHE_HOME")}
    started = start(USER="ada", **mine)
    assert {name: started.environment[name] for name in mine} == mine
    assert started.environment["USER"] == started.environment["LOGNAME"] == "ada"
    assert started.said == ""


def test_weights_are_kept_in_the_mounted_cache(start: Start, place: Path) -> None:
    cache = place / "cache"
    cache.mkdir(mode=0o777)
    os.chown(cache, SOMEONE, SOMEONE)
    found = start(WSIMIL_CACHE=str(cache)).environment
    assert (found["HF_HOME"], found["TORCH_HOME"]) == (f"{cache}/huggingface", f"{cache}/torch")
    assert Path(found["TRITON_CACHE_DIR"]).is_relative_to(place / f"wsimil-{SOMEONE}")


def test_weights_may_lie_in_a_folder_that_can_only_be_read(start: Start, place: Path) -> None:
    cache = place / "cache"
    (cache / "huggingface" / "hub").mkdir(parents=True)
    cache.chmod(0o755)
    assert start(WSIMIL_CACHE=str(cache)).environment["HF_HOME"] == f"{cache}/huggingface"
    started = start(HF_HOME=str(cache / "huggingface"))
    assert started.environment["HF_HOME"] == f"{cache}/huggingface"
    assert started.said == ""


def test_a_mount_point_with_nothing_mounted_holds_no_cache(start: Start, place: Path) -> None:
    (place / "cache").mkdir()  # root's, as in an image
    found = start(WSIMIL_CACHE=str(place / "cache")).environment
    assert Path(found["HF_HOME"]).is_relative_to(found["HOME"])


def test_weights_of_the_host_that_are_not_mounted_are_said(start: Start) -> None:
    started = start(HF_HOME="/scratch/ada/hub")
    assert "HF_HOME=/scratch/ada/hub is not there in this container" in started.said
    assert Path(started.environment["HF_HOME"]).is_relative_to(started.environment["HOME"])
    assert started.code == 0


def test_a_temporary_folder_of_the_host_that_is_not_mounted_is_said(start: Start) -> None:
    started = start(TMPDIR="/scratch/job/7")
    try:
        assert "TMPDIR=/scratch/job/7 cannot be written to" in started.said
        assert "TMPDIR" not in started.environment
        assert Path(started.environment["HOME"]).parent == Path("/tmp")
    finally:
        shutil.rmtree(started.environment["HOME"])


@pytest.mark.parametrize("trap", ["of another user", "open to all", "link"])
def test_a_folder_that_another_user_could_have_filled_is_not_used(start: Start, place: Path, trap: str) -> None:
    bait = place / f"wsimil-{SOMEONE}"
    if trap == "link":
        (place / "elsewhere").mkdir(mode=0o700)
        os.chown(place / "elsewhere", SOMEONE, SOMEONE)
        bait.symlink_to(place / "elsewhere")
    else:
        bait.mkdir()
        bait.chmod(0o777 if trap == "open to all" else 0o700)
        if trap == "open to all":
            os.chown(bait, SOMEONE, SOMEONE)
    found = start().environment
    for name in ("HOME", "TRITON_CACHE_DIR"):
        assert not Path(found[name]).is_relative_to(bait)
        assert not Path(found[name]).resolve().is_relative_to(place / "elsewhere")
    assert Path(found["HOME"]).stat().st_mode & 0o777 == 0o700


def test_packages_of_another_python_stay_outside(start: Start) -> None:
    assert not {"PYTHONPATH", "PYTHONHOME"} & set(start(PYTHONPATH="/modules/lib", PYTHONHOME="/modules").environment)


def healthy(place: Path, as_someone: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    script = place.parent / "healthy.sh"
    shutil.copy(ROOT / "docker" / "healthy.sh", script)
    return subprocess.run(
        [*as_someone, str(script)], cwd=place, capture_output=True, text=True,
        env={"PATH": f"{place}:/usr/bin:/bin", "TMPDIR": str(place), **environment},
    )  # fmt: skip


def test_a_container_that_can_work_is_healthy_and_leaves_nothing(place: Path, as_someone: list[str]) -> None:
    done = healthy(place, as_someone)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(place.iterdir()) == []


def test_a_temporary_folder_that_is_full_or_read_only_is_a_sickness(place: Path, as_someone: list[str]) -> None:
    (place / "only root").mkdir()
    done = healthy(place, as_someone, TMPDIR=str(place / "only root"))
    assert done.returncode == 1
    assert "nothing can be written there" in done.stderr


@pytest.mark.parametrize(("visible", "code"), [("all", 1), ("0", 1), ("void", 0), ("none", 0)])
def test_a_gpu_that_does_not_answer_is_a_sickness_where_one_was_given(
    place: Path, as_someone: list[str], visible: str, code: int
) -> None:
    (place / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'Unable to determine the device handle: GPU is lost.'\nexit 15\n"
    )
    (place / "nvidia-smi").chmod(0o755)
    done = healthy(place, as_someone, NVIDIA_VISIBLE_DEVICES=visible)
    assert done.returncode == code
    assert ("GPU is lost" in done.stderr) is bool(code)
