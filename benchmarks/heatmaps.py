"""From the features of a slide to every export: seconds and memory; and what contributions cost beside a plain answer.

    python benchmarks/heatmaps.py [--tiles 10000 100000] [--dim 1024] [--rounds 5] [--threads 1] [--json FILE]

A slide is a full grid of tiles with random features, tissue of ragged blobs and a pyramid of DICOM headers; the model is a gated
ABMIL of random weights. One process predicts and writes the score table, another one, as `wsimil export` is, writes every form of
it; each states its peak of memory. Time starts when the features are in memory and ends when the last file has its name; what
Python loads first is not counted, for a slide of ten tiles goes through everything before. What contributions cost is the median
over rounds, in turn, of the CPU time that the model takes to its logits and the scores of tiles, beside that to its logits
alone. CPU seconds say what one thread would take on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
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
from PIL import Image

from wsimil.bags import FeatureBag
from wsimil.export.formats import FORMATS, Beside
from wsimil.export.scores import Tissue, read_scores, write_scores
from wsimil.geometry import SlideInfo, TileGrid, TileSpec
from wsimil.store import open_store

SLIDES = Path(__file__).resolve().parents[1] / "tests/export/dicom_slides.py"
CLASSES = ("normal", "tumor")
TILE_PX, MPP, MASK_PX = 224, 0.5, 16
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_slide(tiles: int, dim: int) -> FeatureBag:
    from wsimil.testing.store_laws import make_bag

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
    from scipy import ndimage

    from wsimil.tissue.outline import outlines

    width, height = (side // MASK_PX for side in bag.grid.slide.size0_px)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((height, width), np.float32), 6)
    pieces = (one for one in outlines(noise > 0) if len(one.exterior) > 60)
    return tuple(tuple(ring * MASK_PX for ring in (one.exterior, *one.holes)) for one in pieces)


class Clock:
    """Seconds by the wall and of the CPU, by name; and the peak of memory beyond what was there before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def __call__(self, name: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        began, cpu_began = time.perf_counter(), time.process_time()
        result = work(*arguments, **options)
        self.seconds[name], self.cpu_seconds[name] = time.perf_counter() - began, time.process_time() - cpu_began
        return result

    def said(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_gigabytes": peak / 1e9,
            "peak_before_gigabytes": self._before / 1e9,
        }


def prepare(tiles: int, dim: int, folder: Path) -> None:
    """In a process of its own, so that what it takes is not counted."""
    for name, count in (("small", 10), ("large", tiles)):
        bag = make_slide(count, dim)
        open_store(folder / f"{name}-features", mode="w").write(bag)
        rings = {f"{i}-{j}": ring for i, polygon in enumerate(make_tissue(bag)) for j, ring in enumerate(polygon)}
        np.savez(folder / f"{name}-tissue.npz", **rings)
        size0_px = bag.grid.slide.size0_px
        levels = [(max(1, size0_px[0] // by), max(1, size0_px[1] // by)) for by in (1, 4, 16, 64)]
        levels = [size for number, size in enumerate(levels) if number == 0 or size != levels[number - 1]]
        runpy.run_path(str(SLIDES))["write_dicom_slide"](folder / name, levels, mpp=MPP)
    Image.fromarray(np.full((1024, 1024, 3), 230, np.uint8)).save(folder / "thumbnail.jpg")


def predict(dim: int, folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    import torch

    from wsimil.evaluation.attribution.table import attribute
    from wsimil.mil import registry
    from wsimil.mil.batch import pack
    from wsimil.mil.saved import TrainedModel
    from wsimil.stages.answers import predict_one
    from wsimil.targets import Classification

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = registry.build("abmil", {}, in_dim=dim, num_classes=len(CLASSES)).eval()
    trained = TrainedModel(
        model=model, method="abmil", task=Classification(classes=CLASSES), features=None, training={}, digest="0" * 64
    )
    said: dict[str, Any] = {}
    for name in ("small", "large"):
        store = open_store(folder / f"{name}-features", mode="r")
        bag = store.read(store.ids()[0])
        polygons: dict[str, list[Any]] = {}
        with np.load(folder / f"{name}-tissue.npz") as file:
            for key in file.files:
                polygons.setdefault(key.split("-")[0], []).append(file[key])
        tissue = tuple(tuple(rings) for rings in polygons.values())
        clock = Clock()
        prediction = clock("predict", predict_one, trained, bag)
        clock("scores.parquet", write_scores, folder / f"{name}.parquet", prediction, tissue=tissue)
        said = clock.said()
    packed = pack([bag.features], xy0=[bag.grid.xy0], slide_ids=["s"])
    plain: list[float] = []
    scored: list[float] = []
    for _ in range(rounds + 1):  # the first is not counted
        for times, work in (
            (plain, lambda: model(packed).logits),
            (scored, lambda: attribute(model, packed, outputs=CLASSES).per_bag()),
        ):
            with torch.no_grad():
                began = time.process_time()
                work()
                times.append(time.process_time() - began)
    a, b = statistics.median(plain[1:]), statistics.median(scored[1:])
    cost = {"logits_cpu_seconds": a, "with_scores_cpu_seconds": b, "more": b / a - 1}
    points = sum(len(ring) for polygon in tissue for ring in polygon)
    return {**said, "contribution_cost": cost, "features_gigabytes": bag.features.nbytes / 1e9, "tissue_points": points}


def export(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name in ("small", "large"):
        clock = Clock()
        table = clock("read scores.parquet", read_scores, folder / f"{name}.parquet")
        slide = folder / name / "level-0.dcm"
        beside = Beside(now=NOW, thumbnail=folder / "thumbnail.jpg", slide=slide)
        sizes = {}
        for form in FORMATS.values():
            path = folder / "out" / form.folder / f"{name}{form.suffix}"
            clock(form.name, form.write, path, table, beside)
            files = [path] if path.is_file() else list(path.iterdir())
            sizes[form.name] = sum(file.stat().st_size for file in files)
        said = {**clock.said(), "bytes": sizes}
    return {**said, "torch_loaded": "torch" in sys.modules}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=("prepare", "predict", "export"))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.part == "prepare":
        prepare(options.tiles[0], options.dim, options.folder)
    elif options.part == "predict":
        print(json.dumps(predict(options.dim, options.folder, options.rounds, options.threads)))
    elif options.part == "export":
        print(json.dumps(export(options.folder)))
    else:
        run(options)


def run(options: argparse.Namespace) -> None:
    rows = []
    for tiles in options.tiles:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--tiles", str(tiles), "--dim", str(options.dim), "--folder", folder]
            command += ["--rounds", str(options.rounds), "--threads", str(options.threads), "--part"]
            subprocess.run([*command, "prepare"], check=True)
            parts = {
                part: json.loads(subprocess.run([*command, part], check=True, stdout=subprocess.PIPE).stdout)
                for part in ("predict", "export")
            }
        total = {kind: sum(sum(part[kind].values()) for part in parts.values()) for kind in ("seconds", "cpu_seconds")}
        rows.append({"tiles": tiles, "total": total, **parts})
        print(f"{tiles} tiles: {total['seconds']:.2f} s, {total['cpu_seconds']:.2f} s of CPU")
        for name, part in parts.items():
            each = ", ".join(f"{step} {seconds:.2f}" for step, seconds in part["cpu_seconds"].items())
            peak = f"{part['peak_gigabytes']:.2f} GB ({part['peak_before_gigabytes']:.2f} before)"
            print(f"  {name}: {each} s of CPU; peak {peak}")
        cost = parts["predict"]["contribution_cost"]
        print(f"  contributions: {cost['more']:+.1%} over {cost['logits_cpu_seconds'] * 1000:.1f} ms")
    if options.json:
        about = {"threads": options.threads, "dim": options.dim, "machine": platform.machine(), "cpu": _cpu()}
        options.json.write_text(json.dumps({**about, "slides": rows}, indent=1) + "\n", encoding="utf-8")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
