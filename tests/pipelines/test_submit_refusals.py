"""What is wrong with the settings is said before anything is queued or written, with what would be right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUBMIT = Path(__file__).resolve().parents[2] / "pipelines" / "slurm" / "submit.sh"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder that looks like a planned study; settings are judged before its plan is read."""
    folder = tmp_path / "my study"
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "plan.json").write_text("{}", encoding="utf-8")
    return folder


def refused(study: Path, settings: str, *options: str, path: str | None = None) -> str:
    """Run submit.sh with the settings below over sensible ones; what it says as it refuses."""
    file = study.parent / "slurm.env"
    file.write_text(f"STUDY='{study}'\nVENV='{sys.prefix}'\nPARTITION=gpu\n{settings}\n", encoding="utf-8")
    before = sorted(study.rglob("*"))
    env = {**os.environ, "GPUS": "what stands in the environment is not meant", "PATH": path or os.environ["PATH"]}
    done = subprocess.run(["bash", SUBMIT, file, *options], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sorted(study.rglob("*")) == before
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("PARTION=gpu", "no setting is called PARTION"),
        ("GPUS=some", "GPUS: got 'some', wanted a whole number from 1"),
        ("GPUS=0", "GPUS: got '0'"),
        ("TIME=4h", "TIME: got '4h', wanted [days-]hours:minutes:seconds"),
        ("SIGNAL_S=30", "SIGNAL_S: got 30, wanted 60 or more"),
        ("TIME=00:03:00", "TIME: 00:03:00 leaves no time to work"),
        ("TIME=3", "TIME: 3 leaves no time to work"),
        ("CONTAINER=wsimil.sif", "VENV and CONTAINER are both set"),
        ("VENV=", "neither VENV nor CONTAINER"),
        ("VENV=/usr/share", "no /usr/share/bin/python"),
        ("VENV= CONTAINER=/nowhere/wsimil.sif", "no image /nowhere/wsimil.sif"),
        ("VENV= CONTAINER=a/b:1 MOUNTS=(/a:b)", "/a:b: wanted a path that exists"),
        ("VENV= CONTAINER=a/b:1 CONTAINER_RUNTIME=docker", "got 'docker', wanted apptainer or pyxis"),
        ("CPU_STAGES=(report fold)", "CPU_STAGES: got 'fold', wanted some of extract train predict overlays report"),
        ("MOUNTS=/data /more", "give lists as NAME=(first second)"),
        ("STAGE=(/etc) STAGE_DIR=/tmp/stage", "STAGE: without a container"),
        ("STAGE_DIR=local", "STAGE_DIR: got 'local', wanted a folder on the nodes' own disks"),
        ("MAX_BAD=5%", "MAX_BAD: got '5%', wanted a share from 0 to 1"),
        ("HF_HOME=/nowhere", "/nowhere: wanted a path that exists"),
        ("STUDY=/nowhere", "STUDY: /nowhere is not a folder; make it with: wsimil plan STUDY.yaml -o /nowhere"),
        ("STUDY=/etc", "/etc holds no plan"),
        ("GPUS=(", "bash cannot read it"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(study: Path, settings: str, said: str) -> None:
    assert said in refused(study, settings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--more", "0", "--stage", "extract"], "--more: got '0', wanted the number of workers to add"),
        (["--more", "2"], "--stage: got '', wanted one of"),
        (["--stage", "train"], "--more: got ''"),
        (["--dryrun"], "no option --dryrun"),
        (["other.env"], "two files of settings"),
        (["--more"], "the last option lacks its value"),
    ],
)
def test_a_wrong_option_is_refused(study: Path, options: list[str], said: str) -> None:
    assert said in refused(study, "", *options)


def test_a_folder_whose_name_slurm_would_read_as_a_pattern_is_refused(study: Path) -> None:
    study = study.rename(study.with_name("100% of it"))
    assert "Slurm cannot name logs" in refused(study, "")


def test_where_there_is_no_slurm_it_is_said(study: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("bash", "sed", "grep", "dirname", "basename", "id", "hostname", "tr"):
        (few / name).symlink_to(f"/usr/bin/{name}")
    assert "sbatch is not known on" in refused(study, "", path=str(few))
