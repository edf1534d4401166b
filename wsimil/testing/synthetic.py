"""Cohorts of generated slides with known tumor: something to try the whole chain on where there is no data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
import tifffile
from numpy.typing import NDArray
from PIL import Image

from wsimil.files import atomic_path, check_writable, write_text
from wsimil.testing.histology import Palette, Scene, blob, draw

Label = Literal["normal", "tumor"]
Split = Literal["train", "val", "test"]

MIN_SLIDES = 8
MIN_SIDE_UM = 256.0
_SPLITS: tuple[Split, ...] = ("train", "val", "test", "train", "train", "test", "train", "val", "test", "train")
_SIDES = {0.5: 1.0, 0.25: 2 / 3}
_STEP_PX = 64
_TILE_PX = 256
_DOWNSAMPLES = (4, 16)
_JPEG_QUALITY = 85
_MIN_TUMOR_UM2 = 40_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSlide:
    """One generated slide and what is true of it; `tumor` in level-0 px, without polygons where there is none."""

    slide_id: str
    patient_id: str
    label: Label
    split: Split
    mpp: float
    path: Path
    tumor: shapely.MultiPolygon


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticCohort:
    """Where a generated cohort lies: a folder of slides, a cohort file, and tumor outlines as GeoJSON."""

    slides_folder: Path
    cohort_csv: Path
    truth_folder: Path
    slides: tuple[SyntheticSlide, ...]


def make_cohort(folder: Path, *, slides: int = 24, side_um: float = 1536.0, seed: int = 0) -> SyntheticCohort:
    """Draw `slides` slides of two classes into `folder`: slides/, cohort.csv, truth/<slide_id>.geojson.

    Half of the slides have tumor; all have benign glands and inflamed spots. Every third patient has two slides, and no patient
    is in two splits; slides are `side_um` wide at 0.5 µm/px, or two thirds of it at 0.25 µm/px, in both classes; each has a
    stain of its own. The same seed gives the same slides, whatever their number. Raises ValueError where `slides` is below 8 or
    `side_um` below 256, OutputError.
    """
    if slides < MIN_SLIDES:
        raise ValueError(f"a cohort of two classes and three splits needs at least {MIN_SLIDES} slides, got {slides}")
    if side_um < MIN_SIDE_UM:
        raise ValueError(f"a slide needs room for tissue, at least {MIN_SIDE_UM:g} µm, got {side_um:g}")
    check_writable(folder)
    palettes = {mpp: Palette(mpp, np.random.default_rng([seed, 0, round(mpp * 1000)])) for mpp in _SIDES}
    made = tuple(
        _make_slide(
            folder, plan, side_um * _SIDES[plan.mpp], palettes[plan.mpp], np.random.default_rng([seed, 1, index])
        )
        for index, plan in enumerate(_plan(slides))
    )
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["slide_id", "patient_id", "label", "split"])
    rows.writerows([slide.slide_id, slide.patient_id, slide.label, slide.split] for slide in made)
    write_text(folder / "cohort.csv", table.getvalue())
    return SyntheticCohort(
        slides_folder=folder / "slides", cohort_csv=folder / "cohort.csv", truth_folder=folder / "truth", slides=made
    )


def write_pyramid(path: Path, picture: NDArray[np.uint8], *, mpp: float) -> None:
    """Write uint8 [h, w, 3] as a tiled JPEG pyramid of levels 1, 4, 16 with mpp in its resolution tags, atomically."""
    image = Image.fromarray(picture)
    levels = [picture, *(np.asarray(image.reduce(factor)) for factor in _DOWNSAMPLES)]
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=False) as tiff:
        for index, level in enumerate(levels):
            tiff.write(
                level,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                subfiletype=1 if index else 0,
                resolution=(1e4 / mpp / (1, *_DOWNSAMPLES)[index],) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
                software=False,
                maxworkers=1,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    slide_id: str
    patient_id: str
    label: Label
    split: Split
    mpp: float


def _plan(slides: int) -> Iterator[_Plan]:
    count = 0
    patient = 0
    while count < slides:
        label: Label = "tumor" if patient % 2 else "normal"
        of_class = patient // 2
        for part in range(2 if of_class % 3 == 0 else 1):
            if count < slides:
                yield _Plan(
                    slide_id=f"case{patient:03d}_{part}",
                    patient_id=f"case{patient:03d}",
                    label=label,
                    split=_SPLITS[of_class % len(_SPLITS)],
                    mpp=0.25 if (of_class + part) % 2 else 0.5,
                )
                count += 1
        patient += 1


def _make_slide(
    folder: Path, plan: _Plan, side_um: float, palette: Palette, rng: np.random.Generator
) -> SyntheticSlide:
    scene = _scene(plan, side_um, rng)
    path = folder / "slides" / f"{plan.slide_id}.tiff"
    write_pyramid(path, draw(scene, palette, rng), mpp=plan.mpp)
    write_text(folder / "truth" / f"{plan.slide_id}.geojson", _truth_json(scene.tumor))
    return SyntheticSlide(
        slide_id=plan.slide_id,
        patient_id=plan.patient_id,
        label=plan.label,
        split=plan.split,
        mpp=plan.mpp,
        path=path,
        tumor=scene.tumor,
    )


def _scene(plan: _Plan, side_um: float, rng: np.random.Generator) -> Scene:
    side = round(side_um / plan.mpp / _STEP_PX) * _STEP_PX
    um = 1 / plan.mpp
    center = (side * rng.uniform(0.46, 0.54), side * rng.uniform(0.46, 0.54))
    tissue = blob(rng, center, side * rng.uniform(0.37, 0.42), wobble=0.22)
    frame = shapely.box(0.02 * side, 0.02 * side, 0.98 * side, 0.98 * side)
    tissue = _polygons([tissue.intersection(frame)])
    tumor = _tumor(rng, tissue, side, um) if plan.label == "tumor" else shapely.MultiPolygon()
    inflamed = tuple((*_inside(rng, tissue), rng.uniform(60, 150) * um) for _ in range(int(rng.integers(2, 8))))
    return Scene(size_px=(side, side), mpp=plan.mpp, tissue=tissue, tumor=tumor, inflamed=inflamed)


def _tumor(rng: np.random.Generator, tissue: shapely.MultiPolygon, side: int, um: float) -> shapely.MultiPolygon:
    """One or two islands, drawn again until enough of them lies on tissue."""
    least = min(_MIN_TUMOR_UM2 * um**2, 0.05 * tissue.area)
    while True:
        islands = [
            blob(rng, _inside(rng, tissue), min(rng.uniform(150, 300) * um, 0.25 * side), wobble=0.3)
            for _ in range(int(rng.integers(1, 3)))
        ]
        tumor = _polygons([tissue.intersection(shapely.union_all(islands))])
        if tumor.area >= least:
            return tumor


def _inside(rng: np.random.Generator, tissue: shapely.MultiPolygon) -> tuple[float, float]:
    left, top, right, bottom = tissue.bounds
    while True:
        x, y = float(rng.uniform(left, right)), float(rng.uniform(top, bottom))
        if tissue.contains(shapely.Point(x, y)):
            return x, y


def _polygons(shapes: Sequence[shapely.Geometry]) -> shapely.MultiPolygon:
    """All polygons in `shapes`, their corners in whole px, holes closed."""
    parts = [part for shape in shapes for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    rounded = [shapely.set_precision(shapely.Polygon(part.exterior), 1.0) for part in parts]
    kept = [part for shape in rounded for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    return shapely.MultiPolygon([part for part in kept if part.area > 0])


def _truth_json(tumor: shapely.MultiPolygon) -> str:
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(polygon),
            "properties": {
                "objectType": "annotation",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
            },
        }
        for polygon in tumor.geoms
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"
