"""What a cohort file says beside labels: groups as they are written, and of many numbers that measure something their thirds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.made_runs import write_csv
from wsimil.stages.answered import read_known
from wsimil.targets import Classification

TASK = Classification(classes=("normal", "tumor"))


def groups(folder: Path, column: str, cells: list[str]) -> list[str]:
    rows = [[f"s{i}", f"p{i}", "normal" if i % 2 else "tumor", cell] for i, cell in enumerate(cells)]
    path = write_csv(folder / "cohort.csv", ["slide_id", "patient_id", "label", column], rows)
    return [*read_known(path, TASK, "slide", groups=[column]).groups[column].values()]


@pytest.mark.parametrize("column", ["site", "scanner", "stain_batch", "Hospital", "site_id", "center-code"])
def test_codes_are_groups_of_their_own_however_many_there_are(column: str, tmp_path: Path) -> None:
    cells = [str(i % 15 + 1) for i in range(30)]
    assert groups(tmp_path, column, cells) == cells


@pytest.mark.parametrize("column", ["age", "tumor_size", "episode"])
def test_many_numbers_are_cut_in_thirds_and_a_word_for_missing_is_in_none(column: str, tmp_path: Path) -> None:
    wanted = ["1: up to 4.667"] * 5 + ["2: to 9.333"] * 5 + ["3: above 9.333"] * 5 + ["", "", ""]
    assert groups(tmp_path, column, [*map(str, range(15)), "NA", "none", ""]) == wanted


@pytest.mark.parametrize("cells", [["none", "1", "2", "3"] * 4, [*map(str, range(20)), ">89"]])
def test_few_numbers_and_numbers_beside_words_stay_as_they_are(cells: list[str], tmp_path: Path) -> None:
    assert groups(tmp_path, "age", cells) == cells
