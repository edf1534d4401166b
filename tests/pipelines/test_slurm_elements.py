"""What elements of an array, gates and submit.sh do when a study does not run straight through."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.pipelines.slurm_cluster import SlurmCluster, needs_slurm
from tests.pipelines.studies import SUBMIT, SmallStudy, small_study, variables, wsimil

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), needs_slurm]


@pytest.fixture
def study(tmp_path: Path) -> SmallStudy:
    return small_study(tmp_path, slides=12, in_cohort=12, side_um=256)


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def logs(study: SmallStudy, pattern: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((study.folder / "logs").glob(pattern)))


def ids(study: SmallStudy) -> list[str]:
    """Jobs of the last call of submit.sh."""
    last = max((study.folder / "slurm").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return [line.split("\t")[2] for line in (last / "jobs").read_text(encoding="utf-8").splitlines()]


def done(study: SmallStudy) -> int:
    return len(list((study.folder / "work" / "done").iterdir()))


def ended(cluster: SlurmCluster) -> None:
    cluster.wait(lambda: not cluster.live(), "the end of all jobs", seconds=400)


@pytest.mark.chaos
def test_what_was_ended_and_what_failed_too_much_goes_on_with_the_same_command(
    cluster: SlurmCluster, study: SmallStudy
) -> None:
    torn = study.root / "slides" / "case003_0.tiff"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:9000])
    study.plan()
    settings = study.settings(GPUS="2")

    # Ended by hand: units are handed back, no element comes back, and the gate does not even look.
    cluster.run(SUBMIT, settings, **variables())
    cluster.wait(lambda: done(study) > 0, "a first slide", seconds=120)
    cluster.run("scancel", *ids(study))
    ended(cluster)
    assert "ended by TERM (exit 143)" in logs(study, "wsimil-extract-*")
    assert "queued again" not in logs(study, "*")
    assert json.loads(wsimil("status", study.folder, "--json"))["stages"][0]["running"] == 0

    # The same command goes on; one more worker; one bad slide of 13 units is too many, and the rest leaves the queue.
    cluster.run(SUBMIT, settings, **variables())
    more = cluster.run(SUBMIT, settings, "--more", "1", "--stage", "extract", **variables()).stdout
    assert "extract: workers, job" in more
    ended(cluster)
    gate = logs(study, "wsimil-gate-extract-*")
    assert "extract: too many units failed" in gate
    assert f"wsimil retry {study.root}/my\\ study --stage extract && {SUBMIT} {settings}" in gate
    assert not list((study.folder / "logs").glob("wsimil-train-*"))
    refused = cluster.run(SUBMIT, settings, check=False, **variables())
    assert refused.returncode == 3
    assert "mend what is wrong, or allow more with MAX_BAD" in refused.stderr

    # Mended, it comes to its end, and what was done is not done again.
    torn.write_bytes(whole)
    wsimil("retry", study.folder)
    cluster.run(SUBMIT, settings, **variables())
    ended(cluster)
    state = json.loads(wsimil("status", study.folder, "--json"))
    assert state["finished"]
    assert sum(stage["bad"] for stage in state["stages"]) == 0
    assert "nothing to do" in cluster.run(SUBMIT, settings, **variables()).stdout


@pytest.mark.chaos
def test_workers_are_added_also_while_the_gate_waits_for_nothing_but_a_place(
    cluster: SlurmCluster, study: SmallStudy
) -> None:
    study.plan()
    settings = study.settings(GPUS="1")
    for _ in cluster.nodes:
        cluster.run("sbatch", "--output=/dev/null", "--exclusive", "--wrap", "sleep 300")
    cluster.run(SUBMIT, settings, **variables())
    workers, gate, *_ = ids(study)
    cluster.run("scancel", workers)
    cluster.wait(lambda: cluster.tell(gate, "Dependency") == "(null)", "a gate that waits for a place", seconds=60)
    cluster.run(SUBMIT, settings, "--more", "1", "--stage", "extract", **variables())
    assert cluster.tell(gate, "Dependency").startswith(f"afterany:{ids(study)[0]}_")
    cluster.run("scancel", *cluster.live())
    ended(cluster)


@pytest.mark.chaos
def test_workers_that_are_added_to_a_later_stage_wait_until_it_may_begin(
    cluster: SlurmCluster, study: SmallStudy
) -> None:
    """They began at once, were refused, and were gone when their stage began."""
    study.plan()
    settings = study.settings(GPUS="1")
    more = [SUBMIT, settings, "--more", "1", "--stage", "train"]
    refused = cluster.run(*more, check=False, **variables())
    assert refused.returncode == 2
    assert "train comes after extract, of which 13 units are left and whose gate does not wait" in refused.stderr
    for _ in cluster.nodes:
        cluster.run("sbatch", "--output=/dev/null", "--exclusive", "--wrap", "sleep 300")
    cluster.run(SUBMIT, settings, **variables())
    gate = ids(study)[1]
    said = cluster.run(*more, **variables()).stdout
    added = said.split("train: workers, job ")[1].split()[0]
    assert cluster.tell(f"{added}_0", "Dependency").startswith(f"afterok:{gate}(")
    cluster.run("scancel", *cluster.live())
    ended(cluster)


@pytest.mark.chaos
def test_a_worker_that_is_always_killed_is_started_four_times_and_the_gate_says_how_to_go_on(
    cluster: SlurmCluster, study: SmallStudy
) -> None:
    study.plan()
    python = f'#!/bin/sh\ncase "$*" in *" worker "*) kill -9 $$ ;; esac\nexec {sys.executable} "$@"\n'
    executable(study.root / "venv" / "bin" / "python", python)
    settings = study.settings(VENV=f"'{study.root}/venv'", GPUS="1")
    cluster.run(SUBMIT, settings, **variables())
    ended(cluster)
    said = logs(study, "wsimil-extract-*")
    assert said.count("queued again: the worker was killed by signal 9") == 3
    assert "the worker was killed 4 times" in said
    gate = logs(study, "wsimil-gate-extract-*")
    assert f"units are left, and no worker. Why they left stands in {study.folder}/logs" in gate
    assert f"{SUBMIT} {settings}" in gate
    assert done(study) == 0


PYXIS = """#!/bin/bash
# srun as the plugin pyxis extends it, with the host in the place of the container.
words=()
for word in "$@"; do
    case $word in --container-*) echo "pyxis $word" >&2 ;; *) words+=("$word") ;; esac
