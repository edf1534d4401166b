"""What a scanner or an archive says of a patient is in no output of any command: not its words, not its label image."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from wsimil.cli import app
from wsimil.pseudonyms import open_pseudonyms

NAME = "DOE^JANE"
PLANTED = ("DOE^JANE", "DR-MIRANDA", "01/02/1957", "11:22:33", "ACC-778899", "JANE-DOE-ARCHIVE", "scanner-serial-4711")
MAGENTA = (255, 0, 255)
SLIDES = 12


def write_scan(path: Path, *, seed: int, size_px: tuple[int, int] = (1280, 1024)) -> None:
    """An SVS as a scanner writes it: names, dates and a serial number in its description, and a label and a macro image."""
    rng = np.random.default_rng(seed)
    width, height = size_px
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) / (0.42 * width)) ** 2 + ((y - height / 2) / (0.42 * height)) ** 2 < 1
    tissue = np.stack([170 + rng.integers(-40, 40, inside.shape), 80 + rng.integers(-40, 60, inside.shape),
                       160 + rng.integers(-40, 40, inside.shape)], axis=-1)  # fmt: skip
    image = np.where(inside[..., None], tissue, 243).astype(np.uint8)
    words = (
        "Aperio Image Library v11.2.1 \r\n"
        f"{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5|User = DR-MIRANDA"
        f"|Date = 01/02/1957|Time = 11:22:33|Filename = {NAME}|ImageID = ACC-778899|ScanScope ID = scanner-serial-4711"
    )
    label = np.full((160, 160, 3), MAGENTA, np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(image, tile=(256, 256), compression="jpeg", compressionargs={"level": 90}, photometric="rgb",
                   description=words, metadata=None)  # fmt: skip
        file.write(
            image[::4, ::4], tile=(256, 256), compression="jpeg", photometric="rgb", description=words, metadata=None
        )
        for kind in ("label", "macro"):
            said = f"Aperio Image Library v11.2.1 \r\n{kind} 160x160|User = DR-MIRANDA"
            file.write(label, rowsperstrip=160, compression="lzw", photometric="rgb", description=said, metadata=None,
                       subfiletype=1 if kind == "label" else 9)  # fmt: skip


def wsimil(*words: object, code: int | None = 0) -> str:
    """What a command says, on both streams."""
    result = CliRunner().invoke(app, [str(word) for word in words], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert code is None or result.exit_code == code, result.output
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name says whose slides these are, with slides, a manifest and a cohort file."""
    folder = tmp_path_factory.mktemp("privacy") / "JANE-DOE-ARCHIVE" / "slides"
    folder.mkdir(parents=True)
    rows = [["slide_id", "patient_id", "label", "split"]]
    for number in range(SLIDES):
        write_scan(folder / f"scan-DOE-{number:02}.svs", seed=number)
        split = ("train", "train", "val", "test")[number // 2 % 4]
        rows.append([f"scan-DOE-{number:02}", f"MRN-44{number:02}", ("normal", "tumor")[number % 2], split])
    with (folder.parent / "cohort.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def outputs(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands wrote, one after another, and in spoken.txt what they said."""
    out = tmp_path_factory.mktemp("outputs")
    cohort = archive.parent / "cohort.csv"
    features, run = out / "features", out / "run"
    spoken = [
        wsimil("extract", archive, "-o", features, "--tile-um", 128, "--quiet"),
        wsimil("inspect", archive / "scan-DOE-00.svs"),
        wsimil("train", features, "--cohort", cohort, "-o", run, "--set", "fit.epochs=2", "--quiet"),
        wsimil("predict", run, features, "--cohort", cohort, "-o", out / "predictions", "--quiet"),
        wsimil("predict", run, archive, "-o", out / "from_slides", "--quiet"),
        wsimil("evaluate", out / "predictions", "--cohort", cohort, "--features", features, "-o", out / "report",
               "--replicates", 100),
        wsimil("export", out / "predictions", "--to", "qupath,ome-tiff,dsa,csv,png", "--features", features, "--quiet"),
        wsimil("export", "html", out / "predictions", "--slides", archive, "-o", out / "page", "--quiet"),
        wsimil("explain-check", run, "--features", features, "-o", out / "explained", "--scores", "contribution", "--quiet",
               "--random-orders", 2, code=None),
        wsimil("convert", features, out / "converted", "--to", "clam"),
        wsimil("pack", features, out / "cohort.zarr"),
    ]  # fmt: skip
    (out / "spoken.txt").write_text("\n".join(spoken), encoding="utf-8")
    return out


def readings(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what they hold once unpacked: of columns, pictures' texts, archives, zlib streams."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr(table.to_pydict()).encode()
        yield repr(table.schema.metadata).encode()
    if path.suffix == ".png":
        with Image.open(path) as image:
            yield repr(image.info).encode()
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            yield from (file.read(name) for name in file.namelist())
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    begin = data.find(b"\x78\x9c")
    while begin >= 0:
        with suppress(zlib.error):
            yield zlib.decompressobj().decompress(data[begin:], 1 << 22)
        begin = data.find(b"\x78\x9c", begin + 2)


def test_the_planted_words_are_where_a_careless_reader_would_find_them(archive: Path) -> None:
    import openslide

    with openslide.OpenSlide(archive / "scan-DOE-00.svs") as slide:
        words = repr(dict(slide.properties)) + str(archive)
        assert all(one in words for one in PLANTED)
        assert {"label", "macro"} <= set(slide.associated_images)
        assert slide.associated_images["label"].convert("RGB").getpixel((80, 80)) == MAGENTA


def test_no_word_of_the_scanner_or_the_archive_is_in_any_output(outputs: Path) -> None:
    found = {}
    for path in sorted(outputs.rglob("*")):
        if path.is_file():
            for data in readings(path):
                for word in PLANTED:
                    for form in (word.encode(), word.encode("utf-16-le")):
                        if form in data:
                            found[f"{path.relative_to(outputs)}"] = word
        assert not any(word in path.name for word in PLANTED)
    assert not found
    assert len([*outputs.rglob("*")]) > 100


def test_no_picture_shows_the_label_or_the_macro_image(outputs: Path) -> None:
    pictures = [path for path in outputs.rglob("*") if path.suffix in (".png", ".jpg", ".jpeg")]
    assert len(pictures) > 3 * SLIDES
    for path in pictures:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(np.int16)
        assert (np.abs(pixels - MAGENTA).max(axis=-1) < 60).mean() < 0.001, path


IDS = (b"scan-DOE-", b"MRN-44")


@pytest.fixture(scope="module")
def pseudonymous(outputs: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers under pseudonyms, one of them failed, and all that is made of them; what commands said is in spoken.txt."""
    out, cohort = tmp_path_factory.mktemp("anonymous"), archive.parent / "cohort.csv"
    features = out.parent / f"{out.name}-features-of-MRN-44"
    shutil.copytree(outputs / "features", features)
    (features / "scan-DOE-03.h5").write_bytes(b"cut short")
    key, predictions = out.parent / f"{out.name}.json", out / "predictions"
    spoken = [
        wsimil("predict", outputs / "run", features, "--cohort", cohort, "-o", predictions, "--pseudonymize", key, code=1),
        wsimil("export", predictions, "--to", "qupath,ome-tiff,dsa,csv,png", "--quiet"),
        wsimil("export", "html", predictions, "-o", out / "page", "--quiet"),
        wsimil("evaluate", predictions, "--cohort", predictions / "cohort.csv", "-o", out / "report", "--replicates", 100),
    ]  # fmt: skip
    (out / "spoken.txt").write_text("\n".join(spoken), encoding="utf-8")
    return out


def test_under_pseudonyms_no_id_and_no_folder_is_in_any_output(pseudonymous: Path) -> None:
    found = set()
    for path in sorted(pseudonymous.rglob("*")):
        assert not any(word.decode() in path.name for word in IDS)
        if path.is_file():
            for data in readings(path):
                found |= {
                    (path.name, word) for word in IDS if word in data or word.decode().encode("utf-16-le") in data
                }
    assert not found
    failures = (pseudonymous / "predictions" / "failures.csv").read_text(encoding="utf-8")
    assert "anon-" in failures
    assert "(features)" in failures


def test_under_pseudonyms_answers_and_metrics_are_the_same_and_the_file_leads_back(
    pseudonymous: Path, outputs: Path, archive: Path
) -> None:
    names = open_pseudonyms(pseudonymous.parent / f"{pseudonymous.name}.json")
    ours = pd.read_parquet(pseudonymous / "predictions" / "predictions.parquet")
    ours = ours[ours["status"] == "ok"]
    assert len(ours) == SLIDES - 1
    ours = ours.assign(slide_id=[names.identity(name) for name in ours["slide_id"]],
                       patient_id=[names.identity(name) for name in ours["patient_id"]])  # fmt: skip
    theirs = pd.read_parquet(outputs / "predictions" / "predictions.parquet").set_index("slide_id")
    pd.testing.assert_frame_equal(ours.set_index("slide_id").sort_index(), theirs.loc[sorted(ours["slide_id"])])
    learned = json.loads((pseudonymous / "predictions" / "predictions.json").read_text(encoding="utf-8"))[
        "learned_from"
    ]
    before = json.loads((outputs / "predictions" / "predictions.json").read_text(encoding="utf-8"))["learned_from"]
    assert {names.identity(name): split for name, split in learned["patients"].items()} == before["patients"]


def test_pseudonyms_are_refused_among_the_results_and_for_slides(outputs: Path, archive: Path, tmp_path: Path) -> None:
    run, features = outputs / "run", outputs / "features"
    told = wsimil("predict", run, features, "-o", tmp_path / "p", "--pseudonymize", tmp_path / "p" / "key.json", code=2)
    assert "would lie among the results" in told
    told = wsimil("predict", run, archive, "-o", tmp_path / "p", "--pseudonymize", tmp_path / "key.json", code=2)
    assert "extract into a folder that stays with you" in told
