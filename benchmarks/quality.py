"""How well quality numbers tell spoiled tiles from the same tiles unspoiled, and what measuring costs.

    python benchmarks/quality.py --patches FOLDER --mpp MPP [--patches FOLDER --mpp MPP ...] [--json FILE]

Every image of a folder is cut into tiles of 112 µm, and each tile is spoiled by hand: out of focus (Gaussian, sigma 2 µm), folded
(its transmittance times that of the next tile of the folder: tissue that lies double), drawn on (a stroke of green, blue or black
ink over a fifth of it), and mostly glass (a tenth of it is left). A figure is the AUROC of the number that is meant to find it,
over all tiles of a folder; 0.5 is chance. Real folds and pens look worse and better than these: a hint, not a proof.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from wsimil.quality.measure import measure

TILE_UM = 112.0
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
WHITE = 243.0
INKS = ((30, 130, 60), (40, 60, 170), (25, 25, 28))


def tiles_of(folder: Path, mpp: float) -> np.ndarray:
    side = round(TILE_UM / mpp)
    found = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        found += [
            pixels[y : y + side, x : x + side]
            for y in range(0, pixels.shape[0] - side + 1, side)
            for x in range(0, pixels.shape[1] - side + 1, side)
        ]
    if len(found) < 2:
        raise SystemExit(
            f"{folder}: {len(found)} tiles of {TILE_UM} µm at {mpp} µm/px; give larger images or another --mpp"
        )
    return np.stack(found)


def unfocused(tiles: np.ndarray, mpp: float) -> np.ndarray:
    sigma = 2.0 / mpp
    return gaussian_filter(tiles.astype(np.float32), (0, sigma, sigma, 0)).round().astype(np.uint8)


def folded(tiles: np.ndarray, mpp: float) -> np.ndarray:
    del mpp
    return (tiles * (np.roll(tiles, 1, axis=0) / WHITE).clip(max=1)).round().astype(np.uint8)


def inked(tiles: np.ndarray, mpp: float) -> np.ndarray:
    del mpp
    spoiled, side = tiles.astype(np.float32), tiles.shape[1]
    generator = np.random.default_rng(0)
    for row, tile in enumerate(spoiled):
        start = int(generator.integers(0, side - side // 5))
        stroke = tile[start : start + side // 5]
        stroke[...] = 0.15 * stroke + 0.85 * np.array(INKS[row % len(INKS)], np.float32)
    return spoiled.round().astype(np.uint8)


def mostly_glass(tiles: np.ndarray, mpp: float) -> np.ndarray:
    del mpp
    spoiled = np.full_like(tiles, int(WHITE))
    spoiled[:, : tiles.shape[1] // 10] = tiles[:, : tiles.shape[1] // 10]
    return spoiled


SPOILED = (("sharpness", unfocused, -1), ("dark", folded, 1), ("pen", inked, 1), ("background", mostly_glass, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path, action="append", required=True)
    parser.add_argument("--mpp", type=float, action="append", required=True)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results = []
    for folder, mpp in zip(asked.patches, asked.mpp, strict=True):
        tiles = tiles_of(folder, mpp)
        plain = measure(tiles, mpp=mpp).by_name()
        result: dict[str, object] = {"folder": folder.name, "tiles": len(tiles), "px": tiles.shape[1], "mpp": mpp}
        for name, spoil, sign in SPOILED:
            numbers = sign * np.concatenate([plain[name], measure(spoil(tiles, mpp), mpp=mpp).by_name()[name]])
            result[f"{name}: {spoil.__name__}"] = round(float(roc_auc_score(np.repeat([0, 1], len(tiles)), numbers)), 3)
        costs = []
        for _ in range(5):
            begin = time.process_time()
            measure(tiles, mpp=mpp)
            costs.append(1000 * (time.process_time() - begin) / len(tiles))
        result["cpu_ms_a_tile"] = round(statistics.median(costs), 3)
        results.append(result)
        print(*(f"{key} {value}" for key, value in result.items()), sep=", ")
    if asked.json:
        facts = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "folders": results}
        asked.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
