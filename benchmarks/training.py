"""A training step on a CPU beside plain torch of the same formulas.

    python benchmarks/training.py [--instances 10000 50000] [--rounds 5] [--threads 2] [--json FILE]

One bag of 1,024 features in, forward, loss, backward and optimizer. Before anything is timed both are held to one loss and one
gradient from the same weights, dropouts and random masks off; then both draw. Each round runs both in turn; figures are medians
over rounds of the ratio of one round. Memory is the highest resident size during a step less that before it, gradients and the
optimizer's moments aside, which a process of its own measures. "bf16" is the step of wsimil with fit.precision bfloat16, beside
plain torch in float32, where the CPU has instructions for it. "products" are the matrix products of that step of wsimil, by
themselves, in the same rounds: what would be left of its time if all else took none (TransMIL's convolutions and torch's own
attention are not among them).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import eager_mil
import torch
from attention_cpu import device, status
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, pack
from wsimil.mil.criterion import CrossEntropy
from wsimil.training.config import FitConfig
from wsimil.training.learner import Learner

DIM = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A method at its official widths; `quiet` turns off what is drawn; `goal` is the time of a step, plain torch being 1."""

    method: str
    options: Mapping[str, Any]
    quiet: Mapping[str, Any]
    loss: eager_mil.Loss
    goal: float
    after_step: Callable[[eager_mil.Weights], None] | None = None


_MHIM_BASE = {
    "name": "abmil", "hidden_dim": 512, "gated": False, "score_activation": "relu", "attention_bias": False,
    "init": "xavier_normal", "centered_classifier": False,
}  # fmt: skip
CONTESTANTS = {
    "ABMIL": Contestant(
        method="abmil", loss=eager_mil.abmil, goal=1.0, quiet={},
        options={"hidden_dim": 512, "embed_bias": False, "embed_dropout": 0.0, "centered_classifier": False},
    ),
    "ACMIL-GA": Contestant(
        method="acmil", loss=eager_mil.acmil, goal=1.0, options={"hidden_dim": 512}, quiet={"top_k": 0},
    ),
    "MHIM over ABMIL": Contestant(
        method="mhim", loss=eager_mil.mhim, goal=0.7, after_step=eager_mil.mhim_after_step,
        options={"base": _MHIM_BASE, "mask": {"random": 0.5, "high": 0.01, "high_share": 0.5}},
        quiet={"base": {**_MHIM_BASE, "embed_dropout": 0.0}, "mask": {"high": 0.01}},
    ),
    "CLAM-SB": Contestant(
        method="clam", loss=eager_mil.clam, goal=0.6, options={},
        quiet={"embed_dropout": 0.0, "attention_dropout": 0.0},
    ),
    "TransMIL": Contestant(
        method="transmil", loss=eager_mil.transmil, goal=0.8, options={}, quiet={"out_dropout": 0.0}
    ),
    "ACMIL-MHA": Contestant(
        method="acmil", loss=eager_mil.acmil_multihead, goal=0.25,
        options={"hidden_dim": 512, "attention": "multihead"}, quiet={"top_k": 0, "out_dropout": 0.0},
    ),
}  # fmt: skip
FIT = FitConfig.model_validate(
    {
        "optimizer": "adam", "lr": 2e-4, "weight_decay": 1e-5, "decay_vectors": True, "clip_norm": None, "standardize": False,
        "label_smoothing": 0.0, "balance": "none", "entropy": {"weight": 0}, "schedule": {"kind": "constant"},
    }
)  # fmt: skip


def model_of(name: str, *, quiet: bool) -> MILModel:
    """The same weights whenever it is asked."""
    one = CONTESTANTS[name]
    options = {**one.options, **(one.quiet if quiet else {})}
    return registry.build(one.method, options, in_dim=DIM, num_classes=2, seed=0)


def bag_of(count: int) -> BagBatch:
    """A bag of normal features, in the order of its places."""
    x = torch.randn(count, DIM, generator=torch.Generator().manual_seed(1))
    places = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.int64)], dim=1)
    return pack([x], xy0=[places], slide_ids=["bag"], targets=torch.tensor([1]).numpy())


class Ours:
    """A step of wsimil."""

    def __init__(self, name: str, *, quiet: bool = False, precision: str = "float32") -> None:
        self.model = model_of(name, quiet=quiet)
        fit = FIT.model_copy(update={"precision": precision})
        self.learner = Learner(
            self.model, fit, criterion=CrossEntropy(), generator=torch.Generator().manual_seed(2), device="cpu"
        )

    def step(self, bag: BagBatch) -> float:
        """The loss."""
        return self.learner.step(bag, progress=0.0, moved=0.0, place=0, of=1).loss

    def gradients(self) -> dict[str, Tensor]:
        """Of the step before."""
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


class Plain:
    """The same step in plain torch."""

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self.contestant, self.drops = CONTESTANTS[name], not quiet
        self.weights = {
            name: p.detach().clone().requires_grad_(p.requires_grad)
            for name, p in model_of(name, quiet=quiet).named_parameters()
        }
        self.learning = [p for p in self.weights.values() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.learning, lr=FIT.lr, weight_decay=FIT.weight_decay)

    def step(self, bag: BagBatch) -> float:
        """The loss."""
        self.optimizer.zero_grad()
        loss = self.contestant.loss(self.weights, bag.features, bag.known_targets, self.drops)
        loss.backward()
        self.optimizer.step()
        if self.contestant.after_step is not None:
            with torch.no_grad():
                self.contestant.after_step(self.weights)
        return loss.item()

    def gradients(self) -> dict[str, Tensor]:
        """Of the step before."""
        return {name: p.grad for name, p in self.weights.items() if p.grad is not None}


