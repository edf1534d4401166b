"""Accuracy of the default recipe on slides of real tissue with known tumour regions, through the public commands.

    python benchmarks/accuracy.py --tool ../shared/tools/make_cohort.py --images ../shared/data/patches/lc25000_768 \\
        --positive colon_aca --negative colon_n --slides 48 --seeds 5 --work /tmp/accuracy [--encoder NAME]
        [--json FILE] [-- TRAIN OPTIONS]

Makes the cohort, then runs `wsimil extract` once and `wsimil train` and `wsimil predict` for each seed. Reports, on the test
split: slide AUROC; tile AUROC of the class contribution (all tiles of positive slides together, and the mean over slides), and
the same of attention, where a tile counts as tumour if the mosaic cell under its center does. Mean and standard deviation over
seeds. Nothing here looks at tile truth before the models are final.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from wsimil.export.scores import read_scores
from wsimil.export.shown import shown


def run(*command: str | Path) -> float:
    """Run a command, its output to stderr; seconds."""
    begin = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
    return time.perf_counter() - begin


def tile_truth(xy0: np.ndarray, size0: float, truth: np.lib.npyio.NpzFile) -> np.ndarray:
    """Whether the mosaic cell under each tile's center is tumour, bool [N]; a center on background is no tumour."""
    cell = int(truth["cell0"])
    cells = {(int(x) // cell, int(y) // cell): bool(t) for (x, y), t in zip(truth["xy0"], truth["tumour"], strict=True)}
    centers = np.floor((xy0 + size0 / 2) / cell).astype(int)
    return np.array([cells.get((x, y), False) for x, y in centers.tolist()])


def evaluate(predictions: Path, cohort: Path, positive: str) -> dict[str, float]:
    """Slide and tile AUROC of one run on the test split."""
    rows = [r for r in csv.DictReader((cohort / "labels.csv").open()) if r["split"] == "test"]
    prob = {
        r["slide_id"]: float(r[f"prob_{positive}"]) for r in csv.DictReader((predictions / "predictions.csv").open())
    }
    result = {"slide_auroc": roc_auc_score([r["label"] == positive for r in rows], [prob[r["slide_id"]] for r in rows])}
    for name in (f"contribution:{positive}", "attention"):
        pooled_truth, pooled_score, each = [], [], []
        for row in (r for r in rows if r["label"] == positive):
            table = read_scores(predictions / "scores" / f"{row['slide_id']}.parquet")
            if name not in table.score_names:
                break
            truth = tile_truth(table.xy0, table.size0, np.load(cohort / "truth" / f"{row['slide_id']}.npz"))
            values = shown(table, name).values
            pooled_truth.append(truth)
            pooled_score.append(values)
            if 0 < truth.sum() < len(truth):
                each.append(roc_auc_score(truth, values))
        if pooled_truth:
            key = name.partition(":")[0]
            result[f"tile_auroc_{key}_pooled"] = roc_auc_score(
                np.concatenate(pooled_truth), np.concatenate(pooled_score)
            )
            result[f"tile_auroc_{key}_mean"] = statistics.fmean(each)
    return {name: float(value) for name, value in result.items()}


def main() -> None:
    """Measure and print."""
    own, _, extra = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--positive", default="colon_aca")
    parser.add_argument("--negative", default="colon_n")
    parser.add_argument("--slides", type=int, default=48)
    parser.add_argument("--cohort-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--encoder", default="efficientnet_lite0_trunc")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(own.split())
    cohort, features = args.work / "cohort", args.work / "features"
    if not (cohort / "labels.csv").exists():
        run(sys.executable, args.tool, "--images", args.images, "--positive", args.positive, "--negative", args.negative,
            "--slides", str(args.slides), "--seed", str(args.cohort_seed), "--out", cohort)  # fmt: skip
    wsimil = (sys.executable, "-m", "wsimil")
    extract_s = run(*wsimil, "extract", cohort / "slides", "-o", features, "--encoder", args.encoder, "-q")
    runs = []
    for seed in range(args.seeds):
        trained, predictions = args.work / f"run{seed}", args.work / f"predictions{seed}"
        train_s = run(
            *wsimil,
            "train",
            features,
            "--cohort",
            cohort / "labels.csv",
            "-o",
            trained,
            "--seed",
            str(seed),
            "-q",
            *extra.split(),
        )
        predict_s = run(*wsimil, "predict", trained, features, "-o", predictions, "-q", "--no-heatmaps")
        runs.append(evaluate(predictions, cohort, "tumor") | {"train_s": train_s, "predict_s": predict_s})
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    summary = {
        name: {
            "mean": round(statistics.fmean(r[name] for r in runs), 4),
            "sd": round(statistics.pstdev(r[name] for r in runs), 4),
        }
        for name in runs[0]
    }
    result = {
        "what": "default recipe on make_cohort slides, test split, over training seeds",
        "cohort": {k: str(getattr(args, k)) for k in ("positive", "negative", "slides", "cohort_seed")},
        "encoder": args.encoder, "train_options": extra,
        "seeds": args.seeds, "extract_s": round(extract_s, 1), "summary": summary, "runs": runs,
    }  # fmt: skip
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
