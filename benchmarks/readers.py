"""Reading tiles of a slide: wsimil beside openslide-python, and the readers that are installed, in one process.

    python benchmarks/readers.py [--texture SLIDE] [--side 40003] [--tiles 4000] [--rounds 7] [--slides SLIDE ...] [--json FILE]
    python benchmarks/readers.py --scaling [--texture SLIDE] [--json FILE]

A slide of `--side` px is made on the spot: JPEG (4:2:0, quality 80) of pieces of `--texture`, or of drawn tissue, in tiles
of 256, Aperio style, with levels of a quarter and a sixteenth whose downsamples are no whole numbers; another in JPEG 2000,
and the same JPEG tiles as frames of a DICOM file.
Each case reads `--tiles` tiles in blocks in which every contestant takes its turn on the same tiles; a figure is the median
over blocks of the ratio of CPU time (and of wall time) to openslide-python, which reads `read_region`, `convert("RGB")`, and
resizes with Pillow where the case asks for it. The floor is libjpeg-turbo alone on the same compressed bytes, read into one
buffer. `--slides` are read too, at level 0, aligned and not. Pixels of all contestants are compared, and the largest
difference is printed. `--scaling` measures the engine on two cores over one instead; it wants idle cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pydicom
import simplejpeg
import tifffile
import torch
from PIL import Image
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from wsimil.encoders import card
from wsimil.encoders.normalize import Normalize
from wsimil.extraction.embedding import resample
from wsimil.extraction.engine import encode_tiles
from wsimil.geometry import TileGrid, TileSpec
from wsimil.slides import Slide, open_slide

Batch = np.ndarray
Reader = Callable[[TileGrid, np.ndarray], Batch]
TILE = 256
BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Tiles of `read_px` px of a level every `stride_px` from `start` on, brought to `size_px`."""

    name: str
    read_px: int = TILE
    size_px: int = TILE
    stride_px: int = TILE
    start: int = 0
    level: int = 0
    shuffled: bool = False


