"""Claims, their ends, and what follows from them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from tests.worklist.toy import ledger_of, let_lease_pass, plan_in, silence
from wsimil.errors import OutputError
from wsimil.worklist import Ledger, disk
from wsimil.worklist.ledger import Attempt, held_by
from wsimil.worklist.plan import WorkPlan


@pytest.fixture
def plan(tmp_path: Path) -> WorkPlan:
    return plan_in(tmp_path / "study", "a", "b")


def claim(ledger: Ledger, index: int = 0, *, beside: bool = False) -> Attempt | None:
    """As a worker does that has just looked."""
    unit = ledger.plan.stages[0].units[index]
    return ledger.claim(unit, ledger.scan().get(unit.id), beside=beside)


def claimed(ledger: Ledger, index: int = 0) -> Attempt:
    attempt = claim(ledger, index)
    assert attempt is not None
    return attempt


def test_one_of_two_gets_a_unit(plan: WorkPlan) -> None:
    unit = plan.stages[0].units[0]
    first = ledger_of(plan, "w1").claim(unit)
    assert first is not None
    assert (first.id, first.alone) == ("e00000.1", False)
    assert ledger_of(plan, "w2").claim(unit) is None
    assert claim(ledger_of(plan, "w2")) is None


def test_a_claim_says_whose_it_is(plan: WorkPlan) -> None:
    claimed(ledger_of(plan, "w1", "h1"))
    assert json.loads((plan.work / "claims" / "e00000.1").read_bytes()) == {"worker": "w1", "host": "h1"}
    assert ledger_of(plan, "w2").holder("e00000", 1) == "w1"


def test_a_look_agrees_with_a_scan(plan: WorkPlan) -> None:
    for worker in ("w1", "w2", "w3"):
        ledger = ledger_of(plan, worker)
        ledger.close(claimed(ledger), "err" if worker != "w1" else "back", "no")
        assert ledger.look("e00000") == ledger.scan()["e00000"]
    assert ledger.forgive("e00000")
    ledger.finish(claimed(ledger), {})
    assert ledger.look("e00000") == ledger.scan()["e00000"]
    assert ledger.look("e00000").done


def test_a_claim_is_taken_over_after_a_lease_without_a_beat(plan: WorkPlan) -> None:
    first = claimed(ledger_of(plan, "w1"))
    let_lease_pass(plan)
    second = claimed(ledger_of(plan, "w2"))
    assert (second.number, second.alone) == (2, True)
    assert first.scratch != second.scratch


def test_a_beat_keeps_a_claim(plan: WorkPlan) -> None:
    ledger = ledger_of(plan, "w1")
    first = claimed(ledger)
    let_lease_pass(plan)
    ledger.beat([first])
    assert claim(ledger_of(plan, "w2")) is None


def test_a_beat_that_cannot_be_is_no_error(plan: WorkPlan) -> None:
    ledger = ledger_of(plan)
    attempt = claimed(ledger)
    (plan.work / "claims" / attempt.id).unlink()
    ledger.beat([attempt])


@pytest.mark.parametrize("skew_s", [-7200.0, 7200.0])
def test_only_the_clock_of_the_file_system_counts(
    plan: WorkPlan, monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    import time

    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + skew_s)
    claimed(ledger_of(plan, "w1"))
    assert claim(ledger_of(plan, "w2")) is None
    let_lease_pass(plan)
    assert claim(ledger_of(plan, "w2")) is not None


def test_of_two_that_take_over_at_once_one_succeeds(plan: WorkPlan) -> None:
    claimed(ledger_of(plan, "w1"))
    let_lease_pass(plan)
    seen = ledger_of(plan, "w2").scan()["e00000"]
    unit = plan.stages[0].units[0]
    assert ledger_of(plan, "w2").claim(unit, seen) is not None
    assert ledger_of(plan, "w3").claim(unit, seen) is None


def test_what_was_handed_back_is_anybodys_and_counts_for_nothing(plan: WorkPlan) -> None:
    for worker in "abcdef":
        ledger = ledger_of(plan, worker)
        attempt = claimed(ledger)
        assert not attempt.alone
        ledger.close(attempt, "back", "USR1")
    assert ledger.reasons("e00000") == []
    assert ledger.scan()["e00000"].newest == 6


def test_two_failures_on_one_worker_set_nothing_aside(plan: WorkPlan) -> None:
    ledger = ledger_of(plan)
    for _ in range(4):
        ledger.close(claimed(ledger), "err", "no tissue")
    assert not ledger.scan()["e00000"].is_bad


def test_two_failures_on_two_workers_set_a_unit_aside_with_both_reasons(plan: WorkPlan) -> None:
    for worker, host in (("w1", "h1"), ("w2", "h2")):
        ledger = ledger_of(plan, worker, host)
        ledger.close(claimed(ledger), "err", f"no tissue, says {worker}")
    found = ledger.scan()["e00000"]
    assert found.is_bad
    assert found.bad == 2
    assert claim(ledger_of(plan, "w3")) is None
    reasons = json.loads((plan.work / "bad" / "e00000.2").read_bytes())["reasons"]
    assert [(one["attempt"], one["kind"], one["worker"], one["host"], one["reason"]) for one in reasons] == [
        (1, "err", "w1", "h1", "no tissue, says w1"),
        (2, "err", "w2", "h2", "no tissue, says w2"),
    ]


def test_faults_of_three_workers_set_a_unit_aside_and_of_two_do_not(plan: WorkPlan) -> None:
    for worker, is_bad in (("w1", False), ("w1", False), ("w2", False), ("w3", True)):
        ledger = ledger_of(plan, worker)
        ledger.close(claimed(ledger), "fault", "CUDA out of memory")
        assert ledger.scan()["e00000"].is_bad == is_bad


def test_three_silent_tries_set_a_unit_aside(plan: WorkPlan) -> None:
    for worker in ("w1", "w2", "w3"):
        claimed(ledger_of(plan, worker))
        let_lease_pass(plan)
    ledger = ledger_of(plan, "w4")
    assert claim(ledger) is None
    assert ledger.scan()["e00000"].is_bad
    assert [one["kind"] for one in ledger.reasons("e00000")] == ["silent"] * 3
    assert [one["worker"] for one in ledger.reasons("e00000")] == ["w1", "w2", "w3"]


def test_two_silent_tries_and_one_that_was_handed_back_set_nothing_aside(plan: WorkPlan) -> None:
    for worker in ("w1", "w2"):
        claimed(ledger_of(plan, worker))
        let_lease_pass(plan)
    ledger = ledger_of(plan, "w3")
    ledger.close(claimed(ledger), "back", "USR1")
    assert claim(ledger) is not None


@pytest.mark.parametrize("ending", ["suspect", "err", "fault", None])
def test_what_may_kill_its_neighbours_is_tried_alone(plan: WorkPlan, ending: str | None) -> None:
    ledger = ledger_of(plan, "w1")
    attempt = claimed(ledger)
    if ending is None:
        let_lease_pass(plan)
    else:
        ledger.close(attempt, ending, "died")  # type: ignore[arg-type]
    other = ledger_of(plan, "w2")
    assert claim(other, beside=True) is None
    second = claim(other)
    assert second is not None
    assert second.alone


def test_that_it_must_be_alone_is_seen_though_it_happened_after_the_scan(plan: WorkPlan) -> None:
    first, other = ledger_of(plan, "w1"), ledger_of(plan, "w2")
    first.close(claimed(first), "back", "USR1")
    seen = other.scan()["e00000"]
    first.close(claimed(first), "suspect", "died")
    assert not seen.is_alone
    assert other.claim(plan.stages[0].units[0], seen, beside=True) is None


def test_a_late_orphan_succeeds_though_its_unit_was_taken_over(plan: WorkPlan) -> None:
    orphan, other = ledger_of(plan, "w1"), ledger_of(plan, "w2")
    late = claimed(orphan)
    let_lease_pass(plan)
    newer = claimed(other)
    assert orphan.finish(late, {"products": {}})
    assert not other.finish(newer, {"products": {}})
    assert other.receipt("e00000")["attempt"] == 1
    assert claim(ledger_of(plan, "w3")) is None


def test_a_late_orphan_redeems_a_unit_that_was_set_aside(plan: WorkPlan) -> None:
    orphan = ledger_of(plan, "w0")
    late = claimed(orphan)
    for worker in ("w1", "w2"):
        let_lease_pass(plan)
        ledger = ledger_of(plan, worker)
        ledger.close(claimed(ledger), "err", "no")
    assert orphan.scan()["e00000"].is_bad
    assert orphan.finish(late, {})
    assert not orphan.scan()["e00000"].is_bad


def test_a_late_orphan_that_failed_is_no_longer_silent(plan: WorkPlan) -> None:
    orphan = ledger_of(plan, "w0")
    late = claimed(orphan)
    let_lease_pass(plan)
    claimed(ledger_of(plan, "w1"))
    assert orphan.scan()["e00000"].silent == (1,)
    orphan.close(late, "err", "no")
    found = orphan.scan()["e00000"]
    assert (found.silent, found.counted("err"), found.is_held) == ((), (1,), True)


def test_what_is_forgiven_is_tried_as_if_for_the_first_time(plan: WorkPlan) -> None:
    for worker in ("w1", "w2"):
        ledger = ledger_of(plan, worker)
        ledger.close(claimed(ledger), "err", "no")
    assert ledger.failed_here("e00000", ledger.scan()["e00000"])
    assert ledger.forgive("e00000")
    assert not ledger.forgive("e00000")
    assert not ledger.failed_here("e00000", ledger.scan()["e00000"])
    assert ledger.reasons("e00000") == []
    attempt = claimed(ledger)
    assert (attempt.number, attempt.alone) == (3, False)
    ledger.close(attempt, "err", "no")
    assert not ledger.scan()["e00000"].is_bad
    other = ledger_of(plan, "w3")
    other.close(claimed(other), "err", "no")
    assert other.scan()["e00000"].is_bad
    assert [one["attempt"] for one in other.reasons("e00000")] == [3, 4]


def test_only_what_was_set_aside_is_forgiven(plan: WorkPlan) -> None:
    ledger = ledger_of(plan)
    assert not ledger.forgive("e00000")
    ledger.close(claimed(ledger), "err", "no")
    assert not ledger.forgive("e00000")


def test_who_failed_where_is_known(plan: WorkPlan) -> None:
    ledger = ledger_of(plan, "w1", "h1")
    ledger.close(claimed(ledger), "fault", "no space")
    found = ledger.scan()["e00000"]
    assert ledger.failed_here("e00000", found)
    assert not ledger_of(plan, "w2", "h1").failed_here("e00000", found)
    assert ledger_of(plan, "w2", "h1").failed_on_host("e00000", found)
    assert not ledger_of(plan, "w3", "h2").failed_on_host("e00000", found)


def test_a_supervisor_ends_the_try_of_its_dead_worker_in_that_workers_name(plan: WorkPlan) -> None:
    claimed(ledger_of(plan, "w1"))
    supervisor = ledger_of(plan, "w1-supervisor")
    assert held_by(supervisor, "w1", supervisor.scan()) == [("e00000", 1)]
    assert held_by(supervisor, "w2", supervisor.scan()) == []
    supervisor.close_of("e00000", 1, "err", "SIGSEGV", worker="w1")
    assert ledger_of(plan, "w1").failed_here("e00000", supervisor.scan()["e00000"])


def test_a_note_that_was_torn_by_a_crash_counts_as_a_worker_of_its_own(plan: WorkPlan) -> None:
    for worker in ("w1", "w2"):
        ledger = ledger_of(plan, worker)
        attempt = claimed(ledger)
        (plan.work / "claims" / f"{attempt.id}.err").write_text('{"worker": "w')
    assert claim(ledger_of(plan, "w3")) is None
    assert ledger.scan()["e00000"].is_bad


def test_a_claim_without_content_is_a_claim(plan: WorkPlan) -> None:
    (plan.work / "claims" / "e00000.1").touch()
    ledger = ledger_of(plan)
    assert claim(ledger) is None
    assert ledger.holder("e00000", 1) == ""
    let_lease_pass(plan)
    assert claim(ledger) is not None


def test_a_full_disk_that_takes_a_name_and_no_content_gives_a_claim(
    plan: WorkPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger = ledger_of(plan, "w1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(Path, "write_bytes", full)
        assert claim(ledger) is not None
    assert (plan.work / "claims" / "e00000.1").read_bytes() == b""
    assert claim(ledger, 1) is not None
    assert ledger.holder("e00001", 1) == "w1"


def test_a_claim_is_young_though_its_worker_held_nothing_for_long(plan: WorkPlan) -> None:
    ledger = ledger_of(plan, "w1")
    ledger.close(claimed(ledger), "back", "waited for others")
    let_lease_pass(plan)
    second = claimed(ledger, 1)
    assert not ledger.is_silent("e00001", second.number)
    assert claim(ledger_of(plan, "w2"), 1) is None


def test_a_claim_whose_answer_was_lost_is_ours_once(plan: WorkPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_of(plan, "w1")
    ledger.close(claimed(ledger, 1), "back", "so that there is a token")
    link = os.link

    def forgetful(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", forgetful)
        assert claim(ledger) is not None
    unit = plan.stages[0].units[0]
    assert ledger.claim(unit) is None
    assert ledger_of(plan, "w2").claim(unit) is None


def test_a_worker_whose_file_takes_no_more_names_claims_by_files_of_their_own(
    plan: WorkPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(*_: object) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    monkeypatch.setattr(os, "link", too_many)
    ledger = ledger_of(plan, "w1")
    assert claim(ledger) is not None
    assert ledger.holder("e00000", 1) == "w1"
    assert claim(ledger_of(plan, "w2")) is None


def test_a_full_disk_takes_the_end_of_a_try_without_its_reason(plan: WorkPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> bool:
        raise OutputError("the disk is full")

    ledger = ledger_of(plan, "w1")
    attempt = claimed(ledger)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "publish", full)
        ledger.close(attempt, "fault", "the disk is full")
    found = ledger.scan()["e00000"]
    assert found.closings == {1: "fault"}
    assert ledger.failed_here("e00000", found)
    assert ledger.reasons("e00000") == [
        {"attempt": 1, "kind": "fault", "worker": "w1", "host": "h1", "reason": "could not be written down"}
    ]


def test_a_folder_that_is_gone_is_an_output_error(plan: WorkPlan) -> None:
    ledger = ledger_of(plan)
    (plan.work / "claims").rename(plan.work / "elsewhere")
    with pytest.raises(OutputError, match="cannot list"):
        ledger.scan()
    with pytest.raises(OutputError, match="cannot write"):
        ledger.claim(plan.stages[0].units[0])


def test_others_are_alive_as_long_as_their_cards_are_young_and_say_no_goodbye(plan: WorkPlan) -> None:
    ledger = ledger_of(plan, "w1")
    ledger.card.write_text(json.dumps({"left": ""}))
    assert not ledger.others_alive()
    other = ledger_of(plan, "w2").card
    other.write_text(json.dumps({"left": "finished"}))
    assert not ledger.others_alive()
    other.write_text(json.dumps({"left": ""}))
    assert ledger.others_alive()
    silence(plan, "w2")
    assert not ledger.others_alive()


def test_a_receipt_that_is_not_there_is_said_to_be_so(plan: WorkPlan) -> None:
    with pytest.raises(OutputError, match="e00000 cannot be read"):
        ledger_of(plan).receipt("e00000")
