"""A tile of the viewer shows the px of the slide that lie there, of the slide that was scored and of nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.viewer.conftest import Client, Serve
from tests.viewer.made_study import MadeStudy, write_picture
from wsimil.export.scores import ScoreTable, read_scores
from wsimil.export.viewer.pyramid import Pyramid
from wsimil.slides import open_slide
from wsimil.slides.openslide import OpenSlideSlide
from wsimil.stages.viewing.pictures import Pictures, encode


def pixels(jpeg: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(jpeg)


@pytest.fixture
def client(serve: Serve, study: MadeStudy) -> Client:
    return serve(study.predictions, slides=study.slides)


@pytest.mark.parametrize("index", range(4))
def test_a_tile_holds_the_readers_pixels_of_its_place(index: int, client: Client, study: MadeStudy) -> None:
    case = client.get(f"cases/{index}.json").json()
    tell, size, full = case["pyramid"], case["pyramid"]["tile_size"], case["pyramid"]["max_level"]
    with open_slide(study.slides / f"s{index}.tiff") as slide:
        width, height = slide.info.size0_px
        assert (tell["width"], tell["height"]) == (width, height)
        assert tell["downsample"] == 1
        for level in range(tell["min_level"], full + 1):
            step = 2 ** (full - level)
            columns, rows = -(-width // (step * size)), -(-height // (step * size))
            x, y = columns - 1, rows // 2
            got = pixels(client.get(tell["tiles"]["url"].format(level=level, x=x, y=y)).body)
            shape = min(size, -(-width // step) - x * size), min(size, -(-height // step) - y * size)
            region = slide.read_region((x * size * step, y * size * step), shape, slide.info.mpp * step)
            np.testing.assert_array_equal(got, pixels(encode(region)))
            assert client.get(tell["tiles"]["url"].format(level=level, x=columns, y=0)).status == 404


def test_the_smallest_level_is_one_tile_of_the_whole_slide(client: Client) -> None:
    tell = client.get("cases/1.json").json()["pyramid"]
    whole = pixels(client.get(tell["tiles"]["url"].format(level=tell["min_level"], x=0, y=0)).body)
    step = 2 ** (tell["max_level"] - tell["min_level"])
    assert whole.shape[:2] == (-(-tell["height"] // step), -(-tell["width"] // step))


def test_a_crop_is_the_tile_that_was_scored(client: Client, study: MadeStudy) -> None:
    table = read_scores(study.predictions / "scores" / "s2.parquet")
    with open_slide(study.slides / "s2.tiff") as slide:
        for tile in (0, 7, len(table) - 1):
            x, y = table.xy0[tile].tolist()
            region = slide.read_region((x, y), (table.size0_px,) * 2, slide.info.mpp)
            np.testing.assert_array_equal(pixels(client.get(f"cases/2/crops/{tile}.jpg").body), pixels(encode(region)))
    assert client.get(f"cases/2/crops/{len(table)}.jpg").status == 404


SQUARE = 64


def checkerboard(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    squares = rng.integers(0, 2, (-(-height // SQUARE), -(-width // SQUARE))) * 200 + 20
    grey = np.kron(squares, np.ones((SQUARE, SQUARE)))[:height, :width]
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


def board_table(table: ScoreTable, size0_px: tuple[int, int], bounds0_px: tuple[int, int, int, int]) -> ScoreTable:
    x, y = np.meshgrid(np.arange(0, size0_px[0] - SQUARE, SQUARE), np.arange(0, size0_px[1] - SQUARE, SQUARE))
    xy0 = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)
    return replace(
        table, slide_id="board", slide_size0_px=size0_px, bounds0_px=bounds0_px, xy0=xy0, size0=float(SQUARE), size0_px=SQUARE,
        slide_content="", stride0=float(SQUARE), scores=np.zeros((len(xy0), len(table.score_names)), np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("bounds", [False, True], ids=["whole", "bounds"])
def test_scores_lie_where_the_picture_shows_them_at_every_level(
    bounds: bool, study: MadeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean grey of each tile, read from the tiles of every level at the tile's place, is that of the board."""
    width, height = 1300, 1100
    board = checkerboard(width, height)
    path = write_picture(tmp_path / "board.tiff", board)
    declared = (130, 70, 900, 800) if bounds else (0, 0, width, height)
    if bounds:  # no format that we can write declares any: OpenSlide's word is what changes
        monkeypatch.setattr("wsimil.slides.openslide._bounds0_px", lambda properties, size: declared)
        with open_slide(path) as slide:
            assert slide.info.bounds0_px == declared
    table = board_table(read_scores(study.predictions / "scores" / "s0.parquet"), (width, height), declared)
    truth = np.array([board[y : y + SQUARE, x : x + SQUARE].mean() for x, y in table.xy0.tolist()])
    pictures, pyramid = Pictures(path.parent, report=print), Pyramid(size0_px=(width, height))
    try:
        assert pictures.refuse(table) is None
        for level in range(pyramid.min_level, pyramid.max_level + 1):
            columns, rows = (-(-side // pyramid.tile_px) for side in pyramid.level_size_px(level))
            grid = [
                [pixels(pictures.tile(table, pyramid.tile(level, x, y))) for x in range(columns)] for y in range(rows)
            ]
            whole = np.concatenate([np.concatenate(row, axis=1) for row in grid], axis=0)
            step = pyramid.downsample(level)
            side = SQUARE // step
            seen = [
                whole[y // step : y // step + side, x // step : x // step + side].mean() for x, y in table.xy0.tolist()
            ]
            # Deviations are JPEG's, and the filter's half px at the edges of squares.
            assert np.corrcoef(seen, truth)[0, 1] > 0.999
            shifted = np.roll(np.array(seen).reshape(-1, (width - SQUARE - 1) // SQUARE + 1), 1, axis=1).ravel()
            assert np.corrcoef(shifted, truth)[0, 1] < 0.5
    finally:
        pictures.close()


@pytest.mark.parametrize(
    ("size", "says"), [((2000, 1500), "2000 x 1500 px"), ((2048, 1536), "it is another slide, or a changed copy")]
)
def test_another_slide_is_refused_be_it_of_the_same_size(
    size: tuple[int, int], says: str, study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    """Scores would be shown over what they were not made of."""
    write_picture(tmp_path / "s0.tiff", checkerboard(*size))
    client = serve(study.predictions, slides=tmp_path)
    case = client.get("cases/0.json").json()
    assert case["pyramid"] is None
    assert says in case["pyramid_note"]
    assert str(tmp_path) not in case["pyramid_note"]
    assert client.get("cases/0/crops/0.jpg").status == 409


def test_two_files_of_one_id_are_refused(study: MadeStudy, tmp_path: Path, serve: Serve) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s0.tiff").write_bytes((study.slides / "s0.tiff").read_bytes())
    case = serve(study.predictions, slides=tmp_path).get("cases/0.json").json()
    assert case["pyramid"] is None
    assert "2 files" in case["pyramid_note"]


def test_without_slides_there_are_scores_on_a_neutral_ground(study: MadeStudy, serve: Serve) -> None:
    client = serve(study.predictions)
    case = client.get("cases/0.json").json()
    assert case["pyramid"] is None
    assert case["crops"] is None
    assert "--slides" in case["pyramid_note"]
    assert client.get("cases/0/tiles/11/0_0.jpg").status == 409


def test_a_broken_slide_is_said_on_the_terminal_and_without_its_path_on_the_page(
    study: MadeStudy, tmp_path: Path, serve: Serve
) -> None:
    (tmp_path / "s0.tiff").write_bytes(b"no slide")
    client = serve(study.predictions, slides=tmp_path)
    case = client.get("cases/0.json")
    assert case.json()["pyramid"] is None
    assert str(tmp_path) not in case.body.decode()
    assert str(tmp_path) in client.heard[-1]


@pytest.fixture
def one_open(
    study: MadeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Pictures, list[ScoreTable]]]:
    """Twelve slides, of which one may stay open."""
    monkeypatch.setattr("wsimil.stages.viewing.pictures._OPEN_SLIDES", 1)
    table = read_scores(study.predictions / "scores" / "s0.parquet")
    tables = [replace(table, slide_id=f"t{number}") for number in range(12)]
    for one in tables:
        (tmp_path / f"{one.slide_id}.tiff").write_bytes((study.slides / "s0.tiff").read_bytes())
    pictures = Pictures(tmp_path, report=print)
    yield pictures, tables
    pictures.close()


def test_a_slide_that_is_being_read_is_not_closed(one_open: tuple[Pictures, list[ScoreTable]]) -> None:
    pictures, tables = one_open
    with pictures._borrowed(tables[0]) as opened:
        for table in tables[1:]:
            pictures.crop(table, 0)
        assert opened.region((0, 0), (8, 8), tables[0].mpp).shape == (8, 8, 3)
    pictures.crop(tables[5], 1)
    assert list(pictures._open) == ["t5"]


def test_many_threads_read_many_slides_while_others_are_closed(one_open: tuple[Pictures, list[ScoreTable]]) -> None:
    pictures, tables = one_open
    pyramid = Pyramid(size0_px=tables[0].slide_size0_px)
    wanted = {level: pictures.tile(tables[0], pyramid.tile(level, 0, 0)) for level in (10, 11)}
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            (level, pool.submit(pictures.tile, tables[number % 12], pyramid.tile(level, 0, 0)))
            for number in range(60)
            for level in (10, 11)
        ]
        assert all(job.result() == wanted[level] for level, job in jobs)
    assert len(pictures._open) == 1


def test_a_jpeg_holds_pixels_and_nothing_else(client: Client) -> None:
    jpeg = client.get("cases/0/crops/0.jpg").body
    with Image.open(io.BytesIO(jpeg)) as image:
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert not image.getexif()


def test_colors_are_brought_to_srgb_where_the_slide_says_what_they_are(
    study: MadeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageCms

    from wsimil.slides.icc import IccToSrgb

    path = tmp_path / "s0.tiff"
    path.write_bytes((study.slides / "s0.tiff").read_bytes())
    table = read_scores(study.predictions / "scores" / "s0.parquet")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    monkeypatch.setattr(OpenSlideSlide, "icc_profile", property(lambda self: profile))
    seen: list[int] = []
    monkeypatch.setattr(IccToSrgb, "__call__", lambda self, tiles: seen.append(len(tiles)) or 255 - tiles)
    pictures = Pictures(tmp_path, report=print)
    try:
        inverted = pixels(pictures.crop(table, 0))
    finally:
        pictures.close()
    assert seen == [1]
    assert inverted.mean() < 200
