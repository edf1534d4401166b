"""Attention pooling of large bags on a GPU: time and memory of a training step, beside plain torch and torch.compile in one run.

    python benchmarks/attention_gpu.py [--minutes 8] [--only TEXT] [--out FILE]
    TRITON_INTERPRET=1 python benchmarks/attention_gpu.py --dry-run

Needs torch and triton alone, and `wsimil.ops`: on a bare machine, in a checkout, with PYTHONPATH=. before it. What the device can
do comes first (a copy, matrix products), then cases in the order of their importance, each after a check that results are right;
what the time does not suffice for is named. Contestants run in turn, three rounds, so that a change of clocks falls on all; a
figure is the median, a ratio the median of those of each round. "bwd" is forward and backward less forward, "graph" a replay of
both as a CUDA graph, "peak" and "held" the bytes that a step adds at most and between its passes. A dry run does all of it but
timing on a CPU, with tiny bags, and shows no figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from attention_contestants import Case, Contestant, Inputs, contestants, inputs_of, some_masked, step
from torch import Tensor
from triton.testing import do_bench

from wsimil.ops.dispatch import Backend
from wsimil.ops.gated_attention_pool import kernels

BOTH = ("default", "max-autotune-no-cudagraphs")
WIDE = Case(compiled=BOTH)
NARROW = Case(length=128, branches=5, compiled=BOTH)
PACK = Case(bags=8, instances=10_000, compiled=("default",))
CASES = (
    WIDE, NARROW, PACK, Case(instances=10_000, compiled=("default",)), Case(task="acmil", length=128, branches=5),
    Case(dtype="float32", matmul="high", compiled=("default",)), Case(task="mhim"), Case(frozen=True, compiled=("default",)),
    Case(instances=500_000), Case(dim=1024), Case(dim=1536), Case(instances=1000), Case(instances=1_000_000),
    Case(dtype="float32"), Case(length=384), Case(branches=2), Case(dim=1024, length=128, branches=5),
    Case(dim=1536, length=128, branches=5), Case(dtype="float16"), Case(bags=8, instances=10_000, length=128, branches=5),
    Case(length=384, branches=5), Case(dim=1536, length=384), Case(task="acmil", instances=10_000, length=128, branches=5),
    Case(instances=1000, length=128, branches=5), Case(instances=500_000, length=128, branches=5),
    Case(dtype="float32", matmul="high", length=128, branches=5), Case(dtype="float32", matmul="high", dim=1536),
)  # fmt: skip
BOUNDS = {
    "float32 highest": (5e-5, 1e-4),
    "float32 high": (3e-3, 1e-2),
    "bfloat16": (5e-3, 1e-2),
    "float16": (5e-3, 1e-2),
}
"""Of relative errors of outputs and of gradients."""
TRUNCATED = 2.5
"""Of plain torch's error what ours may be by TF32, which Triton gets by cutting off, with twice the error of rounding."""


class WrongResultError(Exception):
    """A contestant of ours errs more than plain torch of the same type."""


