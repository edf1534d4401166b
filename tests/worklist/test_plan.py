"""The work list: written once, refused where it is not the one that is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.worklist.toy import plan_in, units
from wsimil.errors import ConfigError, OutputError
from wsimil.worklist import Stage, Unit, WorkPlan, read_plan, write_plan
from wsimil.worklist import plan as plan_module

HOSTILE = ["a\tb", "a\nb", "a\rb", "a\x1cb\u2028c", "ünïcödé 中", "bad\udcffbyte", "", "..", "-o", "'\"\\", "e00000.1"]


def test_the_same_plan_again_is_a_no_op(tmp_path: Path) -> None:
    plan = WorkPlan(
        folder=tmp_path / "study", stages=(Stage(name="extract", units=units("a", "b")),), recipe={"mpp": 0.5}
    )
    assert write_plan(plan)
    before = {path: path.stat().st_mtime_ns for path in plan.work.iterdir() if path.is_file()}
    assert not write_plan(plan)
    assert {path: path.stat().st_mtime_ns for path in plan.work.iterdir() if path.is_file()} == before


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_in(tmp_path / "study", *HOSTILE, lease_s=7.5, max_bad=0.25, last=["-o"])
    found = read_plan(plan.folder)
    assert found == plan
    assert found.fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"side_px": 512}},
        {"stages": (Stage(name="extract", units=units("a", "c")),)},
        {"stages": (Stage(name="extract", units=units("a")),)},
        {"stages": (Stage(name="predict", units=units("a", "b")),)},
        {"stages": (Stage(name="extract", units=units("a", "b", last=["b"])),)},
    ],
    ids=["recipe", "another slide", "a slide less", "another stage", "another order"],
)
def test_another_plan_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    plan = plan_in(tmp_path / "study", "a", "b")
    with pytest.raises(ConfigError, match="holds another plan"):
        write_plan(replace(plan, **change))  # type: ignore[arg-type]
    assert read_plan(plan.folder) == plan


def test_results_that_no_plan_accounts_for_are_refused(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    with pytest.raises(ConfigError, match="holds features and no work list"):
        plan_in(tmp_path, "a")


def test_a_folder_of_logs_and_hidden_files_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / ".keep").touch()
    assert plan_in(tmp_path, "a")


def test_a_planner_that_died_before_its_units_were_written_is_made_up_for(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")
    (plan.work / "units.tsv").unlink()
    with pytest.raises(ConfigError, match="run the same `wsimil plan` again"):
        read_plan(tmp_path)
    assert not write_plan(plan)
    assert read_plan(tmp_path) == plan


def test_of_two_planners_at_once_one_is_refused_and_the_list_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = WorkPlan(folder=tmp_path, stages=(Stage(name="extract", units=units("b")),), recipe={})
    publish = plan_module.publish
    writing = True

    def meanwhile(data: bytes, target: Path, *, within: Path | None = None) -> bool:
        nonlocal writing
        if writing:
            writing = False
            assert write_plan(other)
        return publish(data, target, within=within)

    monkeypatch.setattr(plan_module, "publish", meanwhile)
    with pytest.raises(ConfigError, match="holds another plan"):
        plan_in(tmp_path, "a")
    assert read_plan(tmp_path) == other


def test_a_list_that_was_changed_is_not_read(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")
    path = plan.work / "units.tsv"
    path.write_text(path.read_text().replace("e00001", "e00009"))
    with pytest.raises(ConfigError, match="not the one that was written"):
        read_plan(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "wsimil/worklist/9"}'])
def test_a_head_that_is_none_of_ours_is_said_to_be_so(tmp_path: Path, content: str) -> None:
    plan = plan_in(tmp_path, "a")
    (plan.work / "plan.json").write_text(content)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        read_plan(tmp_path)


def test_a_folder_without_a_plan_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wsimil plan"):
        read_plan(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"a file stands|is a file"):
        plan_in(tmp_path / "file", "a")


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(OutputError, match="no hard links"):
        plan_in(tmp_path, "a")


def test_a_file_system_that_makes_a_link_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_: None)
    with pytest.raises(OutputError, match="makes one link twice"):
        plan_in(tmp_path, "a")
    assert not list((tmp_path / "work" / "scratch").iterdir())


def test_ten_thousand_units_come_back(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, *(f"slide-{i}" for i in range(10_000)))
    assert read_plan(tmp_path).stages == plan.stages


@pytest.mark.parametrize("unit_id", ["", "a.b", "a/b", "a b", "ä"])
def test_an_id_that_cannot_name_files_is_refused(unit_id: str) -> None:
    with pytest.raises(ValueError, match="names files"):
        Unit(id=unit_id, name="a", cost=1.0, task={})


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cost_that_is_no_cost_is_refused(cost: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Unit(id="e1", name="a", cost=cost, task={})


def test_two_units_of_one_id_are_refused(tmp_path: Path) -> None:
    stages = (Stage(name="extract", units=units("a")), Stage(name="train", units=units("b")))
    with pytest.raises(ValueError, match="'e00000'"):
        WorkPlan(folder=tmp_path, stages=stages, recipe={})


@pytest.mark.parametrize(("bad", "of"), [(0, 5), (29, 50), (63, 90), (29, 100), (1, 3), (2, 3)])
def test_as_many_bad_units_as_are_allowed_refuse_nothing(bad: int, of: int, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, *(f"s{number}" for number in range(of)), max_bad=bad / of)
    assert not plan_module.refuses(plan, plan.stages[0], bad)
    assert plan_module.refuses(plan, plan.stages[0], bad + 1)


@pytest.mark.parametrize("change", [{"lease_s": 0.0}, {"lease_s": float("nan")}, {"max_bad": 1.5}, {"max_bad": -0.1}])
def test_a_lease_or_a_share_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="wanted a"):
        replace(WorkPlan(folder=tmp_path, stages=(), recipe={}), **change)  # type: ignore[arg-type]


def test_a_stage_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no stage 'train'; it has extract"):
        plan_in(tmp_path, "a").stage("train")


def test_the_work_list_needs_neither_torch_nor_numpy_nor_pydantic() -> None:
    told = subprocess.run(
        [
            sys.executable, "-c",
            "import sys, json, wsimil.worklist, wsimil.worklist.supervise, wsimil.worklist.status, wsimil.worklist.worker;"
            "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))",
        ],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert not {"torch", "numpy", "pydantic", "yaml", "typer", "pandas"} & set(json.loads(told))
