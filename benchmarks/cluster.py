"""Work that is shared through a folder: what a claim, a look and an empty unit cost, and how long a cohort takes on many GPUs.

    python benchmarks/cluster.py [--folder FOLDER] [--units 10000] [--rounds 5] [--json FILE]
        [--patches-per-s 1500] [--warm-up-s 30] [--bubble-s 1] [--patches-median 11000] [--slides 10000] [--gpus 64]

"claim" is a claim of a unit that nobody has tried, by exclusive creation, as a worker makes it; "first look" what a worker
reads before it. "status" is `plan_state` of a plan of which half is done, a hundredth is held and a hundredth has failed; as a
command it is `wsimil status`. Empty units have one result of a few bytes; serial is a loop that writes and
syncs the same files and keeps no record. Scaling is over processes, by units that wait and need no core. --folder chooses the
file system; figures are medians over rounds.

The simulation deals slides with patch counts drawn from a lognormal distribution to GPUs: dynamic (whoever is free takes the next
one, largest first by an estimate, or in random order), static (dealt before, longest first by the same estimate, or in turn), and
one job a slide. What it is given are rates: those of the defaults are assumed, for one H100 and a ViT-L at fp16, and nobody has
measured them here.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from wsimil.worklist import Ledger, Stage, Unit, WorkPlan, read_plan, write_plan
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.status import plan_state
from wsimil.worklist.worker import Made, Worker

RATES = ("patches_per_s", "warm_up_s", "bubble_s")


def make_plan(folder: Path, count: int) -> WorkPlan:
    """Units that look like slides."""
    units = tuple(
        Unit(
            id=f"e{i:05}", name=f"TCGA-{i:05}.svs", cost=1.0 + (i * 7919) % 1009,
            task={"path": f"/data/cohort/slides/TCGA-{i:05}.svs", "mpp": 0.5, "patient": f"P{i // 2:05}"},
        )
        for i in range(count)
    )  # fmt: skip
    plan = WorkPlan(folder=folder, stages=(Stage(name="extract", units=units),), recipe={}, lease_s=120.0, max_bad=1.0)
    write_plan(plan)
    return plan


class Small:
    """Makes one small file a unit, after `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s

    def run(self, attempts: Iterator[Attempt]) -> Generator[Made, None, None]:
        for attempt in attempts:
            time.sleep(self.wait_s)
            (attempt.scratch / "features").mkdir()
            (attempt.scratch / "features" / f"{attempt.unit.id}.h5").write_bytes(b"features")
            yield Made(attempt=attempt)


class Nobody:
    def note(self, text: str) -> None:
        pass


def work(folder: Path, name: str, wait_s: float) -> int:
    plan = read_plan(folder)
    return int(
        Worker(ledger=Ledger(plan, worker=name, host="here"), runner=lambda _: Small(wait_s), watcher=Nobody()).run(
            plan.stages
        )
    )


def serial(folder: Path, count: int) -> float:
    """The same results, synced, with nothing but a loop."""
    folder.mkdir(parents=True)
    begin = time.perf_counter()
    for i in range(count):
        handle = os.open(folder / f"e{i:05}.h5", os.O_CREAT | os.O_WRONLY)
        os.write(handle, b"features")
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - begin


def claims(root: Path, count: int) -> dict[str, float]:
    plan = make_plan(root / "claims", count)
    ledger = Ledger(plan, worker="w1", host="here")
    begin = time.perf_counter()
    ledger.scan()
    first_look = time.perf_counter() - begin
    begin, on_cpu = time.perf_counter(), time.process_time()
    for unit in plan.stages[0].units:
        assert ledger.claim(unit) is not None
    made, made_on_cpu = time.perf_counter() - begin, time.process_time() - on_cpu
    begin = time.perf_counter()
    for unit in plan.stages[0].units:
        assert ledger.claim(unit) is None
    lost = time.perf_counter() - begin
    begin = time.perf_counter()
    ledger.scan()
    scan = time.perf_counter() - begin
    shutil.rmtree(plan.folder)
    return {
        "claim_ms": made / count * 1e3, "claim_on_cpu_ms": made_on_cpu / count * 1e3,
        "claim_that_another_has_ms": lost / count * 1e3,
        "first_look_ms": first_look * 1e3, "look_at_all_claimed_ms": scan * 1e3,
    }  # fmt: skip


def half_done(folder: Path, count: int) -> WorkPlan:
    """Half done, a hundredth failed, a hundredth held, by 64 workers; not synced."""
    plan = make_plan(folder, count)
    ledger = Ledger(plan, worker="w0", host="here")
    for i, unit in enumerate(plan.stages[0].units[: count // 2 + count // 50]):
        attempt = ledger.claim(unit)
        assert attempt is not None
        if i < count // 2:
            (plan.work / "done" / unit.id).write_text('{"worker": "w0"}')
        elif i < count // 2 + count // 100:
            (plan.work / "claims" / f"{attempt.id}.err").write_text(
                '{"worker": "w0", "host": "here", "reason": "no tissue"}'
            )
    card = {"host": "here", "device": "gpu 0", "stage": "extract", "held": [], "left": "", "done": {
        "extract": {"units": count // 128, "cost": 500.0 * count / 128, "failed": 0, "seconds": 600.0}}}  # fmt: skip
    for i in range(64):
        (plan.work / "workers" / f"w{i}.json").write_text(json.dumps({"worker": f"w{i}", **card}))
    return plan


def status(root: Path, count: int, rounds: int) -> dict[str, float]:
    plan = half_done(root / "status", count)
    reading, looking = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        found = read_plan(plan.folder)
        reading.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        state = plan_state(found, Ledger(found, worker="status", host="here"))
        looking.append(time.perf_counter() - begin)
        assert state.stages[0].units == count
    command = [sys.executable, "-m", "wsimil", "status", str(plan.folder)]
    whole = []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        whole.append(time.perf_counter() - begin)
    shutil.rmtree(plan.folder)
    return {
        "read_plan_s": statistics.median(reading), "status_s": statistics.median(looking),
        "status_command_s": statistics.median(whole),
    }  # fmt: skip


def shared(root: Path, count: int, workers: int, wait_s: float) -> float:
    """Seconds from the start of `workers` processes to the end of the last; processes are forked, as their start is not meant."""
    plan = make_plan(root / f"shared-{workers}", count)
    begin = time.perf_counter()
    children = []
    for i in range(workers):
        pid = os.fork()
        if pid == 0:
            os._exit(work(plan.folder, f"w{i}", wait_s))
        children.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    seconds = time.perf_counter() - begin
    assert codes == [0] * workers
    assert len(list((plan.work / "done").iterdir())) == count
    shutil.rmtree(plan.folder)
    return seconds


def simulate(given: argparse.Namespace) -> dict[str, float]:
    """Minutes until the last slide is done, by each way to deal `slides` to `gpus`."""
    rng = random.Random(0)
    sigma = 0.79  # mean 15 000 at a median of 11 000, as assumed for 256 px at 20x
    patches = [given.patches_median * rng.lognormvariate(0, sigma) for _ in range(given.slides)]
    seconds = [n / given.patches_per_s + given.bubble_s for n in patches]
    guessed = [n * rng.lognormvariate(0, 0.6) for n in patches]  # a file's size says this much of its patches
    by_guess = sorted(range(given.slides), key=lambda i: -guessed[i])
    in_turn = list(range(given.slides))

    def dynamic(order: Sequence[int], warm_up_each: float = 0.0) -> float:
        free = [0.0 if warm_up_each else given.warm_up_s] * given.gpus
        for i in order:
            heapq.heappush(free, heapq.heappop(free) + warm_up_each + seconds[i])
        return max(free) / 60

    def dealt_longest_first(size: Sequence[float]) -> float:
        loads = [(0.0, gpu, given.warm_up_s) for gpu in range(given.gpus)]
        for i in sorted(range(given.slides), key=lambda i: -size[i]):
            load, gpu, end = heapq.heappop(loads)
            heapq.heappush(loads, (load + size[i], gpu, end + seconds[i]))
        return max(end for _, _, end in loads) / 60

    return {
        "ideal": (sum(seconds) / given.gpus + given.warm_up_s) / 60,
        "dynamic, largest first by file size": dynamic(by_guess),
        "dynamic, in random order": dynamic(in_turn),
        "static, longest first by true patch count": dealt_longest_first(seconds),
        "static, longest first by file size": dealt_longest_first(guessed),
        "static, in turn": max(
            given.warm_up_s + sum(seconds[gpu :: given.gpus]) for gpu in range(given.gpus)
        ) / 60,
        "one job a slide": dynamic(in_turn, given.warm_up_s),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=64)
    for name, default in (
        ("patches-per-s", 1500.0),
        ("warm-up-s", 30.0),
        ("bubble-s", 1.0),
        ("patches-median", 11_000.0),
    ):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        root = Path(folder)
        kind = subprocess.run(["stat", "-f", "-c", "%T", root], capture_output=True, text=True).stdout.strip()
        rounds = [claims(root, given.units) for _ in range(given.rounds)]
        found: dict[str, Any] = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        found |= status(root, given.units, given.rounds)
        empty, plain = [], []
        for i in range(given.rounds):
            plain.append(serial(root / f"serial-{i}", 200))
            empty.append(shared(root, 200, 1, 0.0))
        found["empty_units"] = {
            "units": 200, "serial_s": statistics.median(plain), "shared_s": statistics.median(empty),
            "overhead_ms_a_unit": (statistics.median(empty) - statistics.median(plain)) / 200 * 1e3,
        }  # fmt: skip
        wait_s, count = 0.2, 120
        found["scaling"] = {
            "units": count, "wait_s": wait_s,
            "seconds": {str(n): statistics.median(shared(root, count, n, wait_s) for _ in range(3)) for n in (1, 2, 4)},
        }  # fmt: skip
        found["scaling"]["speed_up"] = {
            n: found["scaling"]["seconds"]["1"] / s for n, s in found["scaling"]["seconds"].items()
        }
    defaults = {name: parser.get_default(name) for name in (*RATES, "patches_median")}
    rates = {name: getattr(given, name) for name in defaults}
    found["simulation"] = {
        "slides": given.slides, "gpus": given.gpus, "given": rates,
        "assumed": [name for name, value in rates.items() if value == defaults[name]], "minutes": simulate(given),
    }  # fmt: skip
    told = {
        "units": given.units, "rounds": given.rounds, "file_system": kind, "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores", "load": os.getloadavg()[0], **found,
    }  # fmt: skip
    print(json.dumps(told, indent=1))
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
