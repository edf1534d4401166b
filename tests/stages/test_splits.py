"""`wsimil splits` and `wsimil train --splits`: made once, the same for every run, and refused when something changed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from wsimil.cli import app


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=80)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


Study = Callable[..., tuple[Path, Path]]


def test_a_study_is_made_checked_and_trained_on(feature_study: Study, tmp_path: Path) -> None:
    features, cohort = feature_study()
    splits = tmp_path / "splits.json"
    code, out, _ = run("splits", "make", cohort, "-o", splits, "--folds", 3, "--features", features)
    assert code == 0
    code, out, _ = run("splits", "check", splits, "--cohort", cohort, "--features", features, "--json")
    assert code == 0
    digest = json.loads(out)["digest"]
    quick = ["--epochs", 1, "-q", "--device", "cpu"]
    code, _, _ = run(
        "train", features, "--cohort", cohort, "-o", tmp_path / "run", "--splits", splits, "--round", 1, *quick
    )
    assert code == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["split"]
    assert (written["digest"], written["round"]) == (digest, "1")
    sides = json.loads(splits.read_text(encoding="utf-8"))["rounds"][1]
    rows = csv.DictReader((tmp_path / "run" / "cohort.csv").read_text(encoding="utf-8").splitlines())
    assert {row["slide_id"] for row in rows if row["split"] == "test"} == set(sides["test"])
    config = tmp_path / "run" / "config.yaml"
    assert run("train", features, "--cohort", cohort, "-o", tmp_path / "again", "-c", config, "-q")[0] == 0
    assert run("splits", "make", cohort, "-o", splits, "--folds", 3, "--seed", 5, "--overwrite")[0] == 0
    code, _, error = run("train", features, "--cohort", cohort, "-o", tmp_path / "third", "-c", config, "-q")
    assert code == 2
    assert "other splits" in error


def test_what_contradicts_splits_is_refused(feature_study: Study, tmp_path: Path) -> None:
    features, cohort = feature_study()
    splits = tmp_path / "splits.json"
    assert run("splits", "make", cohort, "-o", splits, "--folds", 3)[0] == 0
    code, _, error = run("splits", "make", cohort, "-o", splits)
    assert (code, "made once" in error) == (2, True)
    train = ["train", features, "--cohort", cohort, "-o", tmp_path / "run", "-q"]
    assert "drop the one or the other" in run(*train, "--splits", splits, "--round", 0, "--folds", 3)[2]
    assert "give it with --round" in run(*train, "--splits", splits)[2]
    assert "give split.file too" in run(*train, "--round", 0)[2]
    lines = cohort.read_text(encoding="utf-8").splitlines()
    moved = lines[1].split(",")
    moved[1] = "somebody else"
    cohort.write_text("\n".join([lines[0], ",".join(moved), *lines[2:]]) + "\n", encoding="utf-8")
    assert "another patient or target now" in run("splits", "check", splits, "--cohort", cohort)[2]
    assert "another patient or target now" in run(*train, "--splits", splits, "--round", 0)[2]


def test_one_slide_under_two_names_is_found_by_its_content(feature_study: Study, tmp_path: Path) -> None:
    features, cohort = feature_study(twins=True)
    assert run("splits", "make", cohort, "-o", tmp_path / "blind.json", "--folds", 3)[0] == 0
    code, _, error = run("splits", "make", cohort, "-o", tmp_path / "s.json", "--folds", 3, "--features", features)
    assert (code, "one and the same image" in error) == (2, True)
    code, _, error = run("splits", "check", tmp_path / "blind.json", "--cohort", cohort, "--features", features)
    assert (code, "one and the same image" in error) == (2, True)


@pytest.mark.parametrize("kind", ["nested", "monte_carlo"])
def test_kinds_are_options(feature_study: Study, tmp_path: Path, kind: str) -> None:
    _, cohort = feature_study()
    code, out, _ = run("splits", "make", cohort, "-o", tmp_path / "s.json", "--kind", kind, "--set", "inner_folds=2")
    assert (code == 0) == (kind == "nested")
    assert ("0.1" in out) == (kind == "nested")
