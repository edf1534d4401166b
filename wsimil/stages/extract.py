"""extract: slides to feature files; a bad slide is recorded and the run goes on, a rerun does what is missing or changed."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from wsimil.encoders import Encoder, build_encoder
from wsimil.errors import ConfigError, ModelError, StoreError, WsimilError
from wsimil.extraction.config import ExtractConfig, refuse_lost_masks, tiling_recipe
from wsimil.extraction.engine import Advanced, Begun, Ended, Told, run_engine
from wsimil.extraction.prepare import PreparedSlide
from wsimil.extraction.sources import Shard, SlideSource, clashes
from wsimil.extraction.stain import with_stain_target
from wsimil.extraction.timing import StageSeconds, Trace
from wsimil.files import check_writable, output_error, remove_stale, write_text
from wsimil.geometry import TileSpec
from wsimil.provenance import RECIPE_VERSION, Provenance
from wsimil.slides.mpp import METADATA_DISAGREE
from wsimil.stages.device import resolve_devices, tell_slow_precision
from wsimil.stages.failures import FailedSlides, listed, not_among, stays_listed
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.run_folder import refuse_results
from wsimil.stages.slide_work import Place, SlideOutcome, SlideWork, Status
from wsimil.stages.words import unit_words
from wsimil.store import FeatureStore, open_store
from wsimil.store.places import failure_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractSummary:
    """What a run did; `duplicates` are groups of slide ids that have one content."""

    outcomes: tuple[SlideOutcome, ...]
    seconds: float
    stages: StageSeconds
    peak_rss_mb: float
    duplicates: tuple[tuple[str, ...], ...]

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
        """Share of the encoders' time that went into waiting for tiles, those of the first slide too, in [0, 1]."""
        busy = self.stages.wait + self.stages.transform + self.stages.encode
        return self.stages.wait / busy if busy else 0.0


def extract(
    config: ExtractConfig,
    sources: Sequence[SlideSource],
    out: Path,
    *,
    shard: Shard | None = None,
    wanted: Provenance | None = None,
    profile: bool = False,
    reporter: Reporter | None = None,
) -> ExtractSummary:
    """Write a feature file for each slide of `sources` into `out`, and config.yaml, extract.jsonl, failures.csv beside them.

    A slide whose file carries the same recipe is skipped, and one that failed in an earlier run stays in failures.csv until it is
    tried again. `wanted` is the kind of features that a model needs: an encoder or a tiling that would give others
    raises ModelError before the first slide; where nobody says it, one that would give others than those of further slides that
    are in `out` raises ConfigError. `profile` writes profile.json, a trace of all threads for chrome://tracing. Raises
    ConfigError, EncoderError, StoreError or OutputError for what concerns all slides; what concerns one slide is in the summary.
    """
    reporter = reporter or Quiet()
    started = time.perf_counter()
    refuse_results(out)
    away = not_among(listed(failure_tables(out)), [source.slide_id for source in sources])
    was_there = out.exists()
    check_writable(out)
    store = open_store(out, mode="w", backend=config.store)
    for folder in (out, out / "tissue", out / "thumbnails", out / "quality"):
        if folder.is_dir():
            remove_stale(folder)
    try:
        encoders, spec = encoders_and_spec(config, reporter)
        config = with_stain_target(config)
        if wanted is not None:
            _refuse_another_kind(wanted, encoders[0], spec, config)
        else:
            refuse_another_kind_beside(store, sources, encoders[0], spec, config, out)
        refuse_lost_masks(config)
    except WsimilError:
        if not was_there:
            with suppress(OSError):  # another process writes there
                out.rmdir()
        raise
    suffix = f".{shard.index}-of-{shard.count}" if shard else ""
    write_text(out / f"config{suffix}.yaml", config.to_yaml())
    mine = shard.take(list(sources)) if shard else list(sources)
    if away:
        reporter.note(stays_listed(away, out))
    trace = Trace() if profile else None
    place = Place(store=store, out=out, complete=store)
    work = SlideWork(config, encoders[0], spec, lambda _: place, clashes(sources), trace)
    outcomes: list[SlideOutcome] = []
    reporter.begin("slides", len(mine))
    listing = FailedSlides(out / f"failures{suffix}.csv")
    with listing as failed, _log(out / f"extract{suffix}.jsonl") as log, closing(work.ready(mine)) as ready:
        run = run_engine(
            ready, encoders, size_px=spec.size_px, batch_size=config.batch_size, readers=config.readers,
            dtype=config.dtype, trace=trace,
        )  # fmt: skip
        with work.closing_slides(), closing(run):
            for event in run:
                interrupt.check()
                match event:
                    case Begun(key=key, tiles=tiles):
                        reporter.item(mine[key].slide_id, tiles)
                        tell_mpp(work.prepared[key], reporter)
                    case Advanced(tiles=tiles):
                        reporter.advance(tiles)
                    case Told(text=text):
                        reporter.note(text)
                    case Ended():
                        outcome = work.conclude(mine[event.key], event)
                        outcomes.append(outcome)
                        log(outcome)
                        failed.tried(outcome.slide_id, outcome.failure if outcome.status == "failed" else None)
                        reporter.finish_item(str(outcome))
    if trace is not None:
        trace.write(out / f"profile{suffix}.json")
    total = StageSeconds()
    for outcome in outcomes:
        total.add(outcome.stages)
    return ExtractSummary(
        outcomes=tuple(outcomes), seconds=time.perf_counter() - started, stages=total, peak_rss_mb=peak_rss_mb(),
        duplicates=_duplicates(outcomes),
    )  # fmt: skip


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def encoders_and_spec(config: ExtractConfig, reporter: Reporter) -> tuple[list[Encoder], TileSpec]:
    """The encoder on every device, and the exact tiling. Raises ConfigError, EncoderError."""
    devices = resolve_devices(config.device)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if all(device.startswith("cuda") for device in devices) else "fp32"
    for device in dict.fromkeys(devices):
        tell_slow_precision(device, precision, reporter)
    encoders = [
        build_encoder(
            config.encoder, weights=config.encoder_weights, device=device, precision=precision, compiled=config.compile
        )
        for device in devices
    ]
    card = encoders[0].card
    spec = config.tile.spec(input_px=card.input_px, trained_mpp=card.mpp)
    if not card.accepts(spec.size_px):
        raise ConfigError(
            f"encoder {config.encoder!r} does not take tiles of {spec.size_px} px, wanted {card.input_px} px: leave out"
            " --tile-px, and choose the physical size with --tile-um or --mpp alone"
        )
    return encoders, spec


