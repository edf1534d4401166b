"""Every task from features to answers: it learns what was planted, says it in its own columns, and repeats itself."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wsimil.config import load_config
from wsimil.errors import CohortError, ConfigError
from wsimil.export.scores import read_scores
from wsimil.mil.saved import load_model
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train import plan, train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store
from wsimil.testing.store_laws import make_bag

CONFIGS = Path(__file__).resolve().parents[2] / "configs/train"
SLIDES, DIM = 60, 6


@dataclass(frozen=True)
class Case:
    """A recipe, the columns that it reads, a row for a slide of strength z in (-1, 1), and what must come out."""

    recipe: str
    columns: str
    row: Callable[[float, int], str]
    given: dict[str, object]
    answers: tuple[str, ...]
    outputs: tuple[str, ...]
    metric: str
    above: float


def _survival(z: float, number: int) -> str:
    return f"{10 - 8 * z + 0.1 * (number % 3):.2f},{int(number % 4 != 0)}"


CASES = [
    Case("multilabel/gated_abmil", "er,pr,her2",
         lambda z, i: f"{int(z > 0)},{'' if i % 5 == 0 else int(z > 0.3)},{int(z < -0.3)}",
         {"task.columns": ["er", "pr", "her2"]}, ("prob_er", "prob_pr", "prob_her2", "predicted"), ("er", "pr", "her2"),
         "auroc_macro", 0.9),
    Case("ordinal/gated_abmil", "label", lambda z, i: str(1 + (z > -0.4) + (z > 0.4)),
         {"task.levels": ["1", "2", "3"]}, ("prob_1", "prob_2", "prob_3", "predicted"), ("above 1", "above 2"),
         "cohen_kappa_quadratic", 0.6),
    Case("regression/gated_abmil", "age,label", lambda z, i: f"{60 + 20 * z:.3f},x",
         {"task.columns": ["age"], "task.unit": "years"}, ("value_age_years",), ("age",), "spearman", 0.8),
    Case("survival/hazard_abmil", "time,event", _survival, {"task.unit": "months", "task.horizons": [6, 12]},
         ("risk", "survival_6_months", "survival_12_months"), (), "harrell_c", 0.8),
    Case("survival/cox_abmil", "time,event", _survival, {"task.unit": "months", "task.horizons": [6, 12]},
         ("risk", "survival_6_months", "survival_12_months"), ("risk",), "harrell_c", 0.8),
    Case("classification/gated_abmil", "label", lambda z, i: "no" if z < 0 else "yes", {},
         ("prob_no", "prob_yes", "predicted"), ("no", "yes"), "auroc", 0.9),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of 60 slides, of whose tiles a share shows the slide's strength, and a cohort file for each task."""
    root = tmp_path_factory.mktemp("tasks")
    store, held_out = (open_store(root / name, mode="w") for name in ("features", "held_out"))
    for number in range(SLIDES):
        bag = make_bag(f"s{number}", n=12 + number % 5, dim=DIM, dtype="float32", seed=number)
        features = np.array(bag.features)
        features[::2, 0] += 4 * strength(number)
        made = replace(bag.provenance, slide_digest=f"{number:064x}")
        store.write(replace(bag, features=features, provenance=made))
        if number % 5 == 4:
            held_out.write(replace(bag, features=features, provenance=made))
    for case in CASES:
        lines = [
            f"s{i},p{i},{case.row(strength(i), i)},{('train', 'train', 'val', 'train', 'test')[i % 5]}"
            for i in range(SLIDES)
        ]
        path = root / f"{case.recipe.replace('/', '-')}.csv"
        path.write_text("\n".join([f"slide_id,patient_id,{case.columns},split", *lines]) + "\n", encoding="utf-8")
    return root


def strength(number: int) -> float:
    return float(np.random.default_rng(1000 + number).uniform(-1, 1))


def configured(case: Case, **given: object) -> TrainConfig:
    quick = {"device": "cpu", "fit.epochs": 40, "fit.lr": 5e-3, "fit.patience": None}
    options = {**quick, **case.given, **given}
    return load_config(TrainConfig, CONFIGS / f"{case.recipe}.yaml", given=options)  # type: ignore[arg-type]


