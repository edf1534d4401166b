"""What the worker of each stage loads: a process does not wait for, nor hold in memory, what its stage has no use for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.stages.study.conftest import Material
from tests.stages.study.study_of import QUICK
from tests.test_loading import ENCODERS, NUMBERS, SLIDES, STATISTICS, loaded

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def planned(folder: Path, **settings: object) -> Path:
    (folder / "study.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    found = loaded("plan", folder / "study.yaml", "-o", folder / "study")
    assert not found & {"sklearn", "scipy", "pandas", *ENCODERS, *SLIDES}
    return folder / "study"


def worked(study: Path, stage: str) -> set[str]:
    """Modules of a worker that did a stage."""
    return loaded("worker", study, "--name", f"of-{stage}", "--stage", stage, "--quiet")


def test_a_worker_loads_what_its_stage_needs(material: Material, tmp_path: Path) -> None:
    study = planned(tmp_path, **material.settings(), train={"abmil": QUICK}, rounds=["0"], predict={})
    found = worked(study, "train")
    assert "torch" in found
    assert not found & {"matplotlib", *ENCODERS, *SLIDES}
    found = worked(study, "predict")
    assert "torch" in found
    assert not found & {"matplotlib", *ENCODERS, *SLIDES}
    found = worked(study, "overlays")
    assert not found & {"torch", *STATISTICS, *ENCODERS, *SLIDES}
    found = worked(study, "report")
    assert not found & {"torch", *ENCODERS, *SLIDES}
    # Nothing is left, which whoever watches over workers finds out for itself.
    assert not loaded("worker", study, "--gpus", "none") & NUMBERS


def test_a_worker_that_extracts_knows_no_training(make_slide: Callable[..., Path], tmp_path: Path) -> None:
    make_slide(tmp_path / "slides/a.tiff")
    study = planned(tmp_path, slides=str(tmp_path / "slides"), extract={"device": "cpu"})
    found = worked(study, "extract")
    assert found > ENCODERS
    assert not {
        name
        for name in found
        if name.startswith(("wsimil.training.fit", "wsimil.evaluation.metrics", "wsimil.mil.methods"))
    }


def test_answers_need_no_statistics_where_nothing_is_known_of_them(material: Material, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    options = ["--cohort", material.cohort, "--set", "fit.epochs=1", "--device", "cpu", "-q"]
    assert "torch" in loaded("train", material.features, "-o", run, *options)
    found = loaded("predict", run, material.features, "-o", out, "--device", "cpu", "-q")
    assert "torch" in found
    assert not found & {*STATISTICS, *ENCODERS, *SLIDES}
