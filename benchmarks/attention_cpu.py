"""Attention pooling of one large bag on a CPU: time and memory of a training step, beside plain torch in the same run.

    python benchmarks/attention_cpu.py [--instances 100000] [--rounds 5] [--threads 1 2] [--quick] [--json FILE]

Each round runs every contestant once, in turn, so that what else the machine does falls on all; a figure is the median over
rounds of the ratio to plain torch of the same round. Memory is the highest resident size during a step less that before it, which
a process of its own measures. "compile" is plain torch under torch.compile, "frozen" a bag whose features need no gradient.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.ops.gated_attention_pool import gated_attention_pool

Step = Callable[..., Tensor]
SHAPES = ((512, 256, 1), (512, 128, 5), (1024, 256, 1), (1024, 128, 5))
"""Features, attention width, branches."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def plain(h: Tensor, w_v: Tensor, b_v: Tensor, w_u: Tensor, b_u: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """What a user would write."""
    gate = torch.tanh(F.linear(h, w_v, b_v)) * torch.sigmoid(F.linear(h, w_u, b_u))
    return F.linear(gate, w, c).t().softmax(dim=1) @ h


def keep(*tensors: Tensor) -> Tensor:
    """The op, which holds the gate for the backward pass."""
    return gated_attention_pool(*tensors, backend="cpu", memory="keep").z[0]


def recompute(*tensors: Tensor) -> Tensor:
    """The op, which computes the gate twice."""
    return gated_attention_pool(*tensors, backend="cpu", memory="recompute").z[0]


STEPS: dict[str, Step] = {"plain": plain, "keep": keep, "recompute": recompute}


def tensors_of(count: int, dim: int, length: int, branches: int, dtype: torch.dtype, *, frozen: bool) -> list[Tensor]:
    """A bag and weights, the same for every contestant."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(scale).to(dtype)

    h = normal(count, dim)
    weights = [normal(length, dim, scale=dim**-0.5), normal(length, scale=0.1), normal(length, dim, scale=dim**-0.5)]
    weights += [normal(length, scale=0.1), normal(branches, length, scale=length**-0.5), normal(branches, scale=0.1)]
    return [h.requires_grad_(not frozen), *(weight.requires_grad_() for weight in weights)]


def step(run: Step, tensors: list[Tensor]) -> float:
    """Forward and backward; seconds."""
    for tensor in tensors:
        tensor.grad = None
    began = time.perf_counter()
    run(*tensors).float().pow(2).sum().backward()
    return time.perf_counter() - began


def extra_bytes(name: str, threads: int, count: int, shape: tuple[int, int, int], dtype: str, frozen: bool) -> int:
    """Resident bytes that a step adds at most, gradients included."""
    torch.set_num_threads(threads)
    small, tensors = (tensors_of(n, *shape, DTYPES[dtype], frozen=frozen) for n in (4096, count))
    step(STEPS[name], small)
    for tensor in tensors:
        tensor.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    before = status("VmRSS")
    step(STEPS[name], tensors)
    return status("VmHWM") - before


def status(field: str) -> int:
    """Bytes, of this process, as the kernel counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(
    count: int, shape: tuple[int, int, int], dtype: str, threads: int, rounds: int, *, frozen: bool, compiled: bool
) -> dict[str, Any]:
    """One row: seconds of plain torch, and ratios to it."""
    torch.set_num_threads(threads)
    tensors = tensors_of(count, *shape, DTYPES[dtype], frozen=frozen)
    contestants = dict(STEPS)
    if compiled:
        torch._dynamo.reset()
        contestants["compile"] = torch.compile(plain)
    for run in contestants.values():
        step(run, tensors)
    times = [{name: step(run, tensors) for name, run in contestants.items()} for _ in range(rounds)]
    row: dict[str, Any] = {
        "instances": count, "features": shape[0], "length": shape[1], "branches": shape[2], "dtype": dtype,
        "threads": threads, "frozen": frozen, "plain_seconds": statistics.median(each["plain"] for each in times),
    }  # fmt: skip
    for name in contestants:
        if name != "plain":
            row[f"{name}_time"] = statistics.median(each[name] / each["plain"] for each in times)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        bytes_of = {name: pool.apply(extra_bytes, (name, threads, count, shape, dtype, frozen)) for name in STEPS}
    row["plain_megabytes"] = bytes_of["plain"] / 1e6
    for name in ("keep", "recompute"):
        row[f"{name}_memory"] = bytes_of[name] / bytes_of["plain"]
    return row


def show(row: dict[str, Any]) -> None:
    """One line of Markdown."""
    compiled = f"{row['compile_time']:.2f}" if "compile_time" in row else ""
    cells = [
        f"{row['features']} / {row['length']} / {row['branches']}", row["dtype"], "yes" if row["frozen"] else "no",
        str(row["threads"]), f"{row['plain_seconds']:.2f} s, {row['plain_megabytes']:.0f} MB", compiled,
        f"{row['keep_time']:.2f}", f"{row['keep_memory']:.2f}", f"{row['recompute_time']:.2f}",
        f"{row['recompute_memory']:.2f}",
    ]  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print("| D / L / B | dtype | frozen | threads | plain | compile | keep: time | memory | recompute: time | memory |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for dtype in given.dtypes:
        for shape in SHAPES[: given.shapes]:
            for frozen in (False, True):
                for threads in given.threads:
                    row = measure(
                        given.instances,
                        shape,
                        dtype,
                        threads,
                        given.rounds,
                        frozen=frozen,
                        compiled=not given.no_compile,
                    )
                    show(row)
                    rows.append(row)
                    if given.json:
                        report = {"device": device(), "torch": torch.__version__, "rounds": given.rounds, "rows": rows}
                        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def device() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    main()
