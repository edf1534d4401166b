"""Pseudonyms are the same for the same key, tell nothing without it, and lead back with it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from wsimil.errors import ConfigError, OutputError
from wsimil.pseudonyms import Pseudonyms, is_pseudonym, open_pseudonyms, refuse_beside_results, save_pseudonyms

KEY = bytes(range(32))


def test_a_name_hangs_on_the_key_and_the_id_alone() -> None:
    names = [Pseudonyms(KEY).name("JANE-DOE-1957"), Pseudonyms(KEY).name("JANE-DOE-1957")]
    assert names[0] == names[1] == "anon-mt5qwd2lw2dl"
    assert Pseudonyms(KEY[::-1]).name("JANE-DOE-1957") != names[0]
    assert Pseudonyms(KEY).name("JANE-DOE-1958") != names[0]
    assert is_pseudonym(names[0])
    assert not [
        text for text in ("JANE-DOE-1957", f"{names[0]}x", f"x{names[0]}", "anon-", "anon-1") if is_pseudonym(text)
    ]


def test_the_file_gives_the_same_names_and_leads_back_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    first = open_pseudonyms(path)
    name = first.name("Müller 1")
    save_pseudonyms(path, first)
    again = open_pseudonyms(path)
    assert again.name("Müller 1") == name
    assert again.identity(name) == "Müller 1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_pseudonyms(tmp_path / "other.json").name("Müller 1") != name


def test_two_commands_at_once_do_not_lose_each_others_way_back(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    first, second = open_pseudonyms(path), open_pseudonyms(path)
    name = first.name("JANE")
    save_pseudonyms(path, first)
    second.name("JOE")
    with pytest.raises(ConfigError, match="with a key of its own; run this one again"):
        save_pseudonyms(path, second)
    third, fourth = open_pseudonyms(path), open_pseudonyms(path)
    third.name("JIM")
    other = fourth.name("JOE")
    save_pseudonyms(path, third)
    save_pseudonyms(path, fourth)
    found = open_pseudonyms(path)
    assert [found.identity(one) for one in (name, other, third.name("JIM"))] == ["JANE", "JOE", "JIM"]


def test_messages_lose_the_ids_also_where_one_is_part_of_another() -> None:
    names = Pseudonyms(KEY)
    text = names.inert("slide 'doe' and slide 'doe-2' are broken", ["doe", "doe-2"])
    assert "doe" not in text
    assert text == f"slide '{names.name('doe')}' and slide '{names.name('doe-2')}' are broken"


@pytest.mark.parametrize("patient", ["a", "anon", "mt5qwd2lw2dl"])
def test_names_in_messages_stay_whole_though_their_letters_hold_an_id(patient: str) -> None:
    """What came of "a_1" was searched for "a" again: nobody could look such a name up."""
    names = Pseudonyms(KEY)
    ids = [patient, f"{patient}_1", "JANE-DOE-1957"]
    wanted = f"'{names.name(ids[1])}': {names.name(ids[0])}, {names.name(ids[2])}"
    text = names.inert(f"'{ids[1]}': {ids[0]}, {ids[2]}", ids)
    assert text == wanted
    assert names.inert(text, [patient]) == wanted


def test_a_folder_that_an_id_begins_with_leaves_no_part_of_the_id() -> None:
    names, folder = Pseudonyms(KEY), Path("/data/TCGA")
    name = names.name("TCGA-01")
    text = names.inert(
        "/data/TCGA-01.svs, /data/TCGA/TCGA-01.h5 and '/data/TCGA': no room in /data/TCGA.", ["TCGA-01"], folder=folder
    )
    assert text == f"/data/{name}.svs, (features)/{name}.h5 and '(features)': no room in (features)."


def test_messages_lose_ids_that_are_names_of_another_key_or_begin_like_one() -> None:
    names, other = Pseudonyms(KEY), Pseudonyms(KEY[::-1]).name("JANE")
    text = names.inert(f"{other} and {other}-2", [other, f"{other}-2"])
    assert text == f"{names.name(other)} and {names.name(f'{other}-2')}"


def test_messages_lose_ids_also_where_quoting_changes_them() -> None:
    names, hostile = Pseudonyms(KEY), """o'neil "jane\\doe\""""
    text = names.inert(f"slide {hostile!r} is broken, and so is {hostile}", [hostile])
    assert text == f"slide '{names.name(hostile)}' is broken, and so is {names.name(hostile)}"


def test_neither_key_nor_ids_are_shown_by_accident() -> None:
    names = Pseudonyms(KEY)
    names.name("JANE")
    assert "JANE" not in repr(names)
    assert KEY.hex() not in repr(names)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": "wsimil/pseudonyms/9"}, "schema"),
        ({"key": "00"}, "a key of 1 bytes"),
        ({"key": "no hex"}, "cannot be read"),
        ({"ids": {"anon-aaaaaaaaaaaa": "JANE"}}, "is not what its key makes"),
        ({"ids": []}, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    tree = {"schema": "wsimil/pseudonyms/1", "key": KEY.hex(), "ids": {}}
    (tmp_path / "names.json").write_text(json.dumps(tree | change), encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        open_pseudonyms(tmp_path / "names.json")


def test_names_are_not_kept_among_the_results(tmp_path: Path) -> None:
    refuse_beside_results(tmp_path / "names.json", tmp_path / "out")
    with pytest.raises(OutputError, match="would lie among the results"):
        refuse_beside_results(tmp_path / "out" / "names.json", tmp_path / "out")
