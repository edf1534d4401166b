"""convert: feature files of one tool to those of another; a bad slide is recorded and the run goes on."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from wsimil.errors import ConfigError, OutputError, SlideError, StoreError, WsimilError
from wsimil.extraction.sources import clashes, list_sources
from wsimil.files import check_writable, output_error, remove_stale
from wsimil.provenance import Json, sha256_file, sha256_json
from wsimil.slides import open_slide
from wsimil.stages.failures import FailedSlides, listed, not_among, stays_listed
from wsimil.stages.features import open_features
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.run_folder import refuse_results
from wsimil.stages.tensors import TorchTensors
from wsimil.store import open_store
from wsimil.store.base import slide_path
from wsimil.store.interop import anndata, clam, stamp, trident
from wsimil.store.interop.peer import LAYOUTS
from wsimil.store.interop.peer_store import PeerStore
from wsimil.store.interop.placed import KnownSlide, PlacedTiles, place
from wsimil.store.places import FailureRow, failure_tables

Target: TypeAlias = Literal["wsimil", "clam", "trident", "stamp", "spatialdata"]
TARGETS: tuple[Target, ...] = ("wsimil", "clam", "trident", "stamp", "spatialdata")
SOURCES = ("wsimil", *LAYOUTS)

_LOG = "convert.jsonl"
_RECIPE_VERSION = 3
"""Raised by one whenever a change of code changes what a conversion writes."""
_WRITERS = {"trident": trident.write, "stamp": stamp.write, "spatialdata": anndata.write}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What a user may say of a conversion. `source`: whose files are read, told by their content where it is None.

    `slides`: a slide, a folder of slides or a manifest, from which µm per pixel, size and bounds are taken; `mpp`: µm per
    level-0 px of all slides, a manifest's column wins. `encoder`, `patches`: as in `wsimil.store.interop.peer.ReadOptions`.
    """

    to: Target = "wsimil"
    source: str | None = None
    slides: Path | None = None
    mpp: float | None = None
    encoder: str | None = None
    patches: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedSlide:
    """How one slide went."""

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    tiles: int = 0
    reason: str = ""
    trace: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.slide_id}: FAILED: {self.reason}"
        if self.status == "skipped":
            return f"{self.slide_id}: complete already"
        return f"{self.slide_id}: {self.tiles} tiles in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSummary:
    """What a conversion did; `layout` is that of the source, `notes` are for whoever uses the outcome."""

    layout: str
    to: Target
    slides: tuple[ConvertedSlide, ...]
    seconds: float
    notes: tuple[str, ...]

    def count(self, status: Literal["done", "skipped", "failed"]) -> int:
        """Slides that ended so."""
        return sum(slide.status == status for slide in self.slides)

    @property
    def failures(self) -> tuple[ConvertedSlide, ...]:
        """The slides that failed."""
        return tuple(slide for slide in self.slides if slide.status == "failed")


def target(name: str) -> Target:
    """The target of that name. Raises ConfigError."""
    for known in TARGETS:
        if name == known:
            return known
    raise ConfigError(f"--to {name!r}: wanted one of {', '.join(TARGETS)}")


def convert(source: Path, out: Path, *, options: ConvertOptions, reporter: Reporter | None = None) -> ConvertSummary:
    """Write the features of `source` into `out` in another layout, and convert.jsonl and failures.csv beside them.

    A slide that was converted from the same file in the same way is skipped, and one that failed in an earlier run stays in
    failures.csv until it is tried again. Raises WsimilError for what concerns all slides; what concerns one slide is in the
    summary.
    """
    reporter = reporter or Quiet()
    started = time.perf_counter()
    refuse_results(out)
    run = _Conversion(source, out, options)
    earlier = _earlier(out / _LOG)
    slides: list[ConvertedSlide] = []
    ids = run.store.ids()
    if away := not_among(listed(failure_tables(out)), ids):
        reporter.note(stays_listed(away, out))
    reporter.begin("slides", len(ids))
    with FailedSlides(out / "failures.csv") as failed:
        for slide_id in ids:
            reporter.item(slide_id, 0)
            slides.append(_convert_one(run, slide_id, earlier.get(slide_id)))
            failure = None
            if slides[-1].status == "failed":
                path = str(run.store.path(slide_id))
                failure = FailureRow(slide_id=slide_id, path=path, step="convert", reason=slides[-1].reason)
            failed.tried(slide_id, failure)
            reporter.finish_item(str(slides[-1]))
            interrupt.check()
    return ConvertSummary(
        layout=run.layout, to=options.to, slides=tuple(slides), seconds=time.perf_counter() - started, notes=run.notes()
    )


