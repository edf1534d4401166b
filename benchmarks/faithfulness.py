"""Every score of every method: does the map beat random order, and does it beat attention?

    python benchmarks/faithfulness.py --work FOLDER [--sets idc idc-slide slides] [--methods NAME ...] [--folds 3] [--seeds 1]
        [--epochs N] [--lr LR] [--processes 2] [--json FILE]

Three sets. "idc": the bags of `idc_mil_bags.npz` (15 tiles each, labelled tile by tile), cross-validated by patient. "idc-slide":
the same bags to learn from, and the one whole slide of that data, of a patient who is in none of them. "slides": slides that
`make_cohort.py` builds of real tissue with known tumor, extracted by the default encoder; their test split. Each method is
trained with the default fit and judged by `wsimil explain-check` on bags that its model never saw: SRG of the probability above
that of random orders and above that of attention, with 95 % intervals over patients; the same of the probability before
calibration, as papers have it, and of the logit; AUROC and average precision of tiles; completeness; correlation with maps of
random weights; and seconds a bag. Nothing is chosen by any of these numbers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bag_sets import SHARED, read_bags
from methods_table import RECIPES

from wsimil.bags import FeatureBag
from wsimil.config import load_config
from wsimil.evaluation.faithfulness.flipping import FlipConfig
from wsimil.evaluation.faithfulness.judged import JudgedMap
from wsimil.evaluation.faithfulness.said import READINGS
from wsimil.geometry import SlideInfo, TileGrid, TileSpec
from wsimil.provenance import Provenance
from wsimil.stages.explain_check import ExplainOptions, explain_check
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import open_store

METHODS = (
    "gated ABMIL + AEM (default)", "mean pooling", "max pooling", "multi-head", "ACMIL", "CLAM-SB", "CLAM-MB", "DSMIL",
    "DTFD AFS", "MHIM(gated ABMIL)", "RRT", "TransMIL",
)  # fmt: skip
TILE, STEP = 256, 512


def write_bag(work: Path, name: str, values: np.ndarray, xy0: np.ndarray, tumor: np.ndarray) -> None:
    """One bag and its truth; `xy0` [n, 2] are corners of tiles of 256 px."""
    size0 = tuple(int(end) for end in xy0.max(axis=0) + TILE)
    slide = SlideInfo(
        slide_id=name, path=Path("none"), size0_px=size0, mpp=0.5, mpp_source="override", mpp_detail="made",
        level_downsamples=(1.0,), bounds0_px=(0, 0, *size0), vendor="", digest="",
    )  # fmt: skip
    spec = TileSpec(size_px=TILE, mpp=0.5, stride_px=TILE, min_tissue=0.5)
    grid = TileGrid(slide=slide, spec=spec, xy0=xy0, tissue=np.ones(len(xy0), np.float32), read_level=0, read_px=TILE)
    made = Provenance(
        encoder={"name": "vits14", "dim": values.shape[1]}, tiling={}, pixels={}, slide={}, slide_digest="", version=""
    )
    open_store(work / "features", mode="w").write(FeatureBag(grid=grid, features=values, provenance=made))
    (work / "truth").mkdir(parents=True, exist_ok=True)
    np.savez(work / "truth" / f"{name}.npz", xy0=xy0, tumour=tumor, cell0=TILE)


def write_idc(work: Path, *, whole_slide: bool = False) -> tuple[Path, Path, Path]:
    """The bags as a feature folder, their cohort and their truth; tiles lie apart, as nobody knows which were neighbors.

    With `whole_slide` also the one slide of which all tiles are there, as the test split; every sixth patient is of the
    validation split.
    """
    bags = read_bags(SHARED / "idc_mil_bags.npz")
    assert bags.truth is not None
    rows = ["slide_id,patient_id,label,split"]
    for number, values in enumerate(bags.features):
        xy0 = np.stack([np.arange(len(values)) * STEP, np.zeros(len(values), np.int64)], axis=1).astype(np.int64)
        write_bag(work, str(number), values, xy0, bags.truth[number])
        split = ("val" if int(bags.groups[number]) % 6 == 0 else "train") if whole_slide else ""
        rows.append(f"{number},{bags.groups[number]},{('normal', 'tumor')[int(bags.targets[number])]},{split}")
    if whole_slide:
        with np.load(SHARED / "idc_tile_features_vits14.npz") as file:
            rows_of_it = np.flatnonzero(file["full_slide"])
            xy, patient = file["xy"][rows_of_it], int(file["patient"][rows_of_it[0]])
            values, tumor = file["X"][rows_of_it], file["idc"][rows_of_it] > 0
        assert str(patient) not in {str(group) for group in bags.groups}
        xy0 = ((xy - xy.min(axis=0)) // 50 * TILE).astype(np.int64)  # tiles of 50 px side by side
        order = np.lexsort((xy0[:, 0], xy0[:, 1]))
        write_bag(work, "slide", values[order], xy0[order], tumor[order])
        rows.append(f"slide,{patient},tumor,test")
    cohort = work / "cohort.csv"
    cohort.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return work / "features", cohort, work / "truth"


SETS: dict[str, Callable[[Path, int], tuple[Path, Path, Path]]] = {
    "idc": lambda work, _: write_idc(work),
    "idc-slide": lambda work, _: write_idc(work, whole_slide=True),
    "slides": lambda work, slides: write_slides(work, slides=slides),
}


def write_slides(work: Path, *, slides: int) -> tuple[Path, Path, Path]:
    """Slides of real tissue, extracted by the default encoder."""
    shared = SHARED.parents[1]
    if not (work / "cohort/labels.csv").is_file():
        words = ["--images", shared / "data/patches/lc25000_768", "--positive", "colon_aca", "--negative", "colon_n"]
        words += ["--slides", slides, "--out", work / "cohort"]
        subprocess.run([sys.executable, shared / "tools/make_cohort.py", *map(str, words)], check=True)
    command = [sys.executable, "-m", "wsimil", "extract", work / "cohort/slides", "-o", work / "features", "-q"]
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
    return work / "features", work / "cohort/labels.csv", work / "cohort/truth"


def train_one(task: tuple[str, str, str, str, int, int | None, int, dict[str, Any]]) -> str:
    """One model, unless it is there already."""
    recipe, features, cohort, run, seed, folds, fold, other = task
    torch.set_num_threads(1)
    method, config, fit = RECIPES[recipe]
    given: dict[str, Any] = {
        "device": "cpu",
        "fit": {**fit, **other, "seed": seed},
        "method": {"name": method, **config},
    }
    if folds is not None:
        given["split"] = {"folds": folds, "fold": fold}
    if not (Path(run) / "predictions.parquet").is_file():
        train(load_config(TrainConfig, given=given), Path(features), Path(cohort), Path(run))
    return run


def judge_one(task: tuple[str, list[str], str, str, str]) -> tuple[str, float, list[JudgedMap], list[str]]:
    """All scores of one recipe."""
    recipe, runs, features, truth, out = task
    torch.set_num_threads(1)
    options = ExplainOptions(truth=Path(truth), device="cpu", config=FlipConfig(inits=1))
    begin = time.perf_counter()
    found = explain_check([Path(run) for run in runs], Path(features), Path(out), options=options)
    return recipe, time.perf_counter() - begin, list(found.maps), [*found.notes, *found.failures.values()]


def rows_of(name: str, recipe: str, seconds: float, maps: list[JudgedMap]) -> list[dict[str, Any]]:
    """One row a score."""
    rows = []
    for one in maps:
        wanted = (
            *(f"{name}{tail}" for name in ("srg", "random_srg", "margin", "above_attention") for tail in READINGS),
            "tile_auroc", "tile_auprc", "top_0.1", "without_top_0.1", "whole", "completeness_share", "randomized",
            "randomized_size", "stability",
        )  # fmt: skip
        rows.append(
            {
                "set": name, "recipe": recipe, "score": one.score, "rules": one.rules, "rows": one.rows,
                "patients": one.patients, "beats_random": one.verdict.beats_random, "pooled": one.pooled,
                "froc": None if one.froc is None else one.froc.mean, "seconds_a_row": seconds / one.rows,
                "estimates": {key: asdict(one.estimates[key]) for key in wanted if key in one.estimates},
            }
        )  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table in Markdown."""
    print(
        "| method | score | SRG | above random | before calibration | above attention | tile AUROC | tile AP"
        " | random weights | rule |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        found = row["estimates"]

        def cell(name: str, *, interval: bool = False, found: dict[str, Any] = found) -> str:
            one = found.get(name)
            if one is None or one["value"] is None:
                return ""
            ends = f" ({one['low']:+.3f} to {one['high']:+.3f})" if interval and one["low"] is not None else ""
            return (f"{one['value']:+.3f}" if interval else f"{one['value']:.3f}") + ends

        cells = [
            row["recipe"], row["score"], cell("srg"), cell("margin", interval=True),
            cell("margin_uncalibrated", interval=True), cell("above_attention", interval=True), cell("tile_auroc"),
            cell("tile_auprc"), cell("randomized"), " / ".join(row["rules"]),
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=list(RECIPES), default=list(METHODS))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--slides", type=int, default=48)
    parser.add_argument("--epochs", type=int, help="At most so many; the default fit's otherwise.")
    parser.add_argument("--lr", type=float, help="The learning rate; the default fit's otherwise.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    other = {name: value for name in ("epochs", "lr") if (value := getattr(given, name)) is not None}
    table = []
    with get_context("spawn").Pool(given.processes) as pool:
        for name in given.sets:
            work = given.work / name
            features, cohort, truth = SETS[name](work, given.slides)
            folds = range(given.folds) if name == "idc" else range(1)
            runs = {
                recipe: [
                    str(work / "runs" / recipe.replace(" ", "_") / f"{seed}-{fold}")
                    for seed in range(given.seeds) for fold in folds
                ]
                for recipe in given.methods
            }  # fmt: skip
            tasks = [
                (recipe, str(features), str(cohort), run, int(seed), given.folds if name == "idc" else None, int(fold), other)
                for recipe, all_ in runs.items() for run in all_ for seed, _, fold in [Path(run).name.partition("-")]
            ]  # fmt: skip
            for run in pool.imap_unordered(train_one, tasks):
                print(run, file=sys.stderr, flush=True)
            judging = [
                (recipe, all_, str(features), str(truth), str(work / "checked" / recipe.replace(" ", "_")))
                for recipe, all_ in runs.items()
            ]
            rows = []
            for recipe, seconds, maps, notes in pool.imap(judge_one, judging):
                rows += rows_of(name, recipe, seconds, maps)
                print(recipe, round(seconds, 1), *notes, sep="\n  ", file=sys.stderr, flush=True)
            print(f"\n{name}\n")
            show(rows)
            table += rows
    if given.json:
        report = {
            "folds": given.folds,
            "seeds": given.seeds,
            "slides": given.slides,
            "epochs": given.epochs,
            "lr": given.lr,
            "device": "cpu",
            "rows": table,
        }
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
