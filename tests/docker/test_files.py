"""The Dockerfile and the Apptainer definition can be built from what an engine gets, and are what they promise."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import ROOT, Instruction, read_definition, sent

DOCKER = ROOT / "docker"
IMAGES = ("cpu", "cuda")


def lint(tool: str, *words: str) -> str:
    """What a linter says of the files; installed beside this Python."""
    program = shutil.which(tool, path=Path(sys.executable).parent) or shutil.which(tool)
    if program is None:
        pytest.skip(f"needs {tool}")
    done = subprocess.run([program, *words], capture_output=True, text=True)
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


def rest_of(instructions: list[Instruction], stage: str, word: str) -> list[str]:
    return [item.rest for item in instructions if item.stage == stage and item.word == word]


def base_of(instructions: list[Instruction], name: str) -> str:
    (value,) = (
        item.rest.split("=", 1)[1] for item in instructions if item.stage == "" and item.rest.startswith(f"{name}=")
    )
    return value


def lines_of(sections: list[tuple[str, list[str]]], title: str) -> list[str]:
    return [line.strip() for name, lines in sections if name == title for line in lines if line.strip()]


def test_hadolint_finds_nothing() -> None:
    assert lint("hadolint", "--no-color", str(DOCKER / "Dockerfile")) == ""


def test_shellcheck_finds_nothing() -> None:
    assert lint("shellcheck", *map(str, sorted(DOCKER.glob("*.sh")))) == ""


def test_shellcheck_finds_nothing_in_the_definition(tmp_path: Path) -> None:
    scripts = []
    for header, sections in read_definition(DOCKER / "wsimil.def"):
        for title, lines in sections:
            if title in ("post", "environment", "runscript", "test"):
                scripts.append(tmp_path / f"{header['Stage']}-{title}.sh")
                scripts[-1].write_text("#!/bin/sh\n" + re.sub(r"{{ (\w+) }}", r"$\1", "\n".join(lines)) + "\n")
    assert len(scripts) == 6
    # The arguments that stand in double braces are filled in before a shell sees them.
    assert lint("shellcheck", "--exclude=SC2154", *map(str, scripts)) == ""


def test_bases_are_pinned_by_digest_and_the_same_for_apptainer(instructions: list[Instruction]) -> None:
    bases = {name: base_of(instructions, name) for name in ("PYTHON", "NODE")}
    digests = {
        name: re.fullmatch(r"docker\.io/library/(\w+):[\d.]+-[\w-]+(@sha256:[0-9a-f]{64})", base)
        for name, base in bases.items()
    }
    assert all(digests.values())
    froms = [item.rest.split(" AS ")[0] for item in instructions if item.word == "FROM"]
    assert set(froms) == {"${NODE}", "${PYTHON}", "runtime"}
    wanted = {"".join(found.groups()) for found in digests.values() if found}
    assert {header["From"] for header, _ in read_definition(DOCKER / "wsimil.def")} == wanted


def test_what_is_copied_reaches_the_engine(instructions: list[Instruction], context: Path) -> None:
    copied = [item.rest.split() for item in instructions if item.word == "COPY"]
    sources = [
        name
        for words in copied
        if not words[0].startswith("--from")
        for name in words[:-1]
        if not name.startswith("--")
    ]
    assert len(sources) > 10
    assert [name for name in sources if not (context / name).exists()] == []
    for _, sections in read_definition(DOCKER / "wsimil.def"):
        assert [line for line in lines_of(sections, "files") if not (context / line.split()[0]).exists()] == []


def test_what_comes_from_another_stage_is_made_there(instructions: list[Instruction]) -> None:
    stages = list(dict.fromkeys(item.stage for item in instructions))
    for item in instructions:
        if item.word == "COPY" and item.rest.startswith("--from="):
            stage, source = item.rest.removeprefix("--from=").split()[:2]
            assert stages.index(stage) < stages.index(item.stage)
            made = " ".join(rest_of(instructions, stage, "RUN") + rest_of(instructions, stage, "WORKDIR"))
            assert source in made or Path(source).parent.as_posix() in made


def test_the_engine_gets_the_sources_and_nothing_else(context: Path) -> None:
    assert {path.name for path in context.iterdir()} == {
        "LICENSE", "README.md", "constraints.txt", "docker", "hatch_build.py", "pyproject.toml", "wsimil",
    }  # fmt: skip
    assert {path.suffix for path in (context / "docker").iterdir()} == {".sh"}


@pytest.mark.parametrize(
    ("path", "goes"),
    [
        (".git/config", False), ("tests/test_cli.py", False), ("docker/README.md", False), ("docker/entrypoint.sh", True),
        ("wsimil/cli/app.py", True), ("wsimil/cli/__pycache__/app.pyc", False), ("slides/case.svs", False),
        ("wsimil/export/viewer/web/node_modules/esbuild/main.js", False), ("wsimil/export/viewer/static/viewer.js", False),
    ],
)  # fmt: skip
def test_what_the_engine_gets_is_decided_by_the_last_pattern(path: str, goes: bool) -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert sent(path, patterns) is goes


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_does_not_run_as_root(instructions: list[Instruction], image: str) -> None:
    last = [item for item in instructions if item.stage == image][-1]
    assert last.word == "USER"
    assert int(last.rest.split(":")[0]) > 0  # a number, which Kubernetes can check without the image's list of users


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is(instructions: list[Instruction], image: str) -> None:
    (labels,) = rest_of(instructions, image, "LABEL")
    found = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', labels))
    assert set(found) == {"title", "description", "licenses", "source", "version", "revision", "created"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found["licenses"] == project["license"]
    assert project["description"].startswith(found["description"])
    assert project["urls"]["Documentation"].startswith(found["source"])
    arguments = {rest.split("=")[0] for rest in rest_of(instructions, image, "ARG")}
    assert {found[name] for name in ("version", "revision", "created")} == {f"${{{name}}}" for name in arguments}


def test_both_images_have_a_health_check_and_one_command(instructions: list[Instruction]) -> None:
    assert rest_of(instructions, "runtime", "HEALTHCHECK")[0].endswith('CMD ["wsimil-healthy"]')
    assert rest_of(instructions, "runtime", "ENTRYPOINT") == ['["tini", "--", "wsimil"]']
    for image in IMAGES:
        assert not rest_of(instructions, image, "ENTRYPOINT") + rest_of(instructions, image, "HEALTHCHECK")


def test_apptainer_has_the_environment_of_the_images(instructions: list[Instruction]) -> None:
    (words,) = rest_of(instructions, "runtime", "ENV")
    stages = {header["Stage"]: sections for header, sections in read_definition(DOCKER / "wsimil.def")}
    assert [line.removeprefix("export ") for line in lines_of(stages["final"], "environment")] == words.split()


def test_every_dependency_has_a_pinned_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in project["dependencies"]}  # type: ignore[index]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert names - pinned == set()
