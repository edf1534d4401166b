"""Results come to their places whole; whoever is first stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from tests.worklist.toy import ledger_of, let_lease_pass, make, plan_in
from wsimil.errors import OutputError
from wsimil.files import atomic_path
from wsimil.worklist import Ledger, disk
from wsimil.worklist.commit import begin, commit, sweep
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.plan import WorkPlan
from wsimil.worklist.worker import Made


@pytest.fixture
def plan(tmp_path: Path) -> WorkPlan:
    return plan_in(tmp_path / "study", "slide", "run")


SLIDE, RUN = 0, 1


def begun(ledger: Ledger, index: int = SLIDE) -> Attempt:
    """A claim with its scratch folder."""
    unit = ledger.plan.stages[0].units[index]
    attempt = ledger.claim(unit, ledger.scan().get(unit.id))
    assert attempt is not None
    begin(attempt)
    return attempt


def made(ledger: Ledger, index: int = SLIDE) -> Made:
    outcome = make(begun(ledger, index))
    assert isinstance(outcome, Made)
    return outcome


def commit_of(ledger: Ledger, outcome: Made) -> bool:
    return commit(ledger, outcome.attempt, folders=outcome.folders, summary=outcome.summary, seconds=1.5)


def results(plan: WorkPlan) -> dict[str, str]:
    return {
        str(path.relative_to(plan.folder)): path.read_text()
        for path in sorted(plan.folder.rglob("*"))
        if path.is_file() and plan.work not in path.parents
    }


def left_over(plan: WorkPlan) -> list[Path]:
    return list((plan.work / "scratch").iterdir())


def test_results_come_to_their_place_and_the_receipt_names_them(plan: WorkPlan) -> None:
    ledger = ledger_of(plan)
    assert commit_of(ledger, made(ledger))
    assert results(plan) == {"features/e00000.h5": "slide"}
    assert ledger.receipt("e00000") == {
        "worker": "w1", "host": "h1", "attempt": 1, "seconds": 1.5, "summary": {"tiles": 5}, "kept": [],
        "products": {"features/e00000.h5": sha256(b"slide").hexdigest()},
    }  # fmt: skip
    assert not left_over(plan)


def test_a_folder_comes_as_one_piece(plan: WorkPlan) -> None:
    ledger = ledger_of(plan)
    assert commit_of(ledger, made(ledger, RUN))
    assert results(plan) == {"runs/e00001/config.yaml": "run", "runs/e00001/metrics.json": "runrun"}
    assert set(ledger.receipt("e00001")["products"]) == set(results(plan))  # type: ignore[arg-type]


def test_a_folder_of_another_try_stays_as_it_is(plan: WorkPlan) -> None:
    ledger, other = ledger_of(plan, "w1"), ledger_of(plan, "w2")
    first = made(ledger, RUN)
    let_lease_pass(plan)
    second = made(other, RUN)
    (second.attempt.scratch / "runs" / "e00001" / "config.yaml").write_text("another")
    (second.attempt.scratch / "runs" / "e00001" / "more.txt").write_text("more")
    assert commit_of(ledger, first)
    assert not commit_of(other, second)
    assert results(plan) == {"runs/e00001/config.yaml": "run", "runs/e00001/metrics.json": "runrun"}
    assert not left_over(plan)


def test_an_empty_folder_in_the_way_is_no_result(plan: WorkPlan) -> None:
    (plan.folder / "runs" / "e00001").mkdir(parents=True)
    ledger = ledger_of(plan)
    assert commit_of(ledger, made(ledger, RUN))
    assert "runs/e00001/config.yaml" in results(plan)


def test_a_file_of_another_try_stays_as_it_is(plan: WorkPlan) -> None:
    ledger, other = ledger_of(plan, "w1"), ledger_of(plan, "w2")
    first = made(ledger)
    let_lease_pass(plan)
    second = made(other)
    (first.attempt.scratch / "features" / "e00000.h5").write_text("of the orphan")
    assert commit_of(other, second)
    with pytest.raises(OutputError, match="cleared away"):
        commit_of(ledger, first)
    assert results(plan) == {"features/e00000.h5": "slide"}
    assert not left_over(plan)


def test_a_late_orphans_results_are_kept_and_the_newer_try_is_told(plan: WorkPlan) -> None:
    ledger, other = ledger_of(plan, "w1"), ledger_of(plan, "w2")
    orphan = made(ledger)
    let_lease_pass(plan)
    newer = made(other)
    assert commit_of(ledger, orphan)
    assert not commit_of(other, newer)
    assert other.receipt("e00000")["attempt"] == 1
    assert not left_over(plan)


def test_the_receipt_comes_last(plan: WorkPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_of(plan)
    outcome = made(ledger)
    finish = Ledger.finish

    def check(self: Ledger, attempt: Attempt, receipt: dict[str, object]) -> bool:
        assert results(plan) == {"features/e00000.h5": "slide"}
        return finish(self, attempt, receipt)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "finish", check)
    assert commit_of(ledger, outcome)


def test_a_try_after_one_that_died_between_results_and_receipt_finishes_the_unit(plan: WorkPlan) -> None:
    ledger, other = ledger_of(plan, "w1"), ledger_of(plan, "w2")
    for index, published in ((SLIDE, "features/e00000.h5"), (RUN, "runs/e00001")):
        outcome = made(ledger, index)
        place = plan.folder / published
        place.parent.mkdir(exist_ok=True)
        if index == SLIDE:
            disk.adopt(outcome.attempt.scratch / published, place)
        else:
            disk.adopt_folder(outcome.attempt.scratch / published, place)
        let_lease_pass(plan)
        assert commit_of(other, made(other, index))
        assert other.receipt(outcome.attempt.unit.id)["kept"] == [published]
    assert not left_over(plan)


def test_the_receipt_has_the_hash_of_what_lies_there(plan: WorkPlan) -> None:
    (plan.folder / "features").mkdir()
    (plan.folder / "features" / "e00000.h5").write_text("of before")
    ledger = ledger_of(plan)
    assert commit_of(ledger, made(ledger))
    assert ledger.receipt("e00000")["products"] == {"features/e00000.h5": sha256(b"of before").hexdigest()}


def test_no_receipt_is_written_for_results_that_were_cleared_away(plan: WorkPlan) -> None:
    """An orphan woke up after its unit was set aside, found its scratch folder gone, and had nothing to publish: it was done."""
    orphan = ledger_of(plan, "w0")
    late = made(orphan)
    for worker in ("w1", "w2"):
        let_lease_pass(plan)
        ledger = ledger_of(plan, worker)
        ledger.close(begun(ledger), "err", "no")
    sweep(ledger)
    assert not left_over(plan)
    with pytest.raises(OutputError, match="cleared away"):
        commit_of(orphan, late)
    assert not orphan.scan()["e00000"].done


def test_a_scratch_folder_goes_in_one_step(plan: WorkPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_of(plan)
    attempt = begun(ledger)
    (attempt.scratch / "a").touch()
    gone = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **options: (gone.append(attempt.scratch.exists()), rmtree(path, **options))
    )
    disk.remove_folder(attempt.scratch)
    assert gone == [False]
    assert not left_over(plan)


def test_names_that_are_no_text_are_committed(plan: WorkPlan) -> None:
    ledger = ledger_of(plan)
    attempt = begun(ledger)
    (attempt.scratch / os.fsdecode(b"\xff\n \xc3\xa9.txt")).write_text("x")
    assert commit(ledger, attempt)
    [name] = ledger.receipt("e00000")["products"]  # type: ignore[misc]
    assert (plan.folder / name).read_text() == "x"


def test_a_place_that_is_taken_by_something_else_is_an_output_error_and_no_receipt(plan: WorkPlan) -> None:
    (plan.folder / "features").touch()
    ledger = ledger_of(plan)
    with pytest.raises(OutputError, match="cannot write"):
        commit_of(ledger, made(ledger))
    assert not ledger.scan()["e00000"].done


def test_a_sweep_leaves_what_is_at_work_and_removes_what_is_finished(plan: WorkPlan) -> None:
    ledger = ledger_of(plan)
    running = begun(ledger, RUN)
    done = made(ledger)
    assert commit_of(ledger, done)
    begin(done.attempt)  # an orphan that woke up and made its folder again
    sweep(ledger)
    assert left_over(plan) == [running.scratch]


def test_a_sweep_spares_a_try_that_is_newer_than_what_it_saw(plan: WorkPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    for worker in ("w1", "w2"):
        ledger = ledger_of(plan, worker)
        ledger.close(begun(ledger), "err", "no")
    seen = ledger.scan()
    assert ledger.forgive("e00000")
    newer = begun(ledger)
    monkeypatch.setattr(Ledger, "scan", lambda _: seen)
    sweep(ledger)
    assert left_over(plan) == [newer.scratch]


def test_a_sweep_removes_files_of_dead_writers(plan: WorkPlan) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    with suppress(KeyError), atomic_path(plan.work / "x.json") as temporary:
        raise KeyError
    for folder in ("scratch", "workers"):
        (plan.work / folder / temporary.name).touch()
        (plan.work / folder / temporary.name.replace(f".{os.getpid()}.", f".{dead.pid}.")).touch()
    sweep(ledger_of(plan))
    for folder in ("scratch", "workers"):
        assert [str(os.getpid()) in path.name for path in (plan.work / folder).iterdir()] == [True]


def fill(path: Path) -> None:
    """Until nothing more fits."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_an_output_error_that_leaves_its_unit_to_others(small_disk: Path) -> None:
    plan = plan_in(small_disk / "study", "slide", "run")
    ledger = ledger_of(plan)
    outcome = made(ledger)
    filling = small_disk / "filling"
    fill(filling)
    with pytest.raises(OutputError, match="the disk is full"):
        commit_of(ledger, outcome)
    ledger.close(outcome.attempt, "fault", "the disk is full")
    assert ledger.scan()["e00000"].closings == {1: "fault"}
    full = ledger.claim(plan.stages[0].units[RUN])
    assert full is not None
    filling.unlink()
    other = ledger_of(plan, "w2")
    assert commit_of(other, made(other))
    assert results(plan) == {"features/e00000.h5": "slide"}
    assert json.loads((plan.work / "done" / "e00000").read_bytes())["worker"] == "w2"
