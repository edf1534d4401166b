"""OME-TIFF as Bio-Formats reads it, by which QuPath, Fiji and OMERO do; `make peers` brings it, else these tests are skipped."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from wsimil.export.ome_tiff import write_ome_tiff
from wsimil.export.scores import score_table

JAR = Path(__file__).parents[2] / ".venv-peers" / "bioformats_package.jar"


def _run(tool: str, *arguments: str | Path) -> str:
    if shutil.which("java") is None or not JAR.is_file():
        pytest.skip("needs Java and Bio-Formats, which make peers brings")
    command = ["java", "-cp", JAR, f"loci.formats.tools.{tool}", "-no-upgrade", "-noflat", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture
def written(make_prediction, tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A map of several levels with holes, and its scores."""
    table = score_table(
        make_prediction(mpp=0.2527, size_px=63, size0_px=(42000, 36000), bounds0_px=(300, 200, 41000, 35000))
    )
    holes = np.random.default_rng(0).random(table.scores.shape) < 0.4
    table = dataclasses.replace(table, scores=np.where(holes, np.float32(np.nan), table.scores))
    write_ome_tiff(tmp_path / "a.ome.tiff", table)
    return tmp_path / "a.ome.tiff", table.score_names


def test_it_reads_every_value_of_every_level(written, tmp_path: Path) -> None:
    path, _ = written
    _run("ImageConverter", "-compression", "Uncompressed", path, tmp_path / "again.ome.tiff")
    with tifffile.TiffFile(path) as ours, tifffile.TiffFile(tmp_path / "again.ome.tiff") as again:
        levels, found = (tuple(level.asarray() for level in file.series[0].levels) for file in (ours, again))
    assert len(levels) == len(found) == 2
    assert np.isnan(levels[0]).any()
    for level, one in zip(levels, found, strict=True):
        np.testing.assert_array_equal(one, level)


def test_its_validator_finds_nothing_and_it_knows_sizes_and_channels(written) -> None:
    path, names = written
    said = _run("ImageInfo", "-nopix", "-omexml", path)
    assert "No validation errors found." in said
    assert "Resolutions = 2" in said
    tree = ElementTree.fromstring(said[said.index("<OME ") : said.index("</OME>") + len("</OME>")])
    pixels = tree.find(".//{*}Pixels")
    assert pixels is not None
    assert float(pixels.attrib["PhysicalSizeX"]) == float(pixels.attrib["PhysicalSizeY"]) == pytest.approx(31.5)
    assert pixels.attrib["PhysicalSizeXUnit"] == "µm"
    assert [channel.attrib["Name"] for channel in pixels.iterfind("{*}Channel")] == list(names)
