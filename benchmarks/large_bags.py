"""What large bags ask for on a CPU: a training step of ABMIL on a million instances, and MHIM-MIL's choice of masks at 100 000.

    python benchmarks/large_bags.py [--instances 1000000] [--threads 2] [--json FILE]

The choice is timed on one thread beside one by Python sets, as it is commonly written; both choose as many, in turn, and the
figure is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from attention_cpu import device
from torch import Tensor

from wsimil.mil import registry
from wsimil.mil.batch import StepContext, pack
from wsimil.mil.masking import RankMasking

_SCORES = 100_000
_MASKS = {
    "high 0.03": RankMasking(high=0.03),
    "random 0.5, half of the 0.02 highest": RankMasking(random=0.5, high=0.01, high_share=0.5),
}


def step_on(count: int) -> dict[str, Any]:
    """Forward and backward of ABMIL with the widths of CLAM's attention on so many instances of 1024 features."""
    torch.manual_seed(0)
    model = registry.build("abmil", {"hidden_dim": 512, "attention_dim": 256}, in_dim=1024, num_classes=2)
    features = torch.randn(count, 1024)
    places = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.int64)], dim=1)
    bag = pack([features], xy0=[places], slide_ids=["bag"], targets=[1])
    began = time.perf_counter()
    loss = model.losses(bag, _step(0)).total
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    if not all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
        raise SystemExit("a gradient is not finite")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "instances": count,
        "seconds": seconds,
        "peak_gigabytes": peak / 1e9,
        "features_gigabytes": features.nbytes / 1e9,
    }


def by_sets(scores: Tensor, mask: RankMasking, step: StepContext) -> set[int]:
    """The like, in Python's sets."""
    count, masked = len(scores), set()
    for ratio, share, largest in ((mask.random, 0.001, False), (mask.high, mask.high_share, True)):
        if ratio:
            share, whole = (ratio, 1.0) if ratio / share > 1 else (share, ratio / share)
            rows = scores[:, 0].topk(math.ceil(count * whole), largest=largest).indices
            if share < 1:
                order = step.permutation(len(rows), device=rows.device)
                rows = rows[order[: math.ceil(len(rows) * share)]]
            masked |= set(rows.tolist())
    return set(range(count)) - masked


def choice(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds to the rows that are kept, and how many times as long sets take."""
    scores, rows = torch.rand(_SCORES, 1), []
    for name, mask in _MASKS.items():
        times = []
        for number in range(rounds):
            began = time.perf_counter()
            kept = (~mask.choose(scores, _step(number))).nonzero()[:, 0]
            middle = time.perf_counter()
            theirs = by_sets(scores, mask, _step(number))
            times.append((middle - began, time.perf_counter() - middle))
            if abs(len(kept) - len(theirs)) > 0.01 * _SCORES:
                raise SystemExit(f"{name}: {len(kept)} kept here, {len(theirs)} there")
        ours = statistics.median(each for each, _ in times)
        rows.append({"mask": name, "milliseconds": 1e3 * ours, "sets": statistics.median(b / a for a, b in times)})
    return rows


def _step(seed: int) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(seed), progress=0.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = choice(given.rounds)
    for row in chosen:
        print(f"{row['mask']}: {row['milliseconds']:.2f} ms, by sets {row['sets']:.1f} times as long", flush=True)
    torch.set_num_threads(given.threads)
    large = step_on(given.instances)
    print(
        f"{large['instances']} x 1024: {large['seconds']:.1f} s a step, at most {large['peak_gigabytes']:.1f} GB resident,"
        f" of which {large['features_gigabytes']:.1f} GB are features"
    )
    if given.json:
        about = {"device": device(), "torch": torch.__version__, "threads": given.threads, "dtype": "float32"}
        given.json.write_text(json.dumps({**about, "masks": chosen, "step": large}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