class _Conversion:
    """What is the same for all slides of a run, and what was learnt on the way."""

    def __init__(self, source: Path, out: Path, options: ConvertOptions) -> None:
        if options.source is not None and options.source not in SOURCES:
            raise ConfigError(f"--from {options.source!r}: wanted one of {', '.join(SOURCES)}")
        if options.mpp is not None and not options.mpp > 0:
            raise ConfigError(f"--mpp {options.mpp:g}: wanted µm per level-0 pixel, such as 0.25")
        self.options, self.out = options, out
        self.store = open_features(source, layout=options.source, encoder=options.encoder, patches=options.patches)
        self.layout = self.store.layout if isinstance(self.store, PeerStore) else "wsimil"
        self._refuse_what_has_no_effect(source)
        found = [] if options.slides is None else list_sources(options.slides)
        self._clashes = clashes(found)
        self._sources = {source.slide_id: source for source in found}
        check_writable(out)
        remove_stale(out)
        self._native = open_store(out, mode="w", backend="hdf5") if options.to == "wsimil" else None
        self._sides_um: list[float] = []
        self._absent: list[str] = []
        self._nameless = False
        self._linked = False

    def known(self, slide_id: str) -> KnownSlide:
        """What --slides and --mpp say of a slide. Raises SlideError."""
        source = self._sources.get(slide_id)
        if slide_id in self._clashes:
            names = ", ".join(str(path) for path in self._clashes[slide_id])
            raise SlideError(f"slide id {slide_id!r} names {len(self._clashes[slide_id])} slides: {names}; rename one")
        if source is None:
            if self.options.slides is not None:
                self._absent.append(slide_id)
            return KnownSlide(mpp=self.options.mpp, mpp_detail="--mpp")
        mpp, detail = (self.options.mpp, "--mpp") if source.mpp is None else (source.mpp, "manifest")
        if source.mpp is not None and not source.path.exists():  # a table of mpp, where the slides are elsewhere
            return KnownSlide(mpp=mpp, mpp_detail=detail)
        with open_slide(source.path, slide_id=slide_id, mpp_override=mpp) as slide:
            return KnownSlide(info=slide.info, mpp=mpp, mpp_detail=slide.info.mpp_detail if mpp is None else detail)

    def recipe(self, slide_id: str) -> str:
        """A digest of all that decides the outcome, files by size and time. Raises StoreError."""
        source = self._sources.get(slide_id)
        files = [self.store.path(slide_id)]
        if isinstance(self.store, PeerStore):
            files += self.store.describe(slide_id).companions
        if source is not None and source.path.exists():
            files.append(source.path)
        return sha256_json(
            {
                "version": _RECIPE_VERSION,
                "to": self.options.to,
                "from": self.layout,
                "encoder": self.options.encoder,
                "mpp": self.options.mpp if source is None or source.mpp is None else source.mpp,
                "files": [_stamp(path) for path in files],
            }
        )

    def write(self, slide_id: str) -> tuple[int, list[Path]]:
        """Convert one slide; how many tiles it has, and what was written. Raises WsimilError."""
        placed = self._placed(slide_id)
        self._nameless |= placed.encoder is None
        if placed.mpp is not None:
            self._sides_um.append(placed.size0 * placed.mpp)
        if self._native is not None:
            return len(placed.xy0), [self._native.write(placed.to_bag(source=self._source_facts(slide_id)))]
        self._linked |= placed.linkable is not None
        if self.options.to == "clam":
            return len(placed.xy0), clam.write(self.out, placed, TorchTensors())
        return len(placed.xy0), _WRITERS[self.options.to](self.out, placed)

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the outcome."""
        notes: list[str] = []
        if self._nameless:
            notes.append(
                "which encoder made these features is not stated; --encoder NAME puts it into their provenance"
            )
        if self._absent:
            notes.append(f"{len(self._absent)} slides are not in --slides: {', '.join(self._absent[:3])} ...")
        low, high = (min(self._sides_um), max(self._sides_um)) if self._sides_um else (1.0, 1.0)
        if high / low > 1.01:
            notes.append(
                f"tiles are {low:.4g} µm wide on one slide and {high:.4g} µm on another: whoever tiled them went by rounded"
                " magnifications or by levels"
            )
        if self._linked and self.options.to == "stamp":
            notes.append("these files link to the features where they lie: keep both folders where they are")
        return tuple(notes)

    def _placed(self, slide_id: str) -> PlacedTiles:
        slide_path(self.out, slide_id, "")  # refuses an id that cannot be a file name
        if isinstance(self.store, PeerStore):
            bag = self.store.read_peer(slide_id)
            return place(bag, self.known(slide_id))
        path = self.store.path(slide_id)
        linkable = path if path.is_file() and path.suffix == ".h5" else None
        return PlacedTiles.of(self.store.read(slide_id), path=linkable, encoder=self.options.encoder)

    def _source_facts(self, slide_id: str) -> dict[str, Json]:
        return {"source_sha256": _sha256(self.store.path(slide_id))}

    def _refuse_what_has_no_effect(self, source: Path) -> None:
        if self.layout == "wsimil" and self.options.to == "wsimil":
            raise ConfigError(f"{source} holds features of wsimil already; say with --to what they should become")
        if self.layout == "wsimil" and (self.options.slides is not None or self.options.mpp is not None):
            raise ConfigError("--slides and --mpp are for features of other tools; those of wsimil know their slides")
        if self.out.resolve() == source.resolve():
            raise ConfigError(f"{self.out} is also what is converted; give the outcome a folder of its own")


def _convert_one(run: _Conversion, slide_id: str, earlier: Mapping[str, object] | None) -> ConvertedSlide:
    started = time.perf_counter()
    try:
        recipe = run.recipe(slide_id)
        if earlier is not None and earlier.get("recipe") == recipe and _is_there(run.out, earlier.get("files")):
            return ConvertedSlide(slide_id=slide_id, status="skipped")
        tiles, files = run.write(slide_id)
        _log(run.out / _LOG, slide_id, recipe, tiles, {str(path.relative_to(run.out)): _stamp(path) for path in files})
        return ConvertedSlide(slide_id=slide_id, status="done", tiles=tiles, seconds=time.perf_counter() - started)
    except (OutputError, ConfigError):
        raise  # concerns every slide
    except WsimilError as error:
        return ConvertedSlide(slide_id=slide_id, status="failed", reason=str(error))
    except Exception as error:  # noqa: BLE001 - one bad slide never stops a batch; it is recorded with its trace
        reason = f"unexpected {type(error).__name__}: {error}"
        return ConvertedSlide(slide_id=slide_id, status="failed", reason=reason, trace=traceback.format_exc())


def _stamp(path: Path) -> list[Json]:
    """Name, size and time of a file, or of all that is in a folder. Raises StoreError where it is gone."""
    try:
        stats = [file.stat() for file in _files(path)]
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None
    return [path.name, sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]


def _sha256(path: Path) -> str:
    """Of a file; of a folder, over the names and contents of what is in it."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path)}\n".encode())
        digest.update(bytes.fromhex(sha256_file(file)))
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from sorted(file for file in path.rglob("*") if file.is_file())


def _is_there(out: Path, files: object) -> bool:
    if not isinstance(files, Mapping) or not files:
        return False
    return all((out / str(name)).exists() and _stamp(out / str(name)) == wanted for name, wanted in files.items())


def _earlier(log: Path) -> dict[str, Mapping[str, object]]:
    """The last line of each slide; lines that were cut short are as if they were not there."""
    found: dict[str, Mapping[str, object]] = {}
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("slide_id"), str):
            found[row["slide_id"]] = row
    return found


def _log(path: Path, slide_id: str, recipe: str, tiles: int, files: Mapping[str, list[Json]]) -> None:
    line = json.dumps({"slide_id": slide_id, "tiles": tiles, "recipe": recipe, "files": files})
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
    except OSError as error:
        raise output_error(path, error) from error
