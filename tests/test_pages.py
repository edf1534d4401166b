"""What our pages tell exists: where their links lead, and the commands, options and config keys that they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest
import typer
from pydantic import BaseModel
from typer.core import TyperCommand, TyperGroup

from wsimil.cli.app import app
from wsimil.extraction.config import ExtractConfig
from wsimil.stages.train_config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md", ROOT / "docker" / "README.md", ROOT / "pipelines" / "README.md",
]  # fmt: skip
GUIDES = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")]
Command = TyperCommand | TyperGroup
WSIMIL = typer.main.get_group(app)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them: lower case, no punctuation, hyphens for blanks."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[tuple[Path, str]]:
    """All that lead to a file of ours, with the page that they stand in."""
    found = []
    for page in PAGES:
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        found += [(page, link) for link in re.findall(r"(?:\]\(|src=\")([^)\s\"]+)", text) if "://" not in link]
    return found


@pytest.mark.parametrize(("page", "link"), links(), ids=lambda one: named(one) if isinstance(one, Path) else one)
def test_every_link_leads_somewhere(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    to = (page.parent / unquote(path)).resolve() if path else page
    assert to.exists()
    assert not anchor or anchor in anchors(to)


def commands(page: Path) -> list[str]:
    """Lines of shell and code between backticks that call wsimil."""
    text = page.read_text(encoding="utf-8")
    lines = [line for kind, block in FENCED.findall(text) if kind == "bash" for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    return [line for line in lines + inline if re.match(r"wsimil [a-z]", line)]


def below(command: Command) -> dict[str, Command]:
    """Its commands, by name."""
    if not isinstance(command, TyperGroup):
        return {}
    context = typer.Context(command)
    return {name: command.get_command(context, name) for name in command.list_commands(context)}  # type: ignore[misc]


def all_options(command: Command) -> set[str]:
    """Of it and of all commands below it."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union({"-h", "--help"}, *(all_options(one) for one in below(command).values()))


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_every_command_and_its_options_are_known(page: Path) -> None:
    for line in commands(page):
        # What several commands have in common is written with slashes: `wsimil extract / train / predict`.
        if " / " in line:
            continue
        command: Command = WSIMIL
        words = shlex.split(line, comments=True)[1:]
        while words and words[0] in below(command):
            command, words = below(command)[words[0]], words[1:]
        assert command is not WSIMIL, line
        assert not {word.partition("=")[0] for word in words if word.startswith("-")} - all_options(command), line


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_every_option_that_is_named_alone_is_one_of_some_command(page: Path) -> None:
    alone = re.findall(r"`(--[a-z-]+)", FENCED.sub("", page.read_text(encoding="utf-8")))
    assert not set(alone) - all_options(WSIMIL)


def has_key(kind: object, keys: list[str]) -> bool:
    """Whether a config of this type, or of one of a union's, has a value under these keys."""
    if not keys:
        return True
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(keys[0])
        return field is not None and has_key(field.annotation, keys[1:])
    return any(has_key(one, keys) for one in get_args(kind))


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_every_config_key_is_one_of_extract_or_train(page: Path) -> None:
    sections = {
        name
        for config in (TrainConfig, ExtractConfig)
        for name, field in config.model_fields.items()
        if any(
            isinstance(kind, type) and issubclass(kind, BaseModel)
            for kind in (field.annotation, *get_args(field.annotation))
        )
    }
    text = page.read_text(encoding="utf-8")
    keys = re.findall(rf"(?:`|--set )((?:{'|'.join(sorted(sections))})\.[a-z_.]+)", text)
    for key in keys:
        assert any(has_key(config, key.split(".")) for config in (TrainConfig, ExtractConfig)), key
