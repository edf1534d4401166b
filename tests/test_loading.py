"""What a command loads before its work begins: told by the modules that are there when it has ended, not by time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
import yaml

from wsimil.cli.on_demand import HOMES
from wsimil.worklist import Stage, Unit, WorkPlan, write_plan

COMMAND = """
import json, sys
from wsimil.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps({"code": end.code, "modules": sorted(sys.modules)}))
"""
SLIDES = {"openslide", "tifffile", "imagecodecs", "wsimil.slides.opening"}
ENCODERS = {"timm", "torchvision", "wsimil.encoders.timm_encoder"}
STATISTICS = {"scipy", "sklearn"}
NUMBERS = {"torch", "pandas", "matplotlib", *STATISTICS, *ENCODERS, *SLIDES}
EVERYTHING = {"numpy", "yaml", "h5py", "pyarrow", "rich.progress", *NUMBERS}


def loaded(*arguments: object, code: int = 0) -> set[str]:
    """Modules after a command that ends with `code`."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == code, done.stdout + done.stderr
    return set(told["modules"])


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    units = (Unit(id="e0", name="one.svs", cost=1.0, task={}),)
    write_plan(WorkPlan(folder=tmp_path / "study", stages=(Stage(name="extract", units=units),), recipe={}))
    return tmp_path / "study"


@pytest.mark.parametrize("command", ["status", "retry"])
def test_a_look_at_a_study_loads_neither_numpy_nor_other_commands(plan: Path, command: str) -> None:
    found = loaded(command, plan)
    assert not found & EVERYTHING
    assert {name for name in found if name.startswith("wsimil.cli.")} == {
        "wsimil.cli.app",
        "wsimil.cli.cluster",
        "wsimil.cli.on_demand",
    }


@pytest.mark.parametrize("command", ["extract", "train", "plan"])
def test_a_config_is_printed_without_torch(command: str) -> None:
    assert not loaded("config", command) & NUMBERS


def test_a_study_of_slides_is_planned_without_torch(make_slide, tmp_path: Path) -> None:
    make_slide(tmp_path / "slides/a.tiff")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"slides": str(tmp_path / "slides")}), encoding="utf-8")
    assert not loaded("plan", tmp_path / "study.yaml", "-o", tmp_path / "study") & NUMBERS


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "absent", "--cohort", "absent.csv", "-o", "out", "--set", "fit.epoch=1"],
        ["plan", "{}/study.yaml", "-o", "out", "--set", "train.a.fit.epoch=1"],
        ["predict", "absent", "absent", "-o", "out", "--range", "wide"],
    ],
)
def test_a_mistake_is_told_without_torch(arguments: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("slides: slides\n", encoding="utf-8")
    assert not loaded(*(argument.format(tmp_path) for argument in arguments), code=2) & NUMBERS


def test_every_command_is_where_the_list_says(plan: Path) -> None:
    from wsimil.cli import app

    group = typer.main.get_command(app)
    with typer.Context(group, token_normalize_func=lambda name: name.replace("_", "-")) as context:  # type: ignore[arg-type]
        assert group.list_commands(context) == list(HOMES)  # type: ignore[attr-defined]
    assert set(group.commands) == set(HOMES)  # type: ignore[attr-defined]
