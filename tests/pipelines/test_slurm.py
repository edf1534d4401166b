"""A study on a real Slurm of two nodes gives what single commands give in one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.pipelines.slurm_cluster import SlurmCluster, needs_slurm
from tests.pipelines.studies import SUBMIT, SmallStudy, differences, left_over, small_study, variables, wsimil

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), needs_slurm]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    return small_study(tmp_path_factory.mktemp("slurm"), slides=12, in_cohort=12, side_um=256, rounds=("0",))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job takes for its environment: small enough to be copied to a node in no time."""
    venv = tmp_path_factory.mktemp("environment") / "a venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (venv / "bin" / "python").chmod(0o755)
    return venv


def test_a_study_on_slurm_gives_the_bytes_of_single_commands(
    cluster: SlurmCluster, study: SmallStudy, environment: Path, tmp_path: Path
) -> None:
    serial = study.serial()
    study.plan()
    stages = "(predict overlays report)"
    settings = study.settings(
        VENV=f"'{environment}'", GPUS="2", CPU_STAGES=stages, STAGE_DIR=f"'{tmp_path}/local disk'"
    )
    dry = cluster.run(SUBMIT, settings, "--dry-run", **variables()).stdout
    assert [line.split("--job-name=")[1].split()[0] for line in dry.splitlines()] == [
        f"wsimil-{part}{stage}"
        for stage in ("extract", "train", "predict", "overlays", "report")
        for part in ("", "gate-")
    ]
    assert not (study.folder / "slurm").exists()

    said = cluster.run(SUBMIT, settings, **variables()).stdout
    assert "wsimil status" in said
    assert "is in the queue already" in cluster.run(SUBMIT, settings, check=False, **variables()).stderr
    cluster.wait(lambda: not cluster.live(), "the whole chain", seconds=400)

    assert differences(study.folder, serial) == []
    assert left_over(study.folder) == []
    state = json.loads(wsimil("status", study.folder, "--json"))
    assert state["finished"]
    assert sum(stage["extra_attempts"] for stage in state["stages"]) == 0
    logs = {path.name: path.read_text(encoding="utf-8") for path in (study.folder / "logs").iterdir()}
    assert sum("was copied" in text for text in logs.values()) == 1
    gates = [text for name, text in logs.items() if "gate" in name]
    assert len(gates) == 5
    assert all("done; the next stage may begin" in text for text in gates)
    assert "nothing to do" in cluster.run(SUBMIT, settings, **variables()).stdout