class Gpu:
    """Times and counts on the current CUDA device."""

    backend: Backend = "triton"
    device = torch.device("cuda")
    checked_instances = 3000
    rounds = 3
    kernel_rounds = 15

    def shape(self, case: Case) -> Case:
        """What is run of a case."""
        return case

    def compiler(self) -> Callable[..., Any]:
        """torch.compile, anew for each case."""
        torch._dynamo.reset()
        return partial(torch.compile, dynamic=False)

    def milliseconds(self, run: Callable[[], object]) -> list[float]:
        """Median, 20 % and 80 %, with the cache emptied before each run."""
        found: list[float] = do_bench(run, warmup=10, rep=40, quantiles=[0.5, 0.2, 0.8])
        return found

    def replay(self, run: Callable[[], object]) -> Callable[[], object]:
        """The same as a CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def added_bytes(self, run: Callable[[], object]) -> tuple[int, int]:
        """At most, and by what the result holds."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = run()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
        del result
        return torch.cuda.max_memory_allocated() - before, held

    def mark(self) -> torch.cuda.Event:
        """A point of time on the device."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Microseconds, once all has run."""
        torch.cuda.synchronize()
        return 1000 * begin.elapsed_time(end)

    def hold(self) -> None:
        """Keep the device busy for some milliseconds, so that what is launched meanwhile runs without gaps."""
        torch.cuda._sleep(20_000_000)

    def facts(self) -> dict[str, str]:
        """What the figures depend on."""
        facts = {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
        if tool := shutil.which("nvidia-smi"):
            asked = ["driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu"]
            command = [tool, f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().split(", ")
            facts |= dict(zip(asked, said, strict=False))
        return facts


class Rehearsal(Gpu):
    """Does once what is to be timed, on a CPU and in Triton's interpreter."""

    device = torch.device("cpu")
    checked_instances = 150
    rounds = kernel_rounds = 1

    def shape(self, case: Case) -> Case:
        """The same kind of case, tiny."""
        return replace(case, instances=20 if case.bags > 1 else 150, dim=16, length=16)

    def compiler(self) -> Callable[..., Any]:
        """Without a compiler of C++."""
        torch._dynamo.reset()
        return lambda run, **_: torch.compile(run, backend="eager", dynamic=False)

    def milliseconds(self, run: Callable[[], object]) -> list[float]:
        """Not known."""
        run()
        return [math.nan] * 3

    def replay(self, run: Callable[[], object]) -> Callable[[], object]:
        """Itself."""
        return run

    def added_bytes(self, run: Callable[[], object]) -> tuple[int, int]:
        """Not known."""
        run()
        return 0, 0

    def mark(self) -> Any:
        """Nothing."""

    def between(self, begin: object, end: object) -> float:
        """Not known."""
        return math.nan

    def hold(self) -> None:
        """Nothing to wait for."""

    def facts(self) -> dict[str, str]:
        """No device."""
        return {"device": "none, a dry run"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the device does at most, as measured."""

    copy_bytes_per_us: float
    flops_per_us: Mapping[str, float]

    def rate(self, case: Case) -> float:
        """Of matrix products in the case's type; float32 at its highest precision is three of TF32."""
        if case.dtype != "float32":
            return self.flops_per_us["bfloat16"]
        return self.flops_per_us["tf32"] / (3 if case.matmul == "highest" else 1)


def main() -> int:
    """Measure, print and write; 1 for a wrong result, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="begin no case that would not end in time (8)")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out", type=Path, help="the JSON (benchmarks/results/attention_<device>.json)")
    parser.add_argument("--dry-run", action="store_true", help="all but timing, on a CPU in Triton's interpreter")
    given = parser.parse_args()
    if given.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry-run: set TRITON_INTERPRET=1, which triton reads when it is imported")
    if not given.dry_run and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)):
        print("needs a CUDA device of compute capability 8.0 or newer; --dry-run does all but timing without one")
        return 2
    bench = Rehearsal() if given.dry_run else Gpu()
    try:
        report = run_all(bench, [case for case in CASES if given.only in case.name], seconds=60 * given.minutes)
    except WrongResultError as error:
        print(f"stopped: {error}")
        return 1
    if given.dry_run:
        print(f"dry run: {len(report['cases'])} cases ran; nothing was measured")
        return 0
    show_goals(report["goals"])
    name = f"attention_{torch.cuda.get_device_name().lower().replace(' ', '-')}.json"
    out = given.out or Path(__file__).parent / "results" / name
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def run_all(bench: Gpu, cases: Sequence[Case], *, seconds: float) -> dict[str, Any]:
    """The report."""
    deadline = time.monotonic() + seconds
    report: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__, "before": bench.facts()}
    ceilings = ceilings_of(bench)
    report |= {"ceilings": asdict(ceilings), "cases": {}, "skipped": []}
    longest: dict[int, float] = defaultdict(lambda: 15.0)  # by how much there is to compile
    seen = set()
    for case in cases:
        shape = bench.shape(case)
        if shape in seen:
            continue
        seen.add(shape)
        began = time.monotonic()
        if began + longest[len(case.compiled)] > deadline:
            report["skipped"].append(case.name)
            continue
        with _matmul_precision(case.matmul):
            check(bench, shape)
            report["cases"][case.name] = record = measure(bench, shape, ceilings)
        record["seconds"] = time.monotonic() - began
        longest[len(case.compiled)] = max(longest[len(case.compiled)], record["seconds"])
        show(shape.name, record)
    if report["skipped"]:
        print("skipped for time:", *report["skipped"], sep="\n  ")
    return report | {"after": bench.facts(), "goals": goals_of(report["cases"], ceilings)}


def ceilings_of(bench: Gpu) -> Ceilings:
    """A copy of 1 GB, products of 8192 x 8192, and the product of 100 000 instances."""
    dry = isinstance(bench, Rehearsal)
    count, side, instances = (1000, 32, 64) if dry else (10**9, 8192, 100_000)
    source = torch.ones(count, dtype=torch.uint8, device=bench.device)
    copied = 2 * count / (1000 * bench.milliseconds(partial(torch.empty_like(source).copy_, source))[0])
    rates = {}
    for kind, dtype in (("bfloat16", torch.bfloat16), ("tf32", torch.float32)):
        for name, (m, k, n) in {"": (side, side, side), " 100k x 512 x 512": (instances, 512, 512)}.items():
            with _matmul_precision("high"):
                a, b = (torch.randn(shape, device=bench.device, dtype=dtype) for shape in ((m, k), (k, n)))
                rates[kind + name] = 2 * m * n * k / (1000 * bench.milliseconds(partial(torch.mm, a, b))[0])
    if not dry:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
        print(f"copy {copied / 1e6:.2f} TB/s; TFLOP/s: " + ", ".join(f"{k} {v / 1e6:.0f}" for k, v in rates.items()))
    return Ceilings(copy_bytes_per_us=copied, flops_per_us=rates)


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check(bench: Gpu, case: Case) -> None:
    """Raises WrongResultError unless ours errs no more than plain torch in the same type, and no more than `BOUNDS`."""
    case = replace(case, instances=min(case.instances, bench.checked_instances), compiled=())
    inputs, masked = inputs_of(case, bench.device), some_masked(case, bench.device)
    (first, plain), *others = contestants(case, bench.backend, bench.compiler()).items()
    exact = _results(plain, inputs.to(torch.float64), masked)
    base = _results(plain, inputs, masked)
    kind = f"float32 {case.matmul}" if case.dtype == "float32" else case.dtype
    factor = TRUNCATED if kind == "float32 high" else 1.2
    for name, run in others:
        for what, value in _results(run, inputs, masked).items():
            ours, theirs = _error(value, exact[what]), _error(base[what], exact[what])
            most = min(factor * theirs + 1e-5, BOUNDS[kind][what.startswith("gradient")])
            if name.startswith("ours") and not ours <= most:
                raise WrongResultError(f"{case.name}: {name}, {what}: error {ours:.1e}, {first} {theirs:.1e}")


def _results(run: Contestant, inputs: Inputs, masked: Tensor) -> dict[str, Tensor]:
    outputs, gradients = step(run, inputs, masked)
    # The gradient of c, the last one, is 0 but for rounding: the softmax does not change when all scores do.
    named = {f"output {place}": output for place, output in enumerate(outputs)}
    return named | {f"gradient {place}": gradient for place, gradient in enumerate(gradients[:-1])}


def _error(got: Tensor, wanted: Tensor) -> float:
    return float((got.detach().double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def measure(bench: Gpu, case: Case, ceilings: Ceilings) -> dict[str, Any]:
    """Of each contestant times, ratios to the first and memory; of ours also each kernel."""
    inputs = inputs_of(case, bench.device)
    runs = contestants(case, bench.backend, bench.compiler())
    passes = {name: _passes(run, inputs) for name, run in runs.items()}
    graphs, reasons = {}, {}
    for name, run in runs.items():
        if case.task != "mhim" or name != "official":  # which waits for the host
            try:
                graphs[name] = bench.replay(partial(step, run, inputs))
            except RuntimeError as error:
                reasons[name] = str(error).splitlines()[0]
    quantiles: dict[str, dict[str, list[list[float]]]] = {name: defaultdict(list) for name in runs}
    for _ in range(bench.rounds):
        for name in runs:
            for what, timed in passes[name].items():
                quantiles[name][what].append(bench.milliseconds(timed))
            if name in graphs:
                quantiles[name]["graph"].append(bench.milliseconds(graphs[name]))
    graphs.clear()
    record: dict[str, Any] = {"case": asdict(case), "no_graph": reasons, "contestants": {}, "kernels": {}}
    first = next(iter(runs))
    for name in runs:
        peak, _ = bench.added_bytes(passes[name]["both"])
        _, held = bench.added_bytes(passes[name]["fwd"])
        record["contestants"][name] = {
            **_microseconds(quantiles[name]),
            "ratio": _ratio(quantiles[first]["both"], quantiles[name]["both"]),
            "peak_bytes": peak,
            "held_bytes": held,
        }
        if name.startswith("ours"):
            record["kernels"][name] = kernels_of(bench, case, passes[name]["both"], ceilings)
    return record


def _passes(run: Contestant, inputs: Inputs) -> dict[str, Callable[[], object]]:
    return {"fwd": partial(run, inputs, None), "both": partial(step, run, inputs)}


def _microseconds(quantiles: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what, rounds in quantiles.items():
        median, low, high = (1000 * statistics.median(part) for part in zip(*rounds, strict=True))
        found |= {f"{what}_us": median, f"{what}_20_80_us": [low, high]}
    backward = [both[0] - fwd[0] for both, fwd in zip(quantiles["both"], quantiles["fwd"], strict=True)]
    return found | {"bwd_us": 1000 * statistics.median(backward)}


def _ratio(first: list[list[float]], other: list[list[float]]) -> float:
    return statistics.median(a[0] / b[0] for a, b in zip(first, other, strict=True))


def kernels_of(bench: Gpu, case: Case, run: Callable[[], object], ceilings: Ceilings) -> dict[str, dict[str, float]]:
    """Of each kernel microseconds in a step, the least that the device's ceilings allow, and what part that is."""
    marks: list[tuple[str, Any, Any]] = []

    def timed(launch: Callable[..., None], name: str | None) -> Callable[..., None]:
        def call(kernel: Any, *args: Any, **more: Any) -> None:
            begin = bench.mark()
            launch(kernel, *args, **more)
            marks.append((name or kernel.__name__.strip("_").removesuffix("_kernel"), begin, bench.mark()))

        return call

    patches = (
        mock.patch.object(kernels, "_launch", timed(kernels._launch, None)),
        mock.patch.object(kernels, "_add_product", timed(kernels._add_product, "weight_product")),
    )
    rounds: dict[str, list[float]] = defaultdict(list)
    with patches[0], patches[1]:
        for _ in range(bench.kernel_rounds):
            marks.clear()
            bench.hold()
            run()
            sums: dict[str, float] = defaultdict(float)
            for name, begin, end in marks:
                sums[name] += bench.between(begin, end)
            for name, total in sums.items():
                rounds[name].append(total)
    least = _floors(case, ceilings)
    found = {}
    for name, times in rounds.items():
        us = statistics.median(times)
        found[name] = {"us": us} | ({"floor_us": least[name], "of_floor": least[name] / us} if name in least else {})
    return found


def _floors(case: Case, ceilings: Ceilings) -> dict[str, float]:
    """Microseconds: of products by the rate of the device, of all by the bytes that must be moved, whichever is more."""
    count, width, size = case.bags * case.instances, 2 * case.length, getattr(torch, case.dtype).itemsize
    h, gates, line = count * case.dim * size, count * width * size, 4 * count * case.branches
    partial_sums = 4 * case.branches * case.dim * (-(-case.instances // kernels.INSTANCES) * case.bags)
    product = 2 * count * case.dim * width / ceilings.rate(case)
    moved = {
        "score": h + line, "tile_stats": line, "pool": h + line + partial_sums, "rise": h + 2 * line, "slope": 3 * line,
        "gate_gradient": h + gates + line, "h_gradient": gates + h + line, "weight_product": gates + h,
    }  # fmt: skip
    multiplied = {"score", "gate_gradient", "h_gradient", "weight_product"}
    return {
        name: max(many / ceilings.copy_bytes_per_us, product if name in multiplied else 0)
        for name, many in moved.items()
    }


def goals_of(cases: Mapping[str, Any], ceilings: Ceilings) -> list[dict[str, Any]]:
    """What was to be reached, of the better of our two ways; None where it was not measured."""
    found: list[dict[str, Any]] = []

    def add(text: str, got: float | None, wanted: float, *, most: bool = False) -> None:
        known = got is not None and not math.isnan(got)
        met = None if not known or got is None else (got <= wanted if most else got >= wanted)
        found.append({"goal": text, "got": got, "wanted": wanted, "met": met})

    for case, eager, compiled in ((WIDE, 2.5, 1.5), (NARROW, 2.8, 1.8)):
        ours, rest = _sides(cases.get(case.name))
        best = [each["ratio"] for name, each in rest.items() if name.startswith("compile")]
        fastest = max((each["ratio"] for each in ours.values()), default=None)
        add(f"{case.name}: times as fast as eager", fastest, eager)
        against = None if fastest is None or not best else fastest / max(best)
        add(f"{case.name}: times as fast as the best compile", against, compiled)
    ours, rest = _sides(cases.get(PACK.name))
    add(f"{PACK.name}: times as fast as eager", max((each["ratio"] for each in ours.values()), default=None), 4.0)
    record = cases.get(WIDE.name)
    each_kernel = record["kernels"].get("ours two", {}) if record else {}
    score = each_kernel.get("score")
    flops = 4 * WIDE.instances * WIDE.dim * WIDE.length
    rate = flops / score["us"] / ceilings.rate(WIDE) if score else None
    add("score kernel: part of the measured matmul rate", rate, 0.55)
    add("pool kernel: part of the measured copy bandwidth", each_kernel.get("pool", {}).get("of_floor"), 0.85)
    ours, rest = _sides(record)
    held = min((each["held_bytes"] for each in ours.values()), default=None)
    part = None if held is None or not rest["eager"]["held_bytes"] else held / rest["eager"]["held_bytes"]
    add("held between the passes, part of eager's", part, 0.01, most=True)
    return found


def _sides(record: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours and the others."""
    every = record["contestants"] if record else {}
    ours = {name: each for name, each in every.items() if name.startswith("ours")}
    return ours, {name: each for name, each in every.items() if name not in ours}


def show(name: str, record: Mapping[str, Any]) -> None:
    """The table of one case, 80 columns."""
    print(f"\n{name}")
    print(f"{'us':24}{'fwd':>8}{'bwd':>8}{'both':>8}{'graph':>8}{'ratio':>7}{'peak MB':>9}{'held MB':>8}")
    for contestant, each in record["contestants"].items():
        times = "".join(_cell(each.get(f"{what}_us")) for what in ("fwd", "bwd", "both", "graph"))
        peak, held = each["peak_bytes"] / 1e6, each["held_bytes"] / 1e6
        short = contestant.replace("max-autotune-no-cudagraphs", "max-autotune")
        print(f"{short:24}{times}{_cell(each['ratio'], 7, 2)}{_cell(peak or None, 9)}{_cell(held or None, 8, 1)}")
    for contestant, launched in record["kernels"].items():
        print(f"{contestant + ', kernel':24}{'us':>8}{'floor':>8}{'floor %':>8}")
        for kernel, each in launched.items():
            part = each.get("of_floor")
            shown = _cell(None if part is None else 100 * part)
            print(f"  {kernel:22}{_cell(each['us'], 8, 1)}{_cell(each.get('floor_us'), 8, 1)}{shown}")


def _cell(value: float | None, width: int = 8, digits: int = 0) -> str:
    return f"{'-' if value is None or math.isnan(value) else f'{value:.{digits}f}':>{width}}"


def show_goals(goals: Sequence[Mapping[str, Any]]) -> None:
    """What was wanted beside what was got."""
    print(f"\n{'goals':58}{'wanted':>7}{'got':>7}")
    for goal in goals:
        verdict = {True: "met", False: "not met", None: "no data"}[goal["met"]]
        print(f"{goal['goal']:58}{goal['wanted']:7.2f}{_cell(goal['got'], 7, 3)} {verdict}")


if __name__ == "__main__":
    sys.exit(main())
