"""A study is all its runs, each as `wsimil train` alone would make it; a bad one stops no other, a rerun does what is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from tests.stages.conftest import replace_features
from wsimil.cli import app
from wsimil.config import load_config
from wsimil.errors import ConfigError, ModelError, OutputError
from wsimil.evaluation.bootstrap import Estimate
from wsimil.evaluation.decision import DecisionConfig
from wsimil.evaluation.metrics import auroc
from wsimil.evaluation.runs import RunSpread, holm, retrained
from wsimil.mil.saved import load_model
from wsimil.stages.crossval import StudySummary, TrainingPool, _train, crossval
from wsimil.stages.occupied import occupied
from wsimil.stages.study_summary import StudyTables, study_tables
from wsimil.stages.text_study import show_study
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.stages.work_items import WorkItem, work_items
from wsimil.store import open_store

Study = Callable[..., tuple[Path, Path]]
QUICK = {"fit.epochs": 3, "fit.lr": 3e-3, "device": "cpu"}


def configured(**given: object) -> TrainConfig:
    return load_config(TrainConfig, given={**QUICK, **given})  # type: ignore[arg-type]


@pytest.fixture
def study(feature_study: Study, tmp_path: Path) -> tuple[Path, Path, Path]:
    features, cohort = feature_study()
    splits = tmp_path / "splits.json"
    command = ["splits", "make", str(cohort), "-o", str(splits), "--folds", "3"]
    assert CliRunner().invoke(app, command).exit_code == 0
    return features, cohort, splits


def items_of(study: tuple[Path, Path, Path], out: Path, **given: object) -> list[WorkItem]:
    features, cohort, splits = study
    configs = given.pop("configs", {"abmil": configured()})
    return work_items(configs, features, cohort, out, splits=splits, **given)  # type: ignore[arg-type]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch, as each of two processes on two cores has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_runs_of_a_study_are_those_of_train_alone_to_the_bit(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    items = items_of(study, tmp_path / "study", seeds=(0, 1))
    summary = crossval(items, tmp_path / "study", workers=2)
    assert not summary.failures
    assert len(summary.done) == 6
    item = items[3]
    train(item.config, item.features, item.cohort, tmp_path / "alone")
    ours, alone = (load_model(folder).model.state_dict() for folder in (item.out, tmp_path / "alone"))
    assert all(torch.equal(ours[name], alone[name]) for name in alone)
    tables = [pd.read_parquet(i.out / "predictions.parquet") for i in items]
    tests = [table[table["split"] == "test"] for table in tables]
    each = [auroc((t["label"] == "t").to_numpy(np.int64), t[["prob_n", "prob_t"]].to_numpy()) for t in tests]
    spread = summary.tables.configs["abmil"]["auroc"]
    assert spread.runs == 6
    assert spread.mean == pytest.approx(np.mean([value for value in each if value is not None]))
    assert json.loads((tmp_path / "study" / "summary.json").read_text(encoding="utf-8"))["abmil"]["auroc"]["runs"] == 6
    slides = pd.concat(tests)["slide_id"]
    assert slides.value_counts().eq(2).all()
    assert len(set(slides)) == 36
    again = crossval(items, tmp_path / "study")
    assert (len(again.before), len(again.done)) == (6, 0)
    assert again.tables.configs == summary.tables.configs


def test_a_run_that_fails_is_recorded_and_the_others_go_on(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "study"
    configs = {
        "good": configured(),
        "bad": configured(**{"fit.lr": 1e30, "fit.clip_norm": None, "fit.standardize": False}),
    }
    items = items_of(study, out, configs=configs, rounds=("0",))
    summary = crossval(items, out)
    assert summary.done == ("good/0/seed-0",)
    assert "not finite" in summary.failures["bad/0/seed-0"]
    assert "bad/0/seed-0" in (out / "failures.csv").read_text(encoding="utf-8")
    assert set(summary.tables.configs) == {"good"}


def test_configs_are_held_against_the_first_on_the_runs_that_both_have(
    study: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    configs = {
        "abmil": configured(),
        "mean": configured(**{"method": {"name": "pooling", "pool": "mean"}}),
        "other": configured(**{"fit.lr": 1e-2}),
        "patients": configured(bag="patient"),
    }
    every = items_of(study, out, configs=configs, rounds=("0", "1"), seeds=(0, 1))
    absent = {"mean/0/seed-1", *(f"patients/{run}" for run in ("0/seed-0", "0/seed-1", "1/seed-0"))}
    summary = crossval([item for item in every if item.name not in absent], out)
    assert not summary.failures
    assert summary.tables.apart == {"patients": "it answers another question"}

    def brier_of(name: str) -> float:
        table = pd.read_parquet(out / name / "predictions.parquet").query("split == 'test'")
        return float(((table["prob_t"] - (table["label"] == "t")) ** 2).mean())

    runs = [item.name.partition("/")[2] for item in every if item.name.startswith("mean/") and item.name not in absent]
    gains = {run: brier_of(f"mean/{run}") - brier_of(f"abmil/{run}") for run in runs}
    table = pd.read_csv(out / "differences.csv").set_index(["config", "metric"])
    row = table.loc["mean", "brier"]
    assert (row["less"], row["runs"], row["rounds"]) == ("abmil", 3, 2)
    assert row["difference"] == pytest.approx(np.mean([*gains.values()]), rel=1e-6)
    assert row["mean"] - row["mean_of_less"] == pytest.approx(row["difference"], abs=1e-8)
    assert table.loc["other", "brier"]["runs"] == 4
    learned = [load_model(out / "mean" / run).training["slides"]["train"] for run in runs]  # type: ignore[index,call-overload]
    tested = [len(pd.read_parquet(out / "mean" / run / "predictions.parquet").query("split == 'test'")) for run in runs]
    by_round = [np.mean([gain for run, gain in gains.items() if run.startswith(f"{n}/")]) for n in range(2)]
    anew = retrained(np.array(by_round), test_share=sum(tested) / sum(learned))
    assert anew is not None
    assert (row["retrained_low"], row["retrained_p_value"]) == (pytest.approx(anew.low), pytest.approx(anew.p_value))
    brier = table.xs("brier", level="metric")
    assert sorted(brier["p_holm"]) == pytest.approx(sorted(holm(brier["p_value"].tolist())))
    show_study(summary, out, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "patients is not held against abmil: it answers another question" in shown
    assert table.loc["mean", "auroc"]["difference"] == 0
    assert "mean auroc 3 0.000" in shown
    show_study(summary, out, as_json=True)
    assert {one["config"] for one in json.loads(capsys.readouterr().out)["differences"]} == {"mean", "other"}
    strangers = study_tables([item for item in every if item.name in ("abmil/0/seed-0", "other/1/seed-0")])
    assert (strangers.differences, strangers.apart) == ((), {"other": "the two have no answers of one round and seed"})
    kept = [item for item in every if item.name in ("abmil/0/seed-0", "other/0/seed-0")]
    assert study_tables(kept, {"abmil/0/seed-0"}).apart == {"other": "no run of abmil was finished"}
    said = pd.read_csv(out / "differences.csv").set_index("config")["status"]
    assert (said["patients"], set(said["mean"])) == ("it answers another question", {"ok"})
    crossval([item for item in every if item.name.startswith("abmil/")], out)
    assert not (out / "differences.csv").exists()


def test_a_process_that_dies_fails_its_own_run_alone(
    study: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, _, _ = study
    out = tmp_path / "study"
    items = items_of(study, out, rounds=("0", "1"))
    site = tmp_path / "site"
    site.mkdir()
    deadly = items[1].out.relative_to(out).as_posix()
    code = (
        "import os, sys\n"
        "def watch(event, arguments):\n"
        f"    if event == 'open' and {deadly!r} in str(arguments[0]) and '/checkpoint/' in str(arguments[0]):\n"
        "        os._exit(9)\n"
        "sys.addaudithook(watch)\n"
    )
    (site / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{site}:{Path(__file__).resolve().parents[2]}")
    summary = crossval(items, out, workers=2)
    assert summary.done == ("abmil/0/seed-0",)
    assert "its process died" in summary.failures["abmil/1/seed-0"]
    assert features.is_dir()
    with TrainingPool(1) as pool:
        for item, alive in ((items[1], False), (items[0], True)):
            assert [reason is None for _, reason in pool.outcomes([item])] == [alive]


def test_a_changed_cohort_or_config_makes_runs_anew_or_refuses(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "study"
    crossval(items_of(study, out, rounds=("0",)), out)
    other = items_of(study, out, rounds=("0",), configs={"abmil": configured(**{"fit.lr": 1e-2})})
    summary = crossval(other, out)
    assert "holds a run of another recipe" in summary.failures["abmil/0/seed-0"]


def test_a_run_that_was_trained_otherwise_since_is_not_summed_up_as_the_old_one(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    (item,) = items_of(study, out, rounds=("0",))
    crossval([item], out)
    assert item.is_done()
    decided = item.config.model_copy(update={"decision": DecisionConfig(ood="none")})
    train(decided, item.features, item.cohort, item.out)
    assert not item.is_done()
    other = item.config.model_copy(update={"method": {"name": "pooling"}})
    train(other, item.features, item.cohort, item.out, overwrite=True)
    again = crossval([item], out)
    assert again.before == ()
    assert "holds a run of another recipe" in again.failures[item.name]


def test_a_run_whose_model_was_replaced_or_lost_since_is_not_done(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (item,) = items_of(study, tmp_path, rounds=("0",))
    item.out.mkdir(parents=True)
    facts = item.out / "model.json"
    facts.write_text("{}", encoding="utf-8")
    item.mark_done(item.made_of(), contents="")
    assert item.is_done()
    facts.write_text("{ }", encoding="utf-8")
    assert not item.is_done()
    facts.unlink()
    assert not item.is_done()


def test_a_run_that_an_earlier_version_marked_done_is_done_also_without_its_checkpoint(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    (item,) = items_of(study, out, rounds=("0",))
    crossval([item], out)
    done = item.out / "done.json"
    said = json.loads(done.read_text(encoding="utf-8"))
    del said["model"]
    done.write_text(json.dumps(said), encoding="utf-8")
    shutil.rmtree(item.out / "checkpoint")
    assert crossval([item], out).before == (item.name,)
    done.write_text(json.dumps({**said, "digest": "other"}), encoding="utf-8")
    again = crossval([item], out)
    assert f"remove the folder {item.out} to train it anew" in again.failures[item.name]


def test_runs_of_features_that_were_replaced_since_are_not_summed_up_with_those_of_others(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    features, _, _ = study
    out = tmp_path / "study"
    crossval(items_of(study, out, rounds=("0",)), out)
    shutil.copytree(features, tmp_path / "first")
    replace_features(features, ["s3", "s4"])
    more = crossval(items_of(study, out, rounds=("0", "1")), out)
    assert more.done == ("abmil/1/seed-0",)
    assert "what the features of its slides hold" in more.failures["abmil/0/seed-0"]
    assert more.tables.configs["abmil"]["auroc"].runs == 1
    moved = (tmp_path / "first", *study[1:])
    again = crossval(items_of(moved, out, rounds=("0",)), out)
    assert again.before == ("abmil/0/seed-0",)


def test_a_study_of_other_splits_or_another_kind_of_features_is_refused_before_anything_is_overwritten(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    crossval(items_of(study, out, rounds=("0",)), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = tmp_path / "other.json"
    made = ["splits", "make", str(study[1]), "-o", str(other), "--folds", "3", "--seed", "5"]
    assert CliRunner().invoke(app, made).exit_code == 0
    with pytest.raises(
        ConfigError, match=r"other splits: of slide 's\d+' the line was 's\d+, .*' and is 's\d+, .*'; restore"
    ):
        crossval(items_of((*study[:2], other), out), out)
    store = open_store(study[0], mode="w")
    for bag in map(store.read, store.ids()):
        encoder = {**bag.provenance.encoder, "weights": "others"}
        store.write(replace(bag, provenance=replace(bag.provenance, encoder=encoder)))
    with pytest.raises(ConfigError, match=r"another kind .* 'others'; give the features that the study was made of"):
        crossval(items_of(study, out), out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_is_not_left_as_it_is_once_the_model_it_began_with_is_another(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    configs = {"warm": configured(**{"fit.warm_start": str(first)})}
    item = items_of(study, tmp_path / "study", configs=configs, rounds=("0",))[0]
    made = []
    for digest in ("a", "b", "a"):
        facts = json.dumps({"format_version": 2, "weights_digest": digest})
        (first / "model.json").write_text(facts, encoding="utf-8")
        made.append(item.made_of())
    assert made[0] != made[1]
    assert made[0] == made[2]
    (first / "model.json").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        item.made_of()


def test_runs_that_began_with_a_model_that_was_replaced_meanwhile_are_not_summed_up(
    study: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = items_of(study, tmp_path / "first", rounds=("0",))
    train(first.config, first.features, first.cohort, first.out)
    configs = {"warm": configured(**{"fit.warm_start": str(first.out)})}
    items = items_of(study, tmp_path / "study", configs=configs, rounds=("0",), seeds=(0, 1))
    facts = first.out / "model.json"
    before = facts.read_text(encoding="utf-8")

    def outcomes(_: TrainingPool, items: list[WorkItem]) -> Iterator[tuple[WorkItem, str | None]]:
        for item in items:
            yield item, _train(item, 1)

    def replaced(*given: object) -> object:
        made = train(*given)  # type: ignore[arg-type]
        facts.write_text(before.replace('"weights_digest": "', '"weights_digest": "other'), encoding="utf-8")
        return made

    monkeypatch.setattr(TrainingPool, "outcomes", outcomes)
    monkeypatch.setattr("wsimil.stages.crossval.train", replaced)
    for some in (items[:1], items):
        summary = crossval(some, tmp_path / "study")
        assert [*summary.failures] == [item.name for item in some]
        assert "fit.warm_start was replaced while the study ran" in summary.failures[items[0].name]
        assert (summary.before, summary.done, summary.tables.configs) == ((), (), {})
        facts.write_text(before, encoding="utf-8")
    assert len(crossval(items, tmp_path / "study").before) == 2


def test_what_cannot_train_is_refused_before_any_run(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "study"
    with occupied(out), pytest.raises(OutputError, match="in use by process"):
        crossval(items_of(study, out), out)
    with pytest.raises(ConfigError, match=r"config odd: fit\.monitor"):
        crossval(items_of(study, out, configs={"odd": configured(**{"fit.monitor": "mae"})}), out)
    features, cohort, splits = study
    command = ["crossval", str(features), "--cohort", str(cohort), "--splits", str(splits), "-o", str(out), "--dry-run"]
    dry = CliRunner().invoke(app, [*command, "--set", "fit.monitor=mae"])
    assert dry.exit_code == 2
    assert "config default: fit.monitor" in dry.stderr
    with pytest.raises(ConfigError, match="config own: holds a split section"):
        items_of(study, out, configs={"own": configured(**{"split.folds": 3})})
    assert not out.exists()


def test_nothing_lets_a_study_select_on_test() -> None:
    fields = set(TrainConfig.model_json_schema()["$defs"]["FitConfig"]["properties"])
    assert not [name for name in fields if "test" in name]


def test_inner_rounds_are_no_test(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, cohort, _ = study
    nested = tmp_path / "nested.json"
    command = [
        "splits",
        "make",
        str(cohort),
        "-o",
        str(nested),
        "--kind",
        "nested",
        "--folds",
        "2",
        "--set",
        "inner_folds=2",
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    items = work_items({"a": configured()}, features, cohort, tmp_path / "out", splits=nested)
    assert [item.name for item in items] == ["a/0/seed-0", "a/1/seed-0"]


def test_the_command_of_a_run_is_the_run(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "study"
    item = items_of(study, out, rounds=("2",))[0]
    item.config_file.parent.mkdir(parents=True)
    item.config_file.write_text(item.config.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", *item.command(), "-q"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert (item.out / "predictions.csv").is_file()


def test_the_command_line_shows_and_runs_a_study(study: tuple[Path, Path, Path], tmp_path: Path) -> None:
    features, cohort, splits = study
    base = ["crossval", str(features), "--cohort", str(cohort), "--splits", str(splits), "-o", str(tmp_path / "study")]
    quick = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    shown = CliRunner().invoke(app, [*base, *quick, "--seeds", "0,1", "-n"])
    assert "6 runs: 1 configs x 3 rounds x 2 seeds" in shown.stdout
    ran = CliRunner().invoke(app, [*base, *quick, "--round", "0", "-q", "--json"])
    assert ran.exit_code == 0
    assert json.loads(ran.stdout)["done"] == ["default/0/seed-0"]
    assert CliRunner().invoke(app, [*base, "--seeds", "a"]).exit_code == 2


def test_hazards_whose_intervals_differ_by_fold_are_summed_up_by_what_all_tell(
    study: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Their default horizons are the edges of each fold's own intervals; the summary looked for those of the first in all."""
    _, cohort, splits = study
    table = pd.read_csv(cohort)
    rng = np.random.default_rng(0)
    patients = sorted(set(table["patient_id"]))
    time = dict(zip(patients, rng.exponential(10, len(patients)).round(3) + 0.1, strict=True))
    event = dict(zip(patients, rng.random(len(patients)) < 0.7, strict=True))
    table["time"], table["event"] = table["patient_id"].map(time), table["patient_id"].map(event).astype(int)
    table.drop(columns="label").to_csv(cohort, index=False)
    made = [
        "splits",
        "make",
        str(cohort),
        "-o",
        str(splits),
        "--folds",
        "3",
        "--set",
        "task.kind=survival",
        "--overwrite",
    ]
    assert CliRunner().invoke(app, made).exit_code == 0
    hazard = {"task.kind": "survival"}
    configs = {
        "hazard": configured(**hazard),
        "cox": configured(**hazard, **{"task.model": "cox", "fit.batch_bags": 8}),
    }
    items = items_of(study, tmp_path / "study", configs=configs)
    summary = crossval(items, tmp_path / "study")
    assert not summary.failures
    assert {(one.config, one.metric) for one in summary.tables.differences} == {("cox", "harrell_c"), ("cox", "uno_c")}
    edges = {load_model(item.out).task.edges for item in items if item.name.startswith("hazard/")}
    assert len(edges) == 3
    assert set(summary.tables.configs["hazard"]) == {"harrell_c", "uno_c"}
    assert summary.tables.configs["hazard"]["harrell_c"].runs == 3


def test_errors_in_a_large_unit_are_told_with_their_digits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of shares of a thousandth the mean error was 0.000 ± 0.000."""
    monkeypatch.setenv("COLUMNS", "200")
    error = Estimate(value=0.000421, low=0.00031, high=0.00052, replicates=2000)
    spread = RunSpread(runs=2, mean=0.000421, sd=0.0000512, least=0.0004, most=0.00046, averaged=error, pooled=error)
    tables = StudyTables(configs={"a": {"mae": spread}}, less="a", differences=(), apart={})
    summary = StudySummary(done=("a/0/0", "a/1/0"), before=(), failures={}, tables=tables)
    show_study(summary, tmp_path, as_json=False)
    said = capsys.readouterr().out
    assert "0.000421 ± 0.0000512" in said
    assert "0.000421 [0.000310, 0.000520]" in said
