"""The engine: tiles in row order, resampled as declared, and no feature that is not a number."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from wsimil.encoders import EncoderCard, Precision, build_encoder, card
from wsimil.errors import EncoderError, FeatureError, SlideError
from wsimil.extraction.batches import Judged
from wsimil.extraction.config import TileConfig
from wsimil.extraction.embedding import resample
from wsimil.extraction.engine import Advanced, Begun, Ended, Event, Ready, Told, encode_tiles, run_engine
from wsimil.extraction.timing import StageSeconds, Trace
from wsimil.geometry import TileGrid, TileSpec
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

    device, compiled = torch.device("cpu"), False

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
    return encode_tiles(slide, grid, encoder, readers=3, batch_size=5, **options)  # type: ignore[arg-type]


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


def test_the_tile_that_is_not_finite_is_the_one_that_is_tried_again_and_named(grid: TileGrid) -> None:
    class Overflowing(Numbered):
        precision, finite_in = "bf16", "fp32"

        def embed(self, tiles: torch.Tensor, *, precision: Precision | None = None) -> torch.Tensor:
            rows = super().embed(tiles)
            return rows if precision == self.finite_in else torch.where(rows == 13, torch.nan, rows)

    encoder, many = Overflowing(), numbered(grid, 40)
    (found,) = ended(run([(Numbered(), many)], encoder, size_px=8)).values()  # type: ignore[list-item]
    assert found.features is not None
    np.testing.assert_array_equal(found.features[:, 0], np.arange(40))
    encoder.finite_in = ""
    (found,) = ended(run([(Numbered(), many)], encoder, size_px=8)).values()  # type: ignore[list-item]
    assert "also in float32; the first is the tile at level-0 x=13, y=0:" in str(found.error)
    both = [(Numbered(), numbered(grid, 4)), (Numbered(), many)]
    found = ended(run(both, encoder, size_px=8, batch_size=16))[1]  # type: ignore[arg-type]
    assert "for 1 of 4 tiles that were read together, also" in str(found.error)


def test_features_beyond_float16_are_refused_and_fit_float32(slide: Slide, grid: TileGrid) -> None:
    def large(features: torch.Tensor, precision: Precision) -> torch.Tensor:
        return features + 1e5

    x, y = grid.xy0[0]
    with pytest.raises(FeatureError, match=rf"x={x}, y={y} are beyond the range of float16.*--dtype float32"):
        encode(slide, grid, Faulty(large))
    assert np.isfinite(encode(slide, grid, Faulty(large), dtype="float32")).all()


def test_every_second_is_accounted_for(slide: Slide, grid: TileGrid) -> None:
    seconds = StageSeconds()
    encode(slide, grid, build_encoder("efficientnet_lite0_trunc"), seconds=seconds)
    assert min(seconds.read, seconds.wait, seconds.encode) > 0


@pytest.fixture(scope="module")
def cohort(make_slide: Make, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Slide, TileGrid]]:
    """Slides of different sizes and resolutions, so that no slide's tiles are a whole number of batches."""
    folder = tmp_path_factory.mktemp("cohort")
    found, slides = card("efficientnet_lite0_trunc"), []
    for index, mpp in enumerate((0.5, 0.25, 0.5, 0.4)):
        path = make_slide(folder / f"{index}.tiff", size_px=(900 + 100 * index, 700), mpp=mpp, seed=index)
        one = open_slide(path)
        slides.append((one, tile(one.info, segment(one), TileConfig().spec(input_px=found.input_px, trained_mpp=()))))
    assert len({grid.read_px for _, grid in slides}) == 3
    return slides


def run(
    slides: Sequence[tuple[Slide, TileGrid] | None], *encoders: object, batch_size: int = 7, size_px: int = 224
) -> list[Event]:
    ready = [Ready(key=i) if one is None else Ready(key=i, slide=one[0], grid=one[1]) for i, one in enumerate(slides)]
    chosen = encoders or (build_encoder("efficientnet_lite0_trunc"),)
    return list(run_engine(ready, chosen, size_px=size_px, batch_size=batch_size, readers=3, dtype="float32"))  # type: ignore[arg-type]


