"""What the GPU benchmark of the attention op runs: plain torch as users and official code write it, and the op.

Ilse et al. 2018, arXiv:1802.04712 (gated ABMIL); Zhang et al. 2024, arXiv:2311.07125 (ACMIL: branches, stochastic top-k masking,
diversity); Tang et al. 2023, arXiv:2307.15254 (MHIM-MIL). Each was written anew from the formulas.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.ops.dispatch import Backend
from wsimil.ops.gated_attention_pool import IndexMask, PoolOutput, TopKMask, gated_attention_pool
from wsimil.ops.topk import topk

Task: TypeAlias = Literal["pool", "acmil", "mhim"]
TOP, DROP = 10, 0.6
"""Of the highest scores of a bag and branch, and which part of them is masked, as ACMIL has it."""
HIGH, RANDOM = 0.03, 0.5
"""Of a bag what MHIM-MIL masks, and which part that is of the highest from which it is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Bags of equal size and what is computed of them.

    `matmul` is torch's precision of float32 products, `frozen` features need no gradient, `compiled` which modes of
    torch.compile take part.
    """

    task: Task = "pool"
    bags: int = 1
    instances: int = 100_000
    dim: int = 512
    length: int = 256
    branches: int = 1
    dtype: str = "bfloat16"
    matmul: str = "highest"
    frozen: bool = False
    compiled: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Says all that differs."""
        many = f"{self.bags} x " if self.bags > 1 else ""
        count = f"{self.instances // 1000}k" if self.instances % 1000 == 0 else str(self.instances)
        kind = {"highest": "fp32", "high": "tf32"}[self.matmul] if self.dtype == "float32" else self.dtype
        last = ", h frozen" if self.frozen else ""
        return f"{self.task} {many}{count} {kind} D{self.dim} L{self.length} B{self.branches}{last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Of one case: h [N n, D] and weights, and what their gradients are asked through.

    `teacher` [n] are the scores by which MHIM-MIL masks.
    """

    case: Case
    tensors: tuple[Tensor, ...]
    cu_seqlens: Tensor
    seed: Tensor
    teacher: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [tensor for tensor in self.tensors if tensor.requires_grad]

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another type."""
        tensors = tuple(x.detach().to(dtype).requires_grad_(x.requires_grad) for x in self.tensors)
        return Inputs(case=self.case, tensors=tensors, cu_seqlens=self.cu_seqlens, seed=self.seed, teacher=self.teacher)


Outputs: TypeAlias = tuple[Tensor, ...]
"""Pooled [N, B, D]; of ACMIL also the slide's [N, D] and diversity [N]."""
Contestant: TypeAlias = Callable[[Inputs, Tensor | None], Outputs]
"""Of inputs and masked places [N, B, M]; without these it chooses them itself."""


def inputs_of(case: Case, device: torch.device) -> Inputs:
    """Random numbers; scores spread over about 5, so that attention is neither flat nor all on one instance."""
    generator = torch.Generator(device).manual_seed(0)
    dim, length, total = case.dim, case.length, case.bags * case.instances

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        x = torch.empty(shape, dtype=getattr(torch, case.dtype), device=device)
        return x.normal_(generator=generator).mul_(scale)

    weights = [normal(length, dim, scale=dim**-0.5), normal(length, scale=0.1)]
    weights += [normal(length, dim, scale=dim**-0.5), normal(length, scale=0.1)]
    weights += [normal(case.branches, length, scale=6 * length**-0.5), normal(case.branches, scale=0.1)]
    h = normal(total, dim).requires_grad_(not case.frozen)
    return Inputs(
        case=case,
        tensors=(h, *(weight.requires_grad_() for weight in weights)),
        cu_seqlens=torch.arange(0, total + 1, case.instances, dtype=torch.int32, device=device),
        seed=torch.tensor([1], device=device),
        teacher=torch.empty(case.instances, device=device).normal_(generator=generator),
    )


def step(run: Contestant, inputs: Inputs, masked: Tensor | None = None) -> tuple[Outputs, list[Tensor]]:
    """Forward and backward: outputs, and gradients of the leaves."""
    outputs = run(inputs, masked)
    gradients = torch.autograd.grad(outputs, inputs.leaves, [_cotangent(output) for output in outputs])
    return outputs, list(gradients)


