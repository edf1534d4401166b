"""One slide of an extraction, before and after the engine has it: made ready, written, its end recorded."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.encoders import Encoder
from wsimil.errors import OutputError, SlideError, StoreError, WsimilError
from wsimil.extraction.ahead import ahead
from wsimil.extraction.batches import Judge, Judged
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.embedding import Features
from wsimil.extraction.engine import Ended, Ready
from wsimil.extraction.prepare import CompleteSlide, PreparedSlide, prepare, write_pictures
from wsimil.extraction.sources import SlideSource
from wsimil.extraction.timing import StageSeconds, Trace
from wsimil.geometry import SlideInfo, TileGrid, TileSpec
from wsimil.provenance import Json, Provenance
from wsimil.quality.measure import measure, refusals
from wsimil.store import FeatureStore
from wsimil.store.base import slide_path
from wsimil.store.places import FailureRow
from wsimil.worklist.faults import is_fault

Status: TypeAlias = Literal["done", "skipped", "failed"]
Made: TypeAlias = "tuple[PreparedSlide | CompleteSlide, float]"
"""A slide made ready, and the seconds that it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideOutcome:
    """How one slide went.

    `tiles` were encoded, `dropped` is how many were beyond each limit of quality (a tile may be beyond several), `quality` the
    median of what was measured. `step` names where a failure happened, `fault` says that the machine is to blame for it and not
    the slide, `digest` is of the slide's content.
    """

    slide_id: str
    path: Path
    status: Status
    tiles: int = 0
    step: str = ""
    reason: str = ""
    trace: str = ""
    fault: bool = False
    digest: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    stages: StageSeconds = field(default_factory=StageSeconds)

    @property
    def failure(self) -> FailureRow:
        """Its line of failures.csv."""
        return FailureRow(slide_id=self.slide_id, path=str(self.path), step=self.step, reason=self.reason)

    def to_json(self) -> dict[str, Json]:
        """A line of extract.jsonl, but for its time."""
        return {
            "slide_id": self.slide_id,
            "status": self.status,
            "tiles": self.tiles,
            "digest": self.digest,
            "dropped": dict(self.dropped),
            "quality": dict(self.quality),
            "stages": self.stages.rounded(),
            "step": self.step,
            "reason": self.reason,
            "trace": self.trace,
        }

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.slide_id}: FAILED: {self.reason}"
        if self.status == "skipped":
            return f"{self.slide_id}: complete already"
        dropped = ", ".join(f"{count} beyond {limit}" for limit, count in self.dropped.items() if count)
        return f"{self.slide_id}: {self.tiles} tiles" + (f" ({dropped})" if dropped else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where what a slide becomes is written: features into `store`, pictures into `out`.

    `complete` is looked at for a slide whose recipe is done already. A store is None where nothing is written, or there is none.
    """

    store: FeatureStore | None
    out: Path
    complete: FeatureStore | None


class SlideWork:
    """What is done with each slide before and after the engine has it; `place` says where a slide is written."""

    def __init__(
        self,
        config: ExtractConfig,
        encoder: Encoder,
        spec: TileSpec,
        place: Callable[[SlideSource], Place],
        refused: Mapping[str, Sequence[Path]],
        trace: Trace | None = None,
    ) -> None:
        self._config, self._encoder, self._spec, self._place = config, encoder, spec, place
        self._refused, self._trace = refused, trace
        self.prepared: dict[int, PreparedSlide] = {}
        self._complete: dict[int, CompleteSlide] = {}
        self._failed: dict[int, Exception] = {}

    def prepare(self, source: SlideSource) -> Made:
        """See `wsimil.extraction.prepare.prepare`; refuses what shares its id with another slide."""
        begin = time.perf_counter()
        with self._span("prepare", source.slide_id):
            if source.slide_id in self._refused:
                raise SlideError(_clash(source, self._refused))
            place = self._place(source)
            slide_path(place.out, source.slide_id, "")  # refuses an id that cannot be a file name, before any work
            found = prepare(
                source, encoder=self._encoder, spec=self._spec, config=self._config,
                is_done=lambda slide, recipe: _is_done(place.complete, slide, recipe),
            )  # fmt: skip
        return found, time.perf_counter() - begin

    def prepared_ahead(
        self, sources: Iterable[SlideSource]
    ) -> Generator[tuple[int, SlideSource, Future[Made]], None, None]:
        """Every source and what became of it, the next ones under way meanwhile."""
        return ahead(
            sources, self.prepare, threads=max(1, self._config.readers // 4), discard=lambda made: close(made[0])
        )

    def ready(self, sources: Iterable[SlideSource]) -> Generator[Ready, None, None]:
        """What the engine asks for, in a thread of its own."""
        for index, _, future in self.prepared_ahead(sources):
            error = future.exception()
            if isinstance(error, Exception):
                self._failed[index] = error
                yield Ready(key=index)
                continue
            found, seconds = future.result()
            if isinstance(found, CompleteSlide):
                self._complete[index] = found
                yield Ready(key=index, prepare_s=seconds)
            else:
                self.prepared[index] = found
                judge = self._judge(found.grid) if self._config.quality.measure or self._config.quality.limits else None
                yield Ready(
                    key=index, slide=found.slide, grid=found.grid, judge=judge, to_srgb=found.to_srgb,
                    restain=found.restain, prepare_s=seconds,
                )  # fmt: skip

    def _judge(self, grid: TileGrid) -> Judge:
        read_mpp = grid.slide.mpp * grid.slide.level_downsamples[grid.read_level]

        def judge(tiles: NDArray[np.uint8]) -> Judged:
            quality = measure(tiles, mpp=read_mpp)
            return Judged(values=quality.by_name(), beyond=refusals(quality, self._config.quality))

        return judge

    @contextmanager
    def closing_slides(self) -> Iterator[None]:
        """Close at the end what is still open, as after an interrupt."""
        try:
            yield
        finally:
            for prepared in self.prepared.values():
                prepared.slide.close()

    def conclude(self, source: SlideSource, ended: Ended) -> SlideOutcome:
        """Write what a slide became, and say how it went. Raises OutputError, which ends the run."""
        prepared, error = self.prepared.pop(ended.key, None), self._failed.pop(ended.key, ended.error)
        step = "list" if source.slide_id in self._refused else "open" if prepared is None else "encode"
        try:
            if error is None and prepared is None:
                return self._outcome(source, ended, "skipped", digest=self._complete.pop(ended.key).digest)
            if error is None and prepared is not None and ended.features is not None:
                step = "write"
                tiles = self._write(self._place(source), prepared, ended.features, ended)
                dropped = {limit: int(beyond.sum()) for limit, beyond in ended.beyond.items()}
                return self._outcome(
                    source, ended, "done", tiles=tiles, dropped=dropped, digest=prepared.slide.info.digest,
                    quality={name: round(float(np.median(values)), 4) for name, values in ended.values.items()},
                )  # fmt: skip
        except OutputError:
            raise
        except Exception as raised:  # noqa: BLE001 - one bad slide never stops a batch; it is recorded below
            error = raised
        finally:
            close(prepared)
        if isinstance(error, WsimilError):
            return self._outcome(source, ended, "failed", step=step, reason=str(error), fault=is_fault(error))
        reason = f"unexpected {type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        return self._outcome(
            source, ended, "failed", step=step, reason=reason, trace=trace, fault=error is not None and is_fault(error)
        )

    def _write(self, place: Place, prepared: PreparedSlide, features: Features, ended: Ended) -> int:
        """Write what is kept; how many tiles that is."""
        begin = time.perf_counter()
        kept = np.ones(len(prepared.grid), dtype=np.bool_)
        for beyond in ended.beyond.values():
            kept &= ~beyond
        grid = replace(prepared.grid, xy0=prepared.grid.xy0[kept], tissue=prepared.grid.tissue[kept])
        quality = {name: values[kept] for name, values in ended.values.items()}
        with self._span("write", prepared.slide.info.slide_id):
            write_pictures(prepared, place.out, thumbnail_px=self._config.thumbnail_px, beyond=ended.beyond)
            if place.store is not None:
                rows = features if kept.all() else features[kept]
                place.store.write(FeatureBag(grid=grid, features=rows, provenance=prepared.provenance, quality=quality))
        ended.seconds.write = time.perf_counter() - begin
        return len(grid)

    def _outcome(
        self, source: SlideSource, ended: Ended, status: Status, *, tiles: int = 0, step: str = "", reason: str = "",
        trace: str = "", fault: bool = False, digest: str = "", dropped: Mapping[str, int] | None = None,
        quality: Mapping[str, float] | None = None,
    ) -> SlideOutcome:  # fmt: skip
        older = self._place(source).complete if status == "failed" else None
        if older is not None and source.slide_id in older:
            reason += (
                f". An older feature file of it is still there, of another recipe or of another content: remove"
                f" {older.path(source.slide_id)} unless you want it"
            )
        return SlideOutcome(
            slide_id=source.slide_id, path=source.path, status=status, tiles=tiles, step=step, reason=reason, trace=trace,
            fault=fault, digest=digest, stages=ended.seconds, dropped=dropped or {}, quality=quality or {},
        )  # fmt: skip

    def _span(self, name: str, slide_id: str) -> AbstractContextManager[None]:
        return nullcontext() if self._trace is None else self._trace.span(name, slide=slide_id)


def close(prepared: PreparedSlide | CompleteSlide | None) -> None:
    """Close the slide, where it is open."""
    if isinstance(prepared, PreparedSlide):
        prepared.slide.close()


def _is_done(store: FeatureStore | None, slide: SlideInfo, recipe: Provenance) -> bool:
    if store is None or slide.slide_id not in store:
        return False
    try:
        header = store.header(slide.slide_id)
    except StoreError:
        return False  # broken or foreign: it is made anew
    # Earlier versions took for levels what is none, and for the downsample of others what it is not.
    is_of_the_same_levels = len(header.level_downsamples) == len(slide.level_downsamples) and np.allclose(
        header.level_downsamples, slide.level_downsamples, rtol=1e-9, atol=0.0
    )
    return header.provenance.digest == recipe.digest and is_of_the_same_levels


def _clash(source: SlideSource, refused: Mapping[str, Sequence[Path]]) -> str:
    names = ", ".join(str(path) for path in refused[source.slide_id])
    return (
        f"slide id {source.slide_id!r} names {len(refused[source.slide_id])} files: {names}; rename one, or give different"
        " slide_id in a manifest"
    )
