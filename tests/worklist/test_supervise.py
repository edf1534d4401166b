"""Processes of one machine, real ones: killed, told to go, started again."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.worklist.toy import Notes, ledger_of, plan_in, product
from wsimil.errors import ConfigError
from wsimil.worklist import WorkPlan, disk
from wsimil.worklist.host import worker_name
from wsimil.worklist.supervise import Seat, Supervisor, seats, visible_gpus

TOY = Path(__file__).with_name("toy.py")


def toys(plan: WorkPlan) -> Callable[[str], Sequence[str]]:
    return lambda name: [sys.executable, str(TOY), str(plan.folder), name]


def cpu_seats(count: int = 1) -> list[Seat]:
    return seats("none", count, {})


def supervise(
    plan: WorkPlan, command: Callable[[str], Sequence[str]] | None = None, count: int = 1
) -> tuple[int, Notes]:
    notes = Notes()
    code = Supervisor(plan=plan, seats=cpu_seats(count), command=command or toys(plan), watcher=notes).run()
    return code, notes


@pytest.mark.parametrize(
    ("gpus", "workers", "visible", "expected"),
    [
        ("auto", None, "0,1", ["gpu 0", "gpu 1"]),
        ("all", None, "3, 5 ,", ["gpu 3", "gpu 5"]),
        ("auto", None, "", ["cpu"]),
        ("auto", 2, "", ["cpu", "cpu"]),
        ("none", 3, "0,1", ["cpu", "cpu", "cpu"]),
        ("1", None, "MIG-1,MIG-2", ["gpu MIG-1"]),
    ],
)
def test_there_is_a_seat_for_each_gpu_else_for_each_worker(
    gpus: str, workers: int | None, visible: str, expected: list[str]
) -> None:
    assert [seat.device for seat in seats(gpus, workers, {"CUDA_VISIBLE_DEVICES": visible})] == expected


def test_each_seat_sees_its_own_gpu_and_those_of_the_processor_none() -> None:
    found = seats("all", None, {"CUDA_VISIBLE_DEVICES": "3,5"})
    assert [seat.env["CUDA_VISIBLE_DEVICES"] for seat in found] == ["3", "5"]
    assert [seat.env["CUDA_VISIBLE_DEVICES"] for seat in seats("none", 2, {"CUDA_VISIBLE_DEVICES": "3,5"})] == ["", ""]


@pytest.mark.parametrize("named", ["-1", "NoDevFiles", "", "-1,0"])
def test_a_gpu_that_is_named_and_cannot_be_hides_those_behind_it(named: str) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}) == []


@pytest.mark.parametrize(
    ("gpus", "workers", "named"),
    [("all", None, ""), ("3", None, "0,1"), ("some", None, "0"), ("0", None, "0"), ("all", 2, "0")],
)
def test_seats_that_cannot_be_are_refused(gpus: str, workers: int | None, named: str) -> None:
    with pytest.raises(ConfigError, match="--"):
        seats(gpus, workers, {"CUDA_VISIBLE_DEVICES": named})


def test_no_two_workers_have_one_name() -> None:
    names = {worker_name() for _ in range(100)}
    assert len(names) == 100
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") for name in names)


def test_two_processes_share_a_plan(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, *(f"u{i}" for i in range(30)))
    code, _ = supervise(plan, count=2)
    assert code == 0
    assert all(product(plan, unit).exists() for unit in plan.stages[0].units)


@pytest.mark.parametrize("death", ["SIGSEGV", "SIGKILL"])
def test_a_unit_that_kills_its_process_is_set_aside_and_its_neighbours_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    monkeypatch.setenv("TOY_AHEAD", "3")
    plan = plan_in(tmp_path, "a", "b", death.lower(), "c", "d", "e")
    code, notes = supervise(plan)
    assert code == 0
    found = ledger_of(plan).scan()
    assert [unit.name for unit in plan.stages[0].units if found[unit.id].is_bad] == [death.lower()]
    assert found["e00002"].closings == {1: "suspect", 2: "err", 3: "err"}
    reasons = ledger_of(plan).reasons("e00002")
    assert all(death in str(one["reason"]) for one in reasons)
    assert len({one["worker"] for one in reasons}) == 3
    assert len(notes.lines) == 3


def test_more_killers_than_faults_are_allowed_are_all_set_aside(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a", *(f"sigsegv-{i}" for i in range(4)))
    code, _ = supervise(plan)
    assert code == 0
    assert sum(one.is_bad for one in ledger_of(plan).scan().values()) == 4


def test_what_failed_in_one_process_is_tried_in_a_new_one(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "boom", "a")
    code, _ = supervise(plan)
    assert code == 0
    assert ledger_of(plan).scan()["e00000"].is_bad


def test_a_seat_whose_processes_die_with_nothing_done_is_given_up(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")
    code, notes = supervise(plan, lambda _: ["sh", "-c", "kill -9 $$"])
    assert code == 4
    assert len(notes.lines) == 3


def test_a_seat_that_cannot_be_filled_is_a_fault(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")
    code, notes = supervise(plan, lambda _: [str(tmp_path / "nothing")])
    assert code == 4
    assert "FAULT OF THIS WORKER" in notes.lines[0]


def test_a_worker_that_crashes_is_not_taken_for_one_that_saw_the_end_of_the_stage(tmp_path: Path) -> None:
    # As where a machine's C library is too old for torch. An array's last elements would leave the queue upon a 1.
    plan = plan_in(tmp_path, "a")
    code, notes = supervise(plan, lambda _: [sys.executable, "-c", "raise ImportError('GLIBC_2.28 not found')"])
    assert code == 4
    assert "FAULT OF THIS WORKER" in notes.lines[0]


def test_a_unit_is_not_blamed_where_its_process_was_told_to_go_and_could_not_hand_it_back(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "sigterm")
    code, _ = supervise(plan)
    assert code == 4
    assert set(ledger_of(plan).scan()["e00000"].closings.values()) == {"back"}


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 4], 0), ([3, 4], 3), ([4, 5], 4), ([5, 5], 5), ([0, 3], 0), ([5, 2], 2)]
)
def test_the_code_of_all_is_that_of_the_worker_that_knows_most(tmp_path: Path, codes: list[int], expected: int) -> None:
    plan = plan_in(tmp_path, "a")
    left = iter(codes)
    code, _ = supervise(plan, lambda _: ["sh", "-c", f"exit {next(left)}"], count=2)
    assert code == expected


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_in_good_order_and_everything_is_handed_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, expected: int
) -> None:
    plan = plan_in(tmp_path / "study", "wait-1", "wait-2", "a")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setenv("TOY_FIFO", str(fifo))
    monkeypatch.setenv("TOY_AHEAD", "1")
    told: list[str] = []

    def send() -> None:
        while len(told) < 2:
            with fifo.open() as file:
                told.extend(file.read().split())
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    two = [Seat(device=f"gpu {gpu}", env={"CUDA_VISIBLE_DEVICES": gpu}) for gpu in ("3", "5")]
    assert Supervisor(plan=plan, seats=two, command=toys(plan), watcher=Notes()).run() == expected
    thread.join()
    assert sorted(told) == ["3", "5"]
    found = ledger_of(plan).scan()
    assert [one.closings for one in found.values()] == [{1: "back"}, {1: "back"}]
    cards = [disk.read_json(path) for path in (plan.work / "workers").glob("*.json")]
    assert all(card["left"] and not card["held"] for card in cards)
    assert len(cards) == 2


def test_after_a_signal_nobody_is_started_any_more(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "a")
    begun: list[str] = []

    def command(name: str) -> Sequence[str]:
        begun.append(name)
        os.kill(os.getpid(), signal.SIGUSR1)
        return ["sh", "-c", "sleep 0.5; kill -9 $$"]  # only the main thread hears a signal, and not at once

    code, _ = supervise(plan, command)
    assert code == 75
    assert len(begun) == 1


def test_a_child_that_is_just_being_started_hears_of_the_signal(tmp_path: Path) -> None:
    """It was asked to go between its start and its entry into the list of children, heard nothing, and ran to its end."""
    plan = plan_in(tmp_path, "a")

    def command(name: str) -> Sequence[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return ["sh", "-c", "exec tail -f /dev/null"]

    code, _ = supervise(plan, command)
    assert code == 143
