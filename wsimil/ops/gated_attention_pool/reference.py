"""The definition, one bag and one branch at a time, in plain operations that autograd knows; any floating type."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.ops.gated_attention_pool.contract import PoolForward, PoolSpec, PoolTensors
from wsimil.ops.gated_attention_pool.draws import gate_factors, mask_words

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}


def forward(tensors: PoolTensors, spec: PoolSpec) -> PoolForward:
    """See `PoolForward`. Holds everything of size I x L: for tests and for looking, not for bags of 100 000 instances."""
    h = tensors.h if tensors.rows is None else tensors.h[tensors.rows]
    raw = _raw_scores(h, tensors, spec)  # [B, I]
    bags = [_bag(h, raw, number, tensors, spec) for number in range(len(tensors.cu_seqlens) - 1)]
    parts = [torch.stack(part) for part in zip(*(bag[:4] for bag in bags), strict=True)]
    indices = [torch.stack(part) for part in zip(*(bag[5:] for bag in bags), strict=True)]
    masked_idx, masked_scores, top_idx, bottom_idx = indices
    return PoolForward(
        z=parts[0], lse=parts[1], entropy=parts[2], gram=parts[3] if spec.gram else raw.new_empty(0),
        scores=torch.cat([bag[4] for bag in bags], dim=1),
        raw=raw if spec.raw and tensors.masks(spec) else raw.new_empty(0), masked_idx=masked_idx, masked_scores=masked_scores,
        top_idx=top_idx, bottom_idx=bottom_idx, gates=raw.new_empty(0),
    )  # fmt: skip


def _raw_scores(h: Tensor, t: PoolTensors, spec: PoolSpec) -> Tensor:
    wide = torch.promote_types(h.dtype, torch.float32)

    def linear(weight: Tensor, bias: Tensor | None) -> Tensor:
        out = (h @ weight.to(h.dtype).t()).to(wide)
        return out if bias is None else out + bias.to(wide)

    factor = _ACTIVATIONS[spec.activation](linear(t.w_v, t.b_v))
    gate = None if t.w_u is None else torch.sigmoid(linear(t.w_u, t.b_u))
    if spec.drop_of_65536:
        keep = [
            gate_factors(t.drop_seed, begin=0, end=end - begin, bag_id=bag_id, width=factor.shape[1], spec=spec)
            for (begin, end), bag_id in zip(pairwise(t.cu_seqlens.tolist()), t.bag_ids, strict=True)
        ]
        factor = factor * torch.cat([value for value, _ in keep]).to(wide)
        gate = None if gate is None else gate * torch.cat([gate for _, gate in keep]).to(wide)
    raw: Tensor = t.w.to(wide) @ (factor if gate is None else factor * gate).t()
    return raw if t.c is None else raw + t.c.to(wide)[:, None]


def _bag(h: Tensor, raw: Tensor, number: int, t: PoolTensors, spec: PoolSpec) -> tuple[Tensor, ...]:
    begin, end = t.cu_seqlens[number : number + 2].tolist()
    scores, instances = raw[:, begin:end], h[begin:end].to(raw.dtype)
    masked = torch.zeros_like(scores, dtype=torch.bool)
    masked_idx = torch.full((len(scores), spec.mask_k), -1, dtype=torch.int32, device=h.device)
    for branch in range(len(scores)):
        if spec.mask_k:
            chosen = _masked_of_top(scores[branch].detach(), branch, t.bag_ids[number], t.mask_seed, spec)
            masked[branch, chosen] = True
            masked_idx[branch, : len(chosen)] = chosen.to(torch.int32)
        if t.mask_idx is not None:
            named = t.mask_idx[number, branch]
            masked[branch, named[named >= 0].long()] = True
    left = scores.masked_fill(masked, -math.inf)
    padded = masked_idx.long()
    masked_scores = scores.detach().gather(1, padded.clamp_min(0)) if scores.shape[1] else padded.to(scores.dtype)
    pooled = [_pooled(left[branch], masked[branch], instances) for branch in range(len(scores))]
    poison = torch.where(scores.detach().isfinite().all(dim=1), 0.0, math.nan).to(raw.dtype)
    z, lse, entropy, weights = (torch.stack(part) for part in zip(*pooled, strict=True))
    return (
        z + poison[:, None], lse + poison, entropy + poison,
        weights @ weights.t() + poison[:, None] + poison, left, masked_idx, masked_scores.masked_fill(padded < 0, -math.inf),
        _ends(scores, spec.top_k, largest=True), _ends(scores, spec.bottom_k, largest=False),
    )  # fmt: skip


def _pooled(scores: Tensor, masked: Tensor, instances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, log-sum-exp, entropy and weights of one branch; of nothing 0, -inf, 0 and none."""
    if bool(masked.all()):
        nothing = instances.new_zeros(())
        return instances.new_zeros(instances.shape[1]), nothing - math.inf, nothing, torch.zeros_like(scores)
    shift = scores.detach().max()
    powers = (scores - shift).exp()
    total = powers.sum()
    weights = powers / total
    mean = (weights * (scores - shift).masked_fill(masked, 0)).sum()
    return weights @ instances, shift + total.log(), total.log() - mean, weights


def _masked_of_top(scores: Tensor, branch: int, bag_id: Tensor, seed: Tensor, spec: PoolSpec) -> Tensor:
    """Instances that are masked, in order of rank."""
    ranked = scores.sort(descending=True, stable=True).indices[: spec.mask_k]
    count = min(spec.mask_counts[len(ranked)], len(scores) - 1)
    words = mask_words(seed, ranked, branch=branch, bag_id=bag_id, stream=spec.mask_stream)
    lowest = words.sort(stable=True).indices[: max(count, 0)]
    return ranked[lowest.sort().values]


def _ends(scores: Tensor, k: int, *, largest: bool) -> Tensor:
    ranked = scores.detach().sort(dim=1, descending=largest, stable=True).indices[:, :k]
    return F.pad(ranked, (0, k - ranked.shape[1]), value=-1).to(torch.int32)