def _refuse_another_kind(wanted: Provenance, encoder: Encoder, spec: TileSpec, config: ExtractConfig) -> None:
    differences = wanted.kind_differences(_made(wanted, encoder, spec, config))
    if differences:
        remedy = "give the weights that the model's features were made with by --encoder-weights"
        if wanted.recipe_version != RECIPE_VERSION:
            remedy = f"use wsimil {wanted.version}, which made the model's features, or train on features that this one makes"
        raise ModelError(
            f"the model was trained on features that this extraction would not make (model != here): {'; '.join(differences)};"
            f" {remedy}"
        )


def _made(like: Provenance, encoder: Encoder, spec: TileSpec, config: ExtractConfig) -> Provenance:
    """What this extraction makes, of the slide of another provenance."""
    return replace(like, encoder=encoder.provenance, tiling=tiling_recipe(spec, config), recipe_version=RECIPE_VERSION)


def refuse_another_kind_beside(
    store: FeatureStore,
    sources: Sequence[SlideSource],
    encoder: Encoder,
    spec: TileSpec,
    config: ExtractConfig,
    out: Path,
) -> None:
    """Raises ConfigError where features of slides that are not among `sources` would be of another kind than theirs."""
    others = sorted({*store.ids()} - {source.slide_id for source in sources})
    for slide_id in others:
        try:
            header = store.header(slide_id)
        except StoreError:
            continue
        if not header.dim:
            continue  # without tiles, made by a tool that leaves the kind open
        there = header.provenance
        if differences := there.kind_differences(_made(there, encoder, spec, config)):
            raise ConfigError(
                f"{out} holds features of {unit_words('slide', len(others))} that would stay as they are, as {slide_id!r}, of"
                f" another kind than this config makes (there != here): {'; '.join(differences)}; choose another output folder,"
                " give all slides to one call (jobs share them by --shard), or remove those that are meant to be gone"
            )
        return  # the first that can be read tells it of a folder of one kind


def tell_mpp(prepared: PreparedSlide, reporter: Reporter) -> None:
    """Say it where the user's µm per pixel are not what the slide says."""
    info = prepared.slide.info
    if METADATA_DISAGREE in info.mpp_detail:
        reporter.note(f"{info.slide_id}: taken as {info.mpp:g} µm per pixel, {info.mpp_detail}")


def _duplicates(outcomes: Sequence[SlideOutcome]) -> tuple[tuple[str, ...], ...]:
    """Ids of slides that have one content, group by group."""
    same: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.digest:
            same.setdefault(outcome.digest, []).append(outcome.slide_id)
    return tuple(tuple(ids) for ids in same.values() if len(ids) > 1)


@contextmanager
def _log(path: Path) -> Iterator[Callable[[SlideOutcome], None]]:
    """Yield a function that adds one JSON line for one slide, flushed at once."""
    try:
        handle = path.open("a", encoding="utf-8")
    except OSError as error:
        raise output_error(path, error) from error
    with handle:

        def add(outcome: SlideOutcome) -> None:
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **outcome.to_json()}
            try:
                handle.write(json.dumps(line) + "\n")
                handle.flush()
            except OSError as error:
                raise output_error(path, error) from error

        yield add