class Products(TorchDispatchMode):
    """The matrix products of what runs inside, to be run again by themselves on numbers of the same shapes and types."""

    KINDS = frozenset(getattr(torch.ops.aten, name) for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"))

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []
        self.operands: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in self.KINDS:
            ours = [self._operand(place, one) for place, one in enumerate(args)]
            named = {key: self._operand(key, value) if key == "out" else value for key, value in kwargs.items()}
            self.calls.append(partial(func, *ours, **named))
        return func(*args, **kwargs)

    def step(self, _: BagBatch) -> None:
        """All of them in their order."""
        for call in self.calls:
            call()

    def _operand(self, place: int | str, like: Tensor) -> Tensor:
        """One for each place, shape, layout and type."""
        key = (place, like.shape, like.stride(), like.dtype)
        if key not in self.operands:
            self.operands[key] = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).normal_()
        return self.operands[key]


def products_of(run: Ours, bag: BagBatch) -> Products:
    """Of one step."""
    products = Products()
    with products:
        run.step(bag)
    return products


def hold_to_one_answer(name: str) -> float:
    """The largest relative difference of a loss and of gradients. Raises SystemExit where the formulas differ."""
    bag = bag_of(1500)
    ours, plain = Ours(name, quiet=True), Plain(name, quiet=True)
    first, second = ours.step(bag), plain.step(bag)
    differences = [abs(first - second) / abs(second)]
    theirs = plain.gradients()
    scale = max(float(gradient.norm()) for gradient in theirs.values())
    for key, gradient in ours.gradients().items():
        differences.append(float((gradient - theirs[key]).norm()) / scale if key in theirs else float(gradient.norm()))
    if not max(differences) < 1e-4:
        raise SystemExit(f"{name}: the two steps do not compute the same: {max(differences):.2e} apart")
    return max(differences)


def timed(run: Ours | Plain | Products, bag: BagBatch) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    run.step(bag)
    return time.perf_counter() - began


def extra_bytes(name: str, ours: bool, count: int, threads: int) -> int:
    """Resident bytes that a step adds at most, after one on a small bag has made gradients and moments."""
    torch.set_num_threads(threads)
    run = Ours(name) if ours else Plain(name)
    bag = bag_of(count)
    run.step(bag_of(1500))
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
    before = status("VmRSS")
    run.step(bag)
    return status("VmHWM") - before


def steps(given: argparse.Namespace) -> dict[str, Any]:
    """One row for each method and size."""
    torch.set_num_threads(given.threads)
    flags = Path("/proc/cpuinfo").read_text()
    precisions = {"": "float32", **({"bf16_": "bfloat16"} if "bf16" in flags else {})}
    contestants = [name for name in CONTESTANTS if not given.methods or name in given.methods]
    agreement = {name: hold_to_one_answer(name) for name in contestants}
    rows = []
    print(
        "| method | instances | plain | goal | time | products | bf16: goal | time | products | memory |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for count in given.instances:
        bag = bag_of(count)
        for name in contestants:
            runs: dict[str, Ours | Plain | Products] = {"plain": Plain(name)}
            for prefix, precision in precisions.items():
                ours = Ours(name, precision=precision)
                runs |= {f"{prefix}time": ours, f"{prefix}products": products_of(ours, bag)}
            times = [{kind: timed(run, bag) for kind, run in runs.items()} for _ in range(given.rounds + 1)][1:]
            del runs, ours
            with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                plain, own = (pool.apply(extra_bytes, (name, o, count, given.threads)) for o in (False, True))
            goal = CONTESTANTS[name].goal
            row = {
                "method": name, "instances": count, "plain_seconds": statistics.median(t["plain"] for t in times),
                "plain_megabytes": plain / 1e6, "goal": goal, "largest_difference": agreement[name],
                "memory": own / plain,
                **{
                    kind: statistics.median(t[kind] / t["plain"] for t in times)
                    for kind in times[0]
                    if kind != "plain"
                },
            }  # fmt: skip
            rows.append(row)
            shown = f"{row['plain_seconds']:.2f} s, {row['plain_megabytes']:.0f} MB"
            short = [f"{row[kind]:.2f}" if kind in row else "" for kind in ("bf16_time", "bf16_products")]
            print(
                f"| {name} | {count} | {shown} | {goal:g} | {row['time']:.2f} | {row['products']:.2f} | {goal / 2:g} |"
                f" {short[0]} | {short[1]} | {row['memory']:.2f} |",
                flush=True,
            )
    about = {name: name in flags for name in ("avx512_bf16", "amx_bf16")}
    return {"rows": rows, "rounds": given.rounds, "cpu": about, "features": DIM}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--methods", nargs="+", choices=list(CONTESTANTS), default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = steps(given)
    if given.json:
        about = {"device": device(), "torch": torch.__version__, "threads": given.threads, "dtype": "float32"}
        given.json.write_text(json.dumps({**about, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
