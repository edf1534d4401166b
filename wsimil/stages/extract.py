"""extract: slides to feature files; a bad slide is recorded and the run goes on, a rerun does what is missing or changed."""

from __future__ import annotations

import csv
import io
import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from wsimil.bags import FeatureBag
from wsimil.encoders import Encoder, build_encoder
from wsimil.errors import ConfigError, ModelError, OutputError, StoreError, WsimilError
from wsimil.extraction.config import ExtractConfig, tiling_recipe
from wsimil.extraction.engine import StageSeconds, encode_tiles
from wsimil.extraction.prepare import PreparedSlide, prepare, write_pictures
from wsimil.extraction.sources import Shard, SlideSource, clashes
from wsimil.files import check_writable, output_error, printable, remove_stale, write_text
from wsimil.geometry import TileSpec
from wsimil.provenance import Provenance
from wsimil.slides.mpp import METADATA_DISAGREE
from wsimil.stages.device import resolve_device
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Quiet, Reporter
from wsimil.store import FeatureStore, open_store
from wsimil.store.base import slide_path

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideOutcome:
    """How one slide went; `step` names where a failure happened, `seconds` is wall time."""

    slide_id: str
    path: Path
    status: Status
    tiles: int = 0
    step: str = ""
    reason: str = ""
    trace: str = ""
    seconds: float = 0.0
    stages: StageSeconds = field(default_factory=StageSeconds)

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.slide_id}: FAILED: {self.reason}"
        if self.status == "skipped":
            return f"{self.slide_id}: complete already"
        return f"{self.slide_id}: {self.tiles} tiles in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractSummary:
    """What a run did; `wait_share` is the share of the encoding time that was spent waiting for tiles."""

    outcomes: tuple[SlideOutcome, ...]
    seconds: float
    stages: StageSeconds
    peak_rss_mb: float

    def count(self, status: Status) -> int:
        """Slides that ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def failures(self) -> tuple[SlideOutcome, ...]:
        """The slides that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def tiles(self) -> int:
        """Tiles that were encoded in this run."""
        return sum(outcome.tiles for outcome in self.outcomes if outcome.status == "done")

    @property
    def wait_share(self) -> float:
        """Share of the encoding thread's time that went into waiting for tiles, in [0, 1]."""
        busy = self.stages.wait + self.stages.transform + self.stages.encode
        return self.stages.wait / busy if busy else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSlide:
    """One line of a dry run; `bytes_` of the feature file, `seconds` at the measured rate."""

    slide_id: str
    status: Literal["to do", "complete", "failed"]
    tiles: int = 0
    mpp: float = 0.0
    bytes_: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractPlan:
    """What a run would do; `measured_tiles` were read and encoded to learn the rate."""

    slides: tuple[PlannedSlide, ...]
    tiles_per_s: float
    measured_tiles: int
    spec: TileSpec


