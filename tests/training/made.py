"""What tests of training train on: bags of noise in which one class has a third of its instances shifted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wsimil.cohort import Cohort, CohortSlide
from wsimil.mil.saved import load_model
from wsimil.provenance import Provenance
from wsimil.training.config import FitConfig
from wsimil.training.fit import fit
from wsimil.training.loading import Instances
from wsimil.training.records import FitResult

DIM = 12
FEATURES = Provenance(
    encoder={"name": "made up", "dim": DIM}, tiling={"size_px": 224}, pixels={}, slide={}, slide_digest="", version="0"
)
QUICK = FitConfig(epochs=6, lr=3e-3, batch_bags=2, watch_from=0.0, patience=None)


@dataclass
class MadeBags:
    """Bags of noise; in those of class "t" a third of the instances is shifted in one feature."""

    slides: tuple[CohortSlide, ...]
    loads: int = 0

    def count(self, slide_id: str) -> int:
        return len(self.load(slide_id).xy0)

    def load(self, slide_id: str) -> Instances:
        self.loads += 1
        index = next(i for i, slide in enumerate(self.slides) if slide.slide_id == slide_id)
        rng = np.random.default_rng(index)
        features = rng.normal(size=(9 + index % 5, DIM)).astype(np.float16)
        if self.slides[index].label == "t":
            features[: len(features) // 3, 0] += 4
        return Instances(features=features, xy0=np.zeros((len(features), 2), np.int64))


def made_cohort(count: int = 32) -> Cohort:
    slides = tuple(
        CohortSlide(slide_id=f"s{i}", patient_id=f"p{i}", label="nt"[i // 2 % 2], split=("train", "val")[i % 2])
        for i in range(count)
    )
    return Cohort(slides=slides, classes=("n", "t"))


def run(
    folder: Path, *, config: FitConfig = QUICK, method: str = "abmil", cohort: Cohort | None = None, **given: object
) -> FitResult:
    cohort = cohort or made_cohort()
    source = given.pop("source", MadeBags(cohort.slides))
    return fit(
        source,
        cohort,
        method=method,
        method_config=given.pop("method_config", {}),
        config=config,
        features=given.pop("features", FEATURES),
        contents=given.pop("contents", "made up"),
        in_dim=DIM,
        run=folder,
        **given,
    )  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).model.state_dict()


def history(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "waited_s")} for line in lines]


class Pause:
    """Says stop after so many questions."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0
