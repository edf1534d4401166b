"""Small studies of generated slides, and what single commands make of them in one process."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
import yaml
from typer.testing import CliRunner

from wsimil.cli import app
from wsimil.testing.synthetic import make_cohort

REPOSITORY = Path(__file__).resolve().parents[2]
SUBMIT = REPOSITORY / "pipelines" / "slurm" / "submit.sh"
RESULTS = ("features", "runs", "predictions", "report")
TELL_TIMES = ("features/extract.jsonl", "runs/*/metrics.jsonl", "runs/*/tensorboard/*", "runs/*/checkpoint/*")
"""Files in which the time of day or seconds stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallStudy:
    """What a study is made of; `folder` is where its results will lie, named as users name folders."""

    root: Path
    extract: Mapping[str, object]
    train: Mapping[str, Mapping[str, object]]
    rounds: tuple[str, ...]
    predict: Mapping[str, object]

    @property
    def folder(self) -> Path:
        """Of the results."""
        return self.root / "my study"

    def plan(self) -> None:
        """`wsimil plan`."""
        tree = {
            "slides": str(self.root / "slides"),
            "cohort": str(self.root / "cohort.csv"),
            "splits": str(self.root / "splits.json"),
            "extract": dict(self.extract),
            "train": dict(self.train),
            "rounds": list(self.rounds),
            "predict": {"slides": "all", **self.predict},
            "lease_s": 10,
        }
        (self.root / "study.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        wsimil("plan", self.root / "study.yaml", "-o", self.folder)

    def serial(self, *, without: Sequence[Path] = ()) -> Path:
        """Extract, crossval, predict and evaluate one after the other; the folder of results, moved out of the way.

        They are made where the study's will be, as some name where they lie; slides `without` stay out of it.
        """
        for path in without:
            path.rename(self.root / path.name)
        out, options = self.folder, []
        for name, config in {"extract": self.extract, **self.train}.items():
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
            if name != "extract":
                options += ["-c", self.root / f"{name}.yaml"]
        cohort = ["--cohort", self.root / "cohort.csv"]
        with _one_thread():
            wsimil(
                "extract", self.root / "slides", "-o", out / "features", "-c", self.root / "extract.yaml", fails=True
            )
            splits = ["--splits", self.root / "splits.json"]
            for one in self.rounds:
                options += ["--round", one]
            wsimil("crossval", out / "features", *cohort, *splits, "-o", out / "runs", *options)
            for name in self.train:
                runs = [out / "runs" / name / round_name / "seed-0" for round_name in self.rounds]
                for run in runs:
                    to = out / "predictions" / run.relative_to(out / "runs")
                    given = [] if self.predict.get("heatmaps", True) else ["--no-heatmaps"]
                    wsimil("predict", run, out / "features", *cohort, "-o", to, *given, fails=True)
                judged = ["--features", out / "features", "--split", "test"]
                wsimil("evaluate", *runs, *cohort, *judged, "-o", out / "report" / name)
        for path in without:
            (self.root / path.name).rename(path)
        return out.rename(self.root / "serial")

    def settings(self, **given: str) -> Path:
        """A file for submit.sh; `given` as bash would have it."""
        small = {
            "STUDY": f"'{self.folder}'",
            "VENV": sys.prefix,
            "PARTITION": "gpu",
            "CPUS": "1",
            "MEM": "100M",
            "CPU_MEM": "100M",
            "TIME": "00:20:00",
            "CPU_WORKERS": "1",
            "WORKER_EXTRA": "(--gpus none)",  # the GPUs of the tests are fake
        }
        path = self.root / "slurm.env"
        path.write_text("".join(f"{key}={value}\n" for key, value in {**small, **given}.items()), encoding="utf-8")
        return path


def small_study(
    root: Path,
    *,
    slides: int,
    in_cohort: int,
    side_um: float,
    tile_um: float = 128,
    heatmaps: bool = True,
    rounds: tuple[str, ...] = ("0", "1"),
) -> SmallStudy:
    """Draw `slides` slides, of which the first `in_cohort` have labels, and share them out to two folds."""
    made = make_cohort(root, slides=slides, side_um=side_um)
    with (root / "cohort.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [[slide.slide_id, slide.patient_id, slide.label] for slide in made.slides[:in_cohort]]
        csv.writer(file, lineterminator="\n").writerows([["slide_id", "patient_id", "label"], *rows])
    wsimil("splits", "make", root / "cohort.csv", "-o", root / "splits.json", "--folds", "2")
    quick = {
        "device": "cpu",
        "method": {"name": "abmil", "hidden_dim": 16, "attention_dim": 8},
        "fit": {"epochs": 2},
    }
    # Tiles of several slides share a batch, which moves the last bits of their features; which slides do is not the same twice.
    extract = {"device": "cpu", "tile": {"tile_um": tile_um, "size_px": 64}, "readers": 1, "batch_size": 1}
    return SmallStudy(
        root=root, extract=extract,
        train={"abmil": quick}, rounds=rounds, predict={"heatmaps": heatmaps},
    )  # fmt: skip


def wsimil(*arguments: object, fails: bool = False) -> str:
    """Run a command in this process; what it printed. With `fails`, slides may fail."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code in ((0, 1) if fails else (0,)), f"{arguments}: exit {done.exit_code}\n{done.output}"
    return done.stdout


def variables() -> dict[str, str]:
    """Environment of jobs that run this very source on one thread each."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def differences(ours: Path, theirs: Path, *, ignored: Sequence[str] = ()) -> list[str]:
    """Result files that are in one folder only, or not equal byte for byte; but those that tell times."""
    found = []
    mine, other = set(_files(ours)), set(_files(theirs))
    for name in sorted(mine | other):
        if any(fnmatch(name, pattern) for pattern in (*TELL_TIMES, *ignored)):
            continue
        if name not in mine or name not in other:
            found.append(f"{name} is in {(ours if name in mine else theirs).name} only")
        elif (ours / name).read_bytes() != (theirs / name).read_bytes():
            found.append(f"{name} differs")
    return found


def left_over(study: Path) -> list[Path]:
    """What should be gone when all has ended: scratch folders, and temporary files beside results."""
    hidden = [path for path in study.rglob(".*") if path.is_file()]
    return [*(study / "work" / "scratch").iterdir(), *hidden]


def _files(root: Path) -> Iterator[str]:
    for result in RESULTS:
        for path in (root / result).rglob("*"):
            if path.is_file():
                yield str(path.relative_to(root))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
