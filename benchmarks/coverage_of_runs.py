"""How often 95 % intervals over folds hold the truth, by simulation: of one recipe, and of the difference of two.

    python benchmarks/coverage_of_runs.py --trials 500

Scores of a patient are N(0, 1) in class 0 and N(d, 1) in class 1; half of the variance is the patient's, and both recipes see
it. d is what a recipe learned: `--spread` is its standard deviation, of which the share test / (test + train) is common to
all folds of a trial, as folds share training patients. The metric is AUROC. "pooled" and "mean over folds" are of one recipe,
"these models" and "trained anew" of the difference of two; the truth of the first three is that of the models of the trial,
of the last that of the recipes.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.runs import between_runs, over_runs

SETTINGS = (
    {"positive": 20, "negative": 40, "folds": 10},
    {"positive": 30, "negative": 70, "folds": 5},
    {"positive": 100, "negative": 200, "folds": 5},
)
DISTANCES = (1.3, 1.0)


def auroc_at(distance: np.ndarray | float, variance: float = 1.0) -> np.ndarray | float:
    """The AUROC of normal scores of two classes, each of `variance`, so far apart."""
    return norm.cdf(distance / np.sqrt(2 * variance))


def measured(setting: dict[str, int], trials: int, replicates: int, spread: float) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    positive, negative, folds = (setting[name] for name in ("positive", "negative", "folds"))
    count = positive + negative
    truth = np.repeat([1, 0], [positive, negative])
    fold = np.concatenate([np.arange(positive) % folds, np.arange(negative) % folds])
    runs, patients = [str(one) for one in fold], [str(one) for one in range(count)]
    share = 1 / folds
    recipes = [float(norm.cdf(distance / np.sqrt(2 + spread**2))) for distance in DISTANCES]
    held = dict.fromkeys(("pooled", "mean over folds", "these models", "trained anew"), 0)
    for trial in range(trials):
        common = np.sqrt(share) * rng.normal(size=(2, 1)) + np.sqrt(1 - share) * rng.normal(size=(2, folds))
        distances = np.array(DISTANCES)[:, None] + spread * common
        shared = rng.normal(size=count)
        made = []
        for own in distances:
            scores = (shared + rng.normal(size=count)) / np.sqrt(2) + own[fold] * truth
            made.append(BinaryCases(targets=truth, probabilities=norm.cdf(scores), threshold=0.5))
        each = auroc_at(distances)
        found = over_runs(made[0], runs, patients, replicates=replicates, seed=trial)["auroc"]
        paired = between_runs(
            made[0], made[1], runs, patients, rounds={run: run for run in runs}, test_share=share / (1 - share),
            replicates=replicates, seed=trial,
        )["auroc"]  # fmt: skip
        wanted = {
            "pooled": (found.pooled, each[0].mean()),
            "mean over folds": (found.averaged, each[0].mean()),
            "these models": (paired.difference, each[0].mean() - each[1].mean()),
            "trained anew": (paired.retrained, recipes[0] - recipes[1]),
        }
        for name, (one, value) in wanted.items():
            held[name] += bool(one is not None and one.low is not None and one.low <= value <= one.high)
    return setting | {"held": {name: times / trials for name, times in held.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--spread", type=float, default=0.3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage-of-runs.json")
    given = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        rows.append(measured(setting, given.trials, given.replicates, given.spread))
        print(json.dumps(rows[-1]), flush=True)
    facts = {"trials": given.trials, "replicates": given.replicates, "spread": given.spread}
    facts |= {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
    given.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
