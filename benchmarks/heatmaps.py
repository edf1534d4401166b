"""From the features of a slide to every export: seconds and memory; and what contributions cost beside a plain answer.

    python benchmarks/heatmaps.py [--tiles 10000 100000] [--dim 1024] [--rounds 5] [--threads 1] [--json FILE]

A slide is a full grid of tiles with random features, tissue of ragged blobs and a pyramid of DICOM headers; the model is a gated
ABMIL of random weights. Each size runs in a child process of its own, whose peak of memory is stated. Time starts when the
features are in memory and ends when the last file has its name; what Python loads first is not counted, for a slide of ten
tiles goes through everything before. What contributions cost is the median over rounds, in turn, of the CPU time that the
model takes to its logits and the scores of tiles, beside that to its logits alone. CPU seconds say what one thread would take
on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from wsimil.bags import FeatureBag
from wsimil.evaluation.attribution import attribute
from wsimil.export.formats import FORMATS, Beside
from wsimil.export.scores import Tissue, read_scores, write_scores
from wsimil.geometry import SlideInfo, TileGrid, TileSpec
from wsimil.mil import registry
from wsimil.mil.batch import pack
from wsimil.mil.saved import TrainedModel
from wsimil.stages.answers import predict_one
from wsimil.targets import Classification
from wsimil.testing.store_laws import make_bag
from wsimil.tissue.outline import outlines

SLIDES = Path(__file__).resolve().parents[1] / "tests/export/dicom_slides.py"
CLASSES = ("normal", "tumor")
TILE_PX, MPP, MASK_PX = 224, 0.5, 16
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_slide(tiles: int, dim: int) -> FeatureBag:
    side = ceil(sqrt(tiles))
    size0_px = (side * TILE_PX, ceil(tiles / side) * TILE_PX)
    info = SlideInfo(
        slide_id=f"slide-{tiles}", path=Path("slide.svs"), size0_px=size0_px, mpp=MPP, mpp_source="metadata",
        mpp_detail="made up", level_downsamples=(1.0,), bounds0_px=(0, 0, *size0_px), vendor="none", digest="0" * 64,
    )  # fmt: skip
    index = np.arange(tiles)
    grid = TileGrid(
        slide=info, spec=TileSpec(size_px=TILE_PX, mpp=MPP, stride_px=TILE_PX, min_tissue=0.0),
        xy0=np.stack([index % side, index // side], axis=1).astype(np.int64) * TILE_PX,
        tissue=np.ones(tiles, np.float32), read_level=0, read_px=TILE_PX,
    )  # fmt: skip
    features = np.random.default_rng(0).standard_normal((tiles, dim), np.float32).astype(np.float16)
    return FeatureBag(grid=grid, features=features, provenance=make_bag(dim=dim).provenance)


def make_tissue(bag: FeatureBag) -> Tissue:
    width, height = (side // MASK_PX for side in bag.grid.slide.size0_px)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((height, width), np.float32), 6)
    return tuple(
        tuple(ring * MASK_PX for ring in (one.exterior, *one.holes))
        for one in outlines(noise > 0)
        if len(one.exterior) > 60
    )


def make_model(dim: int) -> TrainedModel:
    torch.manual_seed(0)
    model = registry.build("abmil", {}, in_dim=dim, num_classes=len(CLASSES)).eval()
    return TrainedModel(
        model=model, method="abmil", task=Classification(classes=CLASSES), features=None, training={},
        digest="0" * 64,
    )  # fmt: skip


def export_all(bag: FeatureBag, trained: TrainedModel, tissue: Tissue, out: Path) -> dict[str, Any]:
    size0_px = bag.grid.slide.size0_px
    levels = [(max(1, size0_px[0] // by), max(1, size0_px[1] // by)) for by in (1, 4, 16, 64)]
    levels = [size for number, size in enumerate(levels) if number == 0 or size != levels[number - 1]]
    source = runpy.run_path(str(SLIDES))["write_dicom_slide"](out / "source", levels, mpp=MPP)
    Image.fromarray(np.full((1024, 1024, 3), 230, np.uint8)).save(out / "thumbnail.jpg")
    seconds: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, cpu_began = time.perf_counter(), time.process_time()
        result = work()
        seconds[name], cpu_seconds[name] = time.perf_counter() - began, time.process_time() - cpu_began
        return result

    prediction = timed("predict", lambda: predict_one(trained, bag))
    timed("scores.parquet", lambda: write_scores(out / "s.parquet", prediction, tissue=tissue))
    table = timed("read scores.parquet", lambda: read_scores(out / "s.parquet"))
    beside = Beside(now=NOW, thumbnail=out / "thumbnail.jpg", slide=source)
    sizes = {}
    for form in FORMATS.values():
        path = out / form.folder / f"s{form.suffix}"
        timed(form.name, lambda form=form, path=path: form.write(path, table, beside))
        files = [path] if path.is_file() else list(path.iterdir())
        sizes[form.name] = sum(file.stat().st_size for file in files)
    return {
        "seconds": seconds,
        "total_seconds": sum(seconds.values()),
        "cpu_seconds": cpu_seconds,
        "total_cpu_seconds": sum(cpu_seconds.values()),
        "bytes": sizes,
    }


def contribution_cost(bag: FeatureBag, trained: TrainedModel, rounds: int) -> dict[str, float]:
    """Medians of seconds, and by how much more the scores take."""
    packed = pack([bag.features], xy0=[bag.grid.xy0], slide_ids=["s"])
    plain: list[float] = []
    scored: list[float] = []
    for _ in range(rounds + 1):  # the first is not counted
        for times, work in (
            (plain, lambda: trained.model(packed).logits),
            (scored, lambda: attribute(trained.model, packed, outputs=CLASSES).per_bag()),
        ):
            with torch.no_grad():
                began = time.process_time()
                work()
                times.append(time.process_time() - began)
    a, b = statistics.median(plain[1:]), statistics.median(scored[1:])
    return {"logits_seconds": a, "with_contributions_seconds": b, "more": b / a - 1}


def prepare(tiles: int, dim: int, folder: Path) -> None:
    """In a process of its own, so that what it takes is not counted."""
    for name, count in (("small", 10), ("large", tiles)):
        bag = make_slide(count, dim)
        with (folder / f"{name}.pickle").open("wb") as file:
            pickle.dump((bag, make_tissue(bag)), file, protocol=5)


def child(tiles: int, dim: int, rounds: int, prepared: Path) -> dict[str, Any]:
    trained = make_model(dim)
    (small, little), (bag, tissue) = (
        pickle.loads((prepared / f"{name}.pickle").read_bytes()) for name in ("small", "large")
    )
    with tempfile.TemporaryDirectory() as folder:
        export_all(small, trained, little, Path(folder, "small"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        measured = export_all(bag, trained, tissue, Path(folder, "large"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tiles": tiles,
        **measured,
        "tissue_points": sum(len(ring) for polygon in tissue for ring in polygon),
        "peak_gigabytes": peak / 1e9,
        "peak_before_gigabytes": before / 1e9,
        "features_gigabytes": bag.features.nbytes / 1e9,
        "contribution_cost": contribution_cost(bag, trained, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=("prepare", "child"))
    parser.add_argument("--prepared", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part == "prepare":
        prepare(options.tiles[0], options.dim, options.prepared)
        return
    if options.part == "child":
        print(json.dumps(child(options.tiles[0], options.dim, options.rounds, options.prepared)))
        return
    rows = []
    for tiles in options.tiles:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--tiles", str(tiles), "--dim", str(options.dim), "--prepared", folder]
            command += ["--rounds", str(options.rounds), "--threads", str(options.threads), "--part"]
            subprocess.run([*command, "prepare"], check=True)
            done = subprocess.run([*command, "child"], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["seconds"].items())
        print(f"{tiles} tiles: {row['total_seconds']:.2f} s, {row['total_cpu_seconds']:.2f} s of CPU ({each})")
        print(f"  peak {row['peak_gigabytes']:.2f} GB, of which {row['peak_before_gigabytes']:.2f} GB before")
        cost = row["contribution_cost"]
        print(f"  contributions: {cost['more']:+.1%} over {cost['logits_seconds'] * 1000:.1f} ms")
    if options.json:
        about = {"threads": options.threads, "dim": options.dim, "cpu": platform.processor() or platform.machine()}
        options.json.write_text(json.dumps({**about, "slides": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
