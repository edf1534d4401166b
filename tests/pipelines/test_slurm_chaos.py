"""A study on a real Slurm, on which everything falls at once, still ends with the bytes of single commands."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from tests.pipelines.slurm_cluster import SlurmCluster, needs_slurm, slurm_cluster
from tests.pipelines.studies import SUBMIT, SmallStudy, differences, left_over, small_study, variables, wsimil

pytestmark = [
    pytest.mark.long,
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    needs_slurm,
]

FULL_DISK = "the worker left (exit 4)"
SLIDES, IN_COHORT = 104, 24
POISON, TORN = "case070_0", "case071_0"

# A process that opens this slide dies as one does in a decoder's bug. The others take a while, so that fast machines, too, are at
# work when what is below befalls them.
POISONER = f"""
import os, signal, sys, time

met = set()

def meet(event, given):
    if event != "open" or not str(given[0]).endswith(".tiff") or given[0] in met:
        return
    met.add(given[0])
    if str(given[0]).endswith("{POISON}.tiff"):
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(1.5)

sys.addaudithook(meet)
"""

# The third element of the extraction, when it is started first, sees a disk without room where its results are made.
ENVIRONMENT = """#!/bin/sh
case "${SLURM_ARRAY_TASK_ID:-}/${SLURM_RESTART_COUNT:-0}/$*" in
    3/0/*worker*extract*)
        exec unshare --mount sh -c 'mount -t tmpfs -o size=8k none "$SCRATCH" && exec "$@"' sh "$REAL_PYTHON" "$@" ;;
esac
exec "$REAL_PYTHON" "$@"
"""


@pytest.fixture
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(grace_s=60) as running:
        yield running


@pytest.fixture
def study(tmp_path: Path) -> SmallStudy:
    made = small_study(tmp_path, slides=SLIDES, in_cohort=IN_COHORT, side_um=384, tile_um=64, heatmaps=False)
    torn = tmp_path / "slides" / f"{TORN}.tiff"
    os.truncate(torn, torn.stat().st_size // 3)
    return made


@pytest.fixture
def jobs(tmp_path: Path, study: SmallStudy) -> Mapping[str, str]:
    """The environment of jobs, some of which meet what is above."""
    python, poison = tmp_path / "venv" / "bin" / "python", tmp_path / "poison"
    for path, text in ((python, ENVIRONMENT), (poison / "sitecustomize.py", POISONER)):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    python.chmod(0o755)
    given = variables()
    return {
        **given,
        "PYTHONPATH": f"{poison}{os.pathsep}{given['PYTHONPATH']}",
        "REAL_PYTHON": sys.executable,
        "SCRATCH": str(study.folder / "work" / "scratch"),
    }


def workers(cluster: SlurmCluster, node: str) -> dict[str, list[int]]:
    """Pids of supervisors and workers on a node by their job, supervisors first; those of jobs that have both."""
    found: dict[str, list[int]] = {}
    for pid, command in sorted(cluster.processes().items()):
        environment = cluster.environment_of(pid)
        if " wsimil worker " in command and environment.get("SLURMD_NODENAME") == node:
            found.setdefault(environment["SLURM_JOB_ID"], []).append(pid)
    return {job: pids for job, pids in found.items() if len(pids) > 1}


def element_of(cluster: SlurmCluster, pid: int) -> str:
    """The id of the array's element whose job runs that process; one that no job has where it has ended."""
    environment = cluster.environment_of(pid)
    return f"{environment.get('SLURM_ARRAY_JOB_ID', '')}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"


def told_to_make_room(cluster: SlurmCluster, node: str) -> list[int]:
    """Pids of a job of the node, supervisor first, that was told so; empty where none runs there now.

    A job that is about to end, or to be queued again, still has its processes for a while; for its state to change scancel waits
    up to a minute and a half, and then signals nobody.
    """
    running = cluster.jobs("RUNNING")
    for pids in workers(cluster, node).values():
        if (element := element_of(cluster, pids[0])) in running:
            cluster.run("scancel", "--signal=USR1", "--batch", element, check=False)
            return pids
    return []


def at_work(cluster: SlurmCluster, study: SmallStudy, node: str, known: Collection[str]) -> list[int]:
    """Pids of the node's supervisors whose workers finished something that is not `known` and that are still there."""
    by = [str(receipt["worker"]) for name, receipt in receipts(study).items() if name not in known]
    pids = [pid for job in workers(cluster, node).values() for pid in job]
    return [pid for pid in pids if any(worker.startswith(f"{node}-{pid}-") for worker in by)]


def receipts(study: SmallStudy) -> dict[str, dict[str, object]]:
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (study.folder / "work/done").iterdir()}


def logs(study: SmallStudy) -> str:
    """What all jobs have said so far."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((study.folder / "logs").glob("*")))


def without(lines: Sequence[str], *slides: str) -> list[str]:
    """The lines of a table but those of `slides`, each of which has one."""
    found = [line for line in lines if line.partition(",")[0] not in slides]
    assert len(found) == len(lines) - len(slides)
    return found


def test_a_study_survives_all_that_can_happen_to_its_workers_at_once(
    cluster: SlurmCluster, study: SmallStudy, jobs: Mapping[str, str]
) -> None:
    poison = study.root / "slides" / f"{POISON}.tiff"
    serial = study.serial(without=[poison])
    study.plan()
    done = study.folder / "work" / "done"
    settings = study.settings(VENV=f"'{study.root}/venv'", GPUS="6")
    cluster.run(SUBMIT, settings, **jobs)

    def until(count: int) -> None:
        cluster.wait(lambda: len(list(done.glob("e*"))) >= count, f"{count} slides done", seconds=400)

    # Whoever met the full disk before anything else befell it has left.
    cluster.wait(lambda: FULL_DISK in logs(study), "one who met a full disk", seconds=120)

    until(4)
    on_n1 = cluster.wait(lambda: workers(cluster, "n1"), "a worker on n1", seconds=120)
    for pid in next(iter(on_n1.values())):  # the supervisor first, so that nobody tells of the other's end
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    until(12)
    told = cluster.wait(lambda: told_to_make_room(cluster, "n2"), "a job that runs on n2", seconds=120)
    cluster.wait(
        lambda: not cluster.processes().keys() & set(told), "the end of who was told to make room", seconds=120
    )

    until(20)
    cluster.run("sbatch", "-p", "urgent", "-w", "n1", "--gres=gpu:2", "-o", "/dev/null", "--wrap", "true", **jobs)

    # Nobody hears of the node any more while one on it is at its work.
    known = set(receipts(study))
    orphans = cluster.wait(lambda: at_work(cluster, study, "n2", known), "a slide done on n2", seconds=120)
    cluster.daemons["n2"].kill()
    before = set(receipts(study))

    cluster.wait(lambda: not cluster.live(), "the whole chain", seconds=400)

    # What is good is what it would have been, and the chain came to its end.
    torn_and_poisoned = [f"features/*/{name}.*" for name in (TORN, POISON)]
    with_failures = [f"predictions/*/{name}" for name in ("predictions.csv", "predictions.parquet", "failures.csv")]
    ignored = ["features/failures.csv", *torn_and_poisoned, *with_failures]
    assert differences(study.folder, serial, ignored=ignored) == []
    # Both name the torn slide as failed. Single commands never heard of the other that was set aside; the study names it, too,
    # and else answers the same.
    tables = [path.relative_to(serial) for path in serial.glob("predictions/**/predictions.csv")]
    assert len(tables) == len(study.rounds)
    for table in tables:
        ours, alone = ((folder / table).read_text("utf-8").splitlines() for folder in (study.folder, serial))
        assert without(ours, TORN, POISON) == without(alone, TORN)
        assert len(ours) == len(alone) + 1
    assert left_over(study.folder) == []
    state = json.loads(wsimil("status", study.folder, "--json"))
    assert state["finished"]
    assert not state["workers"] or not any(worker["is_alive"] for worker in state["workers"])

    # What is bad was set aside after failures on two workers, and says why.
    extract = next(stage for stage in state["stages"] if stage["name"] == "extract")
    bad = {trouble["name"]: trouble["reasons"] for trouble in extract["troubles"] if trouble["is_bad"]}
    assert set(bad) == {TORN, POISON}
    assert sum(stage["bad"] for stage in state["stages"]) == 2
    assert all(len({reason["worker"] for reason in reasons}) >= 2 for reasons in bad.values())
    assert any("SIGSEGV" in str(reason["reason"]) for reason in bad[POISON])
    assert f"{TORN}.tiff" in str(bad[TORN][0]["reason"])

    # Nothing is in the results twice, or other than its receipt says.
    written = receipts(study)
    assert len(written) == sum(stage["units"] for stage in state["stages"]) - 2
    products = Counter(name for receipt in written.values() for name in receipt["products"])  # type: ignore[attr-defined]
    assert set(products.values()) == {1}
    for receipt in written.values():
        for name, digest in receipt["products"].items():  # type: ignore[attr-defined]
            assert sha256((study.folder / name).read_bytes()).hexdigest() == digest, name

    # And all of it did happen.
    late = [receipt for name, receipt in written.items() if name not in before and receipt["host"] == "n2"]
    assert orphans
    assert late, "what orphans did was not kept"
    said = logs(study)
    assert said.count("queued again: its time was up or its place was wanted") >= 2
    assert "queued again: the worker was killed by signal 9" in said
    assert FULL_DISK in said
    assert "the disk is full" in said
