"""Which files of a folder stand for its DICOM slides: a slide is a series of files, and is named by one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from wsimil.slides.dicom_header import read_series_header
from wsimil.slides.stored_tiles import NotDirectError


def lesser_files(files: Collection[Path]) -> set[Path]:
    """Those of the files of one folder that only belong to the slide of another of them.

    Of a series these are labels and overviews, smaller levels, and all but the first file of its largest image. Never one
    that no other stands for: a second image of the largest size, or a file that is no whole-slide image or cannot be read,
    of which whoever opens it says why.
    """
    series: dict[str, dict[Path, tuple[int, int]]] = defaultdict(dict)
    for file in files:
        try:
            header = read_series_header(file)
            if header.series_uid:
                width, height = header.size_px if header.is_level else (0, 0)
                series[header.series_uid][file] = width * height, -header.first_frame
        except NotDirectError:
            continue
    greatest = {uid: max(ranks.values()) for uid, ranks in series.items()}
    return {file for uid, ranks in series.items() for file, rank in ranks.items() if rank < greatest[uid]}
