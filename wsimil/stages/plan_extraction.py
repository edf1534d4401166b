"""What an extraction would do: tissue and tiles of every slide, and how long they would take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from wsimil.encoders import Encoder
from wsimil.errors import WsimilError
from wsimil.extraction.config import ExtractConfig, refuse_lost_masks
from wsimil.extraction.engine import encode_tiles
from wsimil.extraction.prepare import CompleteSlide, PreparedSlide
from wsimil.extraction.sources import Shard, SlideSource, clashes
from wsimil.extraction.stain import with_stain_target
from wsimil.geometry import TileSpec
from wsimil.stages.extract import encoders_and_spec, refuse_another_kind_beside, tell_mpp
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.slide_work import Place, SlideWork, close
from wsimil.store import open_store


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
    (encoder, *_), spec = encoders_and_spec(config, reporter)
    config = with_stain_target(config)
    refuse_lost_masks(config)
    store = open_store(out, mode="r", backend=config.store) if out.is_dir() else None
    if store is not None:
        refuse_another_kind_beside(store, sources, encoder, spec, config, out)
    mine = shard.take(list(sources)) if shard else list(sources)
    place = Place(store=store, out=out, complete=store)
    work = SlideWork(config, encoder, spec, lambda _: place, clashes(sources))
    rows: list[PlannedSlide] = []
    rate, measured = 0.0, 0
    reporter.begin("slides", len(mine))
    with closing(work.prepared_ahead(mine)) as prepared_ahead:
        for _, source, future in prepared_ahead:
            reporter.item(source.slide_id, 0)
            prepared: PreparedSlide | CompleteSlide | None = None
            try:
                prepared, _ = future.result()
                if isinstance(prepared, CompleteSlide):
                    row = PlannedSlide(slide_id=source.slide_id, status="complete")
                else:
                    tell_mpp(prepared, reporter)
                    if not measured and len(prepared.grid):
                        rate, measured = _measure(prepared, encoder, config)
                    count = len(prepared.grid)
                    size = count * (encoder.card.dim * np.dtype(config.dtype).itemsize + 20) + 11_500
                    row = PlannedSlide(
                        slide_id=source.slide_id, status="to do", tiles=count, mpp=prepared.slide.info.mpp, bytes_=size
                    )
            except WsimilError as error:
                row = PlannedSlide(slide_id=source.slide_id, status="failed", reason=str(error))
            except Exception as error:  # noqa: BLE001 - as in a run: one bad slide never stops the others
                reason = f"unexpected {type(error).__name__}: {error}"
                row = PlannedSlide(slide_id=source.slide_id, status="failed", reason=reason)
            finally:
                close(prepared)
            rows.append(row)
            reporter.finish_item(
                f"{row.slide_id}: {row.reason or f'{row.tiles} tiles' if row.status != 'complete' else row.status}"
            )
            interrupt.check()
    timed = tuple(replace(row, seconds=row.tiles / rate if rate else 0.0) for row in rows)
    return ExtractPlan(slides=timed, tiles_per_s=rate, measured_tiles=measured, spec=spec)


def _measure(prepared: PreparedSlide, encoder: Encoder, config: ExtractConfig) -> tuple[float, int]:
    grid = prepared.grid
    count = min(64, len(grid))
    few = replace(grid, xy0=grid.xy0[:count], tissue=grid.tissue[:count])
    begin = time.perf_counter()
    encode_tiles(prepared.slide, few, encoder, readers=config.readers, batch_size=config.batch_size, dtype=config.dtype)
    return count / (time.perf_counter() - begin), count
