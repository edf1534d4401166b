"""Chunks of instances, in place, for any device that torch knows: nothing of size I x L but what `spec.keep` asks for.

A chunk begins anew with each bag, so that a bag alone and the same bag in a pack are the same sums in the same order.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.ops.gated_attention_pool.contract import (
    PoolCotangents,
    PoolForward,
    PoolGradients,
    PoolSpec,
    PoolTensors,
)
from wsimil.ops.gated_attention_pool.draws import LEVELS, gate_factors, gate_signs, mask_words
from wsimil.ops.topk import segment_topk, topk

if TYPE_CHECKING:
    from jaxtyping import Float

CHUNK = 2048
"""Instances at a time: two factors of 256 columns are 4 MB then, which stay in a cache."""
_BLOCK = 256
_FEW = 64
_CACHE_LINE = 64


def forward(tensors: PoolTensors, spec: PoolSpec) -> PoolForward:
    """See `PoolForward`; `gates` holds both factors, side by side, where `spec.keep` is set."""
    gates = _Gates(tensors, spec)
    pack = gates.pack
    raw = torch.empty(len(tensors.w), pack.instances, dtype=gates.wide, device=tensors.h.device)
    held = tensors.h.new_empty((pack.instances, tensors.h.shape[1] if spec.over else gates.width) if spec.keep else 0)
    kept = gates.kept(held)
    for chunk in pack.chunks():
        factors = gates.factors(pack.rows_of(chunk), chunk, out=None if kept is None else kept[chunk.begin : chunk.end])
        raw[:, chunk.begin : chunk.end] = gates.scores(gates.product(factors, chunk))
    masked, masked_idx, masked_scores = _masks(raw, pack.bags, tensors, spec)
    scores = raw if masked is None else raw.masked_fill(masked, -math.inf)
    parts = [(raw[:, begin:end], scores[:, begin:end]) for begin, end in pack.bags]
    lse, entropy = (torch.stack(part) for part in zip(*(_stats(*part) for part in parts), strict=True))
    z = raw.new_zeros(len(pack.bags), len(raw), tensors.h.shape[1])
    for chunk in pack.chunks():
        weights = _weights(scores[:, chunk.begin : chunk.end], lse[chunk.bag])
        z[chunk.bag] += _weighted_sum(weights, pack.rows_of(chunk).to(gates.wide))
    gram = [_gram(left, each) for (_, left), each in zip(parts, lse, strict=True)] if spec.gram else []
    return PoolForward(
        z=z,
        lse=lse,
        entropy=entropy,
        gram=torch.stack(gram) if gram else raw.new_empty(0),
        scores=scores.clone() if scores is raw else scores,
        raw=raw if spec.raw and tensors.masks(spec) else raw.new_empty(0),
        masked_idx=masked_idx,
        masked_scores=masked_scores,
        top_idx=segment_topk(raw.t(), tensors.cu_seqlens, spec.top_k),
        bottom_idx=segment_topk(raw.t(), tensors.cu_seqlens, spec.bottom_k, largest=False),
        gates=held,
    )


def backward(
    cotangents: PoolCotangents, tensors: PoolTensors, saved: PoolForward, spec: PoolSpec, needs: tuple[bool, ...]
) -> PoolGradients:
    """See `PoolGradients`: `needs` says for each of its fields whether it is asked for."""
    gates = _Gates(tensors, spec)
    pack, branches = gates.pack, len(tensors.w)
    need = dict(zip(PoolGradients._fields, needs, strict=True))
    kept = gates.kept(saved.gates)
    h_grad = None
    if need["h"]:
        h_grad = saved.gates if spec.over and kept is not None else _h_gradient_like(tensors)
    matrix, bias = need["w_v"] or need["w_u"], need["b_v"] or need["b_u"]
    sums = _WeightSums(gates, matrix=matrix, bias=bias) if any(needs[1:]) else None
    inner = tensors.h.new_empty(pack.longest, gates.width + branches)
    # The pooled cotangent is as many more columns of the matrix product that the gates' gradients go through.
    outer = torch.cat([gates.weight, gates.weight.new_zeros(branches, tensors.h.shape[1])])
    slopes = _slopes(cotangents, saved, pack)
    for chunk in pack.chunks():
        x = pack.rows_of(chunk)
        slope = _aligned(slopes[:, chunk.begin : chunk.end])
        # What goes over the factors lies before those of the next chunk.
        factors = gates.factors_again(x, chunk) if kept is None else kept[chunk.begin : chunk.end]
        both = inner[: len(x)]
        product = gates.gradient(factors, slope, chunk, out=both[:, : gates.width])
        if sums is not None:
            sums.add(both[:, : gates.width], product, slope, x)
        if h_grad is not None:
            if cotangents.z is not None:
                both[:, gates.width :] = _weights(saved.scores[:, chunk.begin : chunk.end], saved.lse[chunk.bag]).t()
                outer[gates.width :] = cotangents.z[chunk.bag]
            columns = gates.width if cotangents.z is None else gates.width + branches
            pack.write(h_grad, chunk, both[:, :columns], outer[:columns])
    return PoolGradients(h=h_grad, **_weight_gradients(sums, tensors, need))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Instances `begin` to `end` of the pack, all of one bag, which begins at `first`."""

    bag: int
    first: int
    begin: int
    end: int


