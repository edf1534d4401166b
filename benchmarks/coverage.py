"""How often 95 % intervals hold the truth, by simulation: the bootstrap over patients, BCa, and DeLong's.

    python benchmarks/coverage.py --trials 2000

Scores of class 0 are N(0, 1), of class 1 N(d, 1), up to a shift. With several slides a patient, half of the variance is the
patient's, so that the slides of a patient resemble each other while a single one is distributed as before. Probabilities are
calibrated at heat 1, too sure at heat 2. The truth of each metric is that of a population of four million slides.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import scipy
import sklearn
from scipy.stats import norm

from wsimil.evaluation.binary import BinaryCases
from wsimil.evaluation.binning import bin_of, calibration_error
from wsimil.evaluation.bootstrap import estimates, resampling
from wsimil.evaluation.delong import delong_auroc
from wsimil.evaluation.patients import patient_means

METRICS = ("auroc", "auprc", "balanced_accuracy", "f1", "mcc", "sensitivity", "brier", "log_loss")
SETTINGS = (
    {"positive": 15, "negative": 15, "slides": 1, "distance": 1.0},
    {"positive": 10, "negative": 40, "slides": 1, "distance": 1.0},
    {"positive": 50, "negative": 50, "slides": 1, "distance": 1.0},
    {"positive": 50, "negative": 50, "slides": 3, "distance": 1.0},
    {"positive": 50, "negative": 50, "slides": 1, "distance": 2.5},
    {"positive": 200, "negative": 300, "slides": 1, "distance": 1.0},
    {"positive": 200, "negative": 300, "slides": 1, "distance": 1.0, "heat": 2.0},
)


def drawn(rng: np.random.Generator, setting: dict[str, float]) -> tuple[BinaryCases, list[str]]:
    positive, negative, slides = (int(setting[name]) for name in ("positive", "negative", "slides"))
    truth = np.repeat(np.repeat([0, 1], [negative, positive]), slides)
    owner = np.repeat(np.arange(positive + negative), slides)
    own, shared = rng.normal(size=len(truth)), rng.normal(size=positive + negative)[owner]
    noise = own if slides == 1 else (own + shared) / np.sqrt(2)
    scores = noise + setting["distance"] * (truth - 0.5)
    logits = setting.get("heat", 1.0) * (setting["distance"] * scores + np.log(positive / negative))
    probabilities = 1 / (1 + np.exp(-logits))
    return BinaryCases(targets=truth, probabilities=probabilities, threshold=positive / (positive + negative)), [
        str(i) for i in owner
    ]


def truths(setting: dict[str, float]) -> dict[str, float | None]:
    share = setting["positive"] / (setting["positive"] + setting["negative"])
    population = {"positive": 4e6 * share, "negative": 4e6 * (1 - share), "slides": 1}
    cases, _ = drawn(np.random.default_rng(12345), setting | population)
    return cases.values() | {"auroc": float(norm.cdf(setting["distance"] / np.sqrt(2)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    arguments = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        began = time.perf_counter()
        rows.append(
            measured(setting, arguments.trials, arguments.replicates) | {"seconds": time.perf_counter() - began}
        )
        print(json.dumps(rows[-1]), flush=True)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    facts = {"trials": arguments.trials, "replicates": arguments.replicates, "machine": platform.machine()}
    whole = facts | versions | {"sklearn": sklearn.__version__, "speed": speed(), "rows": rows}
    arguments.out.write_text(json.dumps(whole, indent=1) + "\n")


def measured(setting: dict[str, float], trials: int, replicates: int) -> dict[str, object]:
    rng = np.random.default_rng(7)
    truth = truths(setting)
    held = {name: [0, 0] for name in METRICS}
    delong = [0, 0, 0]
    ece = 0
    for trial in range(trials):
        cases, patients = drawn(rng, setting)
        for column, kind in enumerate(("percentile", "bca")):
            found = estimates(cases, patients, replicates=replicates, seed=trial, kind=kind)  # type: ignore[arg-type]
            for name in METRICS:
                one = found[name]
                told = one.low is not None and one.high is not None
                held[name][column] += bool(told and one.low <= truth[name] <= one.high)
        # Means over a patient's slides have an AUROC of their own, so DeLong's is measured on single slides only.
        if setting["slides"] == 1:
            means = patient_means(cases.probabilities, cases.targets, patients)
            auroc = delong_auroc(means.targets, means.outputs, means.patients)
            delong[0] += auroc.low_plain is not None and auroc.low_plain <= truth["auroc"] <= auroc.high_plain
            delong[1] += auroc.low is not None and auroc.low <= truth["auroc"] <= auroc.high
            delong[2] += auroc.low is None
        if trial < min(trials, 500):
            ece += naive_ece_holds(cases, patients, truth["ece_equal_width"], trial)
    return setting | {
        "truth": {name: truth[name] for name in METRICS},
        "percentile": {name: held[name][0] / trials for name in METRICS},
        "bca": {name: held[name][1] / trials for name in METRICS},
        "delong_plain": delong[0] / trials if setting["slides"] == 1 else None,
        "delong_logit": delong[1] / trials if setting["slides"] == 1 else None,
        "delong_undefined": delong[2] / trials if setting["slides"] == 1 else None,
        "naive_percentile_of_ece": ece / min(trials, 500),
    }


def naive_ece_holds(cases: BinaryCases, patients: list[str], truth: float | None, seed: int) -> bool:
    """Whether a percentile interval, which the package does not give for this metric, would hold its truth."""
    owner, residuals = bin_of(cases.probabilities, "equal_width"), cases.targets - cases.probabilities
    plan = resampling(patients, cases.strata)
    weights = np.concatenate(list(plan.weights(300, seed=seed))).astype(int)
    errors = [calibration_error(np.repeat(owner, row), np.repeat(residuals, row)) for row in weights]
    low, high = np.quantile(errors, [0.025, 0.975])
    return bool(low <= truth <= high)


def speed() -> dict[str, float]:
    """Seconds for all binary metrics of 1,000 patients with 2,000 replicates, the least of five."""
    cases, patients = drawn(np.random.default_rng(0), {"positive": 400, "negative": 600, "slides": 1, "distance": 1.0})
    result = {}
    for kind in ("percentile", "bca"):
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            estimates(cases, patients, kind=kind)  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - began)
        result[kind] = min(seconds)
    return result


if __name__ == "__main__":
    main()
