"""Every method and its useful compositions on sets of bags, cross-validated by patient.

    python benchmarks/methods_table.py [--data ../shared/data/bags/idc_mil_bags.npz ...] [--seeds 5] [--recipes NAME ...]
        [--processes 2] [--work FILE] [--json FILE]

For each recipe 5-fold cross-validation for each of 5 seeds, which draw folds and weights: bag AUROC; AUROC of instance scores
(contribution and attention) over all instances of positive test bags, where the set knows the truth; entropy of attention as a
share of its largest; seconds an epoch, on one thread; peak memory of a training step on a bag of 10 000 instances; AUROC of the
validation splits, by which a default may be chosen without a look at the test folds. All share one
fit recipe, wsimil's default, so that the table compares methods; the test fold is judged once, by the epoch that the validation
split chose. The last columns compare with plain gated ABMIL, fold by fold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bag_sets import SHARED, Task, corrected_interval, places, read_bags, run_all

from wsimil.mil import registry
from wsimil.mil.batch import StepContext, pack
from wsimil.testing.live_bytes import LiveBytes

WIDTH = 128
PLAIN: dict[str, Any] = {"entropy": {"weight": 0.0}}
AEM: dict[str, Any] = {"entropy": {"weight": 0.04}}
GATED: dict[str, Any] = {"name": "abmil", "gated": True}
V2_RECYCLE = {"tokens": 5, "keep": 0.8}


def _mhim(base: dict[str, Any], **options: Any) -> dict[str, Any]:
    # The official 0.9999 is for some 50 000 steps, of which there are a tenth here.
    return {"base": base, "mask": {"high": 0.1, "high_share": 0.5, "decay": True}, "momentum": 0.999, **options}


RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gated ABMIL": ("abmil", {}, PLAIN),
    "gated ABMIL + AEM (default)": ("abmil", {}, AEM),
    "gated ABMIL + STKIM": ("abmil", {}, {**PLAIN, "masking": {"kind": "top_k"}}),
    "gated ABMIL + STKIM + AEM": ("abmil", {}, {**AEM, "masking": {"kind": "top_k"}}),
    "MHIM(gated ABMIL)": ("mhim", _mhim(GATED), PLAIN),
    "MHIM(gated ABMIL) + AEM": ("mhim", _mhim(GATED), AEM),
    "MHIM v2(gated ABMIL)": (
        "mhim", _mhim(GATED, score="class", recycle=V2_RECYCLE, consistency_weight=0.5), PLAIN
    ),
    "mean pooling": ("pooling", {"pool": "mean", "level": "feature"}, PLAIN),
    "max pooling": ("pooling", {"pool": "max", "level": "logit"}, PLAIN),
    "ABMIL": ("abmil", {"gated": False}, PLAIN),
    "multi-head": ("multihead", {"hidden_dim": WIDTH}, PLAIN),
    "multi-head + AEM": ("multihead", {"hidden_dim": WIDTH}, AEM),
    "ACMIL": ("acmil", {"hidden_dim": WIDTH}, PLAIN),
    "ACMIL + AEM": ("acmil", {"hidden_dim": WIDTH}, AEM),
    "ACMIL multi-head": ("acmil", {"hidden_dim": WIDTH, "attention": "multihead"}, PLAIN),
    "DSMIL": ("dsmil", {"hidden_dim": WIDTH}, PLAIN),
    "DSMIL + AEM": ("dsmil", {"hidden_dim": WIDTH}, AEM),
    "MHIM(DSMIL)": ("mhim", _mhim({"name": "dsmil", "hidden_dim": WIDTH}, score="instance"), PLAIN),
    "CLAM-SB": ("clam", {"hidden_dim": WIDTH, "attention_dim": WIDTH}, PLAIN),
    "CLAM-SB + AEM": ("clam", {"hidden_dim": WIDTH, "attention_dim": WIDTH}, AEM),
    "CLAM-MB": ("clam", {"hidden_dim": WIDTH, "attention_dim": WIDTH, "branches": "multi"}, PLAIN),
    "DTFD AFS": ("dtfd", {"hidden_dim": WIDTH}, PLAIN),
    "DTFD MaxMinS": ("dtfd", {"hidden_dim": WIDTH, "distill": "maxmins"}, PLAIN),
    "RRT": ("rrt", {"hidden_dim": WIDTH, "region_side": 2}, PLAIN),
    "TransMIL": ("transmil", {"hidden_dim": WIDTH, "landmarks": 16}, PLAIN),
    "MHIM(TransMIL)": (
        "mhim",
        _mhim({"name": "transmil", "hidden_dim": WIDTH, "landmarks": 16, "filling": "ppeg", "embed_dropout": 0.25}),
        PLAIN,
    ),
}  # fmt: skip
"""Name, method, its hyperparameters, and what differs from the default fit."""
FOLDS = 5
BASELINE = "gated ABMIL"


def peak_bytes(method: str, config: dict[str, Any], *, dim: int) -> int:
    """Tensors alive at once in a training step on a bag of 10 000 instances of `dim` features."""
    model = registry.build(method, config, in_dim=dim, num_classes=2)
    count = 10_000
    features = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    bags = pack([features], xy0=[places(count)], slide_ids=["large"], targets=[1])
    with LiveBytes() as memory:
        model.losses(bags, StepContext(generator=torch.Generator(), progress=0.5)).total.backward()
    return memory.peak


def rows_of(name: str, chosen: list[str], answers: dict[str, dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """One row a recipe, of what all seeds have answered."""

    def column(recipe: str, key: str) -> np.ndarray:
        found = [answers[f"{name}/{recipe}/{seed}/{fold}"].get(key) for seed in range(seeds) for fold in range(FOLDS)]
        return np.array([np.nan if value is None else value for value in found], dtype=np.float64)

    one = answers[f"{name}/{BASELINE}/0/0"]
    test_share = one["test_bags"] / one["train_bags"]
    rows = []
    for recipe in chosen:
        auroc = column(recipe, "auroc")
        by_seed = auroc.reshape(seeds, FOLDS).mean(axis=1)
        row: dict[str, Any] = {
            "set": name,
            "recipe": recipe,
            "auroc": float(auroc.mean()),
            "auroc_spread": float(by_seed.std(ddof=1)) if seeds > 1 else 0.0,
            "seconds_per_epoch": float(np.median(column(recipe, "seconds_per_epoch"))),
        }
        for key in (*_SCORES, "validation_auroc"):
            values = column(recipe, key)
            row[key] = None if np.isnan(values).any() else float(values.mean())
        if recipe != BASELINE:
            gain = auroc - column(BASELINE, "auroc")
            row["gain"], row["gain_interval"] = float(gain.mean()), corrected_interval(gain, test_share=test_share)
            truth = column(recipe, "instance_auroc_contribution") - column(BASELINE, "instance_auroc_contribution")
            if not np.isnan(truth).any():
                row["instance_gain"] = float(truth.mean())
                row["instance_gain_interval"] = corrected_interval(truth, test_share=test_share)
        rows.append(row)
    first = max(rows, key=lambda row: row["auroc"])["recipe"]
    for row in rows:
        if row["recipe"] != first:
            gap = column(row["recipe"], "auroc") - column(first, "auroc")
            row["to_first"], row["to_first_interval"] = (
                float(gap.mean()),
                corrected_interval(gap, test_share=test_share),
            )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table in Markdown."""
    print(
        "| recipe | bag AUROC | over gated ABMIL | validation | instance AUROC: contribution | attention | entropy | s/epoch"
        " | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: -row["auroc"]):
        gain = "" if "gain" not in row else "{:+.3f} ({:+.3f} to {:+.3f})".format(row["gain"], *row["gain_interval"])
        cells = [
            row["recipe"],
            f"{row['auroc']:.3f} ± {row['auroc_spread']:.3f}",
            gain,
            *("" if row[key] is None else f"{row[key]:.3f}" for key in ("validation_auroc", *_SCORES)),
            f"{row['seconds_per_epoch']:.2f}",
            f"{row['megabytes']:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")
    behind = [row["recipe"] for row in rows if "to_first" in row and row["to_first_interval"][1] < 0]
    print(f"\nBehind the first by more than the interval: {', '.join(behind) or 'none'}.")


_SCORES = ("instance_auroc_contribution", "instance_auroc_attention", "entropy")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[SHARED / "idc_mil_bags.npz"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("methods_table.jsonl"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    chosen = [BASELINE, *(name for name in given.recipes if name != BASELINE)]
    tasks = [
        Task(
            file=str(path), recipe=recipe, method=RECIPES[recipe][0], method_config=RECIPES[recipe][1],
            fit_config=RECIPES[recipe][2], seed=seed, folds=FOLDS, fold=fold, val_fraction=0.15,
        )
        for seed in range(given.seeds) for path in given.data for recipe in chosen for fold in range(FOLDS)
    ]  # fmt: skip
    answers = run_all(tasks, given.work, processes=given.processes)
    table = []
    for path in given.data:
        dim = read_bags(path).features[0].shape[1]
        rows = rows_of(path.stem, chosen, answers, given.seeds)
        for row in rows:
            method, config, _ = RECIPES[row["recipe"]]
            row["megabytes"] = peak_bytes(method, config, dim=dim) / 1e6
        print(f"\n{path.stem}\n")
        show(rows)
        table += rows
    if given.json:
        report = {"seeds": given.seeds, "folds": FOLDS, "device": "cpu", "dtype": "float32", "rows": table}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