def extract(
    config: ExtractConfig,
    sources: Sequence[SlideSource],
    out: Path,
    *,
    shard: Shard | None = None,
    wanted: Provenance | None = None,
    reporter: Reporter | None = None,
) -> ExtractSummary:
    """Write a feature file for each slide of `sources` into `out`, and config.yaml, extract.jsonl, failures.csv beside them.

    A slide whose file carries the same recipe is skipped. `wanted` is the kind of features that a model needs: an encoder or a
    tiling that would give others raises ModelError before the first slide. Raises ConfigError, EncoderError or OutputError for
    what concerns all slides; what concerns one slide is in the summary.
    """
    reporter = reporter or Quiet()
    started = time.perf_counter()
    check_writable(out)
    store = open_store(out, mode="w", backend=config.store)
    for folder in (out, out / "tissue", out / "thumbnails"):
        if folder.is_dir():
            remove_stale(folder)
    encoder, spec = _encoder_and_spec(config)
    if wanted is not None:
        _refuse_another_kind(wanted, encoder, spec, config)
    _refuse_lost_masks(config)
    suffix = f".{shard.index}-of-{shard.count}" if shard else ""
    write_text(out / f"config{suffix}.yaml", config.to_yaml())
    mine = shard.take(list(sources)) if shard else list(sources)
    refused = clashes(sources)
    failures_csv = out / f"failures{suffix}.csv"
    failures_csv.unlink(missing_ok=True)
    for old in out.glob("failures.*-of-*.csv"):  # of another division of the work
        if shard is None or not old.name.endswith(f"-of-{shard.count}.csv"):
            old.unlink()
    outcomes: list[SlideOutcome] = []
    reporter.begin("slides", len(mine))
    with (
        _log(out / f"extract{suffix}.jsonl") as log,
        ThreadPoolExecutor(config.readers, thread_name_prefix="read") as readers,
    ):
        for source, future in _prepared_ahead(mine, refused, encoder, spec, config, store, out):
            outcome = _extract_one(source, future, refused, encoder, readers, config, store, out, reporter)
            outcomes.append(outcome)
            log(outcome)
            if outcome.status == "failed":
                _write_failures(failures_csv, outcomes)
            reporter.finish_item(str(outcome))
            interrupt.check()
    total = StageSeconds()
    for outcome in outcomes:
        total.add(outcome.stages)
    return ExtractSummary(
        outcomes=tuple(outcomes), seconds=time.perf_counter() - started, stages=total, peak_rss_mb=peak_rss_mb()
    )


def plan(
    config: ExtractConfig,
    sources: Sequence[SlideSource],
    out: Path,
    *,
    shard: Shard | None = None,
    reporter: Reporter | None = None,
) -> ExtractPlan:
    """What `extract` would do: tissue and tiles of every slide, without writing; the rate is measured on up to 64 tiles."""
    reporter = reporter or Quiet()
    encoder, spec = _encoder_and_spec(config)
    _refuse_lost_masks(config)
    store = open_store(out, mode="r", backend=config.store) if out.is_dir() else None
    mine, refused = shard.take(list(sources)) if shard else list(sources), clashes(sources)
    rows: list[PlannedSlide] = []
    rate, measured = 0.0, 0
    reporter.begin("slides", len(mine))
    with ThreadPoolExecutor(config.readers) as readers:
        for source, future in _prepared_ahead(mine, refused, encoder, spec, config, store, out):
            reporter.item(source.slide_id, 0)
            prepared: PreparedSlide | None = None
            try:
                if source.slide_id in refused:
                    row = PlannedSlide(slide_id=source.slide_id, status="failed", reason=_clash(source, refused))
                elif (prepared := future.result()) is not None:
                    _tell_mpp(prepared, reporter)
                    if not measured and len(prepared.grid):
                        rate, measured = _measure(prepared, encoder, readers, config)
                    count = len(prepared.grid)
                    size = count * (encoder.card.dim * np.dtype(config.dtype).itemsize + 20) + 11_500
                    row = PlannedSlide(
                        slide_id=source.slide_id, status="to do", tiles=count, mpp=prepared.slide.info.mpp, bytes_=size
                    )
                else:
                    row = PlannedSlide(slide_id=source.slide_id, status="complete")
            except WsimilError as error:
                row = PlannedSlide(slide_id=source.slide_id, status="failed", reason=str(error))
            except Exception as error:  # noqa: BLE001 - as in a run: one bad slide never stops the others
                reason = f"unexpected {type(error).__name__}: {error}"
                row = PlannedSlide(slide_id=source.slide_id, status="failed", reason=reason)
            finally:
                if prepared is not None:
                    prepared.slide.close()
            rows.append(row)
            reporter.finish_item(
                f"{row.slide_id}: {row.reason or f'{row.tiles} tiles' if row.status != 'complete' else row.status}"
            )
            interrupt.check()
    timed = tuple(
        PlannedSlide(
            slide_id=r.slide_id, status=r.status, tiles=r.tiles, mpp=r.mpp, bytes_=r.bytes_, reason=r.reason,
            seconds=r.tiles / rate if rate else 0.0,
        )
        for r in rows
    )  # fmt: skip
    return ExtractPlan(slides=timed, tiles_per_s=rate, measured_tiles=measured, spec=spec)


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _encoder_and_spec(config: ExtractConfig) -> tuple[Encoder, TileSpec]:
    device = resolve_device(config.device)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    encoder = build_encoder(config.encoder, weights=config.encoder_weights, device=device, precision=precision)
    spec = config.tile.spec(input_px=encoder.card.input_px, trained_mpp=encoder.card.mpp)
    if not encoder.card.accepts(spec.size_px):
        raise ConfigError(
            f"encoder {config.encoder!r} does not take tiles of {spec.size_px} px, wanted {encoder.card.input_px} px: leave out"
            " --tile-px, and choose the physical size with --tile-um or --mpp alone"
        )
    return encoder, spec


