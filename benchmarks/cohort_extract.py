"""Extraction of a whole cohort from the command line, beside LazySlide on the same slides and with the same encoder.

    python benchmarks/cohort_extract.py SLIDES [--rounds 3] [--workers 2] [--peer-python PYTHON] [--json FILE]

Each round runs both once, in turn, each in a process of its own from its first import to the last file on disk. `PYTHON` is an
interpreter that has lazyslide, such as that of `make peers` after `pip install --no-deps lazyslide`. Both find tissue by
themselves, with their own defaults, so the tiles differ a little: rates are compared. Tiles of 128 µm, 224 px, float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def ours(slides: Path, out: Path, args: argparse.Namespace) -> tuple[int, dict[str, object]]:
    """Run `wsimil extract`; tiles, and what its summary says."""
    command = [sys.executable, "-m", "wsimil", "extract", str(slides), "-o", str(out), "--json", "--quiet"]
    command += ["--encoder", args.encoder, "--tile-um", "128", "--tile-px", "224", "--batch-size", str(args.batch_size)]
    command += ["--readers", str(args.workers), "--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment())
    summary = json.loads(done.stdout)
    return summary["tiles"], summary


def theirs(slides: Path, out: Path, args: argparse.Namespace) -> tuple[int, dict[str, object]]:
    """Run LazySlide in its own interpreter."""
    command = [
        str(args.peer_python),
        str(Path(__file__)),
        str(slides),
        "--as-peer",
        str(out),
        "--encoder",
        args.encoder,
    ]
    command += ["--workers", str(args.workers), "--batch-size", str(args.batch_size), "--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment())
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["tiles"], answer


def environment() -> dict[str, str]:
    """Where both find this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_lazyslide(args: argparse.Namespace) -> None:
    """What LazySlide's documentation says to do with a slide, for each slide; prints the number of tiles."""
    import lazyslide as zs
    import torch
    from torchvision.transforms import v2
    from wsidata import open_wsi

    from wsimil.encoders import build_encoder

    encoder = build_encoder(args.encoder, device=args.device)
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((224, 224), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(encoder.card.mean, encoder.card.std),
        ]
    )
    tiles = 0
    for path in sorted(args.slides.iterdir()):
        wsi = open_wsi(path, store=str(args.as_peer / f"{path.stem}.zarr"))
        zs.pp.find_tissues(wsi)
        zs.pp.tile_tissues(wsi, 224, mpp=128 / 224)
        zs.tl.feature_extraction(
            wsi, encoder.model, model_name="same", transform=transform, device=args.device, amp=False, pbar=False,
            batch_size=args.batch_size, num_workers=args.workers,
        )  # fmt: skip
        wsi.write()
        tiles += len(wsi.shapes["tiles"])
    print(json.dumps({"tiles": tiles}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="threads that read, or DataLoader workers")
    parser.add_argument("--encoder", default="efficientnet_lite0_trunc")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.as_peer:
        run_lazyslide(args)
        return
    contestants = {"wsimil": ours} | ({"lazyslide": theirs} if args.peer_python else {})
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    last: dict[str, dict[str, object]] = {}
    for number in range(args.rounds):
        for name, work in contestants.items() if number % 2 == 0 else reversed(contestants.items()):
            with tempfile.TemporaryDirectory() as out:
                begin = time.perf_counter()
                tiles, last[name] = work(args.slides, Path(out), args)
                rates[name].append(tiles / (time.perf_counter() - begin))
            print(f"round {number}: {name} {rates[name][-1]:.1f} tiles/s ({tiles} tiles)", flush=True)
    answer: dict[str, object] = {
        "what": __doc__.splitlines()[0],
        "slides": len(list(args.slides.iterdir())),
        "encoder": args.encoder,
        "batch_size": args.batch_size,
        "workers": args.workers,
        "device": args.device,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "tiles_per_s": {name: [round(rate, 2) for rate in found] for name, found in rates.items()},
        "wait_share": last["wsimil"]["wait_share"],
        "peak_rss_mb": last["wsimil"]["peak_rss_mb"],
    }
    if "lazyslide" in rates:
        ratios = [a / b for a, b in zip(rates["wsimil"], rates["lazyslide"], strict=True)]
        answer["ratio_median"] = round(statistics.median(ratios), 2)
    print(json.dumps(answer, indent=1))
    if args.json:
        args.json.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