def cohort_of(place: Path, case: Case) -> Path:
    return place / f"{case.recipe.replace('/', '-')}.csv"


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.recipe)
def test_a_task_goes_from_features_to_answers(case: Case, place: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    summary = train(configured(case), place / "features", cohort_of(place, case), run)
    assert summary.metrics["test"][case.metric].value > case.above  # type: ignore[operator]
    trained = load_model(run)
    if case.outputs:
        assert trained.task.outputs == case.outputs
    main = trained.task.outputs[0]
    answered = predict(
        run,
        place / "held_out",
        out,
        options=PredictOptions(
            device="cpu", origin="level0", scores=("contribution", "single", "leave_one_out"), score=f"single:{main}"
        ),
        cohort_csv=cohort_of(place, case),
    )
    assert not answered.failures
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["all"][case.metric]["value"]
    assert found == pytest.approx(summary.metrics["test"][case.metric].value)
    rows = {row["slide_id"]: row for row in read_csv(out / "predictions.csv")}
    assert list(rows["s4"])[2:-5] == list(case.answers)
    assert list(rows["s4"])[-5:-3] == ["distance", "unusual"]
    assert {r["slide_id"]: r[case.answers[0]] for r in read_csv(run / "predictions.csv") if r["split"] == "test"} == {
        s: rows[s][case.answers[0]] for s in (f"s{i}" for i in range(4, SLIDES, 5))
    }
    frame = pd.read_parquet(out / "predictions.parquet")
    assert frame[case.answers[0]].dtype == np.float64
    table = read_scores(out / "scores/s4.parquet")
    assert table.task == trained.task
    assert float(rows["s4"][case.answers[0]]) == pytest.approx(table.answer(case.answers[0]), rel=1e-8)
    for output, logit, bias in zip(table.task.outputs, table.logits, table.bias, strict=True):
        parts = table.score(f"contribution:{output}").astype(float)
        assert parts.sum() + bias == pytest.approx(logit, abs=1e-4)
        assert np.isfinite(table.score(f"single:{output}")).all()
        assert np.isfinite(table.score(f"leave_one_out:{output}")).all()
    geojson = json.loads((out / "qupath/s4.geojson").read_text(encoding="utf-8"))
    assert geojson["wsimil"]["answer"].keys() == {column.name for column in table.task.answers}
    with Image.open(out / "overlays/s4.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize("case", CASES[:-1], ids=lambda case: case.recipe)
def test_an_interrupted_run_of_any_task_ends_with_the_same_bits(case: Case, place: Path, tmp_path: Path) -> None:
    from wsimil.stages.progress import Quiet

    class Stop(Quiet):
        def finish_item(self, line: str) -> None:
            raise KeyboardInterrupt

    config = configured(case, **{"fit.epochs": 3, "fit.watch_from": 0.0})
    inputs = (config, place / "features", cohort_of(place, case))
    train(*inputs, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(*inputs, tmp_path / "cut", reporter=Stop())
    train(*inputs, tmp_path / "cut")
    whole, cut = load_model(tmp_path / "whole"), load_model(tmp_path / "cut")
    assert whole.digest == cut.digest
    assert whole.task == cut.task
    again = load_config(TrainConfig, tmp_path / "whole/config.yaml")
    train(again, place / "features", cohort_of(place, case), tmp_path / "again")
    assert load_model(tmp_path / "again").digest == whole.digest


def case_of(recipe: str) -> Case:
    return next(case for case in CASES if case.recipe == recipe)


@pytest.mark.parametrize(
    ("recipe", "given", "says"),
    [
        ("survival/cox_abmil", {"fit.batch_bags": 1}, "fit.batch_bags: got 1; Cox's likelihood compares the bags"),
        ("survival/cox_abmil", {"fit.batch_instances": 2}, "fit.batch_instances: got 2, but the two largest training bags"),
        ("survival/hazard_abmil", {"fit.monitor": "auroc"}, "fit.monitor: 'auroc' means nothing for survival by hazard"),
        ("survival/cox_abmil", {"fit.hazard_alpha": 0.3}, "fit.hazard_alpha: means nothing for survival by cox"),
        ("regression/gated_abmil", {"fit.balance": "class_weights"}, "fit.balance: 'class_weights' means nothing"),
        ("regression/gated_abmil", {"fit.label_smoothing": 0.1}, "regression has no classes"),
        ("multilabel/gated_abmil", {"fit.balance": "sampling"}, "fit.balance: 'sampling' means nothing for multilabel"),
        ("ordinal/gated_abmil", {"fit.loss": "cross_entropy"}, "wanted corn"),
        ("ordinal/gated_abmil", {"method.name": "clam"}, "method 'clam' does not serve task.kind ordinal: its instance loss"),
        ("regression/gated_abmil", {"method.name": "dsmil"}, "method 'dsmil' does not serve task.kind regression"),
        ("survival/cox_abmil", {"method.name": "dtfd"}, "task.kind survival with task.model cox: its first tier"),
        ("multilabel/gated_abmil", {"method": {"name": "dtfd", "distill": "maxs"}}, "distill maxs picks tiles"),
        ("multilabel/gated_abmil", {"method": {"name": "mhim", "base": {"name": "clam"}}}, "method 'clam' does not serve"),
    ],
)  # fmt: skip
def test_what_means_nothing_for_a_task_is_refused_before_training(
    recipe: str, given: dict[str, object], says: str, place: Path, tmp_path: Path
) -> None:
    case = case_of(recipe)
    method = given.get("method.name")
    if method:
        given = {"method": {"name": method}}
    config = configured(case, **given)
    for stage in (
        lambda: plan(config, place / "features", cohort_of(place, case)),
        lambda: train(config, place / "features", cohort_of(place, case), tmp_path),
    ):
        with pytest.raises(ConfigError) as caught:
            stage()
        assert says in str(caught.value)


def test_every_recipe_of_another_task_than_classification_is_tried_here() -> None:
    shipped = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("*/*.yaml")}
    assert {name for name in shipped if not name.startswith("classification/")} == {case.recipe for case in CASES[:-1]}


def test_a_cohort_without_the_columns_of_the_task_is_refused(place: Path, tmp_path: Path) -> None:
    config = configured(case_of("survival/cox_abmil"))
    with pytest.raises(CohortError, match="column 'time', 'event' is missing"):
        train(config, place / "features", cohort_of(place, CASES[-1]), tmp_path)


def test_a_model_of_classes_that_an_earlier_version_wrote_still_opens(place: Path, tmp_path: Path) -> None:
    case = case_of("classification/gated_abmil")
    train(configured(case, **{"fit.epochs": 1}), place / "features", cohort_of(place, case), tmp_path)
    path = tmp_path / "model.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    task = facts.pop("task")
    path.write_text(json.dumps({**facts, "format_version": 1, "classes": task["classes"]}), encoding="utf-8")
    assert load_model(tmp_path).task.outputs == ("no", "yes")


SERVED = [
    (recipe, method)
    for recipe in ("survival/hazard_abmil", "survival/cox_abmil", "multilabel/gated_abmil")
    for method in ("acmil", "transmil", "dtfd", "rrt", "mhim", "multihead", "pooling")
    if (recipe, method) != ("survival/cox_abmil", "dtfd")
]


@pytest.mark.parametrize(("recipe", "method"), SERVED)
def test_methods_serve_tasks_that_they_do_not_know(method: str, recipe: str, place: Path, tmp_path: Path) -> None:
    narrow: dict[str, dict[str, object]] = {
        "rrt": {"hidden_dim": 16, "heads": 2, "cross_heads": 2, "region_side": 2, "cross_region_side": 2},
        "transmil": {"hidden_dim": 16, "heads": 2, "kernel": 3},
    }
    case = case_of(recipe)
    given = {"method": {"name": method, **narrow.get(method, {})}, "fit.epochs": 2, "fit.entropy.weight": 0}
    summary = train(configured(case, **given), place / "features", cohort_of(place, case), tmp_path)
    assert all(np.isfinite(record.train_loss) for record in summary.fit.history)
    assert load_model(tmp_path).method == method


def test_the_epoch_with_the_smallest_error_is_kept(place: Path, tmp_path: Path) -> None:
    case = case_of("regression/gated_abmil")
    config = configured(case, **{"fit.epochs": 12, "fit.lr": 0.02, "fit.watch_from": 0.0})
    summary = train(config, place / "features", cohort_of(place, case), tmp_path)
    errors = [record.val["mae"] for record in summary.fit.history]
    assert errors[summary.fit.kept_epoch - 1] == min(errors)
    assert errors.index(max(errors)) != errors.index(min(errors))
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["val_mae"] for line in lines] == errors


def test_a_level_that_only_the_test_split_has_is_refused(place: Path, tmp_path: Path) -> None:
    text = cohort_of(place, case_of("ordinal/gated_abmil")).read_text(encoding="utf-8").splitlines()
    lines = [line.replace(",3,", ",2,") if not line.endswith(",test") else line for line in text]
    (tmp_path / "c.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(CohortError, match="the train split: no training slide is of level '3'"):
        train(configured(case_of("ordinal/gated_abmil")), place / "features", tmp_path / "c.csv", tmp_path / "run")


@pytest.mark.parametrize(
    ("label", "given", "expected"),
    [
        ("abcd", {"decision.threshold": "cost"}, r"decision\.threshold: is for two classes, the task has 4"),
        (
            "1234",
            {"task.kind": "regression", "decision.conformal": "lac"},
            r"conformal: is for classes, the task is regr",
        ),
    ],
)
def test_a_decision_that_means_nothing_for_the_task_is_refused_before_training(
    feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path, label: str, given: dict[str, object], expected: str
) -> None:
    features, cohort = feature_study()
    table = pd.read_csv(cohort)
    table["label"] = [label[int(patient[1:]) // 3 % 4] for patient in table["patient_id"]]
    table.to_csv(cohort, index=False)
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 1, **given})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=expected):
        plan(config, features, cohort)
    with pytest.raises(ConfigError, match=expected):
        train(config, features, cohort, tmp_path / "run")
    assert not (tmp_path / "run").exists()
