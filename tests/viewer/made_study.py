"""A small cohort for the viewer, through the tool's own stages: slides drawn, extracted, answered by a model of drawn weights.

By hand, to look at:

    python tests/viewer/made_study.py /tmp/study && python -m wsimil view /tmp/study/predictions --slides /tmp/study/slides
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch

from wsimil.config import FrozenConfig
from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.decision import Decision, save_decision
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.sources import list_sources
from wsimil.mil import registry
from wsimil.mil.saved import load_model, save_model
from wsimil.stages.extract import extract
from wsimil.stages.features import open_features
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.targets import Classification, Task

SIDES_PX = ((2048, 1536), (1900, 2100), (1001, 777), (2304, 1280))
MPP = 0.5
TILE_UM, TILE_PX = 64.0, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeStudy:
    """Where the parts of a made study lie; `run` is the model that `predictions` are of."""

    folder: Path
    slides: Path
    features: Path
    run: Path
    predictions: Path
    cohort_csv: Path


def make_slides_and_features(folder: Path) -> tuple[Path, Path]:
    """Four slides, and their features of a few hundred tiles."""
    slides, features = folder / "slides", folder / "features"
    for number, (width, height) in enumerate(SIDES_PX):
        write_picture(slides / f"s{number}.tiff", draw(width, height, seed=number))
    tile = {"tile_um": TILE_UM, "size_px": TILE_PX}
    config = ExtractConfig.model_validate({"tile": tile, "device": "cpu", "precision": "fp32", "readers": 1})
    summary = extract(config, list_sources(slides), features)
    assert not summary.failures, summary.failures
    return slides, features


def draw(width: int, height: int, *, seed: int) -> np.ndarray:
    """Tissue with a marked band across it, so that places can be told apart by eye; uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 243, np.uint8)
    y, x = np.ogrid[:height, :width]
    inside = ((x - width / 2) / (0.44 * width)) ** 2 + ((y - height / 2) / (0.42 * height)) ** 2 < 1
    band = np.abs(x - y * width / height) < 0.08 * width
    grain = np.kron(rng.random((height // 8 + 1, width // 8 + 1)), np.ones((8, 8)))[:height, :width]
    picture[inside] = np.stack([175 + 50 * grain, 105 + 70 * grain, 165 + 45 * grain], axis=-1).astype(np.uint8)[inside]
    picture[inside & band] = np.stack([95 + 40 * grain, 60 + 50 * grain, 130 + 40 * grain], axis=-1).astype(np.uint8)[
        inside & band
    ]
    return picture


def write_picture(path: Path, picture: np.ndarray, *, mpp: float = MPP) -> Path:
    """A pyramid of levels 1 and 4 whose px are stored without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for level in (1, 4):
            file.write(
                picture[::level, ::level], tile=(256, 256), compression="deflate", photometric="rgb", metadata=None,
                subfiletype=int(level > 1), resolution=(1e4 / mpp / level,) * 2, resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def make_run(
    run: Path,
    features: Path,
    *,
    method: str = "abmil",
    config: FrozenConfig | dict[str, object] | None = None,
    task: Task | None = None,
    calibration: Calibration | None = None,
    sharp: float = 20.0,
    bag: str = "slide",
) -> Path:
    """A run folder with a model whose weights are drawn, and whose answers differ between slides."""
    store = open_features(features)
    header = store.header(store.ids()[0])
    task = task or Classification(classes=("normal", "tumor"))
    model = registry.build(method, config or {}, in_dim=header.dim, num_classes=len(task.outputs), seed=3)
    model.standardize.fit([np.asarray(store.read_features(slide_id)) for slide_id in store.ids()])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("classifier.weight"):
                parameter.mul_(sharp)
    save_model(
        run, model, method=method, task=task, features=header.provenance, training={"kept_epoch": 1},
        bag="patient" if bag == "patient" else "slide",
    )  # fmt: skip
    if calibration is not None:
        save_decision(run, Decision(model=load_model(run).digest, calibration=calibration))
    return run


def write_cohort(path: Path, slide_ids: list[str]) -> Path:
    """Labels, and patients of whom the first has two slides."""
    patients = [max(number, 1) for number in range(len(slide_ids))]
    rows = [
        f"{slide_id},p{patient},{('normal', 'tumor')[patient % 2]},test"
        for slide_id, patient in zip(slide_ids, patients, strict=True)
    ]
    path.write_text("\n".join(["slide_id,patient_id,label,split", *rows]) + "\n", encoding="utf-8")
    return path


def make_study(folder: Path) -> MadeStudy:
    """All of it, predicted."""
    slides, features = make_slides_and_features(folder)
    run = make_run(folder / "run", features)
    cohort = write_cohort(folder / "cohort.csv", open_features(features).ids())
    predict(run, features, folder / "predictions", options=PredictOptions(device="cpu"), cohort_csv=cohort)
    return MadeStudy(
        folder=folder, slides=slides, features=features, run=run, predictions=folder / "predictions", cohort_csv=cohort
    )


if __name__ == "__main__":
    made = make_study(Path(sys.argv[1]))
    sys.stdout.write(
        f"wsimil view {made.predictions} --slides {made.slides} --features {made.features} --run {made.run}\n"
    )