def ended(events: Iterable[Event]) -> dict[int, Ended]:
    found = [event for event in events if isinstance(event, Ended)]
    assert len({one.key for one in found}) == len(found)
    return {one.key: one for one in found}


def assert_alike(found: np.ndarray | None, wanted: np.ndarray | None) -> None:
    """The bound that the engine states for what a batch's other tiles do."""
    assert found is not None
    assert wanted is not None
    assert found.shape == wanted.shape
    distance = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert distance.max() < 1e-5


class Watched:
    """An encoder that remembers how many tiles it got at once."""

    compiled = False

    def __init__(self, *, fits: int = 10**9, fault: Callable[[int], None] = lambda _: None) -> None:
        self._inner, self._fits, self._fault = build_encoder("efficientnet_lite0_trunc"), fits, fault
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def embed(self, tiles: torch.Tensor, *, precision: Precision | None = None) -> torch.Tensor:
        if len(tiles) > self._fits:
            raise torch.OutOfMemoryError("no room")
        self._fault(len(self.lengths))
        self.lengths.append(len(tiles))
        return self._inner.embed(tiles, precision=precision)


def test_batches_are_full_across_slides_and_rows_come_back_to_their_own(cohort: list[tuple[Slide, TileGrid]]) -> None:
    encoder = Watched()
    found = ended(run(cohort, encoder))
    count = sum(len(grid) for _, grid in cohort)
    assert encoder.lengths == [7] * (count // 7) + [count % 7] * bool(count % 7)
    for key, (slide, grid) in enumerate(cohort):
        alone = encode_tiles(
            slide, grid, build_encoder("efficientnet_lite0_trunc"), readers=1, batch_size=1, dtype="float32"
        )
        assert_alike(found[key].features, alone)


def test_two_encoders_share_the_work_and_give_what_one_gives(cohort: list[tuple[Slide, TileGrid]]) -> None:
    one, other = Watched(), Watched()
    found, wanted = ended(run(cohort, one, other)), ended(run(cohort))
    assert one.lengths
    assert other.lengths
    for key in range(len(cohort)):
        assert_alike(found[key].features, wanted[key].features)


def test_slides_without_work_or_tiles_are_answered_too(cohort: list[tuple[Slide, TileGrid]]) -> None:
    slide, grid = cohort[0]
    empty = replace(grid, xy0=grid.xy0[:0], tissue=grid.tissue[:0])
    found = ended(run([None, (slide, empty), (slide, grid), None]))
    assert found.keys() == {0, 1, 2, 3}
    assert found[0].features is None
    assert found[0].error is None
    assert found[1].features is not None
    assert found[1].features.shape == (0, 320)
    assert found[2].features is not None


class Breaking:
    """A slide of which one tile cannot be read."""

    def __init__(self, slide: Slide, row: int) -> None:
        self._slide, self._row = slide, row

    def read_tiles(self, grid: TileGrid, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if self._row in rows:
            raise SlideError("broken here")
        return self._slide.read_tiles(grid, rows, out)


def test_a_slide_that_breaks_off_ends_alone(cohort: list[tuple[Slide, TileGrid]]) -> None:
    slides = [cohort[0], (Breaking(*cohort[1][:1], row=len(cohort[1][1]) - 1), cohort[1][1]), cohort[2]]
    found, wanted = ended(run(slides, batch_size=3)), ended(run(cohort, batch_size=3))  # type: ignore[arg-type]
    assert isinstance(found[1].error, SlideError)
    assert found[1].features is None
    for key in (0, 2):
        assert_alike(found[key].features, wanted[key].features)


class Numbered:
    """A slide whose tiles show their row, and an encoder that reads it."""

    card, device, compiled, precision = SimpleNamespace(dim=1, name="numbers"), torch.device("cpu"), False, "fp32"

    def read_tiles(self, grid: TileGrid, rows: np.ndarray, out: np.ndarray) -> None:
        out[:, 0, 0, 0], out[:, 0, 0, 1] = rows % 256, rows // 256

    def embed(self, tiles: torch.Tensor, *, precision: Precision | None = None) -> torch.Tensor:
        return tiles[:, 0, 0, :1].float() + 256 * tiles[:, 0, 0, 1:2].float()


def numbered(grid: TileGrid, count: int) -> TileGrid:
    spec = TileSpec(size_px=8, mpp=grid.slide.mpp, stride_px=8, min_tissue=0)
    xy0 = np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1)
    return replace(grid, spec=spec, xy0=xy0, tissue=np.ones(count, np.float32), read_px=8)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_slides_of_which_few_tiles_are_kept_come_to_an_end(grid: TileGrid, batch_size: int) -> None:
    rows, many = np.arange(1000), numbered(grid, 1000)
    kept = rows % 23 == 5

    def judge(tiles: np.ndarray) -> Judged:
        row = tiles[:, 0, 0, 0] + 256 * tiles[:, 0, 0, 1].astype(np.int64)
        return Judged(values={"row": row.astype(np.float32)}, beyond={"limit": ~kept[row]})

    ready = [Ready(key=key, slide=Numbered(), grid=many, judge=judge) for key in range(3)]  # type: ignore[arg-type]
    events = run_engine(ready, [Numbered()], size_px=8, batch_size=batch_size, readers=2, dtype="float32")  # type: ignore[list-item]
    told: list[Event] = []
    running = threading.Thread(target=lambda: told.extend(events), daemon=True)
    running.start()
    running.join(30)
    assert ended(told).keys() == {0, 1, 2}
    for one in ended(told).values():
        assert one.features is not None
        np.testing.assert_array_equal(one.features[kept, 0], rows[kept])
        np.testing.assert_array_equal(one.beyond["limit"], ~kept)
        np.testing.assert_array_equal(one.values["row"], rows)
    assert sum(event.tiles for event in told if isinstance(event, Advanced)) == 3000


def test_a_slide_whose_first_tiles_alone_cannot_be_read_is_not_begun(grid: TileGrid) -> None:
    many = numbered(grid, 40)
    events = run([(Breaking(Numbered(), row=0), many), (Numbered(), many)], Numbered(), size_px=8)  # type: ignore[list-item, arg-type]
    assert [event.key for event in events if isinstance(event, Begun)] == [1]
    assert isinstance(ended(events)[0].error, SlideError)


def test_tiles_that_quality_drops_of_a_slide_that_has_ended_are_no_progress(grid: TileGrid) -> None:
    def judge(tiles: np.ndarray) -> Judged:
        return Judged(values={}, beyond={"limit": tiles[:, 0, 0, 0] % 2 == 1})

    slides = [(Breaking(Numbered(), row=0), numbered(grid, 200)), (Numbered(), numbered(grid, 40))]
    ready = [Ready(key=key, slide=slide, grid=tiles, judge=judge) for key, (slide, tiles) in enumerate(slides)]  # type: ignore[arg-type]
    events = list(run_engine(ready, [Numbered()], size_px=8, batch_size=7, readers=3, dtype="float32"))  # type: ignore[list-item]
    assert isinstance(ended(events)[0].error, SlideError)
    assert sum(event.tiles for event in events if isinstance(event, Advanced)) == 40


def test_an_encoder_that_fails_on_a_batch_ends_the_slides_of_that_batch(cohort: list[tuple[Slide, TileGrid]]) -> None:
    def first_call(number: int) -> None:
        if number == 0:
            raise RuntimeError("a fault of the device")

    first = len(cohort[0][1])
    broken = Watched(fault=first_call)
    events = list(run(cohort[:2], broken, batch_size=first))
    # The encoder never gets past its first call, so every batch fails, and each slide says so once.
    assert {key: type(one.error) for key, one in ended(events).items()} == {0: RuntimeError, 1: RuntimeError}


def test_out_of_memory_goes_on_with_half_and_says_so(cohort: list[tuple[Slide, TileGrid]]) -> None:
    encoder = Watched(fits=3)
    events = run(cohort, encoder, batch_size=8)
    told = [event.text for event in events if isinstance(event, Told)]
    assert len(told) == 2
    assert "goes on with 4 tiles" in told[0]
    assert "goes on with 2 tiles" in told[1]
    assert max(encoder.lengths) == 2
    wanted = ended(run(cohort))
    for key, one in ended(events).items():
        assert_alike(one.features, wanted[key].features)


def test_no_memory_for_one_tile_ends_the_run(cohort: list[tuple[Slide, TileGrid]]) -> None:
    with pytest.raises(EncoderError, match="has not the memory for one tile"):
        run(cohort, Watched(fits=0), batch_size=8)


def test_a_compiled_encoder_sees_one_length_alone(cohort: list[tuple[Slide, TileGrid]]) -> None:
    encoder = Watched()
    encoder.compiled = True
    found, wanted = ended(run(cohort, encoder)), ended(run(cohort))
    assert set(encoder.lengths) == {7}
    for key in range(len(cohort)):
        assert_alike(found[key].features, wanted[key].features)


def test_a_compiled_encoder_gives_what_it_gives_otherwise(cohort: list[tuple[Slide, TileGrid]]) -> None:
    pytest.importorskip("torch._inductor")
    found = ended(run(cohort[:1], build_encoder("efficientnet_lite0_trunc", compiled=True), batch_size=4))
    wanted = ended(run(cohort[:1]))
    assert_alike(found[0].features, wanted[0].features)


def test_features_that_nobody_writes_hold_the_engine_up(cohort: list[tuple[Slide, TileGrid]]) -> None:
    slide, grid = cohort[0]
    few = replace(grid, xy0=grid.xy0[:2], tissue=grid.tissue[:2])
    encoder = Watched()
    ready = (Ready(key=i, slide=slide, grid=few) for i in range(40))
    events = run_engine(ready, [encoder], size_px=224, batch_size=2, readers=2, dtype="float32")  # type: ignore[list-item]
    with closing(events):
        next(event for event in events if isinstance(event, Ended))
        before = -1
        while len(encoder.lengths) != before:  # until it stands still
            before = len(encoder.lengths)
            threading.Event().wait(0.5)
        assert before < 12
        assert len([event for event in events if isinstance(event, Ended)]) == 39


@pytest.mark.parametrize("after", [0, 1, 5])
def test_once_closed_nobody_reads_any_more(cohort: list[tuple[Slide, TileGrid]], after: int) -> None:
    reading: list[int] = []

    class Counted:
        def read_tiles(self, grid: TileGrid, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            reading.append(1)
            try:
                return slide.read_tiles(grid, rows, out)
            finally:
                reading.pop()

    slide, grid = cohort[0]
    ready = (Ready(key=i, slide=Counted(), grid=grid) for i in range(20))  # type: ignore[arg-type]
    before = threading.active_count()
    events = run_engine(
        ready, [build_encoder("efficientnet_lite0_trunc")], size_px=224, batch_size=4, readers=3, dtype="float32"
    )
    for _ in range(after):
        next(events)
    events.close()
    assert not reading
    assert threading.active_count() == before


def test_closing_ends_every_encoder_that_waits_for_tiles(grid: TileGrid) -> None:
    few = numbered(grid, 4)

    def slides() -> Iterator[Ready]:
        yield Ready(key=0, slide=Numbered(), grid=few)  # type: ignore[arg-type]
        for thread in threading.enumerate():
            if thread.name.startswith("read"):
                thread.join(30)  # as of a closed engine, while the next one is made ready
        yield Ready(key=1, slide=Numbered(), grid=few)  # type: ignore[arg-type]

    encoders = [Numbered() for _ in range(3)]
    events = run_engine(slides(), encoders, size_px=8, batch_size=2, readers=1, dtype="float32")  # type: ignore[arg-type]
    next(event for event in events if isinstance(event, Ended))
    ending = threading.Thread(target=events.close, daemon=True)
    ending.start()
    ending.join(30)
    assert not ending.is_alive()


def test_a_trace_shows_reading_waiting_and_encoding_by_thread(
    cohort: list[tuple[Slide, TileGrid]], tmp_path: Path
) -> None:
    trace = Trace()
    ready = [Ready(key=0, slide=cohort[0][0], grid=cohort[0][1])]
    encoders = [build_encoder("efficientnet_lite0_trunc")]
    list(run_engine(ready, encoders, size_px=224, batch_size=4, readers=2, dtype="float32", trace=trace))
    trace.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = {(names[event["tid"]].split("_")[0], event["name"]) for event in events if event["ph"] == "X"}
    assert {("read", "read"), ("encode 0", "wait"), ("encode 0", "encode")} <= spans
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")
    assert sum(event["args"]["tiles"] for event in events if event["name"] == "read") == len(cohort[0][1])