class _Pack:
    """Bags and their instances, chunk by chunk."""

    def __init__(self, tensors: PoolTensors) -> None:
        self.h, self.rows = tensors.h, tensors.rows
        self.instances = len(tensors.h) if tensors.rows is None else len(tensors.rows)
        self.bags = list(pairwise(tensors.cu_seqlens.tolist()))
        self.longest = min(CHUNK, max(end - begin for begin, end in self.bags))

    def chunks(self) -> Iterator[_Chunk]:
        """All instances, in order."""
        for bag, (first, last) in enumerate(self.bags):
            for begin in range(first, last, CHUNK):
                yield _Chunk(bag=bag, first=first, begin=begin, end=min(begin + CHUNK, last))

    def rows_of(self, chunk: _Chunk) -> Tensor:
        """Instances, [n, D]."""
        h, rows = self.h, self.rows
        x = h[chunk.begin : chunk.end] if rows is None else h.index_select(0, rows[chunk.begin : chunk.end])
        return _aligned(x)

    def write(self, h_grad: Tensor, chunk: _Chunk, inner: Tensor, outer: Tensor) -> None:
        """`inner @ outer` to where the instances lie."""
        place = h_grad[chunk.begin : chunk.end]
        if self.rows is None and place.data_ptr() % _CACHE_LINE == 0:
            torch.mm(inner, outer, out=place)
        elif self.rows is None:
            place.copy_(inner @ outer)
        else:
            h_grad.index_copy_(0, self.rows[chunk.begin : chunk.end].long(), inner @ outer)


