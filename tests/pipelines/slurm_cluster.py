"""A real Slurm on this machine for a test: virtual nodes with fake GPUs, loopback only, gone when the test ends.

Several slurmd, each with a name and a port of its own, are as many nodes to slurmctld. A GPU is a device file that nothing is
read from (a twin of /dev/null); CUDA_VISIBLE_DEVICES of a job is what a real one would be. Memory and devices are not confined,
as that takes control groups; there is no accounting, so sacct does not answer. Needs root, slurm-wlm and munge.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

Found = TypeVar("Found")

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "sinfo", "srun")
_SBIN = ("/usr/sbin", "/usr/local/sbin")
_START_S = 30.0
_DRAIN_S = 5.0
_ENDED = {
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
}


def why_not() -> str | None:
    """The reason why no Slurm can be started here, or None."""
    if os.geteuid() != 0:
        return "a Slurm of several nodes on one machine needs root"
    absent = [name for name in _PROGRAMS if _program(name) is None]
    if absent:
        return f"needs {', '.join(absent)}; apt-get install --no-install-recommends slurm-wlm munge"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _fake_gpu(Path(folder) / "gpu")
        except OSError as error:
            return f"a fake GPU is a device file, and none can be made here: {error}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmCluster:
    """A running cluster: `environment` is what its commands need beside that of the caller; `daemons` by node or program."""

    folder: Path
    nodes: tuple[str, ...]
    environment: Mapping[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *command: str | Path, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm, or one that uses Slurm, to its end; `extra` are more variables of its environment."""
        try:
            done = subprocess.run(
                [str(part) for part in command],
                env={**os.environ, **self.environment, **extra},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        except subprocess.TimeoutExpired as error:
            error.add_note(f"it had said: {error.stdout!r} {error.stderr!r}")
            raise
        if check and done.returncode:
            raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def jobs(self, *states: str) -> dict[str, str]:
        """Id to state of the jobs in `states`, such as RUNNING (in any, where none are named); elements are <array>_<index>."""
        listed = self.run("squeue", "-h", "-r", "-t", ",".join(states) or "all", "-o", "%i|%T").stdout
        return dict(line.split("|") for line in listed.split())

    def live(self) -> list[str]:
        """Ids of jobs that have not come to their end."""
        return [job for job, state in self.jobs().items() if state not in _ENDED]

    def tell(self, job: str, what: str) -> str:
        """One field of `scontrol show job`, such as Restarts; empty where the job or the field is not known."""
        shown = self.run("scontrol", "-o", "show", "job", job, check=False).stdout
        return next((part.partition("=")[2] for part in shown.split() if part.startswith(f"{what}=")), "")

    def processes(self) -> dict[int, str]:
        """Pid to command line of what jobs of this cluster run, orphans of a lost node too: their environment names it."""
        return dict(_processes_of(self.folder / "slurm.conf"))

    def environment_of(self, pid: int) -> dict[str, str]:
        """Variables that a process was started with; empty where it has ended."""
        with suppress(OSError):
            words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            return {name: value for name, _, value in (word.partition("=") for word in words)}
        return {}

    def wait(self, until: Callable[[], Found], what: str, *, seconds: float) -> Found:
        """Look again until it is so; what was found then. AssertionError with the daemons' last words after `seconds`."""
        end = time.monotonic() + seconds
        while not (found := until()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.last_words()}")
            time.sleep(0.1)
        return found

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node, also again after it was killed."""
        self.daemons[name] = _daemon(
            [_needed("slurmd"), "-D", "-f", str(self.folder / "slurm.conf"), "-N", name], self, f"slurmd-{name}.out"
        )

    def last_words(self) -> str:
        """The queue, the nodes and the ends of the daemons' logs, for a message."""
        queue = self.run("squeue", "-r", check=False).stdout + self.run("sinfo", "-N", "-l", check=False).stdout
        logs = [
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:])
            for path in sorted((self.folder / "log").iterdir())
        ]
        return "\n".join([queue, *logs])


@contextmanager
def slurm_cluster(*, nodes: int = 2, gpus: int = 2, cpus: int = 4, grace_s: int = 20) -> Iterator[SlurmCluster]:
    """Start `nodes` nodes of `gpus` fake GPUs and `cpus` claimed cores, all idle; end everything that runs on them afterwards.

    Partitions: `gpu`, whose jobs are requeued (USR1 first, KILL `grace_s` later) for those of `urgent`. Raises AssertionError
    where the cluster does not come up.
    """
    with ExitStack() as stack:
        # Sockets have short names, so not below a test's own folder.
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        for name in ("state", "log", "munge", "dev"):
            (folder / name).mkdir(mode=0o755)
        names = tuple(f"n{index + 1}" for index in range(nodes))
        cluster = SlurmCluster(
            folder=folder, nodes=names, environment={"SLURM_CONF": str(folder / "slurm.conf"), **_path()}
        )
        stack.callback(_end_daemons, cluster)
        _start_munged(cluster)
        _write_configuration(folder, names, gpus=gpus, cpus=cpus, grace_s=grace_s)
        conf = str(folder / "slurm.conf")
        cluster.daemons["slurmctld"] = _daemon([_needed("slurmctld"), "-D", "-c", "-f", conf], cluster, "slurmctld.out")
        stack.callback(_end_jobs, cluster)
        for name in names:
            cluster.start_node(name)
        cluster.wait(lambda: _idle(cluster) == nodes, f"{nodes} idle nodes", seconds=_START_S)
        yield cluster


