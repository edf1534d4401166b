"""Sets of bags in one file, cross-validated: what `classic_mil.py` and `methods_table.py` share. Not a script.

A file holds `X` [instances, D], `bag` (the number of each instance's bag) and `bag_label`, and may hold `patient` of each bag and
`instance_label`.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, roc_auc_score

from wsimil.cohort import Cohort, CohortSlide
from wsimil.evaluation.attribution.table import attribute
from wsimil.evaluation.runs import retrained
from wsimil.mil.batch import BagBatch, pack
from wsimil.mil.saved import load_model
from wsimil.provenance import Provenance, sha256_json
from wsimil.training.config import FitConfig
from wsimil.training.fit import fit
from wsimil.training.loading import Instances

SHARED = Path(__file__).resolve().parents[2] / "shared/data/bags"
"""Where the sets lie beside a checkout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BagSet:
    """Bags by number; `groups` are what a split must not part."""

    name: str
    features: tuple[NDArray[np.float32], ...]
    targets: NDArray[np.int64]
    groups: tuple[str, ...]
    truth: tuple[NDArray[np.bool_], ...] | None

    def load(self, slide_id: str) -> Instances:
        """One bag, its instances in a row."""
        features = self.features[int(slide_id)]
        return Instances(features=features, xy0=places(len(features)))

    def cohort(self, *, seed: int, folds: int, fold: int, val_fraction: float) -> Cohort:
        """The split of one fold."""
        slides = tuple(
            CohortSlide(slide_id=str(number), patient_id=group, label="np"[int(target)])
            for number, (group, target) in enumerate(zip(self.groups, self.targets, strict=True))
        )
        cohort = Cohort(slides=slides, classes=("n", "p"))
        return cohort.with_splits(seed=seed, folds=folds, fold=fold, val_fraction=val_fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One model: a recipe on one fold of one set."""

    file: str
    recipe: str
    method: str
    method_config: dict[str, Any]
    fit_config: dict[str, Any]
    seed: int
    folds: int
    fold: int
    val_fraction: float

    @property
    def key(self) -> str:
        """What names its result."""
        return f"{Path(self.file).stem}/{self.recipe}/{self.seed}/{self.fold}"

    @property
    def digest(self) -> str:
        """Of all that decides its result but the code: a result of another recipe or other data is not taken for its own."""
        return sha256_json({**asdict(self), "file": _sha256(Path(self.file))})


def places(count: int) -> NDArray[np.int64]:
    """Instances without a place, in a row."""
    return np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1)


def read_bags(path: Path) -> BagSet:
    """The set of one file."""
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}  # each look into the file decompresses anew
        numbers = np.arange(len(data["bag_label"]))
        order = [np.flatnonzero(data["bag"] == number) for number in numbers]
        truth = data["instance_label"] > 0 if "instance_label" in data else None
        return BagSet(
            name=path.stem,
            features=tuple(data["X"][rows].astype(np.float32) for rows in order),
            targets=(data["bag_label"] > 0).astype(np.int64),
            groups=tuple(map(str, data.get("patient", numbers))),
            truth=None if truth is None else tuple(truth[rows] for rows in order),
        )


def run_task(task: Task) -> dict[str, Any]:
    """Train, and judge the test fold, which nothing looked at before."""
    torch.set_num_threads(1)
    bags = read_bags(Path(task.file))
    cohort = bags.cohort(seed=task.seed, folds=task.folds, fold=task.fold, val_fraction=task.val_fraction)
    dim = bags.features[0].shape[1]
    made = Provenance(
        encoder={"name": bags.name, "dim": dim}, tiling={}, pixels={}, slide={}, slide_digest="", version=""
    )
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            bags, cohort, method=task.method, method_config=task.method_config,
            config=FitConfig.model_validate({"seed": task.seed, **task.fit_config}),
            features=made, contents=bags.name, in_dim=dim, run=Path(folder),
        )  # fmt: skip
        model = load_model(Path(folder)).model
    rows = [int(slide.slide_id) for slide in cohort.of("test")]
    logits, found, truth, entropies = [], {}, [], []
    with torch.no_grad():
        for row in rows:
            scores = attribute(model, one_bag(bags, row), outputs=("n", "p"))
            logits.append(scores.output.logits[0].double())
            columns = dict(zip(scores.names, scores.values.T.numpy(), strict=True))
            entropies += [_entropy(values) for name, values in columns.items() if name.startswith("attention")]
            if bags.truth is not None and bags.targets[row]:
                truth.append(bags.truth[row])
                attention = [v for name, v in columns.items() if name.startswith("attention")]
                if attention:
                    found.setdefault("attention", []).append(np.mean(attention, axis=0))
                if "contribution:p" in columns:
                    found.setdefault("contribution", []).append(columns["contribution:p"])
    probability = torch.stack(logits).softmax(dim=1)[:, 1].numpy()
    targets = bags.targets[rows]
    answer: dict[str, Any] = {
        "key": task.key,
        "task": task.digest,
        "auroc": float(roc_auc_score(targets, probability)),
        "accuracy": float(accuracy_score(targets, probability > 0.5)),
        "epochs": len(result.history),
        "validation_auroc": result.history[result.kept_epoch - 1].val_auroc,
        "seconds_per_epoch": float(np.median([record.seconds for record in result.history])),
        "test_bags": len(rows),
        "train_bags": len(cohort.of("train")),
    }
    if entropies and not any(map(math.isnan, entropies)):
        answer["entropy"] = float(np.mean(entropies))
    for name, values in found.items():
        answer[f"instance_auroc_{name}"] = float(roc_auc_score(np.concatenate(truth), np.concatenate(values)))
    return answer


def one_bag(bags: BagSet, number: int) -> BagBatch:
    """One bag as a batch."""
    features = bags.features[number]
    return pack([features], xy0=[places(len(features))], slide_ids=[str(number)])


def run_all(tasks: Iterable[Task], results: Path, *, processes: int) -> dict[str, dict[str, Any]]:
    """All tasks' results by key; those that the file `results` holds are not computed again.

    Delete that file after a change of code that changes results.
    """
    wanted = list(tasks)
    known = {line["task"]: line for line in _lines(results)}
    done = {task.key: known[task.digest] for task in wanted if task.digest in known}
    left = [task for task in wanted if task.key not in done]
    if left:
        results.parent.mkdir(parents=True, exist_ok=True)
        with get_context("spawn").Pool(processes) as pool, results.open("a", encoding="utf-8") as file:
            for number, answer in enumerate(pool.imap_unordered(run_task, left), start=1):
                done[answer["key"]] = answer
                file.write(json.dumps(answer) + "\n")
                file.flush()
                if number % 20 == 0:
                    print(f"{number} of {len(left)}", flush=True)
    return done


def corrected_interval(differences: NDArray[np.float64], *, test_share: float) -> tuple[float, float]:
    """95 % interval of the mean of paired differences over folds that share training bags; a point where all are the same."""
    found = retrained(differences, test_share=test_share)
    middle = float(differences.mean())
    return (middle, middle) if found is None else (found.low, found.high)


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _entropy(weights: NDArray[np.floating]) -> float:
    """Of weights that sum to 1, as a share of the largest possible; NaN where they are no distribution or only one."""
    if len(weights) < 2 or weights.min() < 0 or abs(weights.sum() - 1) > 1e-3:
        return math.nan
    positive = weights[weights > 0].astype(np.float64)
    return float(-(positive * np.log(positive)).sum() / math.log(len(weights)))
