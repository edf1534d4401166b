"""The command line: quick, clear when something is wrong, and honest in its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wsimil.cli import app

Make = Callable[..., Path]
COMMANDS = [
    "extract",
    "train",
    "predict",
    "export",
    "evaluate",
    "compare",
    "convert",
    "pack",
    "import-checkpoint",
    "splits",
    "crossval",
    "ensemble",
    "search",
    "demo",
    "inspect",
    "doctor",
    "list",
    "config",
]


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=80)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_wsimil_loads_neither_torch_nor_openslide() -> None:
    code = "import sys, wsimil; print(sorted({'torch', 'openslide', 'numpy', 'timm', 'pydantic'} & set(sys.modules)))"
    assert python(code).strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom wsimil.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'openslide', 'numpy', 'timm', 'pydantic', 'pandas', 'h5py'} & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


def test_every_public_name_is_there() -> None:
    code = "import wsimil\nfor name in wsimil.__all__: getattr(wsimil, name)\nprint(len(wsimil.__all__))"
    assert int(python(code)) > 10


def test_help_names_every_command() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_within_80_columns(command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80


def test_underscores_and_hyphens_mean_the_same(tmp_path: Path) -> None:
    first = run("extract", tmp_path, "-o", tmp_path / "o", "--tile_um", "100", "--min_tissue", "2")
    second = run("extract", tmp_path, "-o", tmp_path / "o", "--tile-um", "100", "--min-tissue", "2")
    assert first == second
    assert first[0] == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["extract", "{}", "-o", "{}/o", "--set", "tile.sizepx=3"],
            "tile.sizepx: unknown key, got 3; did you mean 'size_px'?",
        ),
        (["extract", "{}", "-o", "{}/o", "--set", "nonsense"], "wanted key=value"),
        (
            ["extract", "{}", "-o", "{}/o", "--dtype", "float8"],
            "dtype: input should be 'float16' or 'float32', got 'float8'",
        ),
        (["extract", "{}", "-o", "{}/o"], "no slide in"),
        (["extract", "{}/absent.csv", "-o", "{}/o", "--shard", "9/3"], "shards count from 1/3 to 3/3"),
        (["train", "{}/absent", "--cohort", "{}/c.csv", "-o", "{}/o"], "cohort file"),
        (["predict", "{}/absent", "{}", "-o", "{}/o"], "is not a folder; give the folder that wsimil train wrote to"),
        (["predict", "{}", "{}", "-o", "{}/o"], "holds no model.json"),
        (["predict", "{}", "{}", "-o", "{}/o", "--origin", "top"], "wanted bounds or level0"),
        (["extract", "{}", "-o", "{}/o", "-c", "{}/absent.yaml"], "does not exist"),
        (["config", "nothing"], "wanted extract, train or plan"),
    ],
)
def test_a_mistake_exits_with_2_and_one_message(tmp_path: Path, arguments: list[str], expected: str) -> None:
    code, _, err = run(*(argument.format(tmp_path) for argument in arguments))
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


def test_an_unknown_encoder_is_refused_before_any_work(make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "a.tiff")
    code, _, err = run("extract", tmp_path, "-o", tmp_path / "o", "-e", "uni_v3")
    assert code == 2
    assert "did you mean" in err


def test_a_side_that_the_encoder_cannot_take_is_refused_before_any_work(make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "a.tiff")
    weights = tmp_path / "w.safetensors"
    save_random_weights("lunit-vits16", weights)
    code, _, err = run(
        "extract",
        tmp_path,
        "-o",
        tmp_path / "o",
        "-e",
        "lunit-vits16",
        "--encoder-weights",
        weights,
        "--tile-px",
        "250",
    )
    assert code == 2
    assert "does not take tiles of 250 px" in err


def save_random_weights(name: str, path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from wsimil.encoders import card
    from wsimil.encoders.timm_encoder import make_backbone

    torch.manual_seed(0)
    save_file(make_backbone(card(name)).state_dict(), path)


def test_a_gated_encoder_works_from_a_local_file_of_its_shape(make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "in/a.tiff", size_px=(700, 700))
    weights = tmp_path / "w.safetensors"
    save_random_weights("lunit-vits16", weights)
    code, out, err = run(
        "extract",
        tmp_path / "in",
        "-o",
        tmp_path / "o",
        "-e",
        "lunit-vits16",
        "--encoder-weights",
        weights,
        "--device",
        "cpu",
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["done"] == 1


def test_extract_says_with_its_exit_code_that_slides_failed(make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "in/a.tiff", mpp=None)
    make_slide(tmp_path / "in/b.tiff", size_px=(600, 600))
    code, out, err = run("extract", tmp_path / "in", "-o", tmp_path / "o", "--device", "cpu", "--json")
    assert code == 1
    found = json.loads(out)
    assert (found["done"], found["failed"]) == (1, 1)
    assert "no mpp" in found["failures"]["a"]
    assert "[1/2] a: FAILED" in err


def test_a_dry_run_shows_slides_tiles_size_and_time(make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "in/a.tiff")
    code, out, _ = run("extract", tmp_path / "in", "-o", tmp_path / "o", "--device", "cpu", "-n", "-q")
    assert code == 0
    assert "1 of 1 slides to do" in out
    assert "Nothing was written" in out
    assert not (tmp_path / "o").exists()


def test_inspect_tells_where_the_mpp_comes_from(make_slide: Make, tmp_path: Path) -> None:
    code, out, _ = run("inspect", make_slide(tmp_path / "a.tiff", mpp=0.2527), "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["µm per pixel"].startswith("0.2527, from ")
    assert " of 128 µm: 507 px of level 0 become 224 px" in facts["tiles"]
    code, _, err = run("inspect", make_slide(tmp_path / "b.tiff", mpp=None))
    assert code == 1
    assert "no mpp" in err


def test_doctor_checks_this_machine(tmp_path: Path) -> None:
    code, out, _ = run("doctor", "-o", tmp_path, "--json")
    verdicts = {check["name"]: check for check in json.loads(out)}
    assert verdicts["slide reader"]["verdict"] == verdicts["default encoder"]["verdict"] == "PASS"
    assert all(check["fix"] for check in verdicts.values() if check["verdict"] != "PASS")
    assert code == int(any(check["verdict"] == "FAIL" for check in verdicts.values()))


def test_doctor_fails_for_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, _ = run("doctor", "-o", tmp_path / "file")
    assert code == 1
    assert "FAIL" in out


def test_lists_are_complete_and_readable() -> None:
    code, out, _ = run("list", "encoders", "--json")
    assert code == 0
    assert {"uni_v1", "virchow2", "efficientnet_lite0_trunc"} <= {card["name"] for card in json.loads(out)}
    assert "abmil" in run("list", "methods")[1]
    assert "timm:" in run("list", "encoders")[1]


@pytest.mark.parametrize("command", ["extract", "train"])
def test_a_printed_config_can_be_given_back(command: str, tmp_path: Path) -> None:
    code, out, _ = run("config", command)
    assert code == 0
    path = tmp_path / "c.yaml"
    path.write_text(out, encoding="utf-8")
    arguments = (
        ["extract", tmp_path] if command == "extract" else ["train", tmp_path, "--cohort", tmp_path / "absent.csv"]
    )
    code, _, err = run(*arguments, "-o", tmp_path / "o", "-c", path)
    assert code == 2
    assert "unknown key" not in err
    assert json.loads(run("config", command, "--schema")[1])["additionalProperties"] is False


def test_every_shipped_config_is_valid() -> None:
    from wsimil.config import load_config
    from wsimil.extraction.config import ExtractConfig
    from wsimil.mil import registry
    from wsimil.stages.search import SearchConfig
    from wsimil.stages.study.config import StudyConfig
    from wsimil.stages.train_config import TrainConfig

    root = Path(__file__).parents[1] / "configs"
    found = sorted(root.rglob("*.yaml"))
    assert found
    for path in found:
        kind = path.relative_to(root).parts[0]
        if kind == "extract":
            load_config(ExtractConfig, path)
        elif kind == "search":
            load_config(SearchConfig, path)
        elif kind == "study":
            load_config(StudyConfig, path)
        else:
            method = dict(load_config(TrainConfig, path).method)
            registry.config_class(str(method.pop("name"))).model_validate(method)


def test_help_of_the_import_names_every_source() -> None:
    from wsimil.mil.checkpoints.base import sources

    _, out, _ = run("import-checkpoint", "--help")
    assert all(source in " ".join(out.split()) for source in sources())
