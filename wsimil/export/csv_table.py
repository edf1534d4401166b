"""Raw tile scores as CSV, for spreadsheets, R and TissUUmaps; a text that a spreadsheet would run as a formula is made inert.

Programs that draw points, such as TissUUmaps, take the middle of a tile: its corner would be drawn half a tile off.
"""

from __future__ import annotations

import csv
from itertools import repeat
from math import isnan
from pathlib import Path

from wsimil.evaluation.table import inert
from wsimil.export.scores import ScoreTable
from wsimil.files import atomic_path

_BLOCK = 4096


def write_csv(path: Path, table: ScoreTable, *, scores: tuple[str, ...] = ()) -> None:
    """Write slide_id, tile_id, x, y (corner), w, h, x_center, y_center and `scores`, all if none is named, atomically.

    Places are level-0 px as OpenSlide counts them.
    A score has the nine digits that bring float32 back to the bit; one that is not there is an empty cell.
    Raises KeyError where the table has no such score, OutputError.
    """
    names = scores or table.score_names
    columns = [table.score(name) for name in names]
    slide_id, side = inert(table.slide_id), table.size0_px
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["slide_id", "tile_id", "x", "y", "w", "h", "x_center", "y_center", *map(inert, names)])
        for first in range(0, len(table), _BLOCK):
            part = slice(first, first + _BLOCK)
            x, y = table.xy0[part].T.tolist()
            middles = (table.xy0[part] + side / 2).T.tolist()
            numbers = [["" if isnan(v) else f"{v:.9g}" for v in column[part].tolist()] for column in columns]
            tiles = range(first, first + len(x))
            writer.writerows(
                zip(repeat(slide_id), tiles, x, y, repeat(side), repeat(side), *middles, *numbers, strict=False)
            )
