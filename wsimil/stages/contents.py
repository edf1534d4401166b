"""What features hold, told by their headers, so that one that was replaced is noticed without reading gigabytes again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from wsimil.errors import StoreError
from wsimil.provenance import sha256_json
from wsimil.store.base import FeatureStore, StoredHeader, read_each
from wsimil.store.interop.peer_store import PeerStore

_NAMED = 3
_Stamp: TypeAlias = tuple[int, int, int, int]


class Contents:
    """Reads the content of slides' features, and again only where a file was changed or replaced since."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Path, str], tuple[_Stamp, str]] = {}

    def of(self, store: FeatureStore, slide_ids: Iterable[str]) -> dict[str, str]:
        """16 hex digits for each slide, which differ where its features do; empty where it cannot be read."""
        return read_each(list(slide_ids), partial(self._of, store))

    def headers(self, store: FeatureStore, slide_ids: Sequence[str]) -> dict[str, StoredHeader]:
        """Headers of many slides, in the order of their ids, whose content is known from then on. Raises StoreError."""
        return read_each(slide_ids, partial(self._header, store))

    def replaced(self, store: FeatureStore, wanted: Mapping[str, str], slide_ids: Iterable[str]) -> str:
        """Which features of `slide_ids` are not `wanted`, in words for a message; empty where all are.

        Of those that cannot be read nothing is said: whoever needs them says so.
        """
        found = self.of(store, [slide_id for slide_id in slide_ids if slide_id in wanted])
        other = sorted(slide_id for slide_id, content in found.items() if content and content != wanted[slide_id])
        if not other:
            return ""
        told = ", ".join(
            f"{slide_id!a} (got {found[slide_id]}, wanted {wanted[slide_id] or 'one that cannot be read'})"
            for slide_id in other[:_NAMED]
        )
        more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
        return f"in {store.path(other[0]).parent}: slide {told}{more}"

    def _of(self, store: FeatureStore, slide_id: str) -> str:
        try:
            path = store.path(slide_id)
            known = self._seen.get((path, slide_id))
            if known is not None and known[0] == _stamp(path, store):
                return known[1]
            return content_of(self._header(store, slide_id))
        except (StoreError, OSError):
            return ""

    def _header(self, store: FeatureStore, slide_id: str) -> StoredHeader:
        path = store.path(slide_id)
        stamp = _stamp(path, store)  # of before what it tells of is read
        header = store.header(slide_id)
        if stamp is not None:
            self._seen[path, slide_id] = stamp, content_of(header)
        return header


def content_of(header: StoredHeader) -> str:
    """16 hex digits: of the kind of features, and of what is stored."""
    return sha256_json([header.provenance.feature_digest, header.content])[:16]


def _stamp(path: Path, store: FeatureStore) -> _Stamp | None:
    """By which features that were written again are told; None where no one file tells it, or it is not there."""
    if path.is_dir():
        if isinstance(store, PeerStore):
            return None
        path = path / "zarr.json"  # which holds the checksums
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
