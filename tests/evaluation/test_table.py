"""The table of predictions opens everywhere and runs nowhere."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsimil.errors import StoreError
from wsimil.evaluation.table import Row, read_table, write_table
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.assign(prob_t=["0,75", "0,5"]), "could not convert string to float: '0,75'"),
        (lambda table: table.assign(prob_t=[75.0, 50.0]), r"must lie in \[0, 1\], got 0\.25\.\.75"),
        (lambda table: table.assign(prob_t=[0.75, 0.75]), r"must sum to 1 in each row; row 1 sums to 1\.25"),
        (lambda table: table.assign(prob_t=[np.nan, 0.5]), "calls the answer for 'a' ok, and it is none"),
        (lambda table: table.drop(columns="slides"), "has no column 'slides'"),
    ],
)
def test_a_table_that_was_changed_to_what_is_no_answer_is_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame], says: str, tmp_path: Path
) -> None:
    task = Classification(classes=("n", "t"))
    rows = [
        Row(slide_id=name, patient_id=name, values=np.array([1 - p, p])) for name, p in {"a": 0.75, "b": 0.5}.items()
    ]
    write_table(tmp_path, [*rows, Row(slide_id="c", patient_id="c", status="no tissue tile")], task=task, bag="patient")
    assert len(read_table(tmp_path, task=task, bag="patient")) == 3
    path = tmp_path / "predictions.parquet"
    change(pd.read_parquet(path).iloc[:2]).to_parquet(path)
    with pytest.raises(StoreError, match=says):
        read_table(tmp_path, task=task, bag="patient")
