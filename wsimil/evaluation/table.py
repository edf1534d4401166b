"""predictions.csv and predictions.parquet: one row a slide, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsimil.files import atomic_path, write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One slide: `probabilities` [C] and the class with the highest, or None and a `status` that says why not.

    `patient_id`, `label` and `split` are empty where they are not known.
    """

    slide_id: str
    patient_id: str = ""
    probabilities: NDArray[np.float64] | None = None
    label: str = ""
    split: str = ""
    status: str = "ok"


def write_table(folder: Path, rows: Sequence[Row], *, classes: Sequence[str]) -> None:
    """Write predictions.csv (values that a spreadsheet would run as formulas get a leading quote) and predictions.parquet.

    Columns: slide_id, patient_id, prob_<class> for each class, predicted, label, split, status. Raises OutputError.
    """
    header = ["slide_id", "patient_id", *(f"prob_{name}" for name in classes), "predicted", "label", "split", "status"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_inert(name) for name in header])
    for row in rows:
        shown = [""] * len(classes) if row.probabilities is None else [f"{p:.9g}" for p in row.probabilities]
        ids = (_inert(row.slide_id), _inert(row.patient_id))
        tail = (_inert(value) for value in (_predicted(row, classes), row.label, row.split, row.status))
        writer.writerow([*ids, *shown, *tail])
    write_text(folder / "predictions.csv", text.getvalue())
    columns: dict[str, list[object]] = {
        "slide_id": [row.slide_id for row in rows],
        "patient_id": [row.patient_id for row in rows],
    }
    for index, name in enumerate(classes):
        columns[f"prob_{name}"] = [None if r.probabilities is None else float(r.probabilities[index]) for r in rows]
    columns["predicted"] = [_predicted(row, classes) for row in rows]
    for name in ("label", "split", "status"):
        columns[name] = [getattr(row, name) for row in rows]
    types = {name: pa.float64() if name.startswith("prob_") else pa.string() for name in columns}
    arrow = pa.table({name: pa.array(values, type=types[name]) for name, values in columns.items()})
    with atomic_path(folder / "predictions.parquet") as temporary:
        pq.write_table(arrow, temporary)


def _predicted(row: Row, classes: Sequence[str]) -> str:
    return "" if row.probabilities is None else classes[int(np.argmax(row.probabilities))]


def _inert(text: str) -> str:
    # csv leaves a lone carriage return unquoted, which readers take for the end of a line.
    return ("'" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else "") + text.replace("\r", " ")
