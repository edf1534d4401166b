"""Which slides: a file, a folder or a manifest becomes a list of named slides."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wsimil.errors import ConfigError
from wsimil.slides import SLIDE_SUFFIXES, find_slides
from wsimil.tables import TableRow, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideSource:
    """A slide to be read: its id, its file, and what the manifest says of it (µm per level-0 px, a tissue GeoJSON)."""

    slide_id: str
    path: Path
    mpp: float | None = None
    mask: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part `index` of `count`, counted from 1, as in --shard 3/8."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError(
                f"shard {self.index}/{self.count}: shards count from 1/{self.count} to {self.count}/{self.count}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "3/8". Raises ConfigError."""
        match = re.fullmatch(r"\s*([0-9]+)\s*/\s*([0-9]+)\s*", text)
        if match is None:
            raise ConfigError(f"shard {text!r}: wanted i/n, for example 3/8")
        return cls(index=int(match[1]), count=int(match[2]))

    def take(self, sources: list[SlideSource]) -> list[SlideSource]:
        """Every count-th slide; the shards of a list are disjoint and together the whole list."""
        return sources[self.index - 1 :: self.count]


def list_sources(source: Path) -> list[SlideSource]:
    """The slides of `source`, sorted by id: one slide file, a folder searched through, or a CSV manifest.

    A manifest has a column `path` (relative to the manifest, or absolute) and may have `slide_id` (else the file name without
    its suffix), `mpp` (µm per level-0 px) and `mask` (GeoJSON); other columns are ignored.
    Raises ConfigError where nothing is found or the manifest is broken. Two slides of one id are both returned: see `clashes`.
    """
    if not source.exists():
        raise ConfigError(f"{source} does not exist; give a slide, a folder of slides, or a CSV manifest")
    if source.is_dir() and source.suffix.lower() not in SLIDE_SUFFIXES:
        found = [SlideSource(slide_id=path.stem, path=path) for path in find_slides(source)]
        if not found:
            raise ConfigError(f"no slide in {source}; looked for files ending in {', '.join(sorted(SLIDE_SUFFIXES))}")
    elif source.suffix.lower() == ".csv" and source.is_file():
        found = _read_manifest(source)
    else:
        found = [SlideSource(slide_id=source.stem, path=source)]
    return sorted(found, key=lambda s: (s.slide_id, str(s.path)))


def clashes(sources: Iterable[SlideSource]) -> dict[str, list[Path]]:
    """Ids that more than one file goes by, with the files."""
    files: dict[str, list[Path]] = defaultdict(list)
    for source in sources:
        files[source.slide_id].append(source.path)
    return {slide_id: paths for slide_id, paths in files.items() if len(paths) > 1}


def _read_manifest(manifest: Path) -> list[SlideSource]:
    table = read_table(manifest, "manifest", keys=("path",), error=ConfigError)
    if "path" not in table.columns or not table.rows:
        got = ", ".join(table.columns) if table.rows else "no rows"
        raise ConfigError(
            f"manifest {manifest}: wanted a column 'path' (and optionally slide_id, mpp, mask), got {got}"
        )
    return [_source(manifest, row) for row in table.rows]


def _source(manifest: Path, line: TableRow) -> SlideSource:
    row, where = line.cells, f"manifest {manifest}, line {line.line}"
    if not row["path"]:
        raise ConfigError(f"{where}: path is empty")
    mpp: float | None = None
    if row.get("mpp"):
        try:
            mpp = float(row["mpp"])
        except ValueError:
            mpp = math.nan
        if not (math.isfinite(mpp) and mpp > 0):
            raise ConfigError(f"{where}: mpp {row['mpp']!r}, wanted a number of µm per pixel, such as 0.2527")
    path = manifest.parent / row["path"]
    mask = manifest.parent / row["mask"] if row.get("mask") else None
    return SlideSource(slide_id=row.get("slide_id") or path.stem, path=path, mpp=mpp, mask=mask)
