"""The engine: tiles in row order, resampled as declared, and no feature that is not a number."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsimil.encoders import EncoderCard, Precision, build_encoder, card
from wsimil.errors import FeatureError
from wsimil.extraction.config import TileConfig
from wsimil.extraction.engine import StageSeconds, encode_tiles, resample
from wsimil.geometry import TileGrid
from wsimil.slides import Slide, open_slide
from wsimil.tiling import tile
from wsimil.tissue import segment

Make = Callable[..., Path]


class Faulty:
    """The default encoder with a fault on some tiles: what breaks in the field breaks here on purpose."""

    def __init__(self, fault: Callable[[torch.Tensor, Precision], torch.Tensor], precision: Precision = "bf16") -> None:
        self._fault, self.precision, self.calls = fault, precision, list[Precision]()
        self._inner = build_encoder("efficientnet_lite0_trunc")

    @property
    def card(self) -> EncoderCard:
        return self._inner.card

    def embed(self, tiles: torch.Tensor, *, precision: Precision | None = None) -> torch.Tensor:
        self.calls.append(precision or self.precision)
        return self._fault(self._inner.embed(tiles).clone(), precision or self.precision)


@pytest.fixture(scope="module")
def slide(make_slide: Make, tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return open_slide(make_slide(tmp_path_factory.mktemp("slide") / "a.tiff", size_px=(1200, 900), seed=4))


@pytest.fixture(scope="module")
def grid(slide: Slide) -> TileGrid:
    found = card("efficientnet_lite0_trunc")
    return tile(slide.info, segment(slide), TileConfig().spec(input_px=found.input_px, trained_mpp=found.mpp))


def encode(slide: Slide, grid: TileGrid, encoder: object, **options: object) -> np.ndarray:
    with ThreadPoolExecutor(3) as readers:
        return encode_tiles(slide, grid, encoder, readers=readers, batch_size=5, **options)  # type: ignore[arg-type]


def with_nan(row: int, only: tuple[Precision, ...]) -> Callable[[torch.Tensor, Precision], torch.Tensor]:
    def fault(features: torch.Tensor, precision: Precision) -> torch.Tensor:
        if precision in only:
            features[row % len(features), 7] = torch.nan
        return features

    return fault


@pytest.mark.parametrize("side", [256, 333, 512, 224, 200])
def test_resampling_is_pillows_bilinear(side: int) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    ours = resample(torch.from_numpy(tiles), 224).numpy()
    theirs = np.stack([np.asarray(Image.fromarray(t).resize((224, 224), Image.Resampling.BILINEAR)) for t in tiles])
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_rows_are_in_the_order_of_the_grid(slide: Slide, grid: TileGrid) -> None:
    assert len(grid) > 9
    whole = encode(slide, grid, build_encoder("efficientnet_lite0_trunc"), dtype="float32")
    backwards = TileGrid(
        slide=grid.slide, spec=grid.spec, xy0=grid.xy0[7:9].copy(), tissue=grid.tissue[7:9].copy(),
        read_level=grid.read_level, read_px=grid.read_px,
    )  # fmt: skip
    part = encode(slide, backwards, build_encoder("efficientnet_lite0_trunc"), dtype="float32")
    np.testing.assert_allclose(part, whole[7:9], rtol=1e-4, atol=1e-4)
    assert not np.allclose(whole[7], whole[8], atol=1e-2)


def test_a_batch_that_is_not_finite_is_tried_again_in_float32(slide: Slide, grid: TileGrid) -> None:
    encoder = Faulty(with_nan(2, ("bf16",)))
    features = encode(slide, grid, encoder)
    assert np.isfinite(features).all()
    assert encoder.calls[:2] == ["bf16", "fp32"]


def test_features_that_stay_infinite_name_the_tile(slide: Slide, grid: TileGrid) -> None:
    x, y = grid.xy0[2]
    with pytest.raises(FeatureError, match=rf"'a'.*also in float32.*level-0 x={x}, y={y}:"):
        encode(slide, grid, Faulty(with_nan(2, ("bf16", "fp32"))))


def test_features_beyond_float16_are_refused_and_fit_float32(slide: Slide, grid: TileGrid) -> None:
    def large(features: torch.Tensor, precision: Precision) -> torch.Tensor:
        return features + 1e5

    x, y = grid.xy0[0]
    with pytest.raises(FeatureError, match=rf"x={x}, y={y} are beyond the range of float16.*--dtype float32"):
        encode(slide, grid, Faulty(large))
    assert np.isfinite(encode(slide, grid, Faulty(large), dtype="float32")).all()


def test_a_failing_read_ends_the_slide_and_leaves_no_reader_behind(slide: Slide, grid: TileGrid) -> None:
    broken = TileGrid(
        slide=grid.slide, spec=grid.spec, xy0=grid.xy0, tissue=grid.tissue, read_level=grid.read_level, read_px=grid.read_px
    )  # fmt: skip
    other = open_slide(grid.slide.path)
    other.close()
    with ThreadPoolExecutor(2) as readers:
        with pytest.raises(Exception, match=r"."):
            encode_tiles(other, broken, build_encoder("efficientnet_lite0_trunc"), readers=readers, batch_size=4)
        assert readers.submit(lambda: 1).result(timeout=5) == 1


def test_every_second_is_accounted_for(slide: Slide, grid: TileGrid) -> None:
    seconds, counted = StageSeconds(), list[int]()
    encode(slide, grid, build_encoder("efficientnet_lite0_trunc"), seconds=seconds, on_tiles=counted.append)
    assert sum(counted) == len(grid)
    assert seconds.read > 0
    assert seconds.encode > 0


@pytest.mark.usefixtures("ctrl_c")
def test_after_an_interrupt_nobody_reads_the_slide_any_more(slide: Slide, grid: TileGrid) -> None:
    release = threading.Event()

    class Watched:
        reading = 0

        def read_tiles(self, grid: TileGrid, rows: np.ndarray) -> np.ndarray:
            self.reading += 1
            release.wait()
            self.reading -= 1
            return slide.read_tiles(grid, rows)

    class PressedWhileWaiting(ThreadPoolExecutor):
        def submit(self, *work: object) -> Future:  # type: ignore[override,type-arg]
            future = super().submit(*work)  # type: ignore[arg-type]
            wait = future.result

            def result() -> object:
                threading.Timer(0.1, release.set).start()
                signal.pthread_kill(threading.get_ident(), signal.SIGINT)
                return wait()

            future.result = result  # type: ignore[method-assign,assignment]
            return future

    watched = Watched()
    with PressedWhileWaiting(1) as readers:
        with pytest.raises(KeyboardInterrupt):
            encode_tiles(watched, grid, Faulty(with_nan(0, ())), readers=readers, batch_size=1)  # type: ignore[arg-type]
        assert watched.reading == 0
