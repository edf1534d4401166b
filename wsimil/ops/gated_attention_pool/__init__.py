"""Attention pooling of packed bags with masking, whose large intermediate results never exist.

Ilse et al. 2018, ICML, arXiv:1802.04712 (gated attention); Zhang et al. 2024, ECCV, arXiv:2311.07125 (branches and stochastic
top-k masking, ACMIL).
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from wsimil.ops.dispatch import Backend, backend_of
from wsimil.ops.gated_attention_pool.autograd import pool
from wsimil.ops.gated_attention_pool.contract import (
    Activation,
    Passes,
    PoolForward,
    PoolSpec,
    PoolTensors,
    Precision,
)
from wsimil.ops.gated_attention_pool.draws import LEVELS
from wsimil.ops.varlen import CuSeqlens

if TYPE_CHECKING:
    from jaxtyping import Float, Int32, Int64

Memory: TypeAlias = Literal["auto", "keep", "recompute"]

_MOST_BRANCHES = 64
_MOST_KEPT_BYTES = 512 << 20
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKMask:
    """Of the min(k, n) highest scores of each bag and branch, a random int(min(k, n) * drop) are masked, but never all of a bag.

    What is masked depends on `seed` [1], `stream`, the bag's id, the branch and the instance's place in its bag, and on nothing
    else: the same on every device, alone or in a pack.
    """

    k: int
    drop: float
    seed: Int64[Tensor, 1]
    stream: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexMask:
    """Instances to mask, by place in the bag, padded with -1. A bag of which nothing is left pools to 0, its lse is -inf."""

    idx: Int32[Tensor, "N B M"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDropout:
    """Each factor of the gate becomes 0 with probability `p`, taken to a multiple of 1 / 65536, and is scaled up elsewhere.

    The fewer bits `p` has, the cheaper the draws: multiples of 1 / 16 are a fourth of the work, of 1 / 256 half of it.
    """

    p: float
    seed: Int64[Tensor, 1]
    stream: int = 0


class PoolOutput(NamedTuple):
    """Of N bags and B branches over I instances, in float32, or float64 where h is; None where it was not asked for.

    `z`: pooled instances. `lse`: log of the sum of exp(score) over what is not masked. `entropy` of attention in nats. `gram`:
    inner products of the branches' attention. `scores`: -inf where masked; attention is `exp(scores - lse)`. `raw_scores`: before
    masking. `masked_idx`: what `TopKMask` masked, in order of rank, -1 where fewer, and `masked_scores` its raw scores, then
    -inf. `top_idx`, `bottom_idx`: places in the bag of the highest and lowest raw scores, of equal ones the first, -1 where the
    bag has fewer.
    A raw score that is not finite makes z, lse, entropy and gram of its bag and branch NaN, and those of no other.
    """

    z: Float[Tensor, "N B D"]
    lse: Float[Tensor, "N B"]
    entropy: Float[Tensor, "N B"] | None
    gram: Float[Tensor, "N B B"] | None
    scores: Float[Tensor, "B I"] | None
    raw_scores: Float[Tensor, "B I"] | None
    masked_idx: Int32[Tensor, "N B k"] | None
    masked_scores: Float[Tensor, "N B k"] | None
    top_idx: Int32[Tensor, "N B top_k"] | None
    bottom_idx: Int32[Tensor, "N B bottom_k"] | None


def gated_attention_pool(
    h: Float[Tensor, "T D"],
    w_v: Float[Tensor, "L D"],
    b_v: Float[Tensor, " L"] | None,
    w_u: Float[Tensor, "L D"] | None,
    b_u: Float[Tensor, " L"] | None,
    w: Float[Tensor, "B L"],
    c: Float[Tensor, " B"] | None = None,
    *,
    cu_seqlens: CuSeqlens | None = None,
    rows: Int32[Tensor, " I"] | None = None,
    mask: TopKMask | IndexMask | None = None,
    bag_ids: Int64[Tensor, " N"] | None = None,
    dropout: GateDropout | None = None,
    activation: Activation = "tanh",
    entropy: bool = False,
    gram: bool = False,
    scores: bool = False,
    raw_scores: bool = False,
    top_k: int = 0,
    bottom_k: int = 0,
    precision: Precision = "auto",
    passes: Passes = "auto",
    backend: Backend | Literal["auto"] = "auto",
    memory: Memory = "auto",
) -> PoolOutput:
    """Pool each bag by the softmax of its instances' scores, one vector a branch.

        s = w @ (activation(h @ w_v.T + b_v) * sigmoid(h @ w_u.T + b_u)).T + c
        z = softmax(s.masked_fill(masked, -inf), -1) @ h        # for each bag

    Without `w_u` the second factor is 1. `cu_seqlens` [N + 1] says where bags begin, None for one bag. With `rows`, instance i is
    `h[rows[i]]`, `cu_seqlens` counts instances, and other rows cost nothing. `bag_ids` in [0, 2**32) name bags for draws, by
    default 0, 1, ... Differentiable once, in h, weights and biases, through z, lse, entropy, gram and both scores; a masked
    instance gets a gradient through its raw score alone. `precision` is that of float32 products on a GPU, "auto" as torch is.
    `memory`: "keep" holds both factors of the gate, I x 2 L numbers, for the backward pass on the CPU backend, "recompute" does
    not, "auto" holds them up to 512 MB. `passes`: "one" has Triton kernels pool a tile of 128 instances right after its scores,
    and again where one of them is masked; "two" has them read h again after masking; "auto" is "one" without a mask where a row
    of h has 1536 bytes or less. Either needs room for I / 128 x B x D sums in float32, and their last bits differ; the other
    backends have one way only. Under autocast h and the weights are taken in its type. Sums are in float32 or wider.

    Raises ValueError for tensors that do not fit each other, an empty bag, more than 64 branches, or a backend that cannot run.
    """
    h, device = _autocast(h), h.device
    _check_tensors(h, w_v, b_v, w_u, b_u, w, c)
    instances = len(h) if rows is None else len(rows)
    if not 0 < instances < 2**31:
        raise ValueError(f"{'h' if rows is None else 'rows'}: got {instances} instances, wanted 1 to 2**31 - 1")
    if cu_seqlens is None:
        # By arithmetic on the device: to copy numbers there is to wait for it.
        cu_seqlens = torch.arange(2, dtype=torch.int32, device=device) * instances
    bags = len(cu_seqlens) - 1
    _check_indices(bags, device, cu_seqlens=cu_seqlens, rows=rows, bag_ids=bag_ids)
    if top_k < 0 or bottom_k < 0:
        raise ValueError(f"top_k, bottom_k: got {top_k} and {bottom_k}, wanted 0 or more")
    if activation not in get_args(Activation):
        raise ValueError(f"activation: got {activation!r}, wanted one of {', '.join(get_args(Activation))}")
    if precision not in get_args(Precision):
        raise ValueError(f"precision: got {precision!r}, wanted one of {', '.join(get_args(Precision))}")
    if passes not in get_args(Passes):
        raise ValueError(f"passes: got {passes!r}, wanted one of {', '.join(get_args(Passes))}")
    width = len(w_v) * (1 if w_u is None else 2)
    keeps = _keeps(memory, instances * width, h.dtype)
    chosen = backend_of(device, h.dtype, backend)
    weights = (w_v, b_v, w_u, b_u, w, c)
    tensors = PoolTensors(
        h,
        *weights,
        cu_seqlens=cu_seqlens,
        rows=rows,
        mask_idx=_mask_idx(mask, bags, len(w), device),
        mask_seed=_seed("mask", mask.seed if isinstance(mask, TopKMask) else None, device),
        drop_seed=_seed("dropout", None if dropout is None else dropout.seed, device),
        bag_ids=torch.arange(bags, device=device) if bag_ids is None else bag_ids,
    )
    k, counts, stream = _top_k_of(mask)
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (h, *weights))
    keeps = keeps and chosen == "cpu" and learns
    spec = PoolSpec(
        activation=activation,
        precision=precision,
        passes=passes,
        mask_k=k,
        mask_counts=counts,
        mask_stream=stream,
        drop_of_65536=0 if dropout is None else _levels(dropout.p),
        drop_stream=0 if dropout is None else dropout.stream,
        gram=gram,
        raw=raw_scores,
        top_k=top_k,
        bottom_k=bottom_k,
        keep=keeps,
        over=keeps and rows is None and _goes_over(h, width),
    )
    found = pool(tensors, spec, chosen)
    return PoolOutput(
        z=found.z,
        lse=found.lse,
        entropy=found.entropy if entropy else None,
        gram=found.gram if gram else None,
        scores=found.scores if scores else None,
        raw_scores=_raw(found) if raw_scores else None,
        masked_idx=found.masked_idx if isinstance(mask, TopKMask) else None,
        masked_scores=found.masked_scores if isinstance(mask, TopKMask) else None,
        top_idx=found.top_idx if top_k else None,
        bottom_idx=found.bottom_idx if bottom_k else None,
    )


def _raw(found: PoolForward) -> Tensor:
    return found.raw if found.raw.numel() else found.scores


def _autocast(h: Tensor) -> Tensor:
    kind = h.device.type
    return h.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else h


def _keeps(memory: Memory, numbers: int, dtype: torch.dtype) -> bool:
    if memory not in get_args(Memory):
        raise ValueError(f"memory: got {memory!r}, wanted one of {', '.join(get_args(Memory))}")
    # By a branch, as for a compiler the size is an unknown, and what hangs on it would be one too.
    if memory == "auto" and numbers * dtype.itemsize <= _MOST_KEPT_BYTES:
        return True
    return memory == "keep"


def _goes_over(h: Tensor, width: int) -> bool:
    if width > h.shape[1]:  # by a branch here too
        return False
    return h.requires_grad


def _top_k_of(mask: TopKMask | IndexMask | None) -> tuple[int, tuple[int, ...], int]:
    if not isinstance(mask, TopKMask):
        return 0, (0,), 0
    if mask.k < 0 or not 0 <= mask.drop <= 1:
        raise ValueError(f"mask: got k {mask.k} and drop {mask.drop}, wanted k of 0 or more and drop in [0, 1]")
    # Counted in double precision, as everybody's code does: 0.29 of 100 are 28.
    return mask.k, tuple(int(n * mask.drop) for n in range(mask.k + 1)), mask.stream


def _levels(p: float) -> int:
    if not 0 <= p < 1 or round(p * LEVELS) == LEVELS:
        raise ValueError(f"dropout.p: got {p}, wanted 0 or more and less than 1")
    return round(p * LEVELS)


def _seed(name: str, seed: Tensor | None, device: torch.device) -> Tensor:
    if seed is None:
        return torch.zeros(1, dtype=torch.int64, device=device)
    if seed.shape != (1,) or seed.dtype != torch.int64 or seed.device != device:
        raise ValueError(
            f"{name}.seed: got {seed.dtype} {list(seed.shape)} on {seed.device}, wanted torch.int64 [1] on {device}"
        )
    return seed


def _mask_idx(mask: TopKMask | IndexMask | None, bags: int, branches: int, device: torch.device) -> Tensor | None:
    if not isinstance(mask, IndexMask):
        return None
    idx = mask.idx
    if idx.dtype != torch.int32 or idx.dim() != 3 or idx.shape[:2] != (bags, branches) or idx.device != device:
        raise ValueError(
            f"mask.idx: got {idx.dtype} {list(idx.shape)} on {idx.device}, wanted torch.int32 [{bags}, {branches}, M] on {device}"
        )
    return idx


def _check_tensors(
    h: Tensor, w_v: Tensor, b_v: Tensor | None, w_u: Tensor | None, b_u: Tensor | None, w: Tensor, c: Tensor | None
) -> None:
    if h.dim() != 2 or h.dtype not in _FLOATS:
        raise ValueError(f"h: got {h.dtype} {list(h.shape)}, wanted floating instances of shape [T, D]")
    if w.dim() != 2 or not 1 <= len(w) <= _MOST_BRANCHES:
        raise ValueError(f"w: got shape {list(w.shape)}, wanted [B, L] with 1 to {_MOST_BRANCHES} branches")
    if b_u is not None and w_u is None:
        raise ValueError("b_u: got a bias of a gate without w_u; give both, or neither for attention that is not gated")
    length, dim = w.shape[1], h.shape[1]
    wanted = {
        "w_v": (w_v, (length, dim)),
        "b_v": (b_v, (length,)),
        "w_u": (w_u, (length, dim)),
        "b_u": (b_u, (length,)),
        "w": (w, tuple(w.shape)),
        "c": (c, (len(w),)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name}: got shape {list(tensor.shape)}, wanted {list(shape)}, as h is {list(h.shape)} and w {list(w.shape)}"
            )
        if tensor.device != h.device or tensor.dtype not in _FLOATS:
            raise ValueError(f"{name}: got {tensor.dtype} on {tensor.device}, wanted a floating type on {h.device}")
        if h.dtype == torch.float64 and tensor.dtype != torch.float64:
            raise ValueError(f"{name}: got {tensor.dtype} beside h of torch.float64; convert one of them")


def _check_indices(
    bags: int, device: torch.device, *, cu_seqlens: Tensor, rows: Tensor | None, bag_ids: Tensor | None
) -> None:
    wanted = {
        "cu_seqlens": (cu_seqlens, torch.int32, None),
        "rows": (rows, torch.int32, None),
        "bag_ids": (bag_ids, torch.int64, bags),
    }
    for name, (tensor, dtype, size) in wanted.items():
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.dtype != dtype or tensor.device != device or size not in (None, len(tensor)):
            shape = "" if size is None else f" [{size}]"
            raise ValueError(
                f"{name}: got {tensor.dtype} {list(tensor.shape)} on {tensor.device}, wanted one dimension of {dtype}{shape}"
                f" on {device}"
            )
