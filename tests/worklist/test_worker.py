"""One worker in this process: what it takes, what it does with what comes of it, and when it leaves."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.worklist.toy import Notes, Toy, ledger_of, let_lease_pass, make, plan_in, product, silence, units
from wsimil.errors import OutputError
from wsimil.worklist import Stage, WorkPlan, disk, write_plan
from wsimil.worklist.attempts import Attempts
from wsimil.worklist.commit import begin, commit, sweep
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.worker import Failed, Left, Made, Outcome, Worker


def worker_of(
    plan: WorkPlan, toy: Toy | None = None, *, name: str = "w1", host: str = "h1", **settings: float
) -> Worker:
    return Worker(ledger=ledger_of(plan, name, host), runner=lambda _: toy or Toy(), watcher=Notes(), **settings)  # type: ignore[arg-type]


def run(plan: WorkPlan, toy: Toy | None = None, *, name: str = "w1", **settings: float) -> Left:
    return worker_of(plan, toy, name=name, **settings).run(plan.stages)


def tries(plan: WorkPlan) -> dict[str, Attempts]:
    found = ledger_of(plan).scan()
    return {unit.name: found[unit.id] for stage in plan.stages for unit in stage.units if unit.id in found}


def card(plan: WorkPlan, name: str = "w1") -> dict[str, object]:
    return dict(disk.read_json(plan.work / "workers" / f"{name}.json"))


def another_at_work(plan: WorkPlan) -> None:
    (plan.work / "workers" / "other.json").write_text(json.dumps({"left": ""}))


def test_all_units_are_done_largest_first(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "run-b", "c")
    toy = Toy()
    assert run(plan, toy) is Left.FINISHED
    assert toy.seen == ["a", "run-b", "c"]
    assert all(product(plan, unit).exists() for unit in plan.stages[0].units)
    assert not list((plan.work / "scratch").iterdir())
    told = card(plan)
    assert (told["left"], told["held"]) == ("finished", [])
    assert told["done"]["extract"]["units"] == 3  # type: ignore[index]


def test_a_rerun_does_nothing(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")
    run(plan)
    toy = Toy()
    assert run(plan, toy, name="w2") is Left.FINISHED
    assert toy.seen == []


def test_stages_are_done_one_after_another(tmp_path: Path) -> None:
    stages = (Stage(name="extract", units=units("a", "b")), Stage(name="train", units=units("c", letter="t")))
    plan = WorkPlan(folder=tmp_path, stages=stages, recipe={})
    write_plan(plan)
    toy = Toy(ahead=3)
    assert run(plan, toy) is Left.FINISHED
    assert toy.seen == ["a", "b", "c"]


def test_what_it_holds_is_handed_back_when_it_is_interrupted(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b", "c", "d")

    def deed(attempt: Attempt) -> Outcome:
        if attempt.unit.name == "b":
            raise KeyboardInterrupt
        return make(attempt)

    with pytest.raises(KeyboardInterrupt):
        run(plan, Toy(deed=deed, ahead=2))
    found = tries(plan)
    assert found["a"].done
    assert [found[name].closings for name in ("b", "c")] == [{1: "back"}, {1: "back"}]
    assert "d" not in found
    assert (card(plan)["left"], card(plan)["held"]) == ("interrupted", [])
    toy = Toy()
    assert run(plan, toy, name="w2") is Left.FINISHED
    assert toy.seen == ["b", "c", "d"]


def test_what_cannot_say_how_far_it_is_is_handed_back_all_the_same(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")

    class Stale(Toy):
        def place(self, attempt: Attempt) -> str:
            raise OSError(errno.ESTALE, "Stale file handle")

    def deed(attempt: Attempt) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, Stale(deed=deed, ahead=2))
    assert [one.closings for one in tries(plan).values()] == [{1: "back"}, {1: "back"}]
    assert card(plan)["left"] == "interrupted"


def test_a_second_interrupt_does_not_stop_the_handing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_in(tmp_path, "a", "b", "c")
    publish = disk.publish
    interrupts = 2

    def impatient(data: bytes, target: Path, *, within: Path | None = None) -> bool:
        nonlocal interrupts
        if interrupts:
            interrupts -= 1
            raise KeyboardInterrupt
        return publish(data, target, within=within)

    def deed(attempt: Attempt) -> Outcome:
        monkeypatch.setattr(disk, "publish", impatient)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, Toy(deed=deed, ahead=3))
    assert [one.closings for one in tries(plan).values()] == [{1: "back"}] * 3


def test_it_leaves_after_three_faults_with_nothing_done_between(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "fault-1", "b", "fault-2", "boom", "fault-3", "fault-4", "c")
    toy = Toy()
    assert run(plan, toy) is Left.FAULTY
    assert toy.seen[-1] == "fault-4"
    assert all(tries(plan)[f"fault-{i}"].closings == {1: "fault"} for i in (1, 2, 3, 4))
    assert "c" not in tries(plan)


def test_bad_slides_are_no_reason_to_leave_once_something_was_done(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "boom-1", "boom-2", "boom-3", "boom-4", "b")
    another_at_work(plan)
    toy = Toy()
    assert run(plan, toy, patience_s=0.0) is Left.IMPATIENT
    assert toy.seen[-1] == "b"


def test_one_that_fails_at_everything_leaves_while_others_are_at_work(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, *(f"boom-{i}" for i in range(5)), "a")
    another_at_work(plan)
    toy = Toy()
    assert run(plan, toy) is Left.FAULTY
    assert len(toy.seen) == 3


def test_one_that_fails_at_everything_goes_on_where_nobody_else_is(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, *(f"boom-{i}" for i in range(5)), "a")
    assert run(plan) is Left.RENEW
    assert tries(plan)["a"].done


def test_what_failed_here_is_left_to_another_process(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "boom", "b")
    toy = Toy()
    assert run(plan, toy) is Left.RENEW
    assert toy.seen == ["a", "boom", "b"]
    assert not tries(plan)["boom"].is_bad
    assert run(plan, name="w2") is Left.FINISHED
    assert tries(plan)["boom"].is_bad
    assert [one["worker"] for one in ledger_of(plan).reasons("e00001")] == ["w1", "w2"]


def test_it_does_not_renew_itself_while_another_may_try(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "boom", "a")
    another_at_work(plan)
    assert run(plan, patience_s=0.0) is Left.IMPATIENT


def test_what_failed_on_this_host_comes_last(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")
    for name, host, index in (("v1", "h1", 0), ("v2", "h2", 1)):
        ledger = ledger_of(plan, name, host)
        attempt = ledger.claim(plan.stages[0].units[index])
        assert attempt is not None
        ledger.close(attempt, "err", "no")
    toy = Toy()
    assert run(plan, toy) is Left.FINISHED
    assert toy.seen == ["b", "a"]


@pytest.mark.parametrize("killer", ["a", "b", "c"])
def test_an_error_of_a_whole_stream_is_narrowed_down_to_the_unit_that_makes_it(tmp_path: Path, killer: str) -> None:
    plan = plan_in(tmp_path, *(f"raise-{name}" if name == killer else name for name in "abc"))
    toy = Toy(ahead=3)
    assert run(plan, toy) is Left.RENEW
    assert run(plan, toy, name="w2") is Left.FINISHED
    found = tries(plan)
    assert {name for name, one in found.items() if one.is_bad} == {f"raise-{killer}"}
    assert all(one.done for name, one in found.items() if not one.is_bad)
    assert [
        one["reason"] for one in ledger_of(plan).reasons(f"e0000{'abc'.index(killer)}") if one["kind"] == "err"
    ] == ["unexpected RuntimeError: out of order"] * 2
    assert toy.together[0] == 3
    assert toy.together[-1] == 1


def test_an_error_of_the_machine_in_a_stream_counts_against_the_worker(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b", "c", "d")

    def deed(attempt: Attempt) -> Outcome:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert run(plan, Toy(deed=deed, ahead=2)) is Left.FAULTY
    found = tries(plan)
    assert all("err" not in one.closings.values() for one in found.values())


def test_what_a_stage_never_answered_is_not_held_for_ever(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b", "c")

    class Forgetful(Toy):
        def run(self, attempts: Iterator[Attempt]) -> Generator[Outcome, None, None]:
            for number, attempt in enumerate(attempts):
                if attempt.alone or number == 2:
                    yield make(attempt)

    assert run(plan, Forgetful()) is Left.FINISHED
    assert tries(plan)["a"].closings == tries(plan)["b"].closings == {1: "suspect"}
    assert all(one.done for one in tries(plan).values())


def test_it_waits_for_others_as_long_as_its_patience_lasts(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")
    other = ledger_of(plan, "other")
    other.claim(plan.stages[0].units[0])
    assert run(plan, patience_s=0.0) is Left.IMPATIENT
    assert tries(plan)["b"].done


def test_it_takes_over_what_fell_silent(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")
    ledger_of(plan, "other").claim(plan.stages[0].units[0])
    let_lease_pass(plan)
    assert run(plan) is Left.FINISHED
    assert tries(plan)["a"].newest == 2


def test_a_claim_and_a_card_are_beaten_while_a_unit_is_made(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", lease_s=0.3)

    def deed(attempt: Attempt) -> Outcome:
        for path in (plan.work / "claims" / attempt.id, plan.work / "workers" / "w1.json"):
            os.utime(path, (0, 0))
            while (
                path.stat().st_mtime == 0
            ):  # until the other thread has beaten; a test that fails here ends by its time limit
                os.sched_yield()
        return make(attempt)

    assert run(plan, Toy(deed=deed)) is Left.FINISHED


def test_it_looks_for_what_fell_silent_while_much_is_left(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, *map(str, range(20)), lease_s=0.02)
    ledger_of(plan, "other").claim(plan.stages[0].units[0])
    let_lease_pass(plan)
    toy = Toy()
    assert run(plan, toy) is Left.FINISHED
    assert toy.seen[0] == "0" or toy.seen.index("0") < 19


def test_the_gate_refuses_and_the_next_stage_is_not_begun(tmp_path: Path) -> None:
    stages = (
        Stage(name="extract", units=units("boom", "a", "b", "c")),
        Stage(name="train", units=units("d", letter="t")),
    )
    plan = WorkPlan(folder=tmp_path, stages=stages, recipe={}, max_bad=0.2)
    write_plan(plan)
    assert run(plan) is Left.RENEW
    assert run(plan, name="w2") is Left.REFUSED
    assert "d" not in tries(plan)
    assert card(plan, "w2")["left"] == "refused"


def test_the_gate_lets_pass_what_is_few_enough(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "boom", "a", "b", "c", max_bad=0.25)
    assert run(plan) is Left.RENEW
    assert run(plan, name="w2") is Left.FINISHED


def test_last_units_wait_until_all_others_are_finished(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "sum", "a", "b", last=["sum"])
    other = ledger_of(plan, "other")
    attempt = other.claim(plan.stages[0].units[1])
    assert attempt is not None
    assert run(plan, patience_s=0.0) is Left.IMPATIENT
    assert "sum" not in tries(plan)
    begin(attempt)
    made = make(attempt)
    assert isinstance(made, Made)
    commit(other, attempt)
    assert run(plan, name="w2") is Left.FINISHED
    assert tries(plan)["sum"].done


def test_last_units_come_after_bad_ones_too(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "sum", "boom", last=["sum"])
    assert run(plan) is Left.RENEW
    assert run(plan, name="w2") is Left.FINISHED
    assert tries(plan)["sum"].done


def test_a_worker_whose_device_cannot_be_used_leaves_for_its_own_fault(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")

    def runner(_: Stage) -> Toy:
        raise RuntimeError("CUDA error: no kernel image is available")

    worker = Worker(ledger=ledger_of(plan), runner=runner, watcher=Notes())
    assert worker.run(plan.stages) is Left.FAULTY
    assert tries(plan) == {}


def test_a_stage_that_cannot_be_begun_is_an_error(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")

    def runner(_: Stage) -> Toy:
        raise ValueError("no such encoder")

    with pytest.raises(ValueError, match="encoder"):
        Worker(ledger=ledger_of(plan), runner=runner, watcher=Notes()).run(plan.stages)
    assert card(plan)["left"] == "ValueError: no such encoder"


def test_a_folder_that_cannot_be_read_is_a_fault_of_the_worker(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")

    def deed(attempt: Attempt) -> Outcome:
        (plan.work / "claims").rename(plan.work / "away")
        return Failed(attempt=attempt, reason="no")

    assert run(plan, Toy(deed=deed)) is Left.FAULTY


def test_a_disk_that_takes_no_results_is_a_fault_of_the_worker(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b", "c", "d")
    (plan.folder / "features").touch()
    assert run(plan) is Left.FAULTY
    assert [one.closings for one in tries(plan).values()] == [{1: "fault"}] * 3


def test_a_late_result_is_no_failure(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")

    def deed(attempt: Attempt) -> Outcome:
        let_lease_pass(plan)
        assert run(plan, name="w2") is Left.FINISHED
        return make(attempt) if attempt.scratch.exists() else Failed(attempt=attempt, reason="my folder is gone")

    worker = worker_of(plan, Toy(deed=deed))
    assert worker.run(plan.stages) is Left.FINISHED
    assert tries(plan)["a"].closings == {1: "back"}
    assert ledger_of(plan).receipt("e00000")["worker"] == "w2"


def test_results_that_were_cleared_away_are_no_failure(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", "b")

    def deed(attempt: Attempt) -> Outcome:
        outcome = make(attempt)
        if attempt.unit.name == "a":
            for name in ("v1", "v2"):
                let_lease_pass(plan)
                other = ledger_of(plan, name)
                second = other.claim(attempt.unit, other.scan()[attempt.unit.id])
                assert second is not None
                other.close(second, "err", "no")
            sweep(other)
        return outcome

    assert run(plan, Toy(deed=deed)) is Left.FINISHED
    found = tries(plan)["a"]
    assert found.is_bad
    assert found.closings == {1: "back", 2: "err", 3: "err"}


def test_who_cannot_write_down_an_end_lets_it_fall_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_in(tmp_path, "a")

    def full(*_: object, **__: object) -> bool:
        raise OutputError("the disk is full")

    def deed(attempt: Attempt) -> Outcome:
        monkeypatch.setattr(disk, "publish", full)
        monkeypatch.setattr(disk, "adopt", full)
        return Failed(attempt=attempt, reason="no space", fault=True)

    worker = worker_of(plan, Toy(deed=deed), patience_s=0.0)
    assert worker.run(plan.stages) is Left.IMPATIENT
    monkeypatch.undo()
    assert tries(plan)["a"].is_held
    assert card(plan)["held"] == []
    silence(plan, "w1")
    let_lease_pass(plan)
    assert run(plan, name="w2") is Left.FINISHED
