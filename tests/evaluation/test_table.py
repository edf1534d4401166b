"""The table of predictions opens everywhere and runs nowhere."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from wsimil.evaluation.table import Row, write_table
from wsimil.targets import Classification

CLASSES = ("normal tissue", "=tumor, high grade")


def test_columns_and_values_are_what_they_are_called(tmp_path: Path) -> None:
    rows = [
        Row(slide_id="a", patient_id="p", values=np.array([0.25, 0.75]), label="normal tissue", split="test"),
        Row(slide_id="b", status="no tissue tile"),
    ]
    write_table(tmp_path, rows, task=Classification(classes=CLASSES))
    read = list(csv.DictReader((tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert read[0]["prob_normal tissue"] == "0.25"
    assert read[0]["prob_=tumor, high grade"] == "0.75"
    assert read[0]["predicted"] == "'=tumor, high grade"
    assert read[1]["predicted"] == read[1]["prob_normal tissue"] == ""
    assert read[1]["status"] == "no tissue tile"
    frame = pd.read_parquet(tmp_path / "predictions.parquet")
    assert frame["prob_=tumor, high grade"].tolist()[0] == 0.75
    assert frame["prob_normal tissue"].isna().tolist() == [False, True]
    assert frame["predicted"].tolist() == ["=tumor, high grade", ""]


def test_a_cell_that_a_spreadsheet_would_run_is_made_inert(tmp_path: Path) -> None:
    hostile = ["=1+1", "+cmd", "-2", "@SUM(A1)", "\tx", "\rx"]
    write_table(
        tmp_path, [Row(slide_id=name, patient_id=name) for name in hostile], task=Classification(classes=("n", "t"))
    )
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert row["slide_id"][0] == row["patient_id"][0] == "'"
    assert pd.read_parquet(tmp_path / "predictions.parquet")["slide_id"].tolist() == hostile