def _prepared_ahead(
    sources: Sequence[SlideSource],
    refused: dict[str, list[Path]],
    encoder: Encoder,
    spec: TileSpec,
    config: ExtractConfig,
    store: FeatureStore | None,
    out: Path,
) -> Iterator[tuple[SlideSource, Future[PreparedSlide | None]]]:
    """Yield every source with its preparation; the next slide is prepared while the caller works on the current one."""

    def work(source: SlideSource) -> PreparedSlide | None:
        slide_path(out, source.slide_id, "")  # refuses an id that cannot be a file name, before any work
        return prepare(
            source,
            encoder=encoder,
            spec=spec,
            config=config,
            is_done=lambda recipe: _is_done(store, source.slide_id, recipe),
        )

    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as preparer:
        futures: dict[int, Future[PreparedSlide | None]] = {}
        try:
            for index, source in enumerate(sources):
                for ahead in range(index, min(index + 2, len(sources))):
                    if ahead not in futures and sources[ahead].slide_id not in refused:
                        futures[ahead] = preparer.submit(work, sources[ahead])
                yield source, futures.pop(index, Future())
        finally:
            for future in futures.values():
                if not future.cancel() and future.exception() is None and (left := future.result()) is not None:
                    left.slide.close()


def _extract_one(
    source: SlideSource,
    future: Future[PreparedSlide | None],
    refused: dict[str, list[Path]],
    encoder: Encoder,
    readers: ThreadPoolExecutor,
    config: ExtractConfig,
    store: FeatureStore,
    out: Path,
    reporter: Reporter,
) -> SlideOutcome:
    started = time.perf_counter()
    seconds = StageSeconds()
    step = "open"
    prepared: PreparedSlide | None = None

    def outcome(status: Status, *, tiles: int = 0, step: str = "", reason: str = "", trace: str = "") -> SlideOutcome:
        if status == "failed" and source.slide_id in store:
            reason += (
                f". An older feature file of it is still there, of another recipe or of another content: remove"
                f" {store.path(source.slide_id)} unless you want it"
            )
        return SlideOutcome(
            slide_id=source.slide_id, path=source.path, status=status, tiles=tiles, step=step, reason=reason, trace=trace,
            seconds=time.perf_counter() - started, stages=seconds,
        )  # fmt: skip

    def advance(tiles: int) -> None:
        reporter.advance(tiles)
        interrupt.check()

    reporter.item(source.slide_id, 0)
    try:
        if source.slide_id in refused:
            return outcome("failed", step="list", reason=_clash(source, refused))
        prepared = future.result()
        seconds.prepare = time.perf_counter() - started
        if prepared is None:
            return outcome("skipped")
        reporter.item(source.slide_id, len(prepared.grid))
        _tell_mpp(prepared, reporter)
        step = "encode"
        features = encode_tiles(
            prepared.slide, prepared.grid, encoder, readers=readers, batch_size=config.batch_size,
            ahead=config.readers + 1, dtype=config.dtype, seconds=seconds, on_tiles=advance,
        )  # fmt: skip
        step = "write"
        begin = time.perf_counter()
        write_pictures(prepared, out, thumbnail_px=config.thumbnail_px)
        store.write(FeatureBag(grid=prepared.grid, features=features, provenance=prepared.provenance))
        seconds.write = time.perf_counter() - begin
        return outcome("done", tiles=len(prepared.grid))
    except OutputError:
        raise
    except WsimilError as error:
        return outcome("failed", step=step, reason=str(error))
    except Exception as error:  # noqa: BLE001 - one bad slide never stops a batch; it is recorded with its trace
        reason = f"unexpected {type(error).__name__}: {error}"
        return outcome("failed", step=step, reason=reason, trace=traceback.format_exc())
    finally:
        if prepared is not None:
            prepared.slide.close()


