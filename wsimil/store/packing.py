"""Writes packs: the features of a whole cohort as one sharded Zarr 3 group, whole or absent, a slide at a time."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import zarr

from wsimil import __version__
from wsimil.errors import OutputError, StoreError
from wsimil.files import atomic_directory
from wsimil.store import layout
from wsimil.store.base import FeatureStore, StoredHeader
from wsimil.store.layout import Array
from wsimil.store.packed import COLUMNS, PACK_FORMAT_VERSION, PackedStore
from wsimil.store.places import FAILED_IDS, PACK_MARK
from wsimil.store.shards import SEPARATOR

CHUNK_BYTES = 2**19
"""What a general reader of Zarr fetches at least; smaller ones take it longer for long bags, by half at a quarter of it."""

SHARD_BYTES = 2**27
"""128 MiB: a cohort of 200 GB is 1600 files, and one shard is held in memory while it is written."""


def refuse_mixed_kinds(headers: Sequence[StoredHeader]) -> None:
    """Raise StoreError, naming slides, where `headers` are not all of one kind of features, one dimension and one type."""
    _refuse_mixed_quality(headers)
    traits = [(header.provenance.feature_digest, header.dim, header.dtype) for header in headers]
    common = Counter(traits).most_common(1)[0][0]
    usual = headers[traits.index(common)]
    odd = [header for header, trait in zip(headers, traits, strict=True) if trait != common]
    if not odd:
        return
    named = ", ".join(repr(header.slide_id) for header in odd[:5]) + (f" and {len(odd) - 5} more" if odd[5:] else "")
    differences = usual.provenance.kind_differences(odd[0].provenance)
    for name in ("dim", "dtype"):
        ours, theirs = getattr(usual, name), getattr(odd[0], name)
        differences += [f"{name}: {ours} != {theirs}"] if ours != theirs else []
    raise StoreError(
        f"a pack holds features of one kind and type: {named} differ from the {len(headers) - len(odd)} others"
        f" ({usual.slide_id!r} != {odd[0].slide_id!r}: {'; '.join(differences)}); extract all slides with one config, or pack"
        " them apart"
    )


def _refuse_mixed_quality(headers: Sequence[StoredHeader]) -> None:
    """Slides may have been measured or not, but what was measured must be one and the same."""
    by_names = {header.quality: header.slide_id for header in headers if header.quality}
    if len(by_names) > 1:
        (one, first), (other, second), *_ = by_names.items()
        raise StoreError(
            f"a pack holds one kind of quality: slide {first!r} has {', '.join(one)}, slide {second!r} has {', '.join(other)};"
            " extract all slides with one version of wsimil, or pack them apart"
        )


def write_pack(
    target: Path,
    source: FeatureStore,
    headers: Sequence[StoredHeader],
    *,
    failed_ids: Iterable[str] = (),
    on_written: Callable[[StoredHeader], None],
    on_verified: Callable[[StoredHeader], None],
) -> None:
    """Put the slides of `headers`, in their order, into the pack `target`; a folder of that name is replaced.

    Every bag is read back and held against its checksums before the pack takes its name. Holds one slide and one shard in
    memory. Raises StoreError where a slide cannot be read, is of another kind or changed since its header was read,
    OutputError where the disk refuses or gives back something else than was written.
    """
    refuse_mixed_kinds(headers)
    with atomic_directory(target) as temporary:
        group = zarr.create_group(temporary, zarr_format=3)
        lines = _write_slides(group, source, headers, on_written)
        text = "\n".join(["\t".join(COLUMNS), *lines]).encode("utf-8")
        with _ShardWriter(group, "slides", (len(text),), "uint8") as table:
            table.add(np.frombuffer(text, np.uint8))
        first = headers[0]
        group.attrs.update(
            {
                PACK_MARK: PACK_FORMAT_VERSION,
                "wsimil_version": __version__,
                "slides": len(headers),
                "rows": sum(header.n for header in headers),
                "dim": first.dim,
                "dtype": first.dtype,
                layout.QUALITY: list(_quality(headers)),
                "feature_digest": first.provenance.feature_digest,
                "encoder": first.provenance.to_json()["encoder"],
                "tiling": first.provenance.to_json()["tiling"],
                "crc32_slides": zlib.crc32(text),
                FAILED_IDS: sorted(failed_ids),
                "complete": True,
            }
        )
        _verify(temporary, target, headers, on_verified)


def _write_slides(
    group: zarr.Group, source: FeatureStore, headers: Sequence[StoredHeader], on_written: Callable[[StoredHeader], None]
) -> list[str]:
    """Write the arrays of all slides; the lines of the table of slides."""
    rows, first = sum(header.n for header in headers), headers[0]
    lines = []
    names = _quality(headers)
    with (
        _ShardWriter(group, "features", (rows, first.dim), first.dtype) as features,
        _ShardWriter(group, "coords", (rows, 2), "int64") as coords,
        _ShardWriter(group, "tissue", (rows,), "float32") as tissue,
        ExitStack() as stack,
    ):
        quality = None
        if names:
            quality = stack.enter_context(_ShardWriter(group, layout.QUALITY, (rows, len(names)), "float32"))
        for header in headers:
            bag = source.read(header.slide_id)
            if (len(bag), bag.dim, bag.provenance) != (header.n, header.dim, header.provenance):
                raise StoreError(
                    f"features of slide {header.slide_id!r} changed while they were packed: wait until the extraction has ended,"
                    " and pack again"
                )
            content = layout.encode(bag)
            for writer, name in ((features, "features"), (coords, "coords"), (tissue, "tissue")):
                writer.add(content.arrays[name])
            if quality is not None:
                missing = np.full((len(bag), len(names)), np.nan, dtype=np.float32)
                quality.add(content.arrays.get(layout.QUALITY, missing))
            texts = (str(content.attributes[name]) for name in COLUMNS[2:])
            lines.append("\t".join((header.slide_id, str(header.n), *texts)))
            on_written(header)
    return lines


def _quality(headers: Sequence[StoredHeader]) -> tuple[str, ...]:
    return next((header.quality for header in headers if header.quality), ())


class _ShardWriter:
    """Fills an array from its first row on, by whole shards: part of a shard could only be written by writing it again."""

    def __init__(self, group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str) -> None:
        row_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        chunk = max(1, min(CHUNK_BYTES // row_bytes, shape[0]))
        shard = chunk * max(1, min(SHARD_BYTES // (chunk * row_bytes), -(-shape[0] // chunk)))
        self._array = group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(chunk, *shape[1:]),
            shards=(shard, *shape[1:]),
            compressors=None,
            chunk_key_encoding={"name": "default", "separator": SEPARATOR},
            config={"write_empty_chunks": True},
        )
        self._held = np.empty((shard, *shape[1:]), dtype)
        self._filled = 0
        self._written = 0

    def add(self, rows: Array) -> None:
        while len(rows):
            taken = min(len(rows), len(self._held) - self._filled)
            self._held[self._filled : self._filled + taken] = rows[:taken]
            self._filled += taken
            rows = rows[taken:]
            if self._filled == len(self._held):
                self._flush()

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._filled:
            self._flush()

    def _flush(self) -> None:
        self._array[self._written : self._written + self._filled] = self._held[: self._filled]
        self._written, self._filled = self._written + self._filled, 0


def _verify(
    temporary: Path, target: Path, headers: Sequence[StoredHeader], on_verified: Callable[[StoredHeader], None]
) -> None:
    try:
        pack = PackedStore(temporary)
        for header in headers:
            pack.read(header.slide_id)
            on_verified(header)
    except StoreError as error:
        raise OutputError(
            f"cannot write {target}: what was written is not what is read back; check the disk and the memory of this machine"
            f" ({error})"
        ) from error
