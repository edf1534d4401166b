"""Readers of docker/: its instructions, what an engine gets of a checkout, and folders that any user id may read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOMEONE = 23456  # a user id without a name, as clusters bring them


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction of a Dockerfile; `stage` is empty before the first FROM."""

    stage: str
    word: str
    rest: str


def read_dockerfile(path: Path) -> list[Instruction]:
    """The instructions in order, each on one line, without comments."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found, stage = [], ""
    for line in filter(None, joined.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stage = rest.rsplit(" AS ", 1)[1]
        found.append(Instruction(stage=stage, word=word, rest=rest))
    return found


def read_definition(path: Path) -> list[tuple[dict[str, str], list[tuple[str, list[str]]]]]:
    """For each stage of an Apptainer definition its header and its sections, as (title, lines)."""
    stages: list[tuple[dict[str, str], list[tuple[str, list[str]]]]] = []
    for line in path.read_text().splitlines():
        if line.startswith("Bootstrap:"):
            stages.append(({}, []))
        if line.startswith("%"):
            stages[-1][1].append((line[1:].strip(), []))
        elif stages and not stages[-1][1] and ":" in line:
            key, value = line.split(":", 1)
            stages[-1][0][key] = value.strip()
        elif stages and stages[-1][1]:
            stages[-1][1][-1][1].append(line)
    return stages


def sent(path: str, patterns: list[str]) -> bool:
    """Whether an engine gets the file `path`: the last pattern that holds it or a folder around it decides."""
    parts = path.split("/")
    answer = True
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        if any(_matches("/".join(parts[: i + 1]), wanted) for i in range(len(parts))):
            answer = pattern.startswith("!")
    return answer


def _matches(path: str, pattern: str) -> bool:
    words = [
        ".*" if word == "**/" else "[^/]*" if word == "*" else re.escape(word)
        for word in re.split(r"(\*\*/|\*)", pattern)
    ]
    return re.fullmatch("".join(words), path) is not None


@pytest.fixture(scope="session")
def instructions() -> list[Instruction]:
    return read_dockerfile(ROOT / "docker" / "Dockerfile")


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp(prefix="wsimil-docker-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def context(open_folder: Path) -> Path:
    """What an engine gets of the files that git knows, in a folder of its own."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a checkout, to know its files")
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    folder = open_folder / "context"
    for name in filter(None, done.stdout.split("\0")):
        if sent(name, patterns) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def as_someone() -> list[str]:
    """Words before a command that make it a user without a name."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become a user without a name, by setpriv")
    return ["setpriv", f"--reuid={SOMEONE}", f"--regid={SOMEONE}", "--clear-groups"]


@pytest.fixture(scope="session")
def as_reader(as_someone: list[str]) -> list[str]:
    """The same for commands of this Python, which may lie in root's home: read what they like, write what someone may."""
    return [*as_someone, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