def _refuse_another_kind(wanted: Provenance, encoder: Encoder, spec: TileSpec, config: ExtractConfig) -> None:
    made = replace(
        wanted, encoder=encoder.provenance, tiling=tiling_recipe(spec, half_scale_jpeg=config.half_scale_jpeg)
    )
    differences = wanted.kind_differences(made)
    if differences:
        raise ModelError(
            f"the model was trained on features that this extraction would not make (model != here): {'; '.join(differences)};"
            " give the weights that the model's features were made with by --encoder-weights"
        )


def _refuse_lost_masks(config: ExtractConfig) -> None:
    if config.masks is not None and not config.masks.is_dir():
        raise ConfigError(f"masks: {config.masks} is not a folder; give the folder that holds <slide_id>.geojson")


def _tell_mpp(prepared: PreparedSlide, reporter: Reporter) -> None:
    info = prepared.slide.info
    if METADATA_DISAGREE in info.mpp_detail:
        reporter.note(f"{info.slide_id}: taken as {info.mpp:g} µm per pixel, {info.mpp_detail}")


def _is_done(store: FeatureStore | None, slide_id: str, recipe: Provenance) -> bool:
    if store is None or slide_id not in store:
        return False
    try:
        return store.header(slide_id).provenance.digest == recipe.digest
    except StoreError:
        return False  # broken or foreign: it is made anew


def _clash(source: SlideSource, refused: dict[str, list[Path]]) -> str:
    names = ", ".join(str(path) for path in refused[source.slide_id])
    return (
        f"slide id {source.slide_id!r} names {len(refused[source.slide_id])} files: {names}; rename one, or give different"
        " slide_id in a manifest"
    )


def _measure(
    prepared: PreparedSlide, encoder: Encoder, readers: ThreadPoolExecutor, config: ExtractConfig
) -> tuple[float, int]:
    grid = prepared.grid
    count = min(64, len(grid))
    few = type(grid)(
        slide=grid.slide, spec=grid.spec, xy0=grid.xy0[:count], tissue=grid.tissue[:count], read_level=grid.read_level,
        read_px=grid.read_px,
    )  # fmt: skip
    begin = time.perf_counter()
    encode_tiles(prepared.slide, few, encoder, readers=readers, batch_size=config.batch_size, dtype=config.dtype)
    return count / (time.perf_counter() - begin), count


@contextmanager
def _log(path: Path) -> Iterator[Callable[[SlideOutcome], None]]:
    """Yield a function that adds one JSON line for one slide, flushed at once."""
    try:
        handle = path.open("a", encoding="utf-8")
    except OSError as error:
        raise output_error(path, error) from error
    with handle:

        def add(outcome: SlideOutcome) -> None:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "slide_id": outcome.slide_id,
                "status": outcome.status,
                "tiles": outcome.tiles,
                "seconds": round(outcome.seconds, 3),
                "stages": outcome.stages.rounded(),
                "step": outcome.step,
                "reason": outcome.reason,
                "trace": outcome.trace,
            }
            try:
                handle.write(json.dumps(line) + "\n")
                handle.flush()
            except OSError as error:
                raise output_error(path, error) from error

        yield add


def _write_failures(path: Path, outcomes: Sequence[SlideOutcome]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "path", "step", "reason"])
    writer.writerows([o.slide_id, o.path, o.step, o.reason] for o in outcomes if o.status == "failed")
    write_text(path, printable(text.getvalue()))