def _idle(cluster: SlurmCluster) -> int:
    return len(cluster.run("sinfo", "-h", "-N", "-p", "gpu", "-t", "idle", "-o", "%N", check=False).stdout.split())


def _start_munged(cluster: SlurmCluster) -> None:
    """A munge of our own: key, socket and log in the cluster's folder, nothing of the system's is touched."""
    munge = cluster.folder / "munge"
    key = munge / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    cluster.daemons["munged"] = _daemon(
        [
            _needed("munged"), "--foreground", "--force", f"--socket={munge / 'socket'}", f"--key-file={key}",
            f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}",
        ],
        cluster,
        "munged.out",
    )  # fmt: skip
    end = time.monotonic() + _START_S
    while not (munge / "socket").exists():
        assert time.monotonic() < end, (cluster.folder / "log" / "munged.out").read_text()
        time.sleep(0.02)


def _write_configuration(folder: Path, names: Sequence[str], *, gpus: int, cpus: int, grace_s: int) -> None:
    ports = _free_ports(len(names) + 1)
    host = socket.gethostname().partition(".")[0]
    facts = {
        "ClusterName": "test",
        "SlurmctldHost": "localhost(127.0.0.1)",
        "SlurmctldPort": ports[0],
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",  # listens on 127.0.0.1 alone
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        # A requeued job starts again only once its credential has expired: two minutes, unless it is said here.
        "AuthInfo": f"socket={folder / 'munge' / 'socket'},cred_expire=5",
        "CredType": "cred/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmctldLogFile": folder / "log" / "slurmctld.log",
        "SlurmdLogFile": folder / "log" / "slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",  # control groups are not to be had everywhere
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "AccountingStorageType": "accounting_storage/none",
        "JobCompType": "jobcomp/none",
        "ReturnToService": 2,
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "defer_batch,batch_sched_delay=0,sched_interval=1,sched_min_interval=50000,bf_interval=1",
        "MaxArraySize": 1001,
        "SlurmdTimeout": 10,
        "SlurmctldTimeout": 10,
        "MinJobAge": 3600,
        "JobRequeue": 1,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",
        "SlurmdParameters": "config_overrides",  # nodes may claim more cores than the machine has
        "GresTypes": "gpu",
    }
    lines = [f"{key}={value}" for key, value in facts.items()]
    gres = []
    for name, port in zip(names, ports[1:], strict=True):
        for index in range(gpus):
            _fake_gpu(folder / "dev" / f"{name}-gpu{index}")
        lines.append(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000"
            f" Gres=gpu:{gpus} State=UNKNOWN"
        )
        gres.append(f"NodeName={name} Name=gpu File={folder}/dev/{name}-gpu[0-{gpus - 1}]")
    every = f"Nodes={','.join(names)} MaxTime=60 DefaultTime=10 State=UP"
    lines.append(f"PartitionName=gpu {every} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s}")
    lines.append(f"PartitionName=urgent {every} PriorityTier=10 PreemptMode=OFF")
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "gres.conf").write_text("\n".join(gres) + "\n", encoding="utf-8")


def _end_jobs(cluster: SlurmCluster) -> None:
    """TERM, then KILL to the batch scripts too, then whatever carries the cluster's name in its environment."""
    for command in (["scancel"], ["scancel", "--full", "--signal=KILL"]):
        with suppress(subprocess.TimeoutExpired):
            jobs = cluster.run("squeue", "-h", "-o", "%A", check=False).stdout.split()
            if jobs:
                cluster.run(*command, *jobs, check=False)
            end = time.monotonic() + _DRAIN_S
            while time.monotonic() < end and cluster.run("squeue", "-h", check=False).stdout.strip():
                time.sleep(0.1)
    for pid in cluster.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _end_daemons(cluster: SlurmCluster) -> None:
    for daemon in reversed(cluster.daemons.values()):
        daemon.terminate()
    for daemon in cluster.daemons.values():
        try:
            daemon.wait(timeout=_DRAIN_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for pid, _ in _processes_of(cluster.folder / "slurm.conf"):  # keepers of steps that outlived their slurmd
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _processes_of(conf: Path) -> Iterator[tuple[int, str]]:
    mark = f"SLURM_CONF={conf}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # it has ended meanwhile
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    yield int(entry.name), b" ".join(words).decode(errors="replace").strip()


def _daemon(command: Sequence[str], cluster: SlurmCluster, log: str) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal reaches the test, which ends the cluster in order. No SLURM_CONF in its
    # environment, which marks what jobs run.
    with (cluster.folder / "log" / log).open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)


def _fake_gpu(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _path() -> dict[str, str]:
    return {"PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])}


def _program(name: str) -> str | None:
    return shutil.which(name, path=_path()["PATH"])


def _needed(name: str) -> str:
    found = _program(name)
    assert found is not None
    return found


_REASON = why_not()
needs_slurm = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")
"""Of tests that start one."""