done
exec {srun} "${{words[@]}}"
"""
APPTAINER = """#!/bin/bash
# What apptainer does with signals, with the host in the place of the container.
echo "apptainer $*" >&2
shift
while [[ $1 == --* ]]; do if [ "$1" = --bind ]; then shift 2; else shift; fi; done
shift
"$@" & inside=$!
trap 'kill -USR1 $inside' USR1
trap 'kill -TERM $inside' TERM
while wait $inside; [ $? -gt 128 ] && kill -0 $inside 2> /dev/null; do :; done
wait $inside
"""


@pytest.mark.chaos
@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_signals_and_exit_codes_go_through_a_container(cluster: SlurmCluster, study: SmallStudy, runtime: str) -> None:
    study.plan()
    programs = study.root / "bin"
    real = cluster.run("which", "srun").stdout.strip()
    executable(programs / "srun", PYXIS.format(srun=real))
    executable(programs / "apptainer", APPTAINER)
    executable(programs / "wsimil", f'#!/bin/sh\nexec {sys.executable} -m wsimil "$@"\n')
    image = study.root / "wsimil.sif"
    image.write_bytes(b"an image")
    jobs = {**variables(), "PATH": f"{programs}:{cluster.environment['PATH']}"}
    settings = study.settings(
        VENV="", CONTAINER=f"'{image}'", CONTAINER_RUNTIME=runtime, GPUS="1", MOUNTS=f"('{study.root}/slides')",
        STAGE_DIR=f"'{study.root}/local'",
    )  # fmt: skip
    cluster.run(SUBMIT, settings, **jobs)
    cluster.wait(lambda: done(study) > 0, "a first slide", seconds=120)
    extract, gate = ids(study)[:2]
    cluster.run("scancel", "--signal=USR1", "--batch", f"{extract}_0", check=False)
    cluster.wait(lambda: "queued again" in logs(study, "wsimil-extract-*"), "the way back", seconds=60)
    cluster.wait(lambda: cluster.tell(gate, "JobState") == "COMPLETED", "the end of the extraction", seconds=400)
    cluster.run("scancel", *ids(study)[2:], check=False)
    ended(cluster)
    said = logs(study, "wsimil-extract-*")
    assert "queued again: its time was up or its place was wanted" in said
    assert f"{study.root}/local/" in said.split("container-image=" if runtime == "pyxis" else "--bind", 1)[1]
    assert f"{study.root}/slides:{study.root}/slides" in said
    assert json.loads(wsimil("status", study.folder, "--json"))["stages"][0]["finished"]


def test_a_chain_of_which_slurm_refuses_a_part_is_taken_back_whole(cluster: SlurmCluster, study: SmallStudy) -> None:
    study.plan()
    settings = study.settings(GPUS="2", CPU_MEM="900G")
    refused = cluster.run(SUBMIT, settings, check=False, **variables())
    assert refused.returncode == 2
    assert "Slurm refuses the workers of overlays" in refused.stderr
    assert "taken out again" in refused.stderr
    queued = ids(study)
    assert len(queued) == 6  # workers and gates of three stages
    ended(cluster)
    assert {cluster.tell(job, "JobState") for job in queued} == {"CANCELLED"}
