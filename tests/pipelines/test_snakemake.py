"""Snakemake drives a study: the same Snakefile on one machine and on a Slurm cluster, with the results of single commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.pipelines.slurm_cluster import SlurmCluster, needs_slurm
from tests.pipelines.studies import REPOSITORY, SmallStudy, differences, left_over, small_study, variables, wsimil

pytestmark = pytest.mark.long

KIT = REPOSITORY / "pipelines" / "snakemake"
SNAKEMAKE = Path(os.environ.get("WSIMIL_SNAKEMAKE", REPOSITORY / ".venv-snakemake" / "bin" / "snakemake"))
needs_snakemake = pytest.mark.skipif(
    not SNAKEMAKE.is_file(), reason="Snakemake is not installed here; make snakemake does it"
)
STAGES = ("extract", "train", "predict", "overlays", "report")
WSIMIL = f"'{sys.executable}' -m wsimil"


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Snakemake in a folder, with a config and a profile that were copied from those of pipelines/ and changed, as users do."""

    folder: Path
    profile: Path
    environment: Mapping[str, str]

    def command(self, *options: str) -> list[str]:
        given = [
            "--snakefile",
            KIT / "Snakefile",
            "--configfile",
            self.folder / "config.yaml",
            "--profile",
            self.profile,
        ]
        return [str(part) for part in (SNAKEMAKE, *given, *options)]

    def start(self) -> subprocess.Popen[bytes]:
        """With all that it starts in a process group of its own; what it says goes to said.txt."""
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(
                self.command(), cwd=self.folder, env=self._env(), stdout=said, stderr=said, start_new_session=True
            )

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """To its end; both streams in stdout."""
        return subprocess.run(
            self.command(*options), cwd=self.folder, env=self._env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=500,
        )  # fmt: skip

    def _env(self) -> dict[str, str]:
        return {**os.environ, **variables(), **self.environment}


def driver(
    folder: Path, study: Path, yaml_file: Path, *, profile: str, changes: Mapping[str, object],
    environment: Mapping[str, str] | None = None, **config: object,
) -> Driver:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    example = yaml.safe_load((KIT / "config.example.yaml").read_text(encoding="utf-8"))
    mine = {"study": str(yaml_file), "out": str(study), "wsimil": WSIMIL, "workers": 1, "gpus": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump({**example, **mine, **config}), encoding="utf-8")
    shipped = yaml.safe_load((KIT / "profiles" / profile / "config.yaml").read_text(encoding="utf-8"))
    (folder / profile).mkdir(exist_ok=True)
    (folder / profile / "config.yaml").write_text(yaml.safe_dump({**shipped, **changes}), encoding="utf-8")
    return Driver(folder=folder, profile=folder / profile, environment=environment or {})


def local(folder: Path, study: Path, yaml_file: Path, **config: object) -> Driver:
    # One thread each, as the last bits of answers depend on their number.
    changes = {"set-threads": dict.fromkeys(STAGES, 1)}
    return driver(folder, study, yaml_file, profile="local", changes=changes, **config)


