"""pack: the features of a whole cohort from a folder of slides into one pack of few large files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsimil.errors import ConfigError, OutputError, StoreError
from wsimil.files import check_writable, remove_stale
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Quiet, Reporter
from wsimil.store import FeatureStore, StoredHeader, open_store
from wsimil.store.base import read_headers
from wsimil.store.packing import refuse_mixed_kinds, write_pack
from wsimil.store.places import failed_ids, pack_at


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSummary:
    """What was packed: files and bytes of features before and after, and seconds of wall time.

    `failed_ids` are slides whose last extraction failed and that are packed with the features of an earlier one.
    """

    slides: int
    tiles: int
    dim: int
    dtype: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    write_seconds: float
    verify_seconds: float
    failed_ids: tuple[str, ...]


def pack(features: Path, out: Path, *, overwrite: bool = False, reporter: Reporter | None = None) -> PackSummary:
    """Put all slides of `features` into the pack `out`, whole or not at all.

    Raises ConfigError where `out` is in the way of something, StoreError where a slide is broken or not of the same kind as
    the others, OutputError where the disk has no room or does not give back what was written.
    """
    reporter = reporter or Quiet()
    _refuse_place(features, out, overwrite=overwrite)
    store = open_store(features, mode="r")
    ids = store.ids()
    if not ids:
        raise StoreError(f"feature folder {features} holds no slides; give the folder that wsimil extract wrote to")
    headers = list(read_headers(store, ids).values())
    refuse_mixed_kinds(headers)
    check_writable(out.parent)
    remove_stale(out.parent)
    _refuse_full_disk(headers, out)
    failed = tuple(sorted(failed_ids(features) & set(ids)))
    watch = _Watch(reporter, len(headers))
    write_pack(out, store, headers, failed_ids=failed, on_written=watch.written, on_verified=watch.verified)
    before, after = _sizes(store, ids), _sizes_of([out])
    return PackSummary(
        slides=len(headers),
        tiles=sum(header.n for header in headers),
        dim=headers[0].dim,
        dtype=headers[0].dtype,
        files_before=before[0],
        files_after=after[0],
        bytes_before=before[1],
        bytes_after=after[1],
        write_seconds=watch.write_seconds,
        verify_seconds=watch.verify_seconds,
        failed_ids=failed,
    )


class _Watch:
    """Tells the reporter of both passes over the slides, and times them."""

    def __init__(self, reporter: Reporter, slides: int) -> None:
        self._reporter, self._slides, self._left = reporter, slides, slides
        self._began = time.perf_counter()
        self.write_seconds = self.verify_seconds = 0.0
        reporter.begin("slides", slides)

    def written(self, header: StoredHeader) -> None:
        interrupt.check()
        self._reporter.finish_item(f"{header.slide_id}: {header.n} tiles packed")
        self._left -= 1
        if not self._left:
            self.write_seconds = time.perf_counter() - self._began
            self._reporter.note("reading all of it back")
            self._reporter.begin("slides", self._slides)

    def verified(self, header: StoredHeader) -> None:
        interrupt.check()
        self._reporter.finish_item(f"{header.slide_id}: read back")
        self.verify_seconds = time.perf_counter() - self._began - self.write_seconds


def _refuse_place(features: Path, out: Path, *, overwrite: bool) -> None:
    if out.suffix != ".zarr":
        raise ConfigError(f"{out}: the name of a pack ends in .zarr, wanted {out.with_name(out.name + '.zarr')}")
    if features.resolve() in (out.resolve(), out.resolve().parent):
        raise ConfigError(
            f"{out} would lie among the features that it packs, and be taken for a slide; give it a folder of its own"
        )
    if not (out.exists() or out.is_symlink()):
        return
    if out.is_symlink() or not _is_pack(out):
        raise ConfigError(f"{out} is there and is no pack: choose another name, or move it away")
    if not overwrite:
        raise ConfigError(f"{out} is a pack already: choose another name, or replace it with --overwrite")


def _is_pack(path: Path) -> bool:
    try:
        return pack_at(path) == path
    except StoreError:  # a Zarr group of another kind, or damaged: nothing that may be replaced unasked
        return False


def _refuse_full_disk(headers: Sequence[StoredHeader], out: Path) -> None:
    rows = sum(header.n for header in headers)
    row_bytes = headers[0].dim * np.dtype(headers[0].dtype).itemsize + 2 * 8 + 4
    wanted, free = rows * row_bytes, shutil.disk_usage(out.parent).free
    if wanted > free:
        raise OutputError(
            f"cannot write {out}: the pack takes {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free space or choose"
            " another place"
        )


def _sizes(store: FeatureStore, ids: Sequence[str]) -> tuple[int, int]:
    return _sizes_of(sorted({store.path(slide_id) for slide_id in ids}))


def _sizes_of(paths: Sequence[Path]) -> tuple[int, int]:
    """How many files are at `paths` or below, and their bytes."""
    files = [
        file
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if path.is_file() or file.is_file()
    ]
    return len(files), sum(file.stat().st_size for file in files)
