"""Memory of extraction: of 100,000 tiles of one slide, and over a cohort of many slides.

    python benchmarks/extraction_memory.py [SLIDES] [--tiles 130000] [--slides 100] [--encoder timm:test_vit] [--json FILE]

Resident memory at its highest (VmHWM of Linux), each part in a process of its own. One slide of 40,003 px, JPEG, made on the spot
(see readers.py), in `--tiles` tiles that overlap, of which three quarters lie in tissue: what extraction takes beyond the same
process with torch, the encoder and one embedded batch. The cohort is the folder SLIDES, given again under other names until there
are `--slides`: the peak after the fifth slide, and after the last. The encoder is small, so that nothing hides behind it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import simplejpeg
import torch
from readers import pieces, write_pyramid
from safetensors.torch import save_file

from wsimil.config import load_config
from wsimil.encoders import build_encoder, card
from wsimil.encoders.timm_encoder import make_backbone
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.sources import list_sources
from wsimil.stages.extract import extract
from wsimil.stages.progress import Quiet

SIDE, MPP = 40_003, 0.5
MB = 1e6


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class Peaks(Quiet):
    """The peak after each slide."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def finish_item(self, line: str) -> None:
        """See `Reporter`."""
        del line
        self.after.append(peak_bytes())


def run(slides: Path, weights: Path, args: argparse.Namespace, *tile: str) -> dict[str, object]:
    """Extract `slides` here, after the encoder has seen a batch."""
    encoder = build_encoder(args.encoder, weights=weights)
    side = encoder.card.input_px
    encoder.embed(torch.zeros(args.batch_size, side, side, 3, dtype=torch.uint8))
    before, peaks = peak_bytes(), Peaks()
    given = {"encoder": args.encoder, "encoder_weights": str(weights), "device": "cpu", "batch_size": args.batch_size}
    given |= dict(pair.split("=") for pair in tile)
    with tempfile.TemporaryDirectory() as out:
        summary = extract(
            load_config(ExtractConfig, given=given), list_sources(slides), Path(out) / "features", reporter=peaks
        )
    if summary.failures:
        raise SystemExit(summary.failures[0].reason)
    return {
        "slides": summary.count("done"), "tiles": summary.tiles, "before_mb": round(before / MB),
        "peak_mb": [round(peak / MB) for peak in peaks.after],
    }  # fmt: skip


def part(slides: Path, weights: Path, asked: argparse.Namespace, *tile: str) -> dict[str, object]:
    """`run` in a process of its own."""
    command = [sys.executable, __file__, "--encoder", asked.encoder, "--batch-size", str(asked.batch_size), "--as-part"]
    done = subprocess.run([*command, str(slides), str(weights), *tile], capture_output=True, text=True, check=True)
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="SLIDES")
    parser.add_argument("--tiles", type=int, default=130_000)
    parser.add_argument("--slides", type=int, default=100)
    parser.add_argument("--encoder", default="timm:test_vit")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-part", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.as_part:
        slides, weights, *tile = asked.as_part
        print(json.dumps(run(Path(slides), Path(weights), asked, *tile)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "random.safetensors"
        save_file({k: v.contiguous() for k, v in make_backbone(card(asked.encoder)).state_dict().items()}, weights)
        one, many = Path(scratch) / "one", Path(scratch) / "many"
        one.mkdir()
        jpeg = [simplejpeg.encode_jpeg(tile, quality=80, colorsubsampling="420") for tile in pieces(None, 400)]
        write_pyramid(one / "slide.svs", jpeg, SIDE, compression="jpeg")
        side_px, stride_px = card(asked.encoder).input_px, SIDE / math.ceil(math.sqrt(asked.tiles))
        overlap = max(0.0, 1 - stride_px / side_px)
        single = part(one, weights, asked, f"tile.mpp={MPP}", f"tile.overlap={overlap:.4f}", "tile.min_tissue=0")
        beyond = single["peak_mb"][-1] - single["before_mb"]
        answer = {
            "what": __doc__.splitlines()[0], "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(),
            "torch": torch.__version__, "encoder": asked.encoder, "one_slide": {**single, "beyond_encoder_mb": beyond},
        }  # fmt: skip
        if asked.folder:
            many.mkdir()
            found = sorted(asked.folder.iterdir())
            for number in range(asked.slides):
                path = found[number % len(found)]
                (many / f"{number:03}{path.suffix}").symlink_to(path.resolve())
            cohort = part(many, weights, asked, "tile.tile_um=128")
            fifth, last = cohort["peak_mb"][4], cohort["peak_mb"][-1]
            answer["cohort"] = {
                "slides": cohort["slides"], "tiles": cohort["tiles"], "before_mb": cohort["before_mb"],
                "peak_mb_after_5": fifth, "peak_mb_after_last": last, "growth": round(last / fifth - 1, 4),
            }  # fmt: skip
    print(json.dumps(answer, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
