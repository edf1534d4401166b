"""How busy extraction keeps an encoder: tiles/s from a slide, beside the encoder alone on tiles that are there already.

    python benchmarks/encoder_busy.py [--encoders efficientnet_lite0_trunc timm:vit_tiny_patch16_224] [--device cpu]
        [--tiles 1200] [--batch-size 32] [--readers 2] [--rounds 5] [--precision fp32] [--compile] [--json FILE]

On a GPU: --device cuda --encoders timm:vit_large_patch14_dinov2.lvd142m --batch-size 256 --readers 16 --tiles 20000
--precision bf16. Weights are random: no step of the time depends on them. A JPEG slide is made on the spot (see readers.py),
its tiles read as 256 px and resized. Each round runs both, in turn; the figure is the median of the ratios. `wait` is the
share of the engine's time in which the encoder waited for tiles, from the very first on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import simplejpeg
import torch
from readers import Case, grid_of, pieces, write_pyramid
from safetensors.torch import save_file

from wsimil.encoders import Encoder, build_encoder, card
from wsimil.encoders.timm_encoder import make_backbone
from wsimil.extraction.engine import encode_tiles
from wsimil.extraction.timing import StageSeconds
from wsimil.slides import open_slide


def with_random_weights(name: str, folder: Path, args: argparse.Namespace) -> Encoder:
    """The encoder `name`, built from its configuration; one that has a package of weights takes these."""
    wanted, weights = card(name), None
    if not wanted.package_file:
        weights = folder / "random.safetensors"
        state = make_backbone(wanted).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, weights)
    return build_encoder(name, weights=weights, device=args.device, precision=args.precision, compiled=args.compile)


def alone(encoder: Encoder, side: int, args: argparse.Namespace) -> float:
    """Tiles/s of the encoder on one batch again and again, on the device already."""
    tiles = torch.randint(0, 256, (args.batch_size, side, side, 3), dtype=torch.uint8, device=args.device)
    batches = max(2, args.tiles // args.batch_size)
    begin = time.perf_counter()
    for _ in range(batches):
        vectors = encoder.embed(tiles)
    vectors.cpu()
    return batches * args.batch_size / (time.perf_counter() - begin)


def measure(name: str, path: Path, folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """Both, in alternation; the first round warms up."""
    encoder = with_random_weights(name, folder, args)
    side = encoder.card.input_px
    ratios, rates, waits = [], [], []
    with open_slide(path) as slide:
        whole = grid_of(slide, Case(name="busy", size_px=side), args.tiles)
        for number in range(args.rounds + 1):
            grid = whole if number else replace(whole, xy0=whole.xy0[:64], tissue=whole.tissue[:64])
            only, seconds = alone(encoder, side, args), StageSeconds()
            begin = time.perf_counter()
            encode_tiles(
                slide, grid, encoder, readers=args.readers, batch_size=args.batch_size, dtype="float16", seconds=seconds
            )
            rate = len(grid) / (time.perf_counter() - begin)
            if number:
                busy = seconds.wait + seconds.transform + seconds.encode
                ratios.append(rate / only)
                rates.append(rate)
                waits.append(seconds.wait / busy)
    return {
        "encoder": name, "tiles": args.tiles, "tiles_per_s": round(statistics.median(rates), 1),
        "of_encoder_alone": round(statistics.median(ratios), 3), "wait": round(statistics.median(waits), 4),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["efficientnet_lite0_trunc", "timm:vit_tiny_patch16_224"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--texture", type=Path)
    parser.add_argument("--tiles", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        images = pieces(args.texture, 400)
        jpeg = [simplejpeg.encode_jpeg(image, quality=80, colorsubsampling="420") for image in images]
        path = write_pyramid(Path(scratch) / "jpeg.svs", jpeg, 40_003, compression="jpeg")
        results = [measure(name, path, Path(scratch), args) for name in args.encoders]
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "CPU"
    answer = {
        "what": __doc__.splitlines()[0], "device": device, "cores": os.cpu_count(), "precision": args.precision,
        "batch_size": args.batch_size, "readers": args.readers, "torch": torch.__version__, "compiled": args.compile,
        "results": results,
    }  # fmt: skip
    print(json.dumps(answer, indent=1))
    if args.json:
        args.json.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