class _Gates:
    """The network that scores: its weights prepared once, and buffers that every chunk uses again."""

    def __init__(self, tensors: PoolTensors, spec: PoolSpec) -> None:
        self.spec, self.tensors, self.pack = spec, tensors, _Pack(tensors)
        h = tensors.h
        self.wide = torch.promote_types(h.dtype, torch.float32)
        self.half = tensors.w.shape[1]
        layers = [(tensors.w_v, tensors.b_v)] + ([] if tensors.w_u is None else [(tensors.w_u, tensors.b_u)])
        self.width = self.half * len(layers)
        self.weight = torch.cat([weight.to(h.dtype) for weight, _ in layers])  # [width, D]
        self.bias = torch.cat([h.new_zeros(self.half) if bias is None else bias for _, bias in layers]).to(self.wide)
        # What dropout of both factors scales up is scaled here, in B x L numbers.
        left = 1 - spec.drop_of_65536 / LEVELS
        self.scale = 1 / left**2 if self.width > self.half else 1.0
        self.score = tensors.w.to(self.wide) * self.scale
        self.score_bias = 0 if tensors.c is None else tensors.c.to(self.wide)[:, None]
        self._linear = torch.empty(self.pack.longest, self.width, dtype=self.wide, device=h.device)
        self._drawn = h.new_empty(0)
        self._products = torch.empty(3, self.pack.longest, self.half, dtype=self.wide, device=h.device)

    def factors(self, x: Tensor, chunk: _Chunk, out: Tensor | None = None) -> Tensor:
        """Activated value and gate, [n, width], also in `out`; gelu is left to `product`: its gradient asks for what goes in.

        A gate, which is above 0, is negative where dropout takes its product with the value.
        """
        # A row of `out` may begin between two cache lines; what is computed must not depend on it.
        direct = out is not None and out.dtype == self.wide and out.data_ptr() % _CACHE_LINE == 0
        found = self._activated(x, out if out is not None and direct else self._linear[: len(x)])
        if self.spec.drop_of_65536 and self.width > self.half:
            found[:, self.half :] *= self._signs(chunk)
        if out is not None and not direct:
            out.copy_(found)
        return found

    def factors_again(self, x: Tensor, chunk: _Chunk) -> Tensor:
        """The factors in the backward pass, rounded as they were if they had been kept, [n, width]."""
        found = self.factors(x, chunk)
        return found.to(x.dtype) if self.spec.keep else found

    def kept(self, held: Tensor) -> Tensor | None:
        """All factors that are held, [I, width], at the end of where they are; None where there are none."""
        numbers = self.pack.instances * self.width
        return held.view(-1)[held.numel() - numbers :].view(-1, self.width) if held.numel() else None

    def _activated(self, x: Tensor, out: Tensor) -> Tensor:
        if x.dtype == self.wide:
            torch.addmm(self.bias, x, self.weight.t(), out=out)
        else:
            torch.add(x @ self.weight.t(), self.bias, out=out)
        if self.spec.activation == "tanh" and x.dtype == torch.bfloat16:
            # tanh(x) = 2 sigmoid(2 x) - 1, a fourth of its time; 1e-7 off, which is far below what bfloat16 tells apart.
            out[:, : self.half].mul_(2).sigmoid_().mul_(2).sub_(1)
        elif self.spec.activation == "tanh":
            out[:, : self.half].tanh_()
        elif self.spec.activation == "relu":
            out[:, : self.half].relu_()
        out[:, self.half :].sigmoid_()
        return out

    def product(self, factors: Tensor, chunk: _Chunk) -> Tensor:
        """The product of both factors, less what dropout takes, over `scale`, [n, L]."""
        value, gate = factors[:, : self.half], factors[:, self.half :]
        if self.spec.activation == "gelu":
            value = F.gelu(value)
        scale = self._scale(gate, chunk)
        return value if scale is None else torch.mul(value, scale, out=self._products[0, : len(value)])

    def _scale(self, gate: Tensor, chunk: _Chunk) -> Tensor | None:
        """What a value is multiplied by: its gate, or 0 where either was dropped; without one, 0 or 1 / (1 - p)."""
        if not self.spec.drop_of_65536:
            return gate if gate.shape[1] else None
        if not gate.shape[1]:
            return gate_factors(**self._draws(chunk))[0].to(self.wide)
        return gate.clamp_min(0)

    def scores(self, product: Tensor) -> Tensor:
        """[B, n]."""
        return self.score @ product.t() + self.score_bias

    def gradient(self, factors: Tensor, slope: Tensor, chunk: _Chunk, *, out: Tensor) -> Tensor:
        """Write the gradient of what goes into the activations to `out`; returns `product` of both factors.

        With value t, gate q and r = slope of their product, d value = r q act', d gate = r t q (1 - q).
        """
        value, gate = factors[:, : self.half].to(self.wide), factors[:, self.half :].to(self.wide)
        scale = self._scale(gate, chunk)
        shown = F.gelu(value) if self.spec.activation == "gelu" else value
        product = shown if scale is None else torch.mul(shown, scale, out=self._products[0, : len(value)])
        rise = torch.mm(slope.t(), self.score, out=self._products[1, : len(value)])  # r
        whole = torch.mul(rise, product, out=self._products[2, : len(value)])  # r t q
        direct = out.dtype == self.wide
        if gate.shape[1]:
            # Where dropout took the product `whole` is 0, whatever the sign of the gate.
            to_gate = torch.addcmul(whole, whole, gate, value=-1, out=out[:, self.half :] if direct else None)
            if not direct:
                out[:, self.half :] = to_gate
        to_value = rise if scale is None else torch.mul(rise, scale, out=out[:, : self.half] if direct else rise)
        if self.spec.activation == "tanh":
            to_value.addcmul_(whole, value, value=-1)
        else:
            to_value = to_value * self._activation_slope(value)
        if to_value.data_ptr() != out.data_ptr():
            out[:, : self.half] = to_value
        return product

    def _signs(self, chunk: _Chunk) -> Tensor:
        """`gate_signs` of each chunk in order; drawn for two, as the draws of one are too few for two threads to share."""
        begin = chunk.begin - chunk.first
        place = begin % (2 * CHUNK)
        if place == 0:
            _, last = self.pack.bags[chunk.bag]
            end = min(begin + 2 * CHUNK, last - chunk.first)
            self._drawn = gate_signs(**self._draws(chunk) | {"end": end})
        return self._drawn[place : place + chunk.end - chunk.begin]

    def _activation_slope(self, value: Tensor) -> Tensor:
        if self.spec.activation == "relu":
            return (value > 0).to(value.dtype)
        density = (value * value * -0.5).exp() / math.sqrt(2 * math.pi)
        return (1 + (value / math.sqrt(2)).erf()) / 2 + value * density

    def _draws(self, chunk: _Chunk) -> dict[str, Any]:
        """What names the draws of a chunk."""
        return {
            "seed": self.tensors.drop_seed,
            "begin": chunk.begin - chunk.first,
            "end": chunk.end - chunk.first,
            "bag_id": self.tensors.bag_ids[chunk.bag],
            "width": self.half,
            "spec": self.spec,
        }