CASES = (
    Case(name="aligned, raster"),
    Case(name="aligned, random", shuffled=True),
    Case(name="unaligned, raster", start=100),
    Case(name="unaligned, random", start=100, shuffled=True),
    Case(name="half overlap", stride_px=TILE // 2),
    Case(name="2x: 512 to 256", read_px=512, stride_px=512),
    Case(name="1.3x: 333 to 256", read_px=333, stride_px=333),
    Case(name="level 1, fractional", level=1),
)


def pieces(texture: Path | None, count: int) -> list[np.ndarray]:
    """RGB tiles of real or drawn tissue."""
    rng = np.random.default_rng(0)
    if texture is None:
        from wsimil.testing.synthetic import make_cohort

        with tempfile.TemporaryDirectory() as folder:
            make_cohort(Path(folder), slides=8, seed=0)
            return pieces(sorted((Path(folder) / "slides").iterdir())[0], count)
    with openslide.OpenSlide(texture) as slide:
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    corners = (rng.integers(0, np.array(whole.shape[:2]) - TILE, (2,)) for _ in itertools.count())
    tiles = (whole[y : y + TILE, x : x + TILE] for y, x in corners)
    return list(itertools.islice((np.ascontiguousarray(t) for t in tiles if t.std() > 12), count))


def write_pyramid(path: Path, tiles: list[bytes], side: int, *, compression: str) -> Path:
    """Levels of `side`, a quarter and a sixteenth of it, made of compressed tiles in random order."""
    rng = np.random.default_rng(1)
    text = f"Aperio Image Library v12.0.15 \r\n{side}x{side} (256x256) Q=80|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for by in (1, 4, 16):
            px = side // by
            count = (-(-px // TILE)) ** 2
            file.write(
                iter([tiles[i] for i in rng.integers(0, len(tiles), count)]), shape=(px, px, 3), dtype=np.uint8,
                tile=(TILE, TILE), photometric="ycbcr" if compression == "jpeg" else "rgb", compression=compression,
                description=text, metadata=None, **({"subsampling": (2, 2)} if compression == "jpeg" else {}),
            )  # fmt: skip
    return path


def write_dicom(path: Path, tiles: list[bytes], side: int) -> Path:
    """A level of `side` px in DICOM, of compressed frames in random order."""
    image, file_meta = DicomDataset(), FileMetaDataset()
    file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.SOPClassUID = file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    image.SOPInstanceUID = file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.SeriesInstanceUID = generate_uid()
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.Rows = image.Columns = TILE
    image.SamplesPerPixel, image.PhotometricInterpretation = 3, "YBR_FULL_422"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation, image.PlanarConfiguration = 7, 0, 0
    image.TotalPixelMatrixColumns = image.TotalPixelMatrixRows = side
    image.DimensionOrganizationType = "TILED_FULL"
    count = (-(-side // TILE)) ** 2
    image.NumberOfFrames = count
    spacing, shared = DicomDataset(), DicomDataset()
    spacing.PixelSpacing = [0.0005, 0.0005]
    shared.PixelMeasuresSequence = [spacing]
    image.SharedFunctionalGroupsSequence = [shared]
    image.file_meta = file_meta
    image.PixelData = encapsulate([tiles[i] for i in np.random.default_rng(1).integers(0, len(tiles), count)])
    image["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, image, enforce_file_format=True)
    return path


def grid_of(slide: Slide, case: Case, count: int) -> TileGrid:
    """The first `count` tiles of a case, in raster order."""
    down = slide.info.level_downsamples[case.level]
    width, height = (int(side / down) - case.start - case.read_px for side in slide.info.size0_px)
    columns = max(1, width // case.stride_px)
    rows = max(1, min(height // case.stride_px, -(-count // columns)))
    at = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)[:count]
    xy0 = np.floor((at * case.stride_px + case.start) * down + 0.5).astype(np.int64)
    spec = TileSpec(
        size_px=case.size_px, mpp=slide.info.mpp * down * case.read_px / case.size_px,
        stride_px=round(case.stride_px * case.size_px / case.read_px), min_tissue=0.0,
    )  # fmt: skip
    return TileGrid(
        slide=slide.info,
        spec=spec,
        xy0=xy0,
        tissue=np.ones(len(xy0), np.float32),
        read_level=case.level,
        read_px=case.read_px,
    )


def wsimil_reader(slide: Slide) -> Reader:
    """As extraction reads: into memory used again, resized in batches."""
    memory: dict[int, np.ndarray] = {}

    def read(grid: TileGrid, rows: np.ndarray) -> Batch:
        out = memory.setdefault(grid.read_px, np.empty((BLOCK, grid.read_px, grid.read_px, 3), np.uint8))
        tiles = slide.read_tiles(grid, rows, out=out)
        return resample(torch.from_numpy(tiles), grid.spec.size_px).numpy()

    return read


def resized(image: Image.Image, size: int) -> np.ndarray:
    """Pillow's bilinear."""
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR))


def openslide_reader(path: Path) -> Reader:
    """As most projects read."""
    slide = openslide.OpenSlide(path)

    def read(grid: TileGrid, rows: np.ndarray) -> Batch:
        size = (grid.read_px, grid.read_px)
        regions = (slide.read_region((int(x), int(y)), grid.read_level, size) for x, y in grid.xy0[rows])
        return np.stack([resized(region.convert("RGB"), grid.spec.size_px) for region in regions])

    return read


def tiffslide_reader(path: Path) -> Reader:
    """tiffslide, where it is installed."""
    import tiffslide

    slide = tiffslide.TiffSlide(path)

    def read(grid: TileGrid, rows: np.ndarray) -> Batch:
        size = (grid.read_px, grid.read_px)
        regions = (slide.read_region((int(x), int(y)), grid.read_level, size) for x, y in grid.xy0[rows])
        return np.stack([resized(region.convert("RGB"), grid.spec.size_px) for region in regions])

    return read


def pyvips_reader(path: Path) -> Reader:
    """libvips by its own TIFF loader, where it is installed."""
    import pyvips

    regions: dict[int, pyvips.Region] = {}

    def read(grid: TileGrid, rows: np.ndarray) -> Batch:
        level, side, down = grid.read_level, grid.read_px, grid.slide.level_downsamples[grid.read_level]
        if level not in regions:
            regions[level] = pyvips.Region.new(pyvips.Image.tiffload(str(path), page=level, access="random"))
        fetched = (
            regions[level].fetch(int(x / down + 0.5), int(y / down + 0.5), side, side) for x, y in grid.xy0[rows]
        )
        images = (Image.fromarray(np.frombuffer(data, np.uint8).reshape(side, side, 3)) for data in fetched)
        return np.stack([resized(image, grid.spec.size_px) for image in images])

    return read


def fastslide_reader(path: Path) -> Reader:
    """fastslide, where it is installed."""
    import fastslide

    slide = fastslide.FastSlide.from_file_path(str(path))

    def read(grid: TileGrid, rows: np.ndarray) -> Batch:
        size = (grid.read_px, grid.read_px)
        down = grid.slide.level_downsamples[grid.read_level]
        corners = ((int(x / down + 0.5), int(y / down + 0.5)) for x, y in grid.xy0[rows])
        regions = (slide.read_region(corner, grid.read_level, size).numpy() for corner in corners)
        return np.stack([resized(Image.fromarray(region), grid.spec.size_px) for region in regions])

    return read


OTHERS = {"tiffslide": tiffslide_reader, "pyvips": pyvips_reader, "fastslide": fastslide_reader}


def floor_reader(path: Path) -> Reader:
    """The compressed tiles of level 0 through libjpeg-turbo and nothing else; for aligned cases."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offsets, counts, columns = page.dataoffsets, page.databytecounts, -(-page.imagewidth // TILE)
    descriptor = os.open(path, os.O_RDONLY)
    out = np.empty((BLOCK, TILE, TILE, 3), np.uint8)

    def read(grid: TileGrid, rows: np.ndarray) -> Batch:
        for row, (x, y) in enumerate(grid.xy0[rows].tolist()):
            index = y // TILE * columns + x // TILE
            simplejpeg.decode_jpeg(os.pread(descriptor, counts[index], offsets[index]), "RGB", buffer=out[row])
        return out[: len(rows)]

    return read


class TooSmallError(Exception):
    """A slide has too few tiles to be measured on."""


def contestants(path: Path, slide: Slide, case: Case, *, floor: bool) -> dict[str, Reader]:
    """Who reads a case, openslide-python first."""
    readers = {"openslide": openslide_reader(path), "wsimil": wsimil_reader(slide)}
    if floor and case.name.startswith("aligned"):
        readers["floor"] = floor_reader(path)
    for name, make in OTHERS.items():
        try:
            readers[name] = make(path)
        except ImportError:
            continue
        except Exception as error:  # noqa: BLE001 - whoever does not read this file does not compete
            print(f"  {name} does not take part: {type(error).__name__}: {error}"[:110])
    return readers


class Normalizer:
    """An encoder that does no more than every encoder does first: normalized float32 pixels of a batch."""

    card = replace(card("efficientnet_lite0_trunc"), dim=1)
    device, compiled, precision = torch.device("cpu"), False, "fp32"
    normalize = Normalize(card.mean, card.std, device)

    def embed(self, tiles: torch.Tensor, *, precision: str | None = None) -> torch.Tensor:
        """One number of each tile, so that the work cannot be left out."""
        return self.normalize(tiles)[:, :1, 0, 0].clone()


class PlainTiles(Dataset):
    """Tiles as the usual tutorial reads them."""

    def __init__(self, path: Path, grid: TileGrid) -> None:
        self.path, self.grid, self.slide = path, grid, None
        self.transform = v2.Compose(
            [v2.Resize((224, 224), antialias=True), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
             v2.Normalize(Normalizer.card.mean, Normalizer.card.std)]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.slide = self.slide or openslide.OpenSlide(self.path)
        x, y = map(int, self.grid.xy0[index])
        size = (self.grid.read_px, self.grid.read_px)
        return self.transform(self.slide.read_region((x, y), 0, size).convert("RGB"))


def cpu_seconds() -> float:
    """CPU time of this process and of the workers that ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def measure_batches(path: Path, *, tiles: int, rounds: int, threads: int) -> dict[str, object]:
    """From a slide to normalized float32 batches of 64 tiles, 256 px read and 224 given: the engine, and a DataLoader."""
    with open_slide(path) as slide:
        whole = grid_of(slide, Case(name="batches", size_px=224), tiles * (rounds + 1))
        ratios, ours_ms, loader_ms = [], [], []
        for number in range(rounds + 1):
            part = slice(number * tiles, (number + 1) * tiles)
            grid = replace(whole, xy0=whole.xy0[part], tissue=whole.tissue[part])
            cpu, wall = cpu_seconds(), time.perf_counter()
            encode_tiles(slide, grid, Normalizer(), readers=threads, batch_size=64, dtype="float32")
            ours = cpu_seconds() - cpu, time.perf_counter() - wall
            cpu, wall = cpu_seconds(), time.perf_counter()
            for batch in DataLoader(PlainTiles(path, grid), batch_size=64, num_workers=2):
                batch[:, :1, 0, 0].sum()
            loader = cpu_seconds() - cpu, time.perf_counter() - wall
            if number:
                ratios.append((loader[0] / ours[0], loader[1] / ours[1]))
                ours_ms.append(1000 * ours[0] / len(grid))
                loader_ms.append(1000 * loader[0] / len(grid))
    return {
        "case": f"normalized float32 batches, {threads} reading threads", "slide": path.name, "tiles": tiles,
        "DataLoader": {"cpu_ratio": 1.0, "wall_ratio": 1.0, "cpu_ms": round(statistics.median(loader_ms), 3)},
        "wsimil": {
            "cpu_ratio": round(statistics.median(r[0] for r in ratios), 2),
            "wall_ratio": round(statistics.median(r[1] for r in ratios), 2),
            "cpu_ms": round(statistics.median(ours_ms), 3),
        },
    }  # fmt: skip


def measure_scaling(path: Path, *, tiles: int, rounds: int) -> dict[str, object]:
    """The engine on one core with one reading thread, and on two cores with two: wall time of the first over the second."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        raise TooSmallError("scaling needs two cores")
    cores = sorted(allowed)[:2]
    with open_slide(path) as slide:
        whole = grid_of(slide, Case(name="batches", size_px=224), tiles * (rounds + 1))
        if len(whole) < tiles * (rounds + 1):
            raise TooSmallError(f"{rounds + 1} rounds of {tiles} tiles want more than the {len(whole)} of the slide")
        ratios, rates = [], []
        for number in range(rounds + 1):
            part = slice(number * tiles, (number + 1) * tiles)
            grid = replace(whole, xy0=whole.xy0[part], tissue=whole.tissue[part])
            spent = {}
            for threads in (1, 2) if number % 2 else (2, 1):
                on_cores(cores[:threads])
                began = time.perf_counter()
                encode_tiles(slide, grid, Normalizer(), readers=threads, batch_size=64, dtype="float32")
                spent[threads] = time.perf_counter() - began
            if number:
                ratios.append(spent[1] / spent[2])
                rates.append(len(grid) / spent[2])
        on_cores(allowed)
    return {
        "case": "normalized float32 batches, two cores over one", "slide": path.name, "tiles": tiles,
        "two_over_one": round(statistics.median(ratios), 2), "rounds": [round(ratio, 2) for ratio in ratios],
        "tiles_per_s_on_two": round(statistics.median(rates)),
    }  # fmt: skip


def on_cores(cores: Iterable[int]) -> None:
    """Bind every thread of this process, those that libraries keep included."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def blocks(count: int, rounds: int, *, shuffled: bool) -> Iterator[np.ndarray]:
    """Rows of a grid, some for every round."""
    rows = np.random.default_rng(2).permutation(count) if shuffled else np.arange(count)
    per_round = max(1, count // rounds)
    for start in range(0, per_round * rounds, per_round):
        yield rows[start : start + per_round]


def measure(path: Path, case: Case, *, tiles: int, rounds: int, floor: bool, mpp: float | None) -> dict[str, object]:
    """Ratios of CPU and wall time to openslide-python, ms a tile, and the largest difference of pixels."""
    with open_slide(path, mpp_override=mpp) as slide:
        grid = grid_of(slide, case, tiles)
        if len(grid) < 2 * (rounds + 1):
            raise TooSmallError(f"{len(grid)} tiles are too few for {rounds} rounds")
        readers = contestants(path, slide, case, floor=floor)
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        furthest = dict.fromkeys(readers, 0)
        for number, rows in enumerate(blocks(len(grid), rounds + 1, shuffled=case.shuffled)):
            order = list(readers) if number % 2 else list(reversed(readers))
            first: dict[str, Batch] = {}
            for name in list(order):
                try:
                    cpu, wall = time.process_time(), time.perf_counter()
                    for start in range(0, len(rows), BLOCK):
                        found = readers[name](grid, rows[start : start + BLOCK])
                        if not start:
                            first[name] = found[:8].copy()
                    spent[name].append(
                        ((time.process_time() - cpu) / len(rows), (time.perf_counter() - wall) / len(rows))
                    )
                except Exception as error:  # noqa: BLE001 - as above
                    print(f"  {name} gives up: {type(error).__name__}: {error}"[:110])
                    del readers[name], spent[name], furthest[name]
            for name in readers:
                difference = np.abs(first[name].astype(np.int16) - first["openslide"]).max()
                furthest[name] = max(furthest[name], int(difference))
        result: dict[str, object] = {"case": case.name, "slide": path.name, "reader": slide.reader, "tiles": len(grid)}
    reference = spent["openslide"][1:]
    for name, times in spent.items():
        ratios = [(a[0] / b[0], a[1] / b[1]) for a, b in zip(reference, times[1:], strict=True)]
        result[name] = {
            "cpu_ratio": round(statistics.median(r[0] for r in ratios), 2),
            "wall_ratio": round(statistics.median(r[1] for r in ratios), 2),
            "cpu_ms": round(1000 * statistics.median(t[0] for t in times[1:]), 3),
            "max_difference": furthest[name],
        }
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texture", type=Path)
    parser.add_argument("--side", type=int, default=40_003)
    parser.add_argument("--tiles", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slides", nargs="*", type=Path, default=[])
    parser.add_argument("--mpp-override", type=float, default=0.5)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []

    def report(result: dict[str, object]) -> None:
        results.append(result)
        figures = "  ".join(
            f"{name} {of['cpu_ratio']:.2f} ({of['cpu_ms']:.2f} ms, Δ{of.get('max_difference', '?')})"
            for name, of in result.items() if isinstance(of, dict)
        )  # fmt: skip
        print(f"{result['slide']}, {result['case']}: {figures}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        images = pieces(args.texture, 400)
        jpeg = [simplejpeg.encode_jpeg(image, quality=80, colorsubsampling="420") for image in images]
        path = write_pyramid(Path(scratch) / "jpeg.svs", jpeg, args.side, compression="jpeg")
        if args.scaling:
            scaling = measure_scaling(path, tiles=args.tiles // 2, rounds=args.rounds)
            print(
                f"{scaling['case']}: {scaling['two_over_one']} {scaling['rounds']}, {scaling['tiles_per_s_on_two']} tiles/s"
            )
            write(args.json, [scaling], reading_threads=2)
            return
        for case in CASES:
            report(measure(path, case, tiles=args.tiles, rounds=args.rounds, floor=True, mpp=None))
        for threads in (1, 2):
            report(measure_batches(path, tiles=args.tiles // 2, rounds=args.rounds, threads=threads))
        path.unlink()
        path = write_dicom(Path(scratch) / "jpeg.dcm", jpeg, 10_243)
        for case in CASES[:5]:
            report(measure(path, case, tiles=args.tiles // 2, rounds=args.rounds, floor=False, mpp=None))
        path.unlink()
        j2k = [imagecodecs.jpeg2k_encode(image, level=30, codecformat="J2K") for image in images[:100]]
        path = write_pyramid(Path(scratch) / "jpeg2000.svs", j2k, 10_243, compression="aperio_jp2000_rgb")
        for case in CASES[:1] + CASES[2:3]:
            report(measure(path, case, tiles=args.tiles // 4, rounds=args.rounds, floor=False, mpp=None))
    for path in args.slides:
        for case in CASES[:1] + CASES[2:3]:
            try:
                report(
                    measure(path, case, tiles=args.tiles // 2, rounds=args.rounds, floor=False, mpp=args.mpp_override)
                )
            except TooSmallError as reason:
                print(f"{path.name}, {case.name}: {reason}")
    write(args.json, results, reading_threads=1)


def write(path: Path | None, results: list[dict[str, object]], *, reading_threads: int) -> None:
    """Results, with what they were measured on."""
    versions = {
        "openslide": openslide.__library_version__,
        "simplejpeg": simplejpeg.__version__,
        "torch": torch.__version__,
    }
    machine = {
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "reading_threads": reading_threads,
    }  # fmt: skip
    answer = {"what": __doc__.splitlines()[0], "machine": machine, "versions": versions, "results": results}
    if path:
        path.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
