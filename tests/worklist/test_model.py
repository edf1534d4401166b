"""The protocol, checked in every order of steps of a few workers; see explorer.py, which runs the package's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.worklist.explorer import Explorer, Memory
from wsimil.errors import OutputError
from wsimil.worklist import attempts as attempts_module
from wsimil.worklist import disk
from wsimil.worklist.attempts import Attempts, Closing
from wsimil.worklist.ledger import Ledger

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("settings", "states"),
    [
        ({"workers": 3, "units": 2, "budget": 1}, 50_000),
        ({"workers": 3, "units": 1, "budget": 2}, 30_000),
        ({"workers": 2, "units": 2, "budget": 2}, 200_000),
        ({"workers": 2, "units": 1, "budget": 2, "fine": True}, 190_000),
        ({"workers": 2, "units": 2, "budget": 0, "fine": True}, 1_000),
        ({"workers": 3, "units": 2, "budget": 3, "deeds": ("err",)}, 10_000),
        ({"workers": 3, "units": 2, "budget": 3, "deeds": ("fault",)}, 10_000),
        ({"workers": 3, "units": 2, "budget": 3, "deeds": ("err", "retry")}, 50_000),
        ({"workers": 2, "units": 2, "budget": 3, "deeds": ("kill",)}, 100_000),
        ({"workers": 2, "units": 1, "budget": 3, "deeds": ("kill", "stall")}, 1_400),
        ({"workers": 3, "units": 1, "budget": 3, "deeds": ("err", "stall")}, 2_000),
        ({"workers": 2, "units": 1, "budget": 4, "deeds": ("err", "kill", "retry")}, 3_000),
    ],
    ids=[
        "three workers, two units", "three workers, one unit", "two workers, two units", "every question a step",
        "every question a step, two units", "a unit that fails beside another", "three faults beside another unit",
        "retries", "three deaths", "orphans and deaths", "orphans of a unit that fails", "retries of one unit",
    ],
)  # fmt: skip
def test_no_order_of_steps_loses_a_unit_or_changes_a_result_or_breaks_the_rule(
    settings: dict[str, Any], states: int
) -> None:
    explorer = Explorer(**settings)
    explorer.explore()
    assert explorer.states >= states


@pytest.mark.parametrize("supervised", [False, True])
def test_an_innocent_unit_is_never_set_aside_for_a_neighbour_that_kills(supervised: bool) -> None:
    explorer = Explorer(poison=0, budget=0, supervised=supervised)
    explorer.explore()
    assert explorer.states > 1000


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 3, "units": 2, "budget": 0},
        {"workers": 2, "units": 2, "budget": 1},
        {"workers": 3, "units": 1, "budget": 1},
        {"workers": 2, "units": 1, "budget": 2, "deeds": ("err", "fault")},
        {"workers": 2, "units": 1, "budget": 2, "deeds": ("kill", "stall")},
        {"workers": 2, "units": 1, "budget": 0, "fine": True},
        {"workers": 2, "units": 2, "budget": 0, "poison": 0},
    ],
    ids=str,
)
def test_states_that_are_left_out_tell_nothing_new(settings: dict[str, Any]) -> None:
    some, every = Explorer(**settings, traced=True), Explorer(**settings, traced=True, reduced=False)
    some.explore()
    every.explore()
    assert some.changes == every.changes
    assert some.finals == every.finals
    assert some.states < every.states


def overwrite(memory: Memory, path: str, data: bytes) -> bool:
    memory.files[path] = data
    return True


def share(memory: Memory, path: Path, data: bytes) -> bool:
    memory._add(str(path), data)
    return True


def overwrite_receipts(memory: Memory, data: bytes, target: Path) -> bool:
    return overwrite(memory, str(target), data) if "/done/" in str(target) else memory._add(str(target), data)


def replace_folder(memory: Memory, source: Path, target: Path) -> bool:
    memory.remove_folder(target)
    return adopt_folder(memory, source, target)


def count_what_is_forgiven(attempts: Attempts, *kinds: Closing) -> tuple[int, ...]:
    return tuple(k for k, kind in sorted(attempts.closings.items()) if kind in kinds)


def take_over_under_the_same_number(ledger: Ledger, unit_id: str) -> Attempts:
    found = look(ledger, unit_id)
    found.newest -= 1
    return found


adopt_folder, look = Memory.adopt_folder, Ledger.look


@pytest.mark.parametrize(
    ("settings", "owner", "name", "broken"),
    [
        ({"budget": 0}, Memory, "_add", overwrite),
        ({"budget": 0}, Memory, "create", share),
        ({"budget": 1}, Memory, "publish", overwrite_receipts),
        ({"budget": 1}, Memory, "adopt_folder", replace_folder),
        ({"budget": 1}, Ledger, "look", take_over_under_the_same_number),
        ({"budget": 1}, attempts_module, "FAILED_BY", 1),
        ({"budget": 1}, attempts_module, "FAULTY", 1),
        ({"budget": 1}, attempts_module, "SILENT", 1),
        ({"budget": 0, "poison": 0}, Ledger, "_condemn", lambda *_, **__: False),
        ({"budget": 4, "workers": 2, "units": 1, "deeds": ("err", "retry")}, Attempts, "counted", count_what_is_forgiven),
        ({"budget": 0, "poison": 0}, attempts_module, "SILENT", 1),
    ],
    ids=[
        "links that overwrite", "claims of two", "receipts that overwrite", "folders that replace", "tries of one number",
        "one failure condemns", "one fault condemns", "one silence condemns", "nobody is condemned", "what is forgiven counts",
        "neighbours of a killer",
    ],
)  # fmt: skip
def test_a_protocol_that_is_broken_is_found_out(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], owner: object, name: str, broken: object
) -> None:
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError):
        Explorer(**settings).explore()


def test_the_memory_of_the_explorer_answers_as_a_disk_does(tmp_path: Path) -> None:
    """The same questions to both, in one order."""

    def told(one: Any, root: Path) -> list[object]:
        scratch, target = root / "scratch" / "u.1", root / "r"
        for folder in (scratch, target):
            one.make_folder(folder)
        answers: list[object] = [one.create(root / "a", b"{}"), one.create(root / "a", b"x"), one.exists(root / "a")]
        answers += [one.publish(b"1", root / "b"), one.publish(b"2", root / "b"), dict(one.read_json(root / "a"))]
        answers += [dict(one.read_json(root / "c")), one.exists(root / "c"), one.exists(scratch)]
        for part in ("f/x", "f/y", "g/x"):
            if one is disk:
                (scratch / part).parent.mkdir(exist_ok=True)
                (scratch / part).write_bytes(part.encode())
            else:
                one.files[str(scratch / part)] = part.encode()
        answers += [[str(path.relative_to(root)) for path in one.sync_tree(scratch)], one.sha256_of(scratch / "g/x")]
        answers += [one.adopt(scratch / "g/x", target / "x"), one.adopt(scratch / "g/x", target / "x")]
        answers += [
            one.adopt_folder(scratch / "f", target / "f"),
            one.exists(target / "f/y"),
            one.exists(scratch / "f/y"),
        ]
        if one is disk:
            (scratch / "f").mkdir()
            (scratch / "f" / "z").write_bytes(b"")
        else:
            one.files[str(scratch / "f" / "z")] = b""
        answers += [
            one.adopt_folder(scratch / "f", target / "f"),
            one.exists(target / "f/z"),
            sorted(one.names(target)),
        ]
        one.remove_folder(scratch)
        answers += [one.exists(scratch), one.exists(scratch / "g/x"), one.exists(target / "x"), one.sync_tree(scratch)]
        one.remove_folder(scratch)
        for missing in (one.adopt, one.adopt_folder):
            with pytest.raises(OutputError):
                missing(scratch / "g/x", target / "new")
        return answers

    memory = Memory()
    assert told(memory, Path("/study")) == told(disk, tmp_path)