class _WeightSums:
    """Gradients of weights, summed chunk by chunk in float32 or wider."""

    def __init__(self, gates: _Gates, *, matrix: bool, bias: bool) -> None:
        self.matrix = torch.zeros_like(gates.weight, dtype=gates.wide) if matrix else None
        self.bias = torch.zeros_like(gates.bias) if bias else None
        self.score, self.scale = torch.zeros_like(gates.score), gates.scale
        self.score_bias = torch.zeros_like(gates.score[:, 0])

    def add(self, inner: Tensor, product: Tensor, slope: Tensor, x: Tensor) -> None:
        """What one chunk adds."""
        if self.matrix is not None and inner.dtype == self.matrix.dtype:
            self.matrix.addmm_(inner.t(), x)
        elif self.matrix is not None:
            self.matrix += inner.t() @ x
        if self.bias is not None:
            self.bias += inner.sum(dim=0, dtype=self.bias.dtype)
        self.score.addmm_(slope, product, alpha=self.scale)
        self.score_bias += slope.sum(dim=1)


def _weight_gradients(sums: _WeightSums | None, t: PoolTensors, need: Mapping[str, bool]) -> dict[str, Tensor | None]:
    if sums is None:
        return dict.fromkeys(("w_v", "b_v", "w_u", "b_u", "w", "c"))
    half = t.w.shape[1]

    def part(whole: Tensor | None, begin: int, like: Tensor | None, asked: bool) -> Tensor | None:
        return (
            None
            if whole is None or like is None or not asked
            else whole[begin : begin + len(like)].to(like.dtype, copy=True)
        )

    return {
        "w_v": part(sums.matrix, 0, t.w_v, need["w_v"]),
        "b_v": part(sums.bias, 0, t.b_v, need["b_v"]),
        "w_u": part(sums.matrix, half, t.w_u, need["w_u"]),
        "b_u": part(sums.bias, half, t.b_u, need["b_u"]),
        "w": part(sums.score, 0, t.w, need["w"]),
        "c": part(sums.score_bias, 0, t.c, need["c"]),
    }


def _aligned(x: Tensor) -> Tensor:
    # A CPU library chooses its kernel, and with it the last bit of a sum, by how the numbers lie in memory.
    good = x.is_contiguous() and x.data_ptr() % _CACHE_LINE == 0
    return x if good else x.clone(memory_format=torch.contiguous_format)


def _h_gradient_like(tensors: PoolTensors) -> Tensor:
    if tensors.rows is not None:
        return torch.zeros_like(tensors.h, memory_format=torch.contiguous_format)
    return torch.empty_like(tensors.h, memory_format=torch.contiguous_format)


