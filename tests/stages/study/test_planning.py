"""A study is refused when it is planned, by one message, and not on a thousand nodes; its units are all there is to do."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.stages.study.conftest import Material
from tests.stages.study.study_of import QUICK, planned
from wsimil.cli import app
from wsimil.config import load_config
from wsimil.errors import CohortError, ConfigError, ModelError
from wsimil.provenance import Json
from wsimil.splits import read_plan as read_splits
from wsimil.stages.study.config import StudyConfig, example
from wsimil.stages.study.planning import open_study, plan_study
from wsimil.store import open_store


def config(folder: Path, **given: object) -> StudyConfig:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    return load_config(StudyConfig, file)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "give either slides"),
        ({"slides": "a", "features": "b"}, "give either slides"),
        ({"features": "b", "extract": {"encoder": "uni_v1"}}, "extract is how features are made of slides"),
        ({"features": "b"}, "nothing to do"),
        ({"slides": "a", "train": {"abmil": {}}}, "train needs cohort"),
        ({"slides": "a", "predict": {}}, "train names none"),
        ({"slides": "a", "train": {"../up": {}}, "cohort": "c", "splits": "s"}, "names a folder"),
        ({"slides": "a", "seeds": [1, 1]}, "each once"),
        ({"slides": "a", "max_bad": 1.5}, "max_bad"),
        ({"slides": "a", "tran": {}}, "did you mean 'train'"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(tmp_path: Path, given: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config(tmp_path, **given)


def test_the_example_reads_as_itself(tmp_path: Path) -> None:
    tree = yaml.safe_load(example().to_yaml())
    assert config(tmp_path, **{k: v for k, v in tree.items() if v is not None}).model_dump() == example().model_dump()


def test_units_are_every_run_every_answer_and_every_report_once(material: Material, tmp_path: Path) -> None:
    plan = planned(
        tmp_path / "study",
        **material.settings(),
        train={"a": QUICK, "b": QUICK},
        seeds=[0, 3],
        predict={"slides": "test"},
    )
    runs = {unit.name for unit in plan.stage("train").units if not unit.last}
    assert runs == {f"{name}/{one}/seed-{seed}" for name in "ab" for one in "012" for seed in (0, 3)}
    asked = [(str(u.task["run"]), str(u.task["unit"])) for u in plan.stage("predict").units if not u.last]
    assert len(asked) == len(set(asked))
    tests = {one.name: set(one.test) for one in read_splits(material.splits).rounds}
    assert set(asked) == {(run, slide) for run in runs for slide in tests[run.split("/")[1]]}
    assert [unit.name for unit in plan.stage("report").units] == ["a", "b"]
    assert len(plan.units) == sum(len(stage.units) for stage in plan.stages)


def test_larger_slides_come_first(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"a": QUICK}, predict={"heatmaps": False})
    for unit in plan.stage("predict").units:
        if not unit.last:
            size = (material.features / f"{unit.task['unit']}.h5").stat().st_size
            assert unit.cost == pytest.approx(size / 1e6)


def test_a_plan_says_what_it_was_made_with_wherever_it_is_read(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(material.features.parent)
    given: dict[str, object] = {"features": "features", "cohort": "cohort.csv", "splits": "splits.json"}
    plan = planned(tmp_path / "study", **given, train={"a": QUICK})
    monkeypatch.chdir("/")
    study = open_study(plan)
    assert study.features == material.features
    assert {item.cohort for item in study.items().values()} == {material.cohort}
    resolved = plan.recipe["resolved"]
    assert isinstance(resolved, dict)
    assert resolved["lease_s"] == 120.0


def test_two_slides_of_one_id_are_refused(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / "slides" / folder).mkdir(parents=True)
        (tmp_path / "slides" / folder / "same.tiff").write_bytes(b"x")
    with pytest.raises(ConfigError, match="slide id 'same' names 2 files"):
        plan_study(config(tmp_path, slides=str(tmp_path / "slides")), tmp_path / "study")


def test_a_cohort_of_other_slides_is_refused(material: Material, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "other.tiff").write_bytes(b"x")
    settings = material.settings() | {"slides": str(slides)}
    del settings["features"]
    with pytest.raises(CohortError, match=r"no slide of .* is among those of the study"):
        plan_study(config(tmp_path, **settings, train={"a": QUICK}), tmp_path / "study")


def test_a_plan_of_another_version_is_refused(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"a": QUICK})
    monkeypatch.setattr("wsimil.__version__", "9.9.9")
    with pytest.raises(ConfigError, match=r"was planned with wsimil .*, and this is 9\.9\.9"):
        open_study(plan)


def test_a_changed_setting_is_another_plan(material: Material, tmp_path: Path) -> None:
    planned(tmp_path / "study", **material.settings(), train={"a": QUICK})
    planned(tmp_path / "study", **material.settings(), train={"a": QUICK})
    with pytest.raises(ConfigError, match="holds another plan"):
        planned(tmp_path / "study", **material.settings(), train={"a": {**QUICK, "fit": {"epochs": 3}}})


def test_a_plan_is_json_that_others_can_read(material: Material, tmp_path: Path) -> None:
    plan = planned(tmp_path / "study", **material.settings(), train={"a": QUICK})
    head: dict[str, Json] = json.loads((plan.work / "plan.json").read_text("utf-8"))
    assert head["fingerprint"] == plan.fingerprint


def test_rounds_that_are_named_twice_are_refused(material: Material, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds: wanted each once"):
        config(tmp_path, **material.settings(), train={"a": QUICK}, rounds=[0, "0"])


@pytest.mark.parametrize("given", ["features", "slides"])
@pytest.mark.parametrize(
    ("train", "predict", "expected"),
    [
        ({"method": {"name": "abmill"}}, None, "config a: .*abmill"),
        ({"method": {"name": "abmil", "hiden": 3}}, None, "config a: .*hiden"),
        (
            {**QUICK, "decision": {"threshold": "cost"}, "task": {"kind": "ordinal", "levels": ["n", "t"]}},
            None,
            r"config a: decision\.threshold: is for classes, the task is ordinal",
        ),
        (QUICK, {"score": "nonsense"}, "config a: score 'nonsense' is not given by this model"),
        ({**QUICK, "method": {"name": "pooling"}}, {"scores": ["attention"]}, "config a: .*without attention"),
    ],
)
def test_what_no_run_could_do_is_refused_when_planning(
    material: Material, tmp_path: Path, given: str, train: dict[str, object], predict: object, expected: str
) -> None:
    settings = material.settings()
    if given == "slides":
        del settings["features"]
        settings["slides"] = str(tmp_path / "slides")
        (tmp_path / "slides").mkdir()
        for index in range(36):
            (tmp_path / "slides" / f"s{index}.tiff").write_bytes(b"x")
    with pytest.raises((ConfigError, ModelError), match=expected):
        plan_study(config(tmp_path, **settings, train={"a": train}, predict=predict), tmp_path / "study")


def test_the_slides_of_a_pack_cost_a_share_of_it_each(material: Material, tmp_path: Path) -> None:
    pack = tmp_path / "all.zarr"
    assert CliRunner().invoke(app, ["pack", str(material.features), str(pack)]).exit_code == 0
    settings = material.settings() | {"features": str(pack)}
    plan = planned(tmp_path / "study", **settings, train={"a": QUICK}, predict={"slides": "all"}, rounds=["0"])
    costs = {str(u.task["unit"]): u.cost for u in plan.stage("predict").units if not u.last}
    store = open_store(pack, mode="r")
    assert sorted(costs, key=lambda one: (costs[one], one)) == sorted(costs, key=lambda one: (store.header(one).n, one))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"predict": {}, "report": False, "rounds": ["0", "0.1"]}, r"rounds 0\.1 of .* predict\.slides: all"),
        ({"rounds": ["0.1"]}, r"rounds 0\.1 of .* say report: false"),
        ({"rounds": ["0.1"], "predict": {"slides": "all"}, "report": False}, ""),
    ],
)
def test_rounds_without_a_test_split_are_not_asked_about_it(
    material: Material, tmp_path: Path, given: dict[str, object], expected: str
) -> None:
    command = ["splits", "make", str(material.cohort), "-o", str(material.splits), "--kind", "nested", "--folds", "3"]
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0
    study = config(tmp_path, **material.settings(), train={"a": QUICK}, **given)
    with pytest.raises(ConfigError, match=expected) if expected else nullcontext():
        plan_study(study, tmp_path / "study")
