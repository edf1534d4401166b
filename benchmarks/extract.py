"""Extraction against the plain loop that most projects use, in one run, in alternation.

    python benchmarks/extract.py [SLIDE ...] [--rounds 5] [--encoder efficientnet_lite0_trunc] [--batch-size 32] [--json FILE]

The plain loop is openslide `read_region` at level 0, Pillow to RGB, torchvision Resize + ToTensor + Normalize tile by tile, a
DataLoader with 2 worker processes, the same timm model in float32, features gathered and saved with torch.save. Both see the
same tiles of the same slides with the same number of torch threads, and end with a file on disk. Without slides, one is
generated. Prints tiles/s of both, their ratio (median over rounds), and where wsimil's time goes: read (summed over threads),
wait, transform, encode, write. The plain loop's features are compared with wsimil's, so that both do the same work.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide
import timm
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from wsimil.bags import FeatureBag
from wsimil.encoders import build_encoder
from wsimil.encoders.hub import published_weights
from wsimil.encoders.timm_encoder import Pooled, load_backbone
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.engine import Ended, Ready, run_engine
from wsimil.extraction.prepare import PreparedSlide, prepare
from wsimil.extraction.sources import SlideSource
from wsimil.extraction.timing import StageSeconds
from wsimil.geometry import TileGrid
from wsimil.stages.extract import peak_rss_mb
from wsimil.store import open_store


class PlainTiles(Dataset):
    """Tiles of a slide as the usual tutorial reads them."""

    def __init__(self, path: Path, grid: TileGrid, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.path, self.xy0, self.read_px = str(path), grid.xy0, grid.read_px
        self.slide: openslide.OpenSlide | None = None
        self.transform = v2.Compose(
            [
                v2.Resize((grid.spec.size_px, grid.spec.size_px), antialias=True),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.xy0)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.slide is None:
            self.slide = openslide.OpenSlide(self.path)
        x, y = map(int, self.xy0[index])
        return self.transform(self.slide.read_region((x, y), 0, (self.read_px, self.read_px)).convert("RGB"))


def plain(
    path: Path, grid: TileGrid, model: torch.nn.Module, card_mean, card_std, batch_size: int, out: Path
) -> np.ndarray:
    """Run the plain loop; float32 features [N, D]."""
    loader = DataLoader(PlainTiles(path, grid, card_mean, card_std), batch_size=batch_size, num_workers=2)
    with torch.inference_mode():
        features = torch.cat([model(batch) for batch in loader])
    torch.save({"features": features, "coords": torch.from_numpy(grid.xy0.copy())}, out / f"{path.stem}.pt")
    return features.numpy()


def ours(slides: list[PreparedSlide], encoder, config: ExtractConfig, store) -> tuple[list[np.ndarray], StageSeconds]:
    """Run the engine and write; float32 features of each slide, and seconds by stage."""
    ready = (Ready(key=key, slide=s.slide, grid=s.grid) for key, s in enumerate(slides))
    run = run_engine(
        ready, [encoder], size_px=slides[0].grid.spec.size_px, batch_size=config.batch_size, readers=config.readers,
        dtype=config.dtype,
    )  # fmt: skip
    kept, seconds = {}, StageSeconds()
    for event in run:
        if isinstance(event, Ended):
            begin = time.perf_counter()
            prepared = slides[event.key]
            store.write(FeatureBag(grid=prepared.grid, features=event.features, provenance=prepared.provenance))
            event.seconds.write = time.perf_counter() - begin
            seconds.add(event.seconds)
            kept[event.key] = event.features.astype(np.float32)
    return [kept[key] for key in range(len(slides))], seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="efficientnet_lite0_trunc")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--mpp-override", type=float)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(args, Path(scratch))
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Alternate both over the rounds."""
    paths = args.slides
    if not paths:
        from wsimil.testing.synthetic import make_cohort

        make_cohort(scratch / "made", slides=8, seed=0)
        paths = sorted((scratch / "made" / "slides").iterdir())
    config = ExtractConfig(encoder=args.encoder, batch_size=args.batch_size, mpp_override=args.mpp_override)
    encoder = build_encoder(args.encoder)
    card = encoder.card
    spec = config.tile.spec(input_px=card.input_px, trained_mpp=card.mpp)
    model = Pooled(load_backbone(card, published_weights(card)), card).eval()  # as timm gives it: nothing folded
    slides = [prepare(SlideSource(slide_id=p.stem, path=p), encoder=encoder, spec=spec, config=config) for p in paths]
    level0 = [s for s in slides if len(s.grid) and s.grid.read_level == 0]
    tiles = sum(len(s.grid) for s in level0)
    store = open_store(scratch / "store", mode="w")
    ours_s, plain_s, ratios, stages, worst = [], [], [], StageSeconds(), 0.0
    for _ in range(args.rounds + 1):  # the first round warms caches and is not counted
        begin = time.perf_counter()
        kept, seconds = ours(level0, encoder, config, store)
        mine = time.perf_counter() - begin
        begin = time.perf_counter()
        usual = [plain(s.slide.info.path, s.grid, model, card.mean, card.std, args.batch_size, scratch) for s in level0]
        theirs = time.perf_counter() - begin
        worst = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(kept, usual, strict=True))
        ours_s.append(mine)
        plain_s.append(theirs)
        ratios.append(theirs / mine)
        stages = seconds
    ours_s, plain_s, ratios = ours_s[1:], plain_s[1:], ratios[1:]
    return {
        "what": "extraction, wsimil against openslide + Pillow + torchvision + DataLoader(2 workers), same tiles and model",
        "slides": [p.name for p in paths],
        "tiles": tiles,
        "tile": {"size_px": spec.size_px, "mpp": spec.mpp, "read_px": sorted({s.grid.read_px for s in level0})},
        "encoder": card.name,
        "precision": "fp32",
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "wsimil_tiles_per_s_median": round(tiles / statistics.median(ours_s), 1),
        "plain_tiles_per_s_median": round(tiles / statistics.median(plain_s), 1),
        "speedup_median": round(statistics.median(ratios), 3),
        "speedup_rounds": [round(r, 3) for r in ratios],
        "wsimil_ms_per_tile": {k: round(1000 * v / tiles, 3) for k, v in stages.rounded().items() if k != "prepare"},
        "largest_relative_difference_of_features": worst,
        "peak_rss_mb": round(peak_rss_mb()),
        "machine": {
            "processor": platform.machine(),
            "torch_threads": torch.get_num_threads(),
            "reader_threads": config.readers,
        },
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "timm": timm.__version__},
    }


if __name__ == "__main__":
    main()
