"""predictions.csv and predictions.parquet: one row a slide, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsimil.cohort import BagUnit
from wsimil.errors import StoreError
from wsimil.evaluation.cases import checked_distributions, checked_probabilities
from wsimil.files import atomic_path, write_text
from wsimil.targets import Classification, Ordinal, Task

_ANSWERED_BY, _CSV = b"wsimil answered by", b"wsimil csv sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One slide, or one patient of `slides`: `values` [V] as the task answers, or None and a `status` that says why not.

    `patient_id`, `label` and `split` are empty where they are not known. `beside` are further columns, numbers or text.
    """

    slide_id: str
    patient_id: str = ""
    values: NDArray[np.float64] | None = None
    label: str = ""
    split: str = ""
    status: str = "ok"
    slides: tuple[str, ...] = ()
    beside: Mapping[str, str | float] = field(default_factory=dict)


def write_table(
    folder: Path, rows: Sequence[Row], *, task: Task, bag: BagUnit = "slide", answered_by: str = ""
) -> None:
    """Write predictions.csv (values that a spreadsheet would run as formulas get a leading quote) and predictions.parquet.

    Columns: slide_id, patient_id (where a bag is a patient: patient_id, slides), the task's answers (prob_<class> for each
    class), what stands beside them, predicted where the task decides for one of several, label, split, status. `answered_by` is
    a digest of who answers, "" where nobody says so; it stands in the parquet metadata. Raises OutputError.
    """
    numbers = [column.name for column in task.answers]
    kinds = {name: type(value) for row in rows for name, value in row.beside.items()}
    further = [name for name in kinds if name not in numbers]
    tail = [*(["predicted"] if task.decides else []), *further, "label", "split", "status"]
    ids = ["slide_id", "patient_id"] if bag == "slide" else ["patient_id", "slides"]
    header = [*ids, *numbers, *tail]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([inert(name) for name in header])
    for row in rows:
        shown = [""] * len(numbers) if row.values is None else [f"{value:.9g}" for value in row.values]
        names, words = ([inert(_text(row, name, task)) for name in part] for part in (ids, tail))
        writer.writerow([*names, *shown, *words])
    write_text(folder / "predictions.csv", text.getvalue())
    columns: dict[str, list[object]] = {name: [_text(row, name, task) for row in rows] for name in ids}
    for index, name in enumerate(numbers):
        columns[name] = [None if row.values is None else float(row.values[index]) for row in rows]
    for name in tail:
        columns[name] = [row.beside.get(name) if name in kinds else _text(row, name, task) for row in rows]
    types = {name: pa.float64() if name in numbers or kinds.get(name) is float else pa.string() for name in columns}
    arrow = pa.table({name: pa.array(values, type=types[name]) for name, values in columns.items()})
    written = {_CSV: sha256(text.getvalue().encode("utf-8")).hexdigest()}
    arrow = arrow.replace_schema_metadata(written | ({_ANSWERED_BY: answered_by} if answered_by else {}))
    with atomic_path(folder / "predictions.parquet") as temporary:
        pq.write_table(arrow, temporary)


def read_table(folder: Path, *, task: Task, bag: BagUnit = "slide", answered_by: str = "") -> tuple[Row, ...]:
    """The rows of predictions.parquet, to the bit. Raises StoreError where it is missing, broken or of another task, and where
    its numbers are no answers of the task, as after a change by hand, or those of another model than `answered_by` says.
    """
    path = folder / "predictions.parquet"
    try:
        table = pq.read_table(path, partitioning=None, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} cannot be read ({error}); predict again") from error
    said = (table.schema.metadata or {}).get(_ANSWERED_BY, b"").decode()
    if said and answered_by and said != answered_by:
        raise StoreError(
            f"{path} holds answers of another model than the one beside it, or of the same one calibrated otherwise; copy the"
            " whole folder, or run what wrote it again"
        )
    numbers, key = [column.name for column in task.answers], f"{bag}_id"
    wanted = (key, "patient_id", *(["slides"] if bag == "patient" else []), *numbers, "label", "split", "status")
    lacking = [name for name in wanted if name not in table.column_names]
    if lacking:
        raise StoreError(
            f"{path} has no column {', '.join(map(repr, lacking))}, which the model beside it answers in; it has"
            f" {', '.join(map(repr, table.column_names))}; predict again"
        )
    ids = table.column(key).to_pylist()
    if len(set(ids)) != len(ids):
        raise StoreError(f"{path} answers for a {bag} twice; predict again")
    words = {name: table.column(name).to_pylist() for name in ("patient_id", "label", "split", "status")}
    slides = table.column("slides").to_pylist() if bag == "patient" else [""] * len(ids)
    try:
        values = np.stack([table.column(name).to_numpy().astype(np.float64) for name in numbers], axis=1)
        whole = np.isfinite(values).all(axis=1)
        _refuse_no_answers(values[whole], task)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path} holds no answers of the model beside it ({error}); predict again") from error
    odd = [one for one, of, sound in zip(ids, words["status"], whole, strict=True) if of == "ok" and not sound]
    if odd:
        raise StoreError(
            f"{path} calls the answer for {odd[0]!r} ok, and it is none: not all of its numbers are finite; predict again"
        )
    return tuple(
        Row(
            slide_id=slide_id,
            patient_id=words["patient_id"][i] or "",
            values=values[i] if whole[i] else None,
            label=words["label"][i] or "",
            split=words["split"][i] or "",
            status=words["status"][i] or "",
            slides=tuple(part for part in (slides[i] or "").split(";") if part),
        )
        for i, slide_id in enumerate(ids)
    )


def csv_was_changed(folder: Path) -> bool:
    """Whether predictions.csv is not the one that was written beside predictions.parquet, which alone is read; False where it is
    not there, or nobody knows. Raises StoreError where the parquet file is broken."""
    try:
        written = (pq.read_schema(folder / "predictions.parquet").metadata or {}).get(_CSV)
        there = (folder / "predictions.csv").read_bytes()
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{folder} has a table of predictions that cannot be read ({error}); predict again") from error
    return written is not None and sha256(there).hexdigest() != written.decode()


def _refuse_no_answers(values: NDArray[np.float64], task: Task) -> None:
    """Raises ValueError where numbers that are probabilities cannot be."""
    if isinstance(task, Classification | Ordinal):
        checked_distributions("probabilities", values, len(values))
        return
    shares = values[:, [column.probability for column in task.answers]]
    checked_probabilities("probabilities", shares, shares.shape)


def _text(row: Row, name: str, task: Task) -> str:
    if name in row.beside:
        value = row.beside[name]
        return value if isinstance(value, str) else f"{value:.9g}"
    if name == "predicted":
        return "" if row.values is None else task.decided(row.values)
    return ";".join(row.slides) if name == "slides" else str(getattr(row, name, ""))


def inert(text: str) -> str:
    """Text for a cell that a spreadsheet will not run as a formula."""
    # csv leaves a lone carriage return unquoted, which readers take for the end of a line.
    return ("'" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else "") + text.replace("\r", " ")
