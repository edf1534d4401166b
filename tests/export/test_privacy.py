"""No export holds anything of a slide but its id and its geometry."""

from __future__ import annotations

from pathlib import Path

from wsimil.export.geojson import write_geojson
from wsimil.export.heatmap import raw_heatmap
from wsimil.export.png import write_png
from wsimil.export.scores import read_scores, write_scores

PLANTED = b"MRS-JANE-DOE-1957"


def test_a_name_in_path_digest_and_properties_is_in_no_output(make_prediction, tmp_path: Path) -> None:
    prediction = make_prediction(n=63)
    slide = prediction.grid.slide
    assert PLANTED in f"{slide.path}{slide.mpp_detail}{slide.digest}".encode()
    write_scores(tmp_path / "s.parquet", prediction)
    table = read_scores(tmp_path / "s.parquet")
    write_geojson(tmp_path / "s.geojson", table)
    write_png(tmp_path / "s.png", table, raw_heatmap(table, "attention"))
    for file in tmp_path.iterdir():
        assert PLANTED not in file.read_bytes(), file.name
        assert b"/archive" not in file.read_bytes(), file.name
