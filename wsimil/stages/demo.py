"""demo: generated slides with known tumor through the public commands, and how well the answers fit what was drawn."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsimil.errors import ConfigError
from wsimil.evaluation.metrics import auroc
from wsimil.evaluation.truth import read_truth, tile_truth
from wsimil.export.scores import read_scores
from wsimil.export.shown import shown
from wsimil.store import open_store
from wsimil.testing.synthetic import SyntheticCohort, make_cohort

_TUMOR_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What a demo found, all on test slides: AUROC over slides, and over the tiles of slides with tumor, None where undefined.

    `tile_auroc` is of the contribution to "tumor", `attention_auroc` of attention; a tile counts as tumor if at least half of
    it lies inside the drawn tumor.
    """

    slides: int
    test_slides: int
    slide_auroc: float | None
    tile_auroc: float | None
    attention_auroc: float | None
    tiles: int
    picture: Path
    seconds: float


def demo(out: Path, *, slides: int, seed: int, say: Callable[[str], None]) -> DemoResult:
    """Draw `slides` slides into `out`, then extract, train and predict by the same commands that a user types.

    Raises ConfigError where one of them fails; its own message stands above.
    """
    began = time.perf_counter()
    say(f"Drawing {slides} slides with known tumor into {out / 'slides'} ...")
    cohort = make_cohort(out, slides=slides, seed=seed)
    features, run, predictions = out / "features", out / "run", out / "predictions"
    _wsimil(say, "extract", cohort.slides_folder, "-o", features)
    _wsimil(say, "train", features, "--cohort", cohort.cohort_csv, "-o", run, "--seed", seed)
    _wsimil(say, "predict", run, features, "--cohort", cohort.cohort_csv, "-o", predictions)
    return _measure(cohort, features, predictions, seconds=time.perf_counter() - began)


def _wsimil(say: Callable[[str], None], *arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    say("\n$ wsimil " + shlex.join(words))
    code = subprocess.run([sys.executable, "-m", "wsimil", *words], check=False).returncode  # noqa: S603 - our own command
    if code:
        raise ConfigError(f"the demo stops: `wsimil {words[0]}` ended with exit code {code}, see above")


def _measure(cohort: SyntheticCohort, features: Path, predictions: Path, *, seconds: float) -> DemoResult:
    store = open_store(features, mode="r")
    test = [slide for slide in cohort.slides if slide.split == "test"]
    with_tumor = [slide for slide in test if slide.label == "tumor"]
    tables = {slide.slide_id: read_scores(predictions / "scores" / f"{slide.slide_id}.parquet") for slide in test}
    probability = np.array([t.answer("prob_tumor") for t in tables.values()])
    truth, contribution, attention = [], [], []
    for slide in with_tumor:
        polygons = read_truth(cohort.truth_folder / f"{slide.slide_id}.geojson").polygons
        truth.append(tile_truth(store.read(slide.slide_id).grid, polygons) >= _TUMOR_SHARE)
        contribution.append(shown(tables[slide.slide_id], "contribution:tumor").values)
        attention.append(tables[slide.slide_id].score("attention"))
    is_tumor = np.concatenate(truth).astype(np.int64)
    return DemoResult(
        slides=len(cohort.slides),
        test_slides=len(test),
        slide_auroc=auroc(np.array([slide.label == "tumor" for slide in test], dtype=np.int64), probability),
        tile_auroc=auroc(is_tumor, np.concatenate(contribution)),
        attention_auroc=auroc(is_tumor, np.concatenate(attention)),
        tiles=len(is_tumor),
        picture=predictions / "overlays" / f"{with_tumor[0].slide_id}.png",
        seconds=seconds,
    )
