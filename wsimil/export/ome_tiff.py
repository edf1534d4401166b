"""Tile scores as OME-TIFF: one float32 channel for what is shown of each score, for napari, Fiji, OMERO and Python.

Cells are as large as the stride of the tiles (see `cells_over`) and NaN where no tile was scored. The levels of the pyramid are
SubIFDs; a cell of a level is the mean of the scored area below it, and NaN only where nothing of it was scored. Level 0 is padded
with NaN, so that each level is exactly half as large as the one before. OME-XML 2016-06; Goldberg et al. 2005,
doi:10.1186/gb-2005-6-5-r47.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil import __version__
from wsimil.export.raster import Cells, cells_over, halved
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import Shown, shown
from wsimil.files import atomic_path
from wsimil.geometry import Origin
from wsimil.provenance import Json, canonical_json

NAMESPACE = "wsimil/heatmap/2"

_TILE = 256
_BIG_BYTES = 2**31


def write_ome_tiff(path: Path, table: ScoreTable, *, origin: Origin = "bounds", scores: tuple[str, ...] = ()) -> None:
    """Write `scores` (all of the table if none is named) to `path` atomically; the same table gives the same bytes.

    The image begins at the top-left of the scanned part ("bounds"), as QuPath and Bio-Formats show slides whose vendor declares
    one, or at that of the whole frame ("level0"); a map annotation says which, and holds what is known of the slide.
    Values are those that `shown` makes of a score. Raises KeyError where the table has no such score, ValueError where it has
    none at all, StoreError where nobody knows where `origin` lies, OutputError.
    """
    from tifffile import TiffWriter  # takes longer to load than all else here

    names = scores or table.score_names
    if not names:
        raise ValueError(f"slide {table.slide_id!r} has no scores on its tiles, so there is nothing to draw")
    channels = [shown(table, name) for name in names]
    values = [one.values for one in channels]
    size = table.bounds0_px[2:] if origin == "bounds" else table.slide_size0_px
    cells = cells_over(table, (*table.origin0_px(origin), *size))
    levels = _levels(cells.shape)
    height, width = (-(-side // 2 ** (levels - 1)) * 2 ** (levels - 1) for side in cells.shape)
    size_um = table.mpp * cells.cell0
    with (
        atomic_path(path) as temporary,
        TiffWriter(temporary, ome=True, bigtiff=len(names) * height * width * 4 > _BIG_BYTES) as file,
    ):
        for level in range(levels):
            shape = (height >> level, width >> level)
            file.write(
                _tiles(cells, values, (height, width), level),
                shape=(len(names), *shape),
                dtype=np.float32,
                tile=(_TILE, _TILE),
                photometric="minisblack",
                compression="zlib",
                resolution=(1e4 / (size_um * 2**level),) * 2,
                resolutionunit="CENTIMETER",
                software=f"wsimil {__version__}",
                metadata=_metadata(table, names, channels, cells, origin) if level == 0 else None,
                subifds=levels - 1 if level == 0 else None,
                subfiletype=1 if level else 0,
            )


def _levels(shape: tuple[int, int]) -> int:
    """How many until the longer side fits on one tile."""
    return 1 + max(0, int(np.ceil(np.log2(max(shape) / _TILE))))


def _tiles(
    cells: Cells, values: list[NDArray[np.float32]], size: tuple[int, int], level: int
) -> Iterator[NDArray[np.float32]]:
    """The tiles of one level, channel after channel: no more than one channel is in memory."""
    for channel in values:
        raster = np.full(size, np.nan, np.float32)
        raster[: cells.shape[0], : cells.shape[1]] = cells.raster(channel)
        weight = np.ones(size)
        for _ in range(level):
            raster, weight = halved(raster, weight)
        for y in range(0, raster.shape[0], _TILE):
            for x in range(0, raster.shape[1], _TILE):
                tile = np.full((_TILE, _TILE), np.nan, np.float32)
                part = raster[y : y + _TILE, x : x + _TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


def _metadata(
    table: ScoreTable, names: tuple[str, ...], channels: Sequence[Shown], cells: Cells, origin: Origin
) -> dict[str, object]:
    size_um = table.mpp * cells.cell0
    facts: dict[str, Json] = {
        "slide": table.slide_id,
        "level0_width": table.slide_size0_px[0],
        "level0_height": table.slide_size0_px[1],
        "level0_mpp": table.mpp,
        "cell_level0_px": cells.cell0,
        "origin": origin,
        "origin_level0_px": f"{cells.origin0[0]:g},{cells.origin0[1]:g}",
        "nodata": "NaN",
        "answer_of": table.answer_of,
        "answer": ", ".join(f"{c.name}={v:.6g}" for c, v in zip(table.task.answers, table.values, strict=True)),
        "wsimil": __version__,
        "notice": "Research use only",
        **{f"rule.{name}": table.rule(name) for name in names},
        **{
            f"shown.{name}": "; ".join(filter(None, (one.label, one.reading)))
            for name, one in zip(names, channels, strict=True)
        },
        **{f"model.{key}": value for key, value in table.model.items() if isinstance(value, str | int | float)},
    }
    return {
        "axes": "CYX",
        "UUID": str(_identity(table, names, channels, origin)),
        "Creator": f"wsimil {__version__}",
        "Name": _text(f"{table.slide_id} wsimil scores"),
        "PhysicalSizeX": size_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": size_um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": [_text(name) for name in names]},
        "MapAnnotation": {
            "Namespace": NAMESPACE,
            "Value": {_text(key): _text(str(value)) for key, value in facts.items()},
        },
    }


def _identity(table: ScoreTable, names: tuple[str, ...], channels: Sequence[Shown], origin: Origin) -> uuid.UUID:
    """Of what is written; tifffile's own names the machine and the time."""
    readings = [(one.label, one.reading) for one in channels]
    about = (NAMESPACE, table.slide_id, table.bounds0_px, table.mpp, table.size0, names, readings, origin)
    digest = sha256(repr((*about, canonical_json(dict(table.model)))).encode())
    for array in (table.xy0, *(one.values for one in channels), table.values, table.logits):
        digest.update(np.ascontiguousarray(array).tobytes())
    return uuid.UUID(bytes=digest.digest()[:16], version=5)


def _text(text: str) -> str:
    """Without what XML cannot hold, escaped or not."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
