"""What names of files say of a unit, with no file."""

from __future__ import annotations

import pytest

from wsimil.worklist.attempts import Attempts, parse


def of(*claims: str, done: tuple[str, ...] = (), bad: tuple[str, ...] = ()) -> Attempts:
    """The tries of unit u, of names without it."""
    return parse([f"u.{name}" for name in claims], [f"u{name}" for name in done], [f"u.{name}" for name in bad])["u"]


def test_a_claim_is_held_until_it_ends() -> None:
    assert of("1").is_held
    for ending in ("back", "suspect", "err", "fault"):
        assert not of("1", f"1.{ending}").is_held
    assert not of("1", done=("",)).is_held
    assert not of("1", bad=("1",)).is_held


def test_only_the_newest_try_is_held() -> None:
    assert of("1", "2").is_held
    assert not of("1", "2", "2.back").is_held


def test_a_try_that_was_followed_and_never_ended_was_silent() -> None:
    assert of("1", "2", "3", "2.back").silent == (1,)


def test_numbers_are_numbers_and_not_text() -> None:
    assert of(*map(str, range(1, 12))).newest == 11


@pytest.mark.parametrize("ending", ["suspect", "err", "fault"])
def test_after_something_went_wrong_a_unit_is_tried_alone(ending: str) -> None:
    assert of("1", f"1.{ending}").is_alone
    assert of("1", "2", "2.back").is_alone
    assert not of("1", "1.back").is_alone


def test_results_outweigh_that_it_was_set_aside() -> None:
    found = of("1", "2", "1.err", "2.err", done=("",), bad=("2",))
    assert found.is_finished
    assert not found.is_bad


def test_what_is_forgiven_counts_for_nothing() -> None:
    found = of("1", "2", "1.err", "2.err", "2.forgiven", bad=("2",))
    assert not found.is_finished
    assert not found.is_held
    assert not found.is_alone
    assert found.counted("err") == ()


def test_a_unit_that_was_set_aside_in_silence_is_not_held_once_it_is_forgiven() -> None:
    assert not of("1", "2", "3", "3.forgiven", bad=("3",)).is_held


def test_what_is_bad_again_after_it_was_forgiven_is_bad() -> None:
    assert of("1", "2", "3", "4", "1.err", "2.err", "2.forgiven", "3.err", "4.err", bad=("2", "4")).is_bad


def test_of_two_ends_of_one_try_the_worse_holds_in_any_order() -> None:
    assert of("1", "1.back", "1.err").closings == of("1", "1.err", "1.back").closings == {1: "err"}


def test_files_in_the_making_are_passed_over() -> None:
    assert parse([".u.1.wsimil-tmp", "u.1"], [".u.wsimil-tmp"], [".u.2.wsimil-tmp"]) == {"u": Attempts(newest=1)}


@pytest.mark.parametrize(
    ("claims", "workers", "newest_is_silent", "condemned"),
    [
        (("1", "1.err"), "a", False, False),
        (("1", "1.err", "2", "2.err"), "aa", False, False),
        (("1", "1.err", "2", "2.err"), "ab", False, True),
        (("1", "1.err", "2", "2.fault"), "ab", False, False),
        (("1", "1.fault", "2", "2.fault"), "ab", False, False),
        (("1", "1.fault", "2", "2.fault", "3", "3.fault"), "abc", False, True),
        (("1", "1.fault", "2", "2.fault", "3", "3.fault"), "aba", False, False),
        (("1", "1.fault", "2", "2.err", "3", "3.fault"), "abc", False, True),
        (("1", "2", "3"), "", False, False),
        (("1", "2", "3"), "", True, True),
        (("1", "2", "3", "4"), "", False, True),
        (("1", "1.suspect", "2", "2.suspect", "3", "3.suspect", "4", "4.back"), "", False, False),
        (("1", "1.err", "2", "2.err", "2.forgiven", "3", "3.err"), "abc", False, False),
    ],
)
def test_a_unit_is_condemned_by_the_rule(
    claims: tuple[str, ...], workers: str, newest_is_silent: bool, condemned: bool
) -> None:
    found = of(*claims)
    assert found.condemned(dict(enumerate(workers, 1)), newest_is_silent=newest_is_silent) == condemned
