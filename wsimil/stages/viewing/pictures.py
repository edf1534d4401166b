"""Pixels of slides for the viewer: tiles, crops and whole pictures as JPEG without metadata, from readers that threads share.

Of a slide's file nothing is read but its pyramid: no label, no macro image, no property.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsimil.errors import SlideError
from wsimil.export.scores import ScoreTable
from wsimil.export.viewer.pyramid import PyramidTile
from wsimil.extraction.sources import SlideSource, clashes, list_sources
from wsimil.slides import Slide, open_slide
from wsimil.slides.icc import IccToSrgb

MOST_CROP_PX = 512
_OPEN_SLIDES = 8
_CACHED_BYTES = 96 * 2**20
_QUALITY = 85


class Pictures:
    """The slides at hand, by id: opened when they are looked at, a few at a time."""

    def __init__(self, slides: Path | None, *, report: Callable[[str], None]) -> None:
        sources = [] if slides is None else list_sources(slides)
        self._refused = {
            slide_id: f"slide id {slide_id!r} names {len(paths)} files of --slides; which one was predicted is not known"
            for slide_id, paths in clashes(sources).items()
        }
        self._sources: Mapping[str, SlideSource] = {source.slide_id: source for source in sources}
        self._given, self._report = slides is not None, report
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenSlide] = OrderedDict()
        self._cache = _ByteCache(_CACHED_BYTES)

    def refuse(self, table: ScoreTable) -> str | None:
        """Why there is no picture of this slide, None where there is one: it is opened, and held against its scores.

        What the file itself is to blame for is told to `report`, as it may name paths, and here in short.
        """
        if not self._given:
            return "no slides were given; see them with --slides FOLDER"
        if table.slide_id in self._refused:
            return self._refused[table.slide_id]
        if table.slide_id not in self._sources:
            return "the slide is not among those of --slides"
        try:
            with self._borrowed(table):
                return None
        except _OtherSlideError as error:
            return str(error)
        except SlideError as error:
            self._report(str(error))
            return "its file cannot be read; the terminal of wsimil says why"

    def tile(self, table: ScoreTable, part: PyramidTile) -> bytes:
        """One tile of the pyramid as JPEG. Raises SlideError."""
        key = (table.slide_id, *part.xy0, *part.size_px, part.downsample)
        return self._jpeg(key, table, part.xy0, part.size_px, table.mpp * part.downsample)

    def crop(self, table: ScoreTable, index: int) -> bytes:
        """A tile of the model as JPEG, at full resolution up to 512 px. Raises SlideError."""
        side = min(table.size0_px, MOST_CROP_PX)
        x, y = (int(value) for value in table.xy0[index])
        key = (table.slide_id, x, y, side, side, -1)
        return self._jpeg(key, table, (x, y), (side, side), table.mpp * table.size0_px / side)

    def close(self) -> None:
        """Close all slides."""
        with self._lock:
            found = [*self._open.values()]
            self._open.clear()
        for one in found:
            one.slide.close()

    def _jpeg(
        self, key: tuple[object, ...], table: ScoreTable, xy0: tuple[int, int], size_px: tuple[int, int], mpp: float
    ) -> bytes:
        found = self._cache.get(key)
        if found is None:
            with self._borrowed(table) as opened:
                found = encode(opened.region(xy0, size_px, mpp))
            self._cache.put(key, found)
        return found

    @contextmanager
    def _borrowed(self, table: ScoreTable) -> Iterator[_OpenSlide]:
        """The open slide, which nobody closes meanwhile. Raises SlideError where it is not at hand."""
        if table.slide_id in self._refused or table.slide_id not in self._sources:
            raise SlideError(f"slide {table.slide_id!r} is not at hand")
        with self._lock:
            opened = self._open.get(table.slide_id)
            if opened is None:
                opened = self._open[table.slide_id] = _OpenSlide(self._sources[table.slide_id], table)
            opened.users += 1
            self._open.move_to_end(table.slide_id)
        try:
            yield opened
        except SlideError:
            opened.failed = True  # it stays unreadable: a later look opens it anew
            raise
        finally:
            with self._lock:
                opened.users -= 1
                surplus = self._surplus()
            for one in surplus:
                one.slide.close()

    def _surplus(self) -> list[_OpenSlide]:
        """Take out slides that nobody reads: those that failed, and the longest unread where too many are open."""
        idle = [(slide_id, one) for slide_id, one in self._open.items() if not one.users]
        failed = [pair for pair in idle if pair[1].failed]
        many = max(0, len(self._open) - len(failed) - _OPEN_SLIDES)
        chosen = failed + [pair for pair in idle if not pair[1].failed][:many]
        return [self._open.pop(slide_id) for slide_id, _ in chosen]


class _OtherSlideError(SlideError):
    """A file that is not the slide that was scored."""


class _OpenSlide:
    """An open slide that is the one that was scored, and how many read it. Raises SlideError where it is not."""

    def __init__(self, source: SlideSource, table: ScoreTable) -> None:
        self.users, self.failed = 0, False
        self.slide: Slide = open_slide(source.path, slide_id=table.slide_id, mpp_override=table.mpp)
        if self.slide.info.size0_px != table.slide_size0_px:
            (width, height), wanted = self.slide.info.size0_px, table.slide_size0_px
            self.slide.close()
            raise _OtherSlideError(
                f"slide {table.slide_id!r}: the file has {width} x {height} px, scores are of one of {wanted[0]} x {wanted[1]};"
                " it is another slide, or a converted one: give the one that was predicted"
            )
        if (other := table.other_content(self.slide.info.digest)) is not None:
            self.slide.close()
            raise _OtherSlideError(other)
        try:
            profile = self.slide.icc_profile
            self._to_srgb = None if profile is None else IccToSrgb(profile, slide_id=table.slide_id)
        except SlideError:
            self._to_srgb = None  # a profile that cannot be used: colors as they are stored

    def region(self, xy0: tuple[int, int], size_px: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
        """RGB [h, w, 3], in sRGB where the slide says what its colors are."""
        pixels = self.slide.read_region((float(xy0[0]), float(xy0[1])), size_px, mpp)
        return pixels if self._to_srgb is None else self._to_srgb(pixels[None])[0]


class _ByteCache:
    """What was read last, up to so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> bytes | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: tuple[object, ...], value: bytes) -> None:
        with self._lock:
            self._bytes += len(value) - len(self._found.pop(key, b""))
            self._found[key] = value
            while self._bytes > self._most:
                self._bytes -= len(self._found.popitem(last=False)[1])


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG of RGB [h, w, 3], pixels and nothing else."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorsubsampling="420"))