def _masks(
    raw: Float[Tensor, "B I"], bags: list[tuple[int, int]], t: PoolTensors, spec: PoolSpec
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Where instances are masked, which of the highest are, and their raw scores."""
    shape = (len(bags), len(raw), spec.mask_k)
    masked_idx = torch.full(shape, -1, dtype=torch.int32, device=raw.device)
    masked_scores = raw.new_full(shape, -math.inf)
    if not t.masks(spec):
        return None, masked_idx, masked_scores
    masked = torch.zeros_like(raw, dtype=torch.bool)
    for bag, (begin, end) in enumerate(bags):
        here = masked[:, begin:end]
        if spec.mask_k:
            chosen = _masked_of_top(raw[:, begin:end], t, spec, bag)
            here.scatter_(1, chosen, True)
            masked_idx[bag, :, : chosen.shape[1]] = chosen
            masked_scores[bag, :, : chosen.shape[1]] = raw[:, begin:end].gather(1, chosen)
        if t.mask_idx is not None:
            named = t.mask_idx[bag].long()
            branch, place = (named >= 0).nonzero(as_tuple=True)
            here[branch, named[branch, place]] = True
    return masked, masked_idx, masked_scores


def _masked_of_top(raw: Float[Tensor, "B n"], t: PoolTensors, spec: PoolSpec, bag: int) -> Tensor:
    """Of the highest scores of one bag those that are masked, in order of rank, [B, masked]."""
    ranked = topk(raw, spec.mask_k)
    count = min(spec.mask_counts[ranked.shape[1]], raw.shape[1] - 1)
    branch = torch.arange(len(raw), device=raw.device)[:, None]
    words = mask_words(t.mask_seed, ranked, branch=branch, bag_id=t.bag_ids[bag], stream=spec.mask_stream)
    lowest = words.sort(dim=1, stable=True).indices[:, :count]
    return ranked.gather(1, lowest.sort(dim=1).values)


def _stats(raw: Float[Tensor, "B n"], left: Float[Tensor, "B n"]) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and entropy of one bag, [B]; of nothing -inf and 0, NaN where a raw score is not finite."""
    largest = left.amax(dim=1)
    shifted = left - largest.masked_fill(largest == -math.inf, 0)[:, None]
    powers = shifted.exp()
    total = powers.sum(dim=1)
    mean = (powers * shifted.masked_fill(left == -math.inf, 0)).sum(dim=1) / total
    nothing = total == 0
    poison = torch.where(raw.isfinite().all(dim=1), 0.0, math.nan).to(raw.dtype)
    lse = (largest + total.log()).masked_fill(nothing, -math.inf) + poison
    return lse, (total.log() - mean).masked_fill(nothing, 0) + poison


def _weights(left: Float[Tensor, "B n"], lse: Float[Tensor, " B"]) -> Float[Tensor, "B n"]:
    """Attention weights; 0 where nothing is left of a bag."""
    return (left - lse.masked_fill(lse == -math.inf, 0)[:, None]).exp()


def _weighted_sum(weights: Float[Tensor, "B n"], x: Float[Tensor, "n D"]) -> Float[Tensor, "B D"]:
    # A CPU library adds row after row; sums of short blocks keep the rounding error of a short sum.
    whole = len(x) // _BLOCK * _BLOCK
    rest = weights[:, whole:] @ x[whole:]
    if not whole:
        return rest
    blocks = weights[:, :whole].reshape(len(weights), -1, _BLOCK).transpose(0, 1)
    return torch.bmm(blocks, x[:whole].view(-1, _BLOCK, x.shape[1])).sum(dim=0) + rest


def _gram(left: Float[Tensor, "B n"], lse: Float[Tensor, " B"]) -> Float[Tensor, "B B"]:
    weights = _weights(left, lse).double()
    return (weights @ weights.t()).to(left.dtype)


def _slopes(g: PoolCotangents, saved: PoolForward, pack: _Pack) -> Float[Tensor, "B I"]:
    """Gradient of the raw scores; where masked exactly 0, but for what they were themselves asked for.

    What is subtracted is the mean of the very numbers that it is subtracted from: a bag of which one instance is left has a
    gradient of exactly 0, which an optimizer such as Adam would tell from a rounding error.
    """
    slopes = torch.empty_like(saved.scores)
    for chunk in pack.chunks():
        left = saved.scores[:, chunk.begin : chunk.end]
        slopes[:, chunk.begin : chunk.end] = _rise(g, saved, chunk, left, pack)
    for bag, (begin, end) in enumerate(pack.bags):
        left, rise = _aligned(saved.scores[:, begin:end]), _aligned(slopes[:, begin:end])
        weights = _weights(left, saved.lse[bag])
        change = rise - (weights * rise).sum(dim=1, keepdim=True)
        if g.lse is not None:
            change += g.lse[bag, :, None]
        change *= weights
        if g.scores is not None:
            change += g.scores[:, begin:end]
        slopes[:, begin:end] = change.masked_fill(left == -math.inf, 0)
    return slopes if g.raw is None else slopes + g.raw


def _rise(
    g: PoolCotangents, saved: PoolForward, chunk: _Chunk, left: Float[Tensor, "B n"], pack: _Pack
) -> Float[Tensor, "B n"]:
    """Gradient of the attention weights of a chunk, up to a constant of the bag and branch."""
    bag = chunk.bag
    rise = torch.zeros_like(left)
    if g.z is not None:
        x = pack.rows_of(chunk).to(left.dtype)
        begin, end = pack.bags[bag]
        if end - begin <= _FEW:
            # They may differ by little, of which a product of the whole would leave little; a bag's constant is taken out later.
            rise += ((x - saved.z[bag][:, None]) @ g.z[bag][:, :, None])[:, :, 0]
        else:
            rise += _aligned(g.z[bag]) @ x.t()
    if g.entropy is not None:
        rise -= g.entropy[bag, :, None] * (left - saved.lse[bag, :, None]).masked_fill(left == -math.inf, 0)
    if g.gram is not None:
        rise += (g.gram[bag] + g.gram[bag].t()) @ _weights(left, saved.lse[bag])
    return rise
