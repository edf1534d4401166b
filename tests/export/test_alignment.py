"""The law of alignment: every export of a checkerboard's own grey lies exactly on the checkerboard.

Tile scores are the mean grey of the tile; what an independent reader finds at a place must correlate perfectly with the slide
there, and less at any other shift. It catches half-tile shifts, swapped axes, rounding, and a forgotten bounds offset.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.export.checkerboard import (
    CASES,
    checkerboard,
    expected,
    is_aligned,
    mean_grey,
    points_are_aligned,
    shrink,
)
from tests.export.dicom_slides import write_dicom_slide
from wsimil.export.csv_table import write_csv
from wsimil.export.dsa import UNSCORED, write_dsa
from wsimil.export.geojson import write_geojson
from wsimil.export.heatmap import rasterize, raw_heatmap
from wsimil.export.ome_tiff import write_ome_tiff
from wsimil.export.png import render_png
from wsimil.export.scores import ScoreTable, read_scores, write_scores

SCORE = "contribution:tumor"


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, make_prediction, tmp_path: Path) -> tuple[NDArray[np.float64], ScoreTable]:
    """The board, and the table of its mean greys as it was written to parquet and read again."""
    empty = make_prediction(**request.param)
    board = checkerboard(empty)
    prediction = make_prediction(**request.param, tumor=mean_grey(board, empty))
    write_scores(tmp_path / "scores.parquet", prediction)
    return board, read_scores(tmp_path / "scores.parquet")


def test_the_raster_lies_on_the_slide(case) -> None:
    board, table = case
    raster = rasterize(raw_heatmap(table, SCORE), shape=board.shape)
    is_aligned(raster.astype(np.float64), expected(board, table), step=1, least=0.999)


def test_geojson_lies_on_the_slide(case, tmp_path: Path) -> None:
    board, table = case
    write_geojson(tmp_path / "a.geojson", table, origin="bounds")
    left, top = table.bounds0_px[:2]
    scanned = board[top:, left:]
    tree = json.loads((tmp_path / "a.geojson").read_text())
    tiles = [f for f in tree["features"] if f["properties"]["objectType"] == "tile"]
    rings = [np.array(tile["geometry"]["coordinates"][0]) for tile in tiles]
    boxes = [(*ring.min(axis=0), *ring.max(axis=0)) for ring in rings]
    name = "wsimil: contribution tumor (relative to max)"
    # Numbers are written with five digits.
    _boxes_are_aligned(boxes, [tile["properties"]["measurements"][name] for tile in tiles], scanned, 1e-8)


def test_csv_lies_on_the_slide(case, tmp_path: Path) -> None:
    board, table = case
    write_csv(tmp_path / "a.csv", table)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    places = [tuple(int(row[name]) for name in "xywh") for row in rows]
    boxes = [(x, y, x + w, y + h) for x, y, w, h in places]
    _boxes_are_aligned(boxes, [float(row[SCORE]) for row in rows], board, 1e-12)
    middles = [(float(row["x_center"]), float(row["y_center"])) for row in rows]
    assert middles == [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]


def _boxes_are_aligned(boxes, values: list[float], board: NDArray[np.float64], slack: float) -> None:
    def at(dx: int, dy: int) -> float:
        shown, there = [], []
        for (x0, y0, x1, y1), value in zip(boxes, values, strict=True):
            part = board[max(0, y0 + dy) : y1 + dy, max(0, x0 + dx) : x1 + dx]
            if x0 + dx >= 0 and y0 + dy >= 0 and part.size:
                shown.append(value)
                there.append(part.mean())
        return float(np.corrcoef(shown, there)[0, 1])

    exact = at(0, 0)
    assert exact > 1 - slack
    assert all(at(dx, dy) < exact for dx, dy in ((-5, 0), (5, 0), (0, -5), (0, 5), (5, 5)))


@pytest.mark.parametrize("origin", ["bounds", "level0"])
def test_ome_tiff_lies_on_the_slide(case, origin, tmp_path: Path) -> None:
    board, table = case
    write_ome_tiff(tmp_path / "a.ome.tiff", table, origin=origin)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        raster = file.asarray()[table.score_names.index(SCORE)].astype(np.float64)
        ome = ElementTree.fromstring(file.ome_metadata or "")
    pixels = ome.find(".//{*}Pixels")
    assert pixels is not None
    # An image that is laid on the slide by its physical size alone, from the corner of what a viewer shows of it.
    cell0 = float(pixels.attrib["PhysicalSizeX"]) / table.mpp
    assert pixels.attrib["PhysicalSizeX"] == pixels.attrib["PhysicalSizeY"]
    left, top, width, height = table.bounds0_px if origin == "bounds" else (0, 0, *table.slide_size0_px)
    there = expected(board, table)[top : top + height, left : left + width]
    rows, columns = (((np.arange(n) + 0.5) / cell0).astype(int) for n in there.shape)
    # A grid that does not begin at the corner lies on cells of an eighth of a tile, and those that an edge parts hold a mean:
    # where it lies within a cell no picture of such cells can say.
    fine = cell0 < 0.9 * table.stride0
    assert fine == (origin == "level0" and table.bounds0_px[:2] != (0, 0))
    is_aligned(raster[np.ix_(rows, columns)], there, step=ceil(cell0) if fine else 1, least=0.95 if fine else 0.995)
    if not fine:
        assert cell0 == pytest.approx(table.stride0)
        y, x = np.mgrid[: raster.shape[0], : raster.shape[1]]
        points_are_aligned(((x + 0.5) * cell0).ravel(), ((y + 0.5) * cell0).ravel(), raster.ravel(), there, cell0)


def test_annotations_for_the_digital_slide_archive_lie_on_the_slide(case, tmp_path: Path) -> None:
    board, table = case
    write_dsa(tmp_path / "a.json", table, spans={SCORE: (-1.0, 1.0)})
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    speaking_for, _ = (one["elements"][0] for one in found if one["attributes"]["score"] == SCORE)
    values = np.array(speaking_for["values"])
    index = np.arange(len(values))
    x = speaking_for["origin"][0] + speaking_for["dx"] * (index % speaking_for["gridWidth"])
    y = speaking_for["origin"][1] + speaking_for["dy"] * (index // speaking_for["gridWidth"])
    assert speaking_for["dx"] == speaking_for["dy"] == pytest.approx(table.stride0)
    shown = np.where(values == UNSCORED, np.nan, values)
    points_are_aligned(x, y, shown, expected(board, table), speaking_for["dx"])


def test_parametric_maps_lie_on_the_slide(case, tmp_path: Path) -> None:
    hd = pytest.importorskip("highdicom", reason="needs highdicom, which the extra 'dicom' brings")
    from wsimil.export.dicom import write_parametric_maps

    board, table = case
    grey = np.round(board * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    levels = [grey, grey[::4, ::4], np.ascontiguousarray(grey[::16, ::16])]
    slide = write_dicom_slide(tmp_path / "slide", levels, mpp=table.mpp)
    table = replace(table, slide_content="")  # the board is drawn, and nobody extracted it
    write_parametric_maps(tmp_path / "maps", table, slide, now=datetime(2026, 1, 1, tzinfo=UTC), scores=(SCORE,))
    image = hd.imread(tmp_path / "maps/01.dcm")
    matrix = image.get_total_pixel_matrix(dtype=np.float64)
    assert matrix.shape == levels[-1].shape[:2]
    # A frame that is not there is read as 0; scores of the board are above.
    shown = np.where(matrix == 0, np.nan, matrix)
    is_aligned(shown, shrink(expected(board, table), shown.shape), step=1, least=0.99)


def test_the_picture_lies_on_the_slide(case) -> None:
    board, table = case
    heatmap = raw_heatmap(table, SCORE, cohort_range=(-1.0, 1.0))
    white = np.full((90, 110, 3), 255, np.uint8)
    image = Image.open(io.BytesIO(render_png(table, heatmap, thumbnail=white)))
    x, y, width, height = json.loads(image.text["wsimil"])["frame_px"]  # type: ignore[attr-defined]  # of PNG images
    frame = np.asarray(image, np.float64)[y : y + height, x : x + width]
    # Orange over white: blue falls in proportion to the score.
    shown = np.where(np.ptp(frame, axis=2) > 0, 255 - frame[..., 2], np.nan)
    is_aligned(shown, shrink(expected(board, table), (height, width)), step=1, least=0.99)


def test_the_thumbnail_lies_where_the_tiles_do(case) -> None:
    board, table = case
    heatmap = raw_heatmap(table, SCORE, cohort_range=(-1e6, 1e6))
    grey = np.round(shrink(board, (700, 900)) * 200 + 50).astype(np.uint8)
    image = Image.open(io.BytesIO(render_png(table, heatmap, thumbnail=grey[..., None].repeat(3, axis=2))))
    x, y, width, height = json.loads(image.text["wsimil"])["frame_px"]  # type: ignore[attr-defined]  # of PNG images
    frame = np.asarray(image, np.float64)[y : y + height, x : x + width, 1]
    inside = np.where(np.isfinite(expected(board, table)), board, np.nan)
    is_aligned(frame, shrink(inside, (height, width)), step=1, least=0.95)
