"""How far a plan is, from its folder alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.worklist.toy import Notes, Toy, ledger_of, let_lease_pass, plan_in, silence
from wsimil.stages.text_worklist import show_status
from wsimil.worklist import Ledger, WorkPlan
from wsimil.worklist.status import HandedBack, PlanState, plan_state
from wsimil.worklist.worker import Worker


def state_of(plan: WorkPlan) -> PlanState:
    return plan_state(plan, ledger_of(plan, "status"))


def run(plan: WorkPlan, name: str = "w1") -> None:
    Worker(ledger=ledger_of(plan, name), runner=lambda _: Toy(), watcher=Notes(), patience_s=0.0).run(plan.stages)


def claim(ledger: Ledger, index: int) -> None:
    unit = ledger.plan.stages[0].units[index]
    assert ledger.claim(unit, ledger.scan().get(unit.id)) is not None


def test_a_plan_that_was_not_begun_is_all_to_do(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")
    [stage] = state_of(plan).stages
    assert (stage.todo, stage.units, stage.cost_done, stage.is_finished) == (2, 2, 0.0, False)
    assert (stage.per_hour, stage.left_s) == (None, None)
    assert state_of(plan).workers == ()


def test_a_stage_without_units_is_finished(tmp_path: Path) -> None:
    [stage] = state_of(plan_in(tmp_path)).stages
    assert stage.is_finished
    assert stage.cost_done == 1.0


def test_units_add_up_whatever_became_of_them(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "running", "stale", "a", "boom", "failed once", "back", "b")
    run(plan)
    run(plan, "w2")
    for index, name in ((0, "v1"), (1, "v2")):
        (plan.work / "done" / f"e0000{index}").unlink()
        (plan.work / "claims" / f"e0000{index}.1").unlink()
        claim(ledger_of(plan, name), index)
    let_lease_pass(plan, "e00001.1")
    for index, ending in ((4, "err"), (5, "back")):
        (plan.work / "done" / f"e0000{index}").unlink()
        (plan.work / "claims" / f"e0000{index}.1.{ending}").write_text(
            '{"worker": "w1", "host": "h1", "reason": "why"}'
        )
    [stage] = state_of(plan).stages
    assert (stage.running, stage.stale, stage.done, stage.bad, stage.todo) == (1, 1, 2, 1, 2)
    assert stage.units == 7
    assert stage.cost_done == (5 + 1) / 28
    assert [(one.name, one.is_bad, [str(r["reason"]) for r in one.reasons]) for one in stage.troubles] == [
        ("boom", True, ["cannot be read", "cannot be read"]),
        ("failed once", False, ["why"]),
    ]


def test_after_everybody_died_nobody_is_at_work_and_what_they_held_is_stale(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b", "c")
    run(plan)
    card = plan.work / "workers" / "w1.json"
    card.write_text(card.read_text().replace('"left": "finished"', '"left": ""'))
    (plan.work / "done" / "e00001").unlink()
    state = state_of(plan)
    assert state.workers[0].is_alive
    assert state.stages[0].running == 1
    assert state.stages[0].left_s is not None
    let_lease_pass(plan)
    silence(plan, "w1")
    state = state_of(plan)
    assert not state.workers[0].is_alive
    assert (state.stages[0].stale, state.stages[0].done, state.stages[0].per_hour) == (1, 2, None)


def test_too_many_bad_ones_are_a_refusal(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "boom", "a", max_bad=0.4)
    run(plan)
    run(plan, "w2")
    assert state_of(plan).stages[0].refused


def test_what_is_bad_is_no_time_that_is_left(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, *(f"boom-{i}" for i in range(3)), "a")
    run(plan)
    run(plan, "w2")
    card = plan.work / "workers" / "w2.json"
    card.write_text(
        card.read_text()
        .replace('"left": "finished"', '"left": ""')
        .replace('"units": 0, "cost": 0.0', '"units": 1, "cost": 1.0')
        .replace('"seconds": 0', '"seconds": 1')
    )
    [stage] = plan_state(plan, ledger_of(plan, "status"), most_troubles=1).stages
    assert len(stage.troubles) == 1
    assert stage.left_s == 0.0


def test_a_look_leaves_nothing_and_is_no_worker(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")
    before = sorted(plan.folder.rglob("*"))
    assert state_of(plan).workers == ()
    assert sorted(plan.folder.rglob("*")) == before


def test_two_looks_of_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")
    (plan.work / "workers" / "status.json").touch()
    assert state_of(plan).workers == ()
    assert not state_of(plan).is_own_clock


def test_a_card_that_was_never_written_is_passed_over(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")
    (plan.work / "workers" / "w1.json").touch()
    (plan.work / "workers" / "w2.json").write_text("{")
    assert state_of(plan).workers == ()


def test_a_folder_that_cannot_be_written_is_told_by_this_machines_clock(small_disk: Path) -> None:
    plan = plan_in(small_disk / "study", "a", "b", "c")
    run(plan)
    (plan.work / "done" / "e00001").unlink()
    (plan.work / "done" / "e00002").unlink()
    other = plan.work / "claims" / "e00002.1"  # all claims of one worker have one time
    said = other.read_bytes()
    other.unlink()
    other.write_bytes(said)
    let_lease_pass(plan, "e00002.1")
    os.sync()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    state = state_of(plan)
    assert state.is_own_clock
    assert (state.stages[0].done, state.stages[0].running, state.stages[0].stale) == (1, 1, 1)


def hand_back(plan: WorkPlan, *, held_s: float, lived_s: float = 100.0, place: str = "") -> None:
    """As a worker does that leaves."""
    ledger = ledger_of(plan)
    unit = plan.stages[0].units[0]
    attempt = ledger.claim(unit, ledger.scan().get(unit.id))
    assert attempt is not None
    ledger.close(attempt, "back", "USR1", beside={"held_s": held_s, "lived_s": lived_s, "place": place})


def test_a_unit_that_is_longer_than_any_workers_time_is_named_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_in(tmp_path, "a", "b")
    for held_s in (60.0, 95.0):
        hand_back(plan, held_s=held_s)
        assert state_of(plan).stages[0].handed_back == ()
    hand_back(plan, held_s=90.0)
    [stage] = state_of(plan).stages
    assert stage.handed_back == (HandedBack(unit_id="e00000", name="a", times=3, held_s=95.0, lived_s=100.0, place=""),)
    assert (stage.todo, stage.troubles) == (2, ())
    show_status(plan, state_of(plan), as_json=False)
    told = capsys.readouterr().out
    for part in ("HANDED BACK 3 times", "e00000 a", "95 s of 100 s", "longer time limit"):
        assert part in " ".join(told.split())
    assert ledger_of(plan).claim(plan.stages[0].units[0], ledger_of(plan).scan()["e00000"]) is not None


def test_who_was_sent_away_early_says_nothing_of_how_long_a_unit_takes(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")
    for _ in range(5):
        hand_back(plan, held_s=20.0)
    assert state_of(plan).stages[0].handed_back == ()


def test_a_run_that_goes_on_from_where_it_was_is_left_in_peace(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")
    for epoch in range(4):
        hand_back(plan, held_s=90.0, place=f"epoch {epoch}")
    assert state_of(plan).stages[0].handed_back == ()
    for _ in range(2):
        hand_back(plan, held_s=90.0, place="epoch 3")
    [one] = state_of(plan).stages[0].handed_back
    assert (one.times, one.place) == (3, "epoch 3")
