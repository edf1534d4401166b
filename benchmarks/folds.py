"""Five folds of full-bag ABMIL from disk: minutes, memory, and how long training waits for features.

    python benchmarks/folds.py [--bags 200] [--instances 10000] [--dim 1024] [--epochs 5] [--folder FOLDER] [--json FILE]

Bags of drawn float16 features are written as HDF5 files, `wsimil splits make` and `wsimil crossval` do the rest, one run after
the other with the default recipe, without a cache of features (fit.cache_gb 0), so that every bag is read from its file in every
epoch; the system is told to forget the files before. Memory is the highest resident size of the process that trains, sampled
five times a second, fold by fold; the first of them has the fewest bags behind it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from attention_cpu import device
from store import forget

from wsimil.store import open_store
from wsimil.testing.store_laws import make_bag

CLASSES = ("normal", "tumor")


@dataclass(slots=True)
class Watch:
    """Resident bytes of all descendants of a process, as (seconds since the start, bytes of the largest)."""

    root: int
    samples: list[tuple[float, int]] = field(default_factory=list)

    def run(self, done: threading.Event) -> None:
        """Sample until `done`."""
        while not done.wait(0.2):
            self.samples.append((time.time(), max((resident(pid) for pid in descendants(self.root)), default=0)))


def descendants(root: int) -> list[int]:
    """`root` and all processes below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ProcessLookupError):
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def resident(pid: int) -> int:
    """Bytes, 0 where the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)


def make(folder: Path, *, bags: int, instances: int, dim: int) -> Path:
    """Features whose positive bags differ in a twentieth of their instances, and the cohort file."""
    store = open_store(folder / "features", mode="w", backend="hdf5")
    like = make_bag(n=instances, dim=dim, seed=0)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((instances, dim), dtype=np.float32)
    direction = rng.standard_normal(dim, dtype=np.float32) * 0.5
    rows = ["slide_id,patient_id,label"]
    for number in range(bags):
        label = number % 2
        features = np.roll(noise[rng.permutation(instances)], number, axis=1)
        if label:
            features[: instances // 20] += direction
        name = f"slide-{number:03}"
        grid = replace(like.grid, slide=replace(like.grid.slide, slide_id=name, digest=f"{number:064x}"))
        provenance = replace(like.provenance, slide_digest=grid.slide.digest)
        store.write(replace(like, grid=grid, features=features.astype(np.float16), provenance=provenance))
        rows.append(f"{name},patient-{number:03},{CLASSES[label]}")
    cohort = folder / "cohort.csv"
    cohort.write_text("\n".join(rows) + "\n")
    return cohort


def wsimil(*words: object) -> subprocess.Popen[bytes]:
    """A command of wsimil, started."""
    return subprocess.Popen([sys.executable, "-m", "wsimil", *map(str, words)])


def measure(folder: Path, given: argparse.Namespace) -> dict[str, object]:
    """Make, train, and sum up."""
    cohort = make(folder, bags=given.bags, instances=given.instances, dim=given.dim)
    splits, features, out = folder / "splits.json", folder / "features", folder / "study"
    if wsimil("splits", "make", cohort, "-o", splits).wait():
        raise SystemExit("splits failed")
    forget(features)
    began = time.perf_counter()
    run = wsimil("crossval", features, "--cohort", cohort, "--splits", splits, "-o", out, "--quiet",
                 "--set", f"fit.epochs={given.epochs}", "--set", "fit.cache_gb=0")  # fmt: skip
    watch, done = Watch(run.pid), threading.Event()
    thread = threading.Thread(target=watch.run, args=(done,))
    thread.start()
    failed = run.wait()
    done.set()
    thread.join()
    if failed:
        raise SystemExit("crossval failed")
    seconds = time.perf_counter() - began
    epochs = [json.loads(line) for path in sorted(out.rglob("metrics.jsonl")) for line in path.read_text().splitlines()]
    bag_bytes = given.instances * given.dim * 2
    return {
        "bags": given.bags, "instances": given.instances, "dim": given.dim, "folds": 5, "epochs": given.epochs,
        "minutes": round(seconds / 60, 2), "seconds_per_epoch": round(statistics.median(e["seconds"] for e in epochs), 2),
        "store_wait_share": round(sum(e["waited_s"] for e in epochs) / sum(e["seconds"] for e in epochs), 4),
        "peak_rss_mb": round(max(size for _, size in watch.samples) / 1e6),
        "bag_mb": round(bag_bytes / 1e6, 1), **growth(watch, run_files(out), bag_bytes),
    }  # fmt: skip


def run_files(out: Path) -> list[Path]:
    """Folders of the runs, in the order in which they trained."""
    return sorted((path.parent for path in out.rglob("metrics.jsonl")), key=lambda path: path.stat().st_mtime)


def growth(watch: Watch, runs: list[Path], bag_bytes: int) -> dict[str, object]:
    """Peak of each fold, and how the later folds' exceed the first's."""
    ends = [(path / "metrics.jsonl").stat().st_mtime for path in runs]
    begins = [watch.samples[0][0], *ends[:-1]]
    peaks = [
        max((size for at, size in watch.samples if begin < at <= end), default=0)
        for begin, end in zip(begins, ends, strict=True)
    ]
    return {
        "peak_rss_mb_by_fold": [round(peak / 1e6) for peak in peaks],
        "bags_more_in_the_last_fold_than_in_the_first": round((peaks[-1] - peaks[0]) / bag_bytes, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bags", type=int, default=200)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        found = measure(Path(scratch), given)
    about = {"device": device(), "torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": "float32"}
    print(json.dumps(found, indent=2))
    if given.json:
        given.json.write_text(json.dumps({**about, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
