"""CSV: raw numbers that come back to the bit, and text that no spreadsheet runs."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from wsimil.export.csv_table import write_csv
from wsimil.export.scores import score_table


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("n", [1, 63, 5000])
def test_scores_come_back_to_the_bit(n: int, make_prediction, tmp_path: Path) -> None:
    table = score_table(make_prediction(n=n, size0_px=(20_000, 20_000)))
    scores = table.scores.copy()
    scores[0, 0] = np.nan
    write_csv(tmp_path / "a.csv", dataclasses.replace(table, scores=scores))
    rows = _rows(tmp_path / "a.csv")
    assert [int(row["tile_id"]) for row in rows] == list(range(n))
    assert [[int(row["x"]), int(row["y"])] for row in rows] == table.xy0.tolist()
    assert {row["w"] for row in rows} == {row["h"] for row in rows} == {"224"}
    for column, name in enumerate(table.score_names):
        read = np.array([float(row[name] or "nan") for row in rows], np.float32)
        assert np.array_equal(read, scores[:, column], equal_nan=True)
    assert rows[0]["attention"] == ""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_no_text_begins_as_a_formula(start: str, make_prediction, tmp_path: Path) -> None:
    name = f'{start}HYPERLINK("http://x","y")\n<script>'
    table = score_table(make_prediction(n=63, slide_id=name))
    named = dataclasses.replace(table, score_names=(name, *table.score_names[1:]))
    write_csv(tmp_path / "a.csv", named)
    rows = _rows(tmp_path / "a.csv")
    assert len(rows) == 63
    assert {row["slide_id"] for row in rows} == {"'" + name}
    assert "'" + name in rows[0]


def test_one_score_can_be_asked_for(make_prediction, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", score_table(make_prediction(n=63)), scores=("attention",))
    assert list(_rows(tmp_path / "a.csv")[0]) == [
        "slide_id",
        "tile_id",
        "x",
        "y",
        "w",
        "h",
        "x_center",
        "y_center",
        "attention",
    ]
