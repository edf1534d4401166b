"""TransMIL's inference on one large bag on a CPU: streamed over the tokens, beside queries, keys and values held for the bag.

    python benchmarks/transmil_inference.py [--instances 20000 100000] [--rounds 5] [--threads 1] [--json FILE]

Both run in turn in each round; a figure is the median over rounds of the ratio of one round. Memory is the highest resident size
during one answer less that before it, which a process of its own measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from attention_cpu import device, status

from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, pack


def model_and_bag(count: int) -> tuple[MILModel, BagBatch]:
    """The official widths, and a bag of normal features."""
    torch.manual_seed(0)
    model = registry.build("transmil", {}, in_dim=1024, num_classes=2).requires_grad_(False)
    places = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.int64)], dim=1)
    return model, pack([torch.randn(count, 1024)], xy0=[places], slide_ids=["bag"])


def answer(model: MILModel, bag: BagBatch, *, held: bool) -> float:
    """Seconds. Where gradients may be asked for, the layers hold what a backward pass would read."""
    began = time.perf_counter()
    with torch.set_grad_enabled(held):
        model(bag)
    return time.perf_counter() - began


def extra_bytes(count: int, threads: int, held: bool) -> int:
    """Resident bytes that an answer adds at most."""
    torch.set_num_threads(threads)
    model, bag = model_and_bag(count)
    answer(model, model_and_bag(1000)[1], held=held)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    before = status("VmRSS")
    answer(model, bag, held=held)
    return status("VmHWM") - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| instances | held | streamed: time | memory |\n|---|---|---|---|")
    rows = []
    for count in given.instances:
        model, bag = model_and_bag(count)
        times = [{held: answer(model, bag, held=held) for held in (True, False)} for _ in range(given.rounds + 1)][1:]
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            held, streamed = (pool.apply(extra_bytes, (count, given.threads, held)) for held in (True, False))
        seconds = statistics.median(each[True] for each in times)
        row = {
            "instances": count, "held_seconds": seconds, "held_megabytes": held / 1e6,
            "streamed_time": statistics.median(each[False] / each[True] for each in times),
            "streamed_memory": streamed / held,
        }  # fmt: skip
        rows.append(row)
        shown = f"{seconds:.2f} s, {row['held_megabytes']:.0f} MB"
        print(f"| {count} | {shown} | {row['streamed_time']:.2f} | {row['streamed_memory']:.2f} |", flush=True)
    if given.json:
        about = {"device": device(), "torch": torch.__version__, "threads": given.threads, "dtype": "float32"}
        given.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
