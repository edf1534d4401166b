"""Tables that people give: cohort files and manifests, as spreadsheets and scripts write CSV."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wsimil.errors import WsimilError

_ZIP = b"PK\x03\x04"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATORS = frozenset(f"sep={one}\n" for one in ",;\t")
_REMEDY = "save it as CSV in UTF-8"


class TableRow(NamedTuple):
    """A row at a line of the file: its cells without the spaces around them, and as they were `given`."""

    line: int
    cells: Mapping[str, str]
    given: Mapping[str, str]

    @property
    def spaced(self) -> list[str]:
        """The columns whose cells had spaces around them."""
        return [name for name, value in self.given.items() if self.cells[name] != value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The named columns of a table, in order, and its rows that are not empty."""

    columns: tuple[str, ...]
    rows: Sequence[TableRow]


def read_table(path: Path, what: str, *, keys: Collection[str], error: type[WsimilError]) -> Table:
    """Read a CSV that is called `what` in messages: by comma, semicolon or tab, whichever gives most of the columns `keys`, and
    then most columns.

    UTF-8 with or without a BOM, or UTF-16 with one. Columns without a name are ignored, and so are rows without a value, and a
    first line such as "sep=;", by which spreadsheets are told the separator.
    Raises `error` for a file that cannot be read, a column that occurs twice, and a row of another length than the header.
    """
    text = _text(path, what, error)
    told = text[:6] in _SEPARATORS
    text = text[6:] if told else text
    readers = [csv.reader(io.StringIO(text), delimiter=delimiter) for delimiter in ",;\t"]
    reader, rows = readers[0], []

    def line() -> int:
        return reader.line_num + told

    try:
        heads = [[name.strip() for name in next(one, [])] for one in readers]
        reader, columns = max(zip(readers, heads, strict=True), key=lambda one: (len({*keys} & {*one[1]}), len(one[1])))
        twice = [name for name, count in Counter(columns).items() if name and count > 1]
        if twice:
            raise error(f"{path}: column {twice[0]!r} occurs twice")
        for given in reader:
            if not any(map(str.strip, given)):
                continue
            if len(given) != len(columns):
                raise error(f"{path}: line {line()}: wanted {len(columns)} values, as the header has, got {len(given)}")
            cells = {name: value for name, value in zip(columns, given, strict=True) if name}
            bare = {name: value.strip() for name, value in cells.items()}
            rows.append(TableRow(line=line(), cells=bare, given=cells))
    except csv.Error as fault:
        raise error(f"{what} {path} cannot be read at line {line()}: {fault}; {_REMEDY}") from None
    return Table(columns=tuple(filter(None, columns)), rows=rows)


def _text(path: Path, what: str, error: type[WsimilError]) -> str:
    try:
        data = path.read_bytes()
        if data.startswith(_ZIP):
            raise error(f"{what} {path} is a workbook of a spreadsheet program; {_REMEDY}")
        encoding, name = ("utf-16", "UTF-16") if data.startswith(_UTF_16) else ("utf-8-sig", "UTF-8")
        # Ends of lines within cells, too, are as every other table has them that is read.
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise error(f"{what} {path} does not exist") from None
    except OSError as fault:
        raise error(f"{what} {path} cannot be read: {fault.strerror}") from None
    except UnicodeDecodeError as fault:
        raise error(f"{what} {path} cannot be read as {name} text: {fault}; {_REMEDY}") from None
