"""Tables as spreadsheets and scripts write them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from wsimil.errors import CohortError
from wsimil.tables import Table, read_table

CELLS = [["slide_id", "note"], ["Müller 1", "two\nlines"], ["b", "2,5; or\tso"]]


def read(path: Path) -> Table:
    return read_table(path, "cohort file", keys=("slide_id",), error=CohortError)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
def test_a_table_is_the_same_however_it_was_saved(tmp_path: Path, delimiter: str, encoding: str, ends: str) -> None:
    path = tmp_path / "t.csv"
    text = "".join(delimiter.join(f'"{cell}"' for cell in row) + "\n" for row in CELLS)
    path.write_bytes(text.replace("\n", ends).encode(encoding))
    table = read(path)
    assert [list(table.columns), *([*row.cells.values()] for row in table.rows)] == CELLS
    assert [row.line for row in table.rows] == [3, 4]


@pytest.mark.parametrize(
    "head", ['slide_id,"stain; batch; site"', "slide_id,stain (H&E; IHC; none)", '"slide_id","a;b","c;d;e"']
)
def test_what_parts_columns_is_what_parts_those_that_are_needed(tmp_path: Path, head: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{head}\n{','.join('abc'[: head.count(',') + 1])}\n", encoding="utf-8")
    assert read(path).rows[0].cells["slide_id"] == "a"


def test_what_spreadsheets_add_is_passed_by_and_what_was_typed_is_not(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",slide_id, note ,,\n0,a, x,,\n,,,,\n\n , ,,,\n1,b,,,\n", encoding="utf-8")
    table = read(path)
    assert table.columns == ("slide_id", "note")
    assert [(row.line, dict(row.cells), [*row.spaced]) for row in table.rows] == [
        (2, {"slide_id": "a", "note": "x"}, ["note"]),
        (6, {"slide_id": "b", "note": ""}, []),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_a_line_that_tells_spreadsheets_the_separator_is_passed_by(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "t.csv"
    rows = [f"sep={delimiter}", f"slide_id{delimiter}note", f"a{delimiter}x"]
    path.write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    assert [(row.line, dict(row.cells)) for row in read(path).rows] == [(3, {"slide_id": "a", "note": "x"})]
    path.write_text("\n".join([*rows, "b"]), encoding="utf-8")
    with pytest.raises(CohortError, match=r"t\.csv: line 4: wanted 2 values"):
        read(path)


def workbook(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "cohort file {} does not exist"),
        (b"", "cohort file {} is a workbook of a spreadsheet program; save it as CSV in UTF-8"),
        ("slide_id\nMüller\n".encode("latin-1"), "cohort file {} cannot be read as UTF-8 text: "),
        (b"\xff\xfea", "cohort file {} cannot be read as UTF-16 text: "),
        (b'slide_id\na\n"' + b"x" * 200_000, "cohort file {} cannot be read at line 3: field larger than field limit"),
        (b"slide_id,slide_id\n", "{}: column 'slide_id' occurs twice"),
        (b"slide_id,note\na\n", "{}: line 2: wanted 2 values, as the header has, got 1"),
        (b"slide_id\n\na,b\n", "{}: line 3: wanted 1 values, as the header has, got 2"),
    ],
    ids=["absent", "workbook", "latin-1", "half utf-16", "open quote", "column twice", "short", "long"],
)
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, data: bytes | None, expected: str) -> None:
    path = tmp_path / "t.csv"
    if data:
        path.write_bytes(data)
    elif data is not None:
        workbook(path)
    with pytest.raises(CohortError) as caught:
        read(path)
    assert str(caught.value).startswith(expected.format(path))
