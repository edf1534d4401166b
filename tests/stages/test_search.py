"""A search sees training folds alone, says what it tried, goes on where it was, and refuses what would leak or mean nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.stages.conftest import replace_features
from wsimil.cli import app
from wsimil.config import load_config
from wsimil.errors import ConfigError, OutputError, TrainingError
from wsimil.splits import read_plan, write_plan
from wsimil.stages import crossval
from wsimil.stages.occupied import occupied
from wsimil.stages.search import SearchConfig, plan_search, search
from wsimil.stages.train_config import TrainConfig

pytest.importorskip("optuna", reason="needs Optuna")

Study = Callable[..., tuple[Path, Path]]
Made = Callable[[str], tuple[Path, Path, Path]]
BASE = TrainConfig.model_validate({"fit": {"epochs": 2}, "device": "cpu"})
SPACE = {"fit.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "method.hidden_dim": {"choices": [4, 8]}}


def config(space: dict[str, object] | None = None, **given: object) -> SearchConfig:
    return SearchConfig.model_validate({"space": space or SPACE, "trials": 2, **given})


@pytest.fixture
def study(feature_study: Study, tmp_path: Path) -> Made:
    def made(kind: str) -> tuple[Path, Path, Path]:
        features, cohort = feature_study()
        splits = tmp_path / "splits.json"
        inner = ["--set", "inner_folds=2"] if kind == "nested" else []
        command = ["splits", "make", str(cohort), "-o", str(splits), "--folds", "3", "--kind", kind, *inner]
        assert CliRunner().invoke(app, command).exit_code == 0
        return features, cohort, splits

    return made


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_test_slides_are_out_of_the_cohort_and_their_features_never_opened(study: Made, tmp_path: Path) -> None:
    features, cohort, splits = study("nested")
    tested = read_plan(splits).round("0").test
    assert tested
    for slide_id in tested:
        files = list(features.rglob(f"{slide_id}.*"))
        assert files
        for file in files:
            file.write_bytes(b"no feature file")
    out = tmp_path / "search"
    found = search(plan_search(config(), BASE, cohort, splits, outer="0"), features, out)
    assert found.rounds == ("0.0", "0.1")
    assert all(trial.value is not None for trial in found.trials)
    assert not {row["slide_id"] for row in rows(out / "cohort.csv")} & set(tested)
    assert all(not one.test for one in read_plan(out / "splits.json").rounds)
    assert not (out / "trials").exists()


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_cohort_file_of_any_delimiter_is_searched_in(study: Made, tmp_path: Path, delimiter: str) -> None:
    _, cohort, splits = study("kfold")
    other = tmp_path / "other.csv"
    other.write_text(cohort.read_text(encoding="utf-8").replace(",", delimiter), encoding="utf-8-sig")
    wanted = plan_search(config(), BASE, cohort, splits, outer="0").cohort
    assert plan_search(config(), BASE, other, splits, outer="0").cohort == wanted


def test_slides_that_no_round_lists_stay_with_patients_who_are_learned_from(study: Made, tmp_path: Path) -> None:
    _, cohort, splits = study("kfold")
    table = rows(cohort)
    whole = read_plan(splits)
    one = whole.round("0")
    twice = {row["patient_id"]: row["slide_id"] for row in table if row["slide_id"] in (*one.train, *one.test)}
    more = [f"{slide_id}b" for slide_id in twice.values()]
    added = {f"{slide_id}b": whole.slides[slide_id] for slide_id in twice.values()}
    write_plan(splits, replace(whole, slides={**whole.slides, **added}))
    lines = cohort.read_text(encoding="utf-8").splitlines()
    copies = [line.replace(s, f"{s}b", 1) for s in twice.values() for line in lines if line.startswith(f"{s},")]
    cohort.write_text("\n".join([*lines, *copies, ""]), encoding="utf-8")
    planned = plan_search(config(), BASE, cohort, splits, outer="0")
    kept = {row["slide_id"] for row in csv.DictReader(planned.cohort.splitlines())}
    of_tested = {f"{slide_id}b" for slide_id in one.test}
    assert of_tested & {*more}
    assert kept == {*one.train, *one.val, *more} - of_tested
    assert {*planned.held_out} == {*one.test} | (of_tested & {*more})


def test_the_best_setting_is_a_config_that_trains_and_is_judged_by_what_the_run_watched(
    study: Made, tmp_path: Path
) -> None:
    features, cohort, splits = study("kfold")
    out = tmp_path / "search"
    base = TrainConfig.model_validate({"fit": {"epochs": 2, "monitor": "loss"}, "device": "cpu"})
    planned = plan_search(config(trials=3, sampler="random"), base, cohort, splits, outer="1")
    found = search(planned, features, out)
    table = rows(out / "trials.csv")
    assert [float(row["value"]) for row in table] == pytest.approx([trial.value for trial in found.trials])
    assert len({row["fit.lr"] for row in table}) == 3
    assert found.best.value == min(trial.value for trial in found.trials if trial.value is not None)
    best = load_config(TrainConfig, out / "best.yaml")
    assert best.fit.lr == found.best.parameters["fit.lr"]
    assert best.method["hidden_dim"] == found.best.parameters["method.hidden_dim"]
    command = ["train", str(features), "--cohort", str(cohort), "--splits", str(splits), "--round", "1"]
    assert (
        CliRunner().invoke(app, [*command, "-c", str(out / "best.yaml"), "-o", str(tmp_path / "run"), "-q"]).exit_code
        == 0
    )
    training = json.loads((tmp_path / "run" / "model.json").read_text(encoding="utf-8"))["training"]
    assert training["val_loss"] == pytest.approx(found.best.value)


def test_what_is_watched_as_a_loss_is_lowered(study: Made, tmp_path: Path) -> None:
    features, cohort, splits = study("kfold")
    base = TrainConfig.model_validate({"fit": {"epochs": 2, "monitor": "loss"}, "device": "cpu"})
    space = {"fit.lr": {"choices": [1e-6, 3e-2]}}
    found = search(
        plan_search(config(space, trials=4, seed=1), base, cohort, splits, outer="0"), features, tmp_path / "out"
    )
    values = {trial.parameters["fit.lr"]: trial.value for trial in found.trials}
    assert len(values) == 2
    assert found.best.parameters["fit.lr"] == 3e-2
    assert values[3e-2] < values[1e-6]


def test_a_search_goes_on_and_repeats_nothing(study: Made, tmp_path: Path) -> None:
    features, cohort, splits = study("kfold")
    out = tmp_path / "search"
    with occupied(out), pytest.raises(OutputError, match="in use by process"):
        search(plan_search(config(trials=1), BASE, cohort, splits, outer="0"), features, out)
    first = search(plan_search(config(trials=1), BASE, cohort, splits, outer="0"), features, out)
    more = search(plan_search(config(trials=3), BASE, cohort, splits, outer="0"), features, out)
    assert more.before == 1
    assert more.trials[0] == first.trials[0]
    assert len({trial.parameters["fit.lr"] for trial in more.trials}) == 3
    longer = BASE.model_copy(update={"fit": BASE.fit.model_copy(update={"epochs": 3})})
    other = plan_search(config(trials=3), longer, cohort, splits, outer="0")
    with pytest.raises(ConfigError, match="search of another config"):
        search(other, features, out)


def test_trials_share_their_processes_also_after_one_that_failed(
    study: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ProcessPoolExecutor] = []

    class Counted(ProcessPoolExecutor):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(crossval, "ProcessPoolExecutor", Counted)
    features, cohort, splits = study("nested")
    base = TrainConfig.model_validate({"fit": {"epochs": 2, "optimizer": "sgd", "clip_norm": None}, "device": "cpu"})
    space = {"fit.lr": {"choices": [1e-3, 1e30]}}
    planned = plan_search(config(space, trials=4, sampler="random"), base, cohort, splits, outer="0")
    found = search(planned, features, tmp_path / "out", workers=2)
    assert {trial.value is None for trial in found.trials} == {True, False}
    assert len(made) == 1


def test_a_search_does_not_go_on_with_features_that_were_replaced(study: Made, tmp_path: Path) -> None:
    features, cohort, splits = study("nested")
    out = tmp_path / "search"
    search(plan_search(config(trials=1), BASE, cohort, splits, outer="0"), features, out)
    more = plan_search(config(trials=2), BASE, cohort, splits, outer="0")
    replace_features(features, read_plan(splits).round("0").test)
    assert len(search(more, features, out).trials) == 2
    before = (out / "search.json").read_bytes()
    replace_features(features, read_plan(splits).round("0").train[:2])
    with pytest.raises(ConfigError, match=r"search of another set of features \(they were replaced"):
        search(plan_search(config(trials=3), BASE, cohort, splits, outer="0"), features, out)
    assert (out / "search.json").read_bytes() == before


def test_a_trial_that_fails_stands_in_the_table_and_the_others_go_on(study: Made, tmp_path: Path) -> None:
    features, cohort, splits = study("kfold")
    good_and_bad = {"fit.lr": {"choices": [1e-3, 1e30]}}
    base = TrainConfig.model_validate({"fit": {"epochs": 2, "optimizer": "sgd", "clip_norm": None}, "device": "cpu"})
    found = search(
        plan_search(config(good_and_bad, trials=6), base, cohort, splits, outer="0"), features, tmp_path / "a"
    )
    failed = [row for row in rows(tmp_path / "a" / "trials.csv") if not row["value"]]
    assert failed
    assert all("not finite" in row["reason"] for row in failed)
    assert found.best.parameters["fit.lr"] == 1e-3
    bad = {"fit.lr": {"choices": [1e30]}}
    with pytest.raises(TrainingError, match="all 2 trials failed"):
        search(plan_search(config(bad), base, cohort, splits, outer="0"), features, tmp_path / "b")


def test_rounds_that_test_on_different_slides_are_not_searched_together(study: Made) -> None:
    _, cohort, splits = study("kfold")
    with pytest.raises(ConfigError, match="test on different slides"):
        plan_search(config(), BASE, cohort, splits)


@pytest.mark.parametrize(
    ("key", "one", "message"),
    [
        ("split.folds", {"choices": [3, 5]}, "split is not searched"),
        ("fit.seed", {"low": 0, "high": 9}, "fit.seed is not searched"),
        ("fit.monitor", {"choices": ["loss"]}, "fit.monitor is not searched"),
        ("fit.learning_rate", {"low": 0.1, "high": 0.2}, "fit.learning_rate"),
        ("method.width", {"choices": [3]}, "method.width"),
        ("fit.lr", {"low": -1.0, "high": 1.0}, "fit.lr = -1"),
        ("method.embed_dropout", {"choices": [0.1, 1.5]}, "method.embed_dropout = 1.5"),
    ],
)
def test_a_key_that_cannot_be_searched_is_refused_by_name(
    study: Made, key: str, one: dict[str, object], message: str
) -> None:
    _, cohort, splits = study("kfold")
    with pytest.raises(ConfigError, match=message):
        plan_search(config({key: one}), BASE, cohort, splits, outer="0")


@pytest.mark.parametrize(
    ("key", "one", "task"),
    [
        ("fit.loss", {"choices": ["cross_entropy", "binary_cross_entropy"]}, {"kind": "classification"}),
        ("fit.balance", {"choices": ["class_weights", "none"]}, {"kind": "classification"}),
        ("fit.hazard_alpha", {"low": 0.0, "high": 0.5}, {"kind": "survival", "columns": ["time", "event"]}),
    ],
)
def test_losses_of_different_units_are_not_compared(
    study: Made, key: str, one: dict[str, object], task: dict[str, object]
) -> None:
    _, cohort, splits = study("kfold")
    for monitor in ("loss", None):
        base = TrainConfig.model_validate({"task": task, "fit": {"monitor": monitor}})
        if monitor is None:
            assert plan_search(config({key: one}), base, cohort, splits, outer="0").monitor != "loss"
        else:
            with pytest.raises(ConfigError, match=rf"space: {key}: decides in which unit the loss is.*fit\.monitor"):
                plan_search(config({key: one}), base, cohort, splits, outer="0")


@pytest.mark.parametrize(
    "one", [{"low": 2, "high": 1}, {"low": 0.0, "high": 1.0, "log": True}, {"choices": []}, {"low": 1}]
)
def test_a_range_that_holds_nothing_is_refused(one: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        config({"fit.lr": one})


def test_the_command_shows_what_it_would_do_and_what_it_found_in_80_columns(study: Made, tmp_path: Path) -> None:
    features, cohort, splits = study("nested")
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"space": {"fit.lr": {"choices": [1e-3, 1e-2]}}, "trials": 2}), encoding="utf-8")
    command = ["search", str(features), "--cohort", str(cohort), "--splits", str(splits), "--round", "2"]
    command += [
        "--space",
        str(space),
        "-o",
        str(tmp_path / "out"),
        "--set",
        "fit.epochs=2",
        "--set",
        "device=cpu",
        "-q",
    ]
    dry = CliRunner().invoke(app, [*command, "--dry-run"])
    assert dry.exit_code == 0
    assert "2 trials x 2 rounds (2.0, 2.1), by auroc" in dry.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*command, "--workers", "2"])
    assert done.exit_code == 0, done.output
    assert "best.yaml" in done.output


def test_the_example_is_a_space_that_a_training_config_takes(study: Made) -> None:
    _, cohort, splits = study("nested")
    example = load_config(SearchConfig, Path(__file__).parents[2] / "configs/search/abmil.yaml")
    assert plan_search(example, TrainConfig(), cohort, splits, outer="0").config.trials == 30
