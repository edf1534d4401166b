"""Folders of answers, and cohort files, that are made up: what `wsimil train` leaves, without training."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsimil.evaluation.table import Row, write_table
from wsimil.mil.facts import answers_digest
from wsimil.provenance import Json
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival, Task

LEARNED = 12
"""Slides l0, l1, ... that every made-up model learned from, or (one of three) was chosen on."""


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_run(
    run: Path,
    task: Task,
    labels: Sequence[str],
    values: Sequence[NDArray[np.float64] | None],
    *,
    ids: Sequence[str] | None = None,
    patients: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    digest: str = "a" * 64,
    training: Mapping[str, Json] | None = None,
    bag: str = "slide",
) -> Path:
    """A run folder: model.json, cohort.csv with what was learned from, and the answers."""
    ids = ids or [f"s{i}" for i in range(len(labels))]
    patients = patients or [f"p{i}" for i in range(len(labels))]
    splits = splits or ["test"] * len(labels)
    run.mkdir(parents=True, exist_ok=True)
    facts = {
        "format_version": 2, "wsimil_version": "0.1.0", "method": "abmil", "config": {"hidden_dim": 128}, "in_dim": 8,
        "task": task.to_json(), "bag": bag, "weights_digest": digest, "features": None,
        "training": dict(training or {"kept_epoch": 7}),
    }  # fmt: skip
    (run / "model.json").write_text(json.dumps(facts), encoding="utf-8")
    learned = [[f"l{i}", f"q{i}", "", "val" if i % 3 == 0 else "train"] for i in range(LEARNED)]
    mine = [[one, patient, "", split] for one, patient, split in zip(ids, patients, splits, strict=True)]
    write_csv(run / "cohort.csv", ["slide_id", "patient_id", "site", "split"], learned + mine)
    rows = [
        Row(
            slide_id=one,
            patient_id=patient,
            values=value,
            label=label,
            split=split,
            status="ok" if value is not None else "no tissue tile",
        )
        for one, patient, value, label, split in zip(ids, patients, values, labels, splits, strict=True)
    ]
    made_by = answers_digest(digest, facts["training"])
    write_table(run, rows, task=task, bag="patient" if bag == "patient" else "slide", answered_by=made_by)
    return run


def write_cohort(
    path: Path,
    task: Task,
    labels: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    patients: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
) -> Path:
    """A cohort file of these slides, those that were learned from, and one without a label."""
    ids = ids or [f"s{i}" for i in range(len(labels))]
    patients = patients or [f"p{i}" for i in range(len(labels))]
    sites = sites or [("north", "south")[i % 2] for i in range(len(labels))]
    rows = [
        [one, patient, *task.cells(label), site, "A" if i % 3 else "B", 40 + i % 37]
        for i, (one, patient, label, site) in enumerate(zip(ids, patients, labels, sites, strict=True))
    ]
    learned = [[f"l{i}", f"q{i}", *task.cells(labels[0]), "north", "A", 50] for i in range(LEARNED)]
    blank = ["unlabelled", "u", *[""] * len(task.columns), "north", "A", ""]
    header = ["slide_id", "patient_id", *task.columns, "site", "scanner", "age"]
    return write_csv(path, header, [*rows, *learned, blank])


def answers(
    kind: str, count: int = 60, *, seed: int = 0, noise: float = 1.0
) -> tuple[Task, list[str], list[NDArray[np.float64] | None]]:
    """A task of a kind with labels, the same for all seeds, and answers that follow them."""
    truth, rng = np.random.default_rng(1), np.random.default_rng([seed, 7])
    if kind in ("two", "three", "ordinal"):
        names = ("normal", "tumor") if kind == "two" else ("one", "two", "three")
        task: Task = Ordinal(levels=names) if kind == "ordinal" else Classification(classes=names)
        targets = truth.integers(len(names), size=count)
        logits = noise * rng.normal(size=(count, len(names))) + 1.2 * np.eye(len(names))[targets]
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return task, [names[c] for c in targets], list(shares)
    if kind == "labels":
        task = MultiLabel(columns=("er", "pr"))
        likely = truth.random((count, 2))
        has = (truth.random((count, 2)) < likely).astype(int)
        labels = [task.read([str(a), str(b) if i % 9 else ""]) or "" for i, (a, b) in enumerate(has)]
        return task, labels, list(np.clip(likely + 0.1 * noise * rng.normal(size=(count, 2)), 0, 1))
    if kind == "number":
        task = Regression(columns=("ki67",), unit="%", mean=(60.0,), scale=(10.0,))
        numbers = 60 + 10 * truth.normal(size=count)
        return (
            task,
            [task.read([f"{x:.2f}"]) or "" for x in numbers],
            [np.array([x + 5 * noise * rng.normal()]) for x in numbers],
        )
    task = Survival(model="cox", unit="months", horizons=(6.0, 24.0), baseline=(0.4, 1.6))
    risk = truth.normal(size=count)
    times, ends = truth.exponential(size=count) * 15 * np.exp(-risk), truth.uniform(5, 60, size=count)
    labels = [task.read([f"{min(t, e):.3f}", str(int(t <= e))]) or "" for t, e in zip(times, ends, strict=True)]
    return task, labels, list(task.values((risk + 0.5 * noise * rng.normal(size=count))[:, None]))


KINDS = ("two", "three", "ordinal", "labels", "number", "survival")