def supervisors(study: Path) -> list[int]:
    """Pids of `wsimil worker` for a study; without the processes that those start and watch."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                if words[1:5] == ["-m", "wsimil", "worker", str(study)] and "--name" not in words:
                    found.append(int(entry.name))
    return found


def at_work(study: Path) -> bool:
    """Whether a worker has said what stage it is at."""
    return any("extract" in path.read_text(encoding="utf-8") for path in (study / "work" / "workers").glob("*.json"))


def wait(until: Callable[[], object], what: str, *, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    return small_study(tmp_path_factory.mktemp("snake"), slides=12, in_cohort=12, side_um=256, heatmaps=False)


@pytest.fixture(scope="module")
def made(study: SmallStudy) -> Path:
    """What single commands make of it; its study.yaml lies there too."""
    made = study.serial()
    study.plan()
    return made


@pytest.fixture
def serial(study: SmallStudy, made: Path) -> Iterator[Path]:
    """The same, with nothing planned."""
    shutil.rmtree(study.folder, ignore_errors=True)
    yield made
    shutil.rmtree(study.folder, ignore_errors=True)


@needs_snakemake
@pytest.mark.timeout(600)
def test_a_study_goes_on_after_a_preemption_a_killed_driver_and_a_bad_slide_and_has_the_bytes_of_single_commands(
    study: SmallStudy, serial: Path, tmp_path: Path
) -> None:
    bad = sorted((study.root / "slides").iterdir())[3]
    slide = bad.read_bytes()
    bad.write_bytes(b"no slide")
    run = local(tmp_path / "run here", study.folder, study.root / "study.yaml")
    work, marks = study.folder / "work", study.folder / "snakemake"
    first = run.start()
    try:
        wait(lambda: at_work(study.folder) or first.poll() is not None, "a worker is at work")
        for pid in supervisors(study.folder):
            os.kill(pid, signal.SIGUSR1)
        wait(lambda: listed(work / "claims") or first.poll() is not None, "it was started again and has begun")
        assert first.poll() is None, (run.folder / "said.txt").read_text(encoding="utf-8")
        first.kill()
        first.wait()
        assert "start 1: left with exit code 75" in (marks / "logs" / "extract-0.log").read_text(encoding="utf-8")

        assert listed(run.folder / ".snakemake" / "locks")
        assert run.run("--unlock").returncode == 0
        refused = run.run()
        assert refused.returncode == 1
        assert "extract: too many units failed, so nothing is built on the rest" in refused.stdout
        assert listed(marks / "extract") == []
        assert listed(marks / "train") == []

        bad.write_bytes(slide)
        assert "1 units will be tried again" in wsimil("retry", study.folder)
        done = run.run()
        assert done.returncode == 0, done.stdout
        wait(lambda: not supervisors(study.folder), "the worker of the killed driver has ended too")
    finally:
        bad.write_bytes(slide)
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)

    assert differences(study.folder, serial) == []
    assert left_over(study.folder) == []
    stages = json.loads(wsimil("status", study.folder, "--json"))["stages"]
    assert [stage["name"] for stage in stages] == ["extract", "train", "predict", "report"]
    assert all(stage["finished"] and not stage["bad"] for stage in stages)


@needs_snakemake
@needs_slurm
@pytest.mark.timeout(600)
def test_the_same_snakefile_on_slurm_asks_for_a_job_a_worker_and_gives_the_same_bytes(
    study: SmallStudy, serial: Path, cluster: SlurmCluster, tmp_path: Path
) -> None:
    tree = yaml.safe_load((study.root / "study.yaml").read_text(encoding="utf-8"))
    del tree["predict"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**tree, "report": False}), encoding="utf-8")
    # Workers see the fake GPU that Slurm gave them, write it down, and work on the processor.
    wrapped = tmp_path / "wsimil"
    wrapped.write_text(
        f'#!/bin/bash\n[ "$1" != worker ] || echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $5 $6" >> "{tmp_path}/seen"\n'
        f'exec {WSIMIL} "${{@/#all/none}}"\n',
        encoding="utf-8",
    )
    wrapped.chmod(0o755)
    changes = {
        "default-resources": {"slurm_partition": "gpu", "runtime": 20, "mem_mb": 500},
        "set-threads": dict.fromkeys(STAGES, 1),
        "slurm-init-seconds-before-status-checks": 5,
    }
    run = driver(
        tmp_path, study.folder, tmp_path / "study.yaml", profile="slurm", changes=changes,
        environment=commands_of(cluster, tmp_path / "bin"),
        wsimil=f"'{wrapped}'", workers={"extract": 2}, gpus={"extract": 1, "train": 1},
    )  # fmt: skip
    done = run.run()
    assert done.returncode == 0, done.stdout + cluster.last_words()

    assert sorted(cluster.jobs().values()) == ["COMPLETED"] * 3
    extract, train = [], []
    for line in (tmp_path / "seen").read_text(encoding="utf-8").splitlines():
        node, gpu, *options = line.split()
        assert options == ["--gpus", "all"]
        (train if len(extract) == 2 else extract).append((node, gpu))
    assert len(set(extract)) == 2
    assert len(train) == 1
    assert {gpu for _, gpu in extract + train} <= {"0", "1"}
    assert differences(study.folder, serial, ignored=("predictions/*", "report/*")) == []
    assert left_over(study.folder) == []


def commands_of(cluster: SlurmCluster, folder: Path) -> dict[str, str]:
    """An environment in which this cluster's commands come first.

    SLURM_CONF says where its settings are, as they are not in /etc/slurm; and Snakemake takes that out of the environment of
    its jobs, whose srun would not know its cluster.
    """
    folder.mkdir()
    conf = cluster.environment["SLURM_CONF"]
    path = cluster.environment["PATH"]
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo", "sacct", "sacctmgr", "sshare"):
        real = shutil.which(name, path=path)
        if real is not None:
            (folder / name).write_text(f'#!/bin/sh\nSLURM_CONF="{conf}" exec {real} "$@"\n', encoding="utf-8")
            (folder / name).chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), path])}


@needs_snakemake
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"worker": 3}, "no setting is called worker; wanted some of study, out"),
        ({"workers": {"extract": 0}}, "workers: got 0 for extract, wanted a whole number from 1"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(
    setting: dict[str, object], said: str, tmp_path: Path
) -> None:
    done = local(tmp_path, tmp_path / "out", tmp_path / "study.yaml", **setting).run()
    assert done.returncode == 1
    assert said in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("code", "start", "is_over"),
    [
        (0, 1, True), (1, 1, True), (3, 1, True),
        (2, 1, False), (4, 2, False), (4, 3, True),
        (75, 1, False), (75, 9, False), (137, 9, False), (143, 1, False),
    ],
)  # fmt: skip
def test_a_worker_is_started_again_unless_its_stage_is_over_or_its_machine_unfit(
    code: int, start: int, is_over: bool, tmp_path: Path
) -> None:
    marker, log = tmp_path / "a marker", tmp_path / "logs" / "extract-0.log"
    command = ["bash", KIT / "worker.sh", marker, log, str(start), "0", "sh", "-c", f"echo at work; exit {code}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (0 if is_over else code)
    assert marker.is_file() == is_over
    assert not is_over or marker.read_text(encoding="utf-8") == f"{code}\n"
    assert f"start {start}: left with exit code {code}" in done.stderr
    assert log.read_text(encoding="utf-8").startswith("at work\n")


def test_a_worker_hands_back_before_its_time_is_up(tmp_path: Path) -> None:
    worker = "trap 'kill $!; exit 75' USR1; sleep 60 & wait"
    marker, log = tmp_path / "marker", tmp_path / "extract-0.log"
    command = ["bash", KIT / "worker.sh", marker, log, "1", "1", "sh", "-c", worker]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 75
    assert not marker.exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, ""), (3, "--stage extract, and the same snakemake command again"), (5, "units are left, and no worker")],
)
def test_where_a_gate_refuses_workers_are_wanted_again(code: int, said: str, tmp_path: Path) -> None:
    markers = [tmp_path / "worker 0", tmp_path / "worker 1"]
    for marker in markers:
        marker.touch()
    command = [
        "bash",
        KIT / "gate.sh",
        "extract",
        tmp_path / "my study",
        *markers,
        "--",
        "sh",
        "-c",
        f"echo 9/9; exit {code}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout == "9/9\n"
    assert said in done.stderr
    assert {marker.exists() for marker in markers} == {code == 0}