def contestants(case: Case, backend: Backend, compiler: Callable[..., Any]) -> dict[str, Contestant]:
    """By name, the one that others are compared with first."""
    found = {"pool": {"eager": _eager}, "acmil": {"official": _official}, "mhim": {"official": _mhim_official}}[
        case.task
    ]
    if case.bags > 1:
        found["eager batch"] = _batched
    if case.task == "pool":
        found |= {f"compile {mode}": _compiled(compiler(_gated, mode=mode)) for mode in case.compiled}
    return found | {f"ours {passes}": _OURS[case.task](passes, backend) for passes in passes_of_the_op()}


@cache
def passes_of_the_op() -> tuple[str, ...]:
    """Which ways through h the op offers."""
    return ("two", "one") if "passes" in inspect.signature(gated_attention_pool).parameters else ("two",)


def some_masked(case: Case, device: torch.device) -> Tensor:
    """Places to mask, all different, when results are compared: [N, B, M]."""
    generator = torch.Generator(device).manual_seed(1)
    order = torch.rand(case.bags, case.branches, case.instances, generator=generator, device=device).argsort(dim=2)
    return order[:, :, : min(int(TOP * DROP), case.instances - 1)]


@cache
def _cotangents(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(2)
    return torch.empty(shape, device=device).normal_(generator=generator).bfloat16() * 16


def _cotangent(output: Tensor) -> Tensor:
    # Of numbers that every type holds, so that all contestants get the same, and of which float16 loses little.
    return _cotangents(tuple(output.shape), output.device).to(output.dtype)


def _scores(h: Tensor, w_v: Tensor, b_v: Tensor, w_u: Tensor, b_u: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """[..., B, n]."""
    gate = torch.tanh(F.linear(h, w_v, b_v)) * torch.sigmoid(F.linear(h, w_u, b_u))
    return F.linear(gate, w, c).transpose(-2, -1)


def _drawn(scores: Tensor) -> Tensor:
    """Of the highest scores some at random."""
    highest = scores.topk(min(TOP, scores.shape[-1]), dim=-1).indices
    order = torch.rand(highest.shape, device=highest.device).argsort(dim=-1)
    return highest.gather(-1, order[..., : int(highest.shape[-1] * DROP)])


def _gated(masked: Tensor | None, h: Tensor, *weights: Tensor) -> Tensor:
    """Gated ABMIL with masking, [..., B, D]."""
    scores = _scores(h, *weights)
    chosen = _drawn(scores) if masked is None else masked
    out = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, value=True)
    return scores.masked_fill(out, -math.inf).softmax(dim=-1) @ h


def _by_bag(run: Callable[..., Tensor], inputs: Inputs, masked: Tensor | None) -> Outputs:
    h, *weights = inputs.tensors
    bags = h.split(inputs.case.instances)
    chosen = [None] * len(bags) if masked is None else masked
    return (torch.stack([run(own, bag, *weights) for own, bag in zip(chosen, bags, strict=True)]),)


def _eager(inputs: Inputs, masked: Tensor | None) -> Outputs:
    """Bag by bag, as bags of different sizes are run."""
    return _by_bag(_gated, inputs, masked)


def _compiled(run: Callable[..., Tensor]) -> Contestant:
    return lambda inputs, masked: _by_bag(run, inputs, masked)


def _batched(inputs: Inputs, masked: Tensor | None) -> Outputs:
    """All bags at once, which only bags of one size can be."""
    h, *weights = inputs.tensors
    return (_gated(masked, h.view(inputs.case.bags, inputs.case.instances, -1), *weights),)


def _official(inputs: Inputs, masked: Tensor | None) -> Outputs:
    """ACMIL's gated attention and its losses' inputs, as the official code computes them: a second pass over h for the slide."""
    h, *weights = inputs.tensors
    scores = _scores(h, *weights)
    chosen = _drawn(scores) if masked is None else masked[0]
    keep = torch.ones_like(scores).scatter(-1, chosen, 0)
    scores = scores.masked_fill(keep == 0, -1e9)
    pooled = torch.mm(scores.softmax(dim=1), h)
    attention = scores.softmax(dim=1)
    pairs = list(combinations(range(len(attention)), 2))
    diversity = attention.new_zeros(())
    for first, second in pairs:
        diversity = diversity + torch.cosine_similarity(attention[first], attention[second], dim=-1) / len(pairs)
    slide = torch.mm(scores.softmax(dim=1).mean(dim=0, keepdim=True), h)
    return pooled[None], slide, diversity[None]


def _mhim_official(inputs: Inputs, masked: Tensor | None) -> Outputs:
    """Masking by sets of Python, as the official code does it, then gated ABMIL over what is kept."""
    h, *weights = inputs.tensors
    count = len(h)
    if masked is None:
        highest = inputs.teacher.topk(math.ceil(count * HIGH / RANDOM)).indices
        masked = highest[torch.randperm(len(highest), device=h.device)[: math.ceil(len(highest) * RANDOM)]]
    keep = torch.tensor(sorted(set(range(count)) - set(masked.flatten().tolist())), device=h.device)
    kept = h[keep]
    return ((_scores(kept, *weights).softmax(dim=-1) @ kept)[None],)


def _call(passes: str, backend: Backend, inputs: Inputs, **options: Any) -> PoolOutput:
    more = {"passes": passes} if len(passes_of_the_op()) > 1 else {}
    return gated_attention_pool(*inputs.tensors, backend=backend, **more, **options)  # type: ignore[arg-type]


def _mask(inputs: Inputs, masked: Tensor | None) -> TopKMask | IndexMask:
    if masked is None:
        return TopKMask(k=TOP, drop=DROP, seed=inputs.seed)
    return IndexMask(idx=masked.to(torch.int32))


def _our_pool(passes: str, backend: Backend) -> Contestant:
    def run(inputs: Inputs, masked: Tensor | None) -> Outputs:
        mask = _mask(inputs, masked)
        return (_call(passes, backend, inputs, cu_seqlens=inputs.cu_seqlens, mask=mask).z,)

    return run


def _our_acmil(passes: str, backend: Backend) -> Contestant:
    def run(inputs: Inputs, masked: Tensor | None) -> Outputs:
        out = _call(passes, backend, inputs, cu_seqlens=inputs.cu_seqlens, mask=_mask(inputs, masked), gram=True)
        assert out.gram is not None
        length = out.gram.diagonal(dim1=1, dim2=2).sqrt()
        cosine = out.gram / (length[:, :, None] * length[:, None])
        branches = cosine.shape[1]
        diversity = cosine.triu(1).sum(dim=(1, 2)) / max(1, branches * (branches - 1) // 2)
        return out.z, out.z.mean(dim=1), diversity

    return run


def _our_mhim(passes: str, backend: Backend) -> Contestant:
    """Selection by unique keys and a random part of it, without the host; the op then gathers the rows that are left."""

    def run(inputs: Inputs, masked: Tensor | None) -> Outputs:
        count, device = inputs.case.instances, inputs.teacher.device
        if masked is None:
            highest = topk(inputs.teacher, math.ceil(count * HIGH / RANDOM))
            order = torch.rand(len(highest), device=device).argsort()
            masked = highest[order[: math.ceil(len(highest) * RANDOM)]]
        left = torch.ones(count, dtype=torch.int32, device=device).scatter(0, masked.flatten(), 0)
        size = count - masked.numel()
        place = torch.where(left > 0, left.cumsum(0) - 1, size)
        rows = torch.arange(count, dtype=torch.int32, device=device)
        rows = torch.empty(size + 1, dtype=torch.int32, device=device).scatter(0, place, rows)[:size]
        ends = torch.arange(2, dtype=torch.int32, device=device) * size
        return (_call(passes, backend, inputs, cu_seqlens=ends, rows=rows).z,)

    return run


_OURS: dict[Task, Callable[[str, Backend], Contestant]] = {
    "pool": _our_pool,
    "acmil": _our_acmil,
    "mhim": _our_mhim,
}
