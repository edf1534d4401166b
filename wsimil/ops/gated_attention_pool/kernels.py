"""Triton kernels: scores without the gates ever in memory, selection, and a masked stream that pools.

Tiles of instances begin anew with each bag and partial sums are added in their order, without atomics: a bag alone and the same
bag in a pack are the same bits. Nothing waits for the device. One module, as kernels and what launches them share one layout:
the packed weights [width, D] hold value and gate in alternating rows, so that one product gives both and one thread holds both.
"""
# ruff: noqa: N803, N806  # constants of compilation are written in capitals, as in all Triton code

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsimil.ops.gated_attention_pool.contract import (
    PoolCotangents,
    PoolForward,
    PoolGradients,
    PoolSpec,
    PoolTensors,
)
from wsimil.ops.gated_attention_pool.draws import bits_of, mask_words
from wsimil.ops.gated_attention_pool.one_pass import (
    bag_poison,
    bag_stats,
    bag_totals,
    combine_kernel,
    pool_tile,
    repair_kernel,
    tile_powers,
)
from wsimil.ops.topk import segment_topk

INSTANCES = 128
"""Of a tile. Sums are added tile by tile, so that this is part of what the last bit is."""
CHUNK = 32768
"""Instances whose gradients of the gates, [CHUNK, width], are held at a time."""
_BRANCHES = 8
_SELECTED = 64
_NUMBERS = 1024
_POOLED = 64
_NEAR = 1536
"""Bytes of a row up to which one pass finds the tiles of all multiprocessors in half of the L2 cache of their GPU."""
_LAST = tl.constexpr(2**31 - 1)
_LOWEST = tl.constexpr(1 - 2**63)
_HIGHEST = tl.constexpr(2**63 - 1)
_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()
_Kernel: TypeAlias = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blocks:
    """Columns of the packed weights and features at a time, warps, and steps of the pipeline."""

    columns: int
    depth: int
    warps: int = 8
    stages: int = 3


_SCORE = {
    "narrow": _Blocks(columns=256, depth=64),
    "tf32": _Blocks(columns=256, depth=32, stages=2),
    "tf32x3": _Blocks(columns=128, depth=32),
    "bf16x3": _Blocks(columns=128, depth=32),
    "ieee": _Blocks(columns=128, depth=16, stages=2),
}
_GRADIENT = {
    "narrow": _Blocks(columns=128, depth=64),
    "tf32": _Blocks(columns=128, depth=32),
    "tf32x3": _Blocks(columns=64, depth=32),
    "bf16x3": _Blocks(columns=64, depth=32),
    "ieee": _Blocks(columns=64, depth=32, stages=2),
}
_PRODUCT = _GRADIENT
"""Of the gradient of h, whose columns are features and whose depth is the width of the packed weights."""


def forward(tensors: PoolTensors, spec: PoolSpec) -> PoolForward:
    """See `PoolForward`; `gates` is empty: the backward pass computes them again."""
    with torch.cuda.device_of(tensors.h):
        return _forward(_Call(tensors, spec))


def backward(
    cotangents: PoolCotangents, tensors: PoolTensors, saved: PoolForward, spec: PoolSpec, needs: tuple[bool, ...]
) -> PoolGradients:
    """See `PoolGradients`: `needs` says for each of its fields whether it is asked for.

    The product for `w_v` and `w_u` is torch's: in float32 it is as precise as torch is set, whatever `spec.precision` says.
    """
    with torch.cuda.device_of(tensors.h):
        need = dict(zip(PoolGradients._fields, needs, strict=True))
        return _backward(_Call(tensors, spec), cotangents, saved, need)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """Where tiles begin: bag and first instance of each, and which tiles are a bag's; surplus ones have no bag.

    `ends` are those of the bags, or of what a chunk holds of them.
    """

    ends: Tensor  # [N + 1]
    bag: Tensor  # [count]
    first: Tensor  # [count]
    of_bag: Tensor  # [N + 1]
    count: int


class _Call:
    """What all launches share: tensors as kernels want them, sizes, and constants of compilation."""

    def __init__(self, tensors: PoolTensors, spec: PoolSpec) -> None:
        t = self.tensors = tensors
        self.spec = spec
        self.h = t.h if t.h.stride(1) == 1 else t.h.contiguous()
        self.ends = t.cu_seqlens.contiguous()
        self.instances = len(t.h) if t.rows is None else len(t.rows)
        self.rows = self.ends if t.rows is None else t.rows.contiguous()
        self.bags = len(t.cu_seqlens) - 1
        self.branches, self.length = t.w.shape
        self.dim = t.h.shape[1]
        self.gated = t.w_u is not None
        self.width = self.length * (2 if self.gated else 1)
        self.weight = _packed(t.w_v, t.w_u).to(t.h.dtype)  # [width, D]
        self.bias = _packed(_or_zeros(t.b_v, t.w_v), _or_zeros(t.b_u, t.w_u)).to(torch.float32)
        self.w = t.w.to(torch.float32).contiguous()
        self.c = _or_zeros(t.c, t.w).to(torch.float32).contiguous()
        self.bag_ids = t.bag_ids.contiguous()
        self.precision = _precision(t.h.dtype, spec)
        self.tiles = self.tiles_of(self.ends, self.instances)

    def real(self, *shape: int) -> Tensor:
        """Not yet written."""
        return torch.empty(shape, dtype=torch.float32, device=self.h.device)

    def tiles_of(self, ends: Tensor, instances: int) -> _Tiles:
        """At most so many tiles as there can be of bags with so many instances in sum."""
        count = triton.cdiv(instances, INSTANCES) + self.bags
        bag, first = (torch.empty(count, dtype=torch.int32, device=ends.device) for _ in range(2))
        of_bag = torch.empty_like(ends)
        _launch(
            _map_kernel, (self.bags + 1,), ends, bag, first, of_bag, self.bags, count,
            BN=INSTANCES, BLOCK=_NUMBERS, warps=4,
        )  # fmt: skip
        return _Tiles(ends=ends, bag=bag, first=first, of_bag=of_bag, count=count)

    def dot(self, blocks: _Blocks, *, columns: int, depth: int) -> dict[str, Any]:
        """Constants of a product with so many columns over such a depth."""
        interpreted = not isinstance(_score_kernel, triton.runtime.JITFunction)
        # Half as many columns have room in the registers beside what gathers rows, draws or computes an error function, or,
        # without wgmma, beside what is multiplied.
        spec = self.spec
        more = self.tensors.rows is not None or spec.drop_of_65536 > 0 or spec.activation == "gelu"
        most = blocks.columns // 2 if more or _major(self.h.device) < 9 else blocks.columns
        # Of a draw's columns a tile has all or none.
        least = 32 if spec.drop_of_65536 and self.gated else 16
        return {
            "BC": max(least, min(most, triton.next_power_of_2(columns))),
            "BK": max(16, min(blocks.depth, triton.next_power_of_2(depth))),
            "DOT": "ieee" if interpreted or self.precision == "narrow" else self.precision,
            # The interpreter would multiply the bits of a narrow type.
            "UPCAST": interpreted and self.precision == "narrow",
            "warps": blocks.warps,
            # What draws has no registers for the addresses of a third step.
            "stages": min(blocks.stages, 2) if spec.drop_of_65536 else blocks.stages,
        }

    def gates(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of what computes the gates."""
        t, spec = self.tensors, self.spec
        seed = t.drop_seed
        interpreted = not isinstance(_score_kernel, triton.runtime.JITFunction)
        constants = {
            "D": self.dim, "L": self.length, "BN": INSTANCES, "GATED": self.gated, "ACTIVATION": spec.activation,
            "FAST": self.precision == "narrow" and not interpreted, "DROP": spec.drop_of_65536,
            "BITS": bits_of(spec.drop_of_65536), "ROWS": t.rows is not None,
        }  # fmt: skip
        stream = _word(2 * spec.drop_stream + 1)
        return (self.h, self.h.stride(0), self.rows, self.weight, self.bias, seed, self.bag_ids, stream), constants


def _launch(
    kernel: _Kernel, grid: tuple[int, ...], /, *args: Any, warps: int, stages: int = 2, **constants: Any
) -> None:
    kernel[grid](*args, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)


def _packed(value: Tensor, gate: Tensor | None) -> Tensor:
    """Rows of both in turn."""
    return value.contiguous() if gate is None else torch.stack([value, gate.to(value.dtype)], dim=1).flatten(0, 1)


def _or_zeros(bias: Tensor | None, weight: Tensor | None) -> Any:
    return weight.new_zeros(len(weight)) if bias is None and weight is not None else bias


def _precision(dtype: torch.dtype, spec: PoolSpec) -> str:
    if dtype != torch.float32:
        return "narrow"
    if spec.precision != "auto":
        return spec.precision
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _word(number: int) -> int:
    """The low 32 bits, as an int32 holds them."""
    return (number + 2**31) % 2**32 - 2**31


@cache
def _major(device: torch.device) -> int:
    """Of the compute capability; the interpreter takes the blocks of the newest."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


@cache
def _counts(counts: tuple[int, ...], device: torch.device) -> Tensor:
    # Held, as a copy to the device would be waited for at each call.
    return torch.tensor(counts, dtype=torch.int32, device=device)


def _forward(call: _Call) -> PoolForward:
    spec = call.spec
    one = _takes_one_pass(call)
    raw, keys, poison, stats, pooled = _scores(call, pools=one)
    ends = [
        segment_topk(raw.t(), call.ends, k, largest=largest)
        for k, largest in ((spec.top_k, True), (spec.bottom_k, False))
    ]
    kept = raw.clone() if spec.raw and call.tensors.masks(spec) else call.real(0)
    masked_idx, masked_scores = _mask(call, raw, keys)
    scores = raw  # from here on -inf where masked
    if one:
        for idx in (masked_idx, call.tensors.mask_idx):
            _repair(call, scores, idx, stats, pooled)
        z, lse, entropy = _combined(call, poison, stats, pooled)
    else:
        lse, entropy = _stats(call, scores, poison, stats)
        z = _pooled(call, scores, lse)
    return PoolForward(
        z=z,
        lse=lse,
        entropy=entropy,
        gram=_gram(call, scores, lse) if spec.gram else call.real(0),
        scores=scores,
        raw=kept,
        masked_idx=masked_idx,
        masked_scores=masked_scores,
        top_idx=ends[0],
        bottom_idx=ends[1],
        gates=call.h.new_empty(0),
    )


def _takes_one_pass(call: _Call) -> bool:
    t, passes = call.tensors, call.spec.passes
    if passes != "auto":
        return passes == "one"
    # By count of bytes it saves a quarter of the time and more while the tiles at work stay in the L2 cache; with a mask that
    # hangs on the lengths of bags too, on which no bit may.
    return not t.masks(call.spec) and call.dim * t.h.element_size() <= _NEAR


def _scores(call: _Call, *, pools: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Raw scores [B, I]; of each branch and tile the highest key, 0 or, where a score is not finite, NaN, and room for stats.

    With `pools` the stats [3, B, tiles] are written, and so are sums of instances, [tiles, B, D].
    """
    tiles, few = call.tiles, 0 < call.spec.mask_k <= _SELECTED
    raw, poison = call.real(call.branches, call.instances), call.real(call.branches, tiles.count)
    stats = call.real(3, call.branches, tiles.count)
    pooled = call.real(*(tiles.count, call.branches, call.dim) if pools else (0,))
    shape = (call.branches, tiles.count) if few else (0,)
    keys = torch.empty(shape, dtype=torch.int64, device=raw.device)
    args, constants = call.gates()
    group = min(_BRANCHES, triton.next_power_of_2(call.branches))
    _launch(
        _score_kernel, (tiles.count, triton.cdiv(call.branches, group)), *args, call.w, call.c, tiles.ends, tiles.bag,
        tiles.first, raw, keys, poison, stats, pooled, call.bags, call.instances, tiles.count,
        **constants, B=call.branches, BB=group, KEYS=few, POOL=pools, BD=min(_POOLED, triton.next_power_of_2(call.dim)),
        **call.dot(_SCORE[call.precision], columns=call.width, depth=call.dim),
    )  # fmt: skip
    return raw, keys, poison, stats, pooled


def _mask(call: _Call, raw: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Write -inf to what is masked; returns what the random mask chose, and its raw scores."""
    t, k = call.tensors, call.spec.mask_k
    shape = (call.bags, call.branches, k)
    idx = torch.empty(shape, dtype=torch.int32, device=raw.device)
    scores = call.real(*shape)
    if 0 < k <= _SELECTED:
        tiles = call.tiles
        _launch(
            _select_kernel, (call.bags, call.branches), raw, tiles.ends, tiles.of_bag, keys,
            _counts(call.spec.mask_counts, raw.device), t.mask_seed, call.bag_ids, idx, scores,
            _word(2 * call.spec.mask_stream), call.instances, tiles.count,
            B=call.branches, K=k, KP=max(2, triton.next_power_of_2(k)), BN=INSTANCES, BLOCK=_NUMBERS, warps=8,
        )  # fmt: skip
    elif k:
        idx, scores = _masked_of_many(call, raw)
        _mask_places(call, raw, idx)
    if t.mask_idx is not None:
        _mask_places(call, raw, t.mask_idx.contiguous())
    return idx, scores


def _masked_of_many(call: _Call, raw: Tensor) -> tuple[Tensor, Tensor]:
    spec, seed, device = call.spec, call.tensors.mask_seed, raw.device
    k, length = spec.mask_k, call.ends.diff().long()
    ranked = segment_topk(raw.t(), call.ends, k).long()
    rank = torch.arange(k, device=device)
    count = torch.minimum(_counts(spec.mask_counts, device)[length.clamp_max(k)], length - 1)[:, None, None]
    branch = torch.arange(call.branches, device=device)[:, None]
    words = mask_words(seed, ranked, branch=branch, bag_id=call.bag_ids[:, None, None], stream=spec.mask_stream)
    lowest = words.masked_fill(ranked < 0, 2**32).sort(dim=2, stable=True).indices
    chosen = torch.where(rank < count, lowest, k).sort(dim=2).values
    idx = ranked.gather(2, chosen.clamp_max(k - 1)).masked_fill(chosen == k, -1)
    place = (call.ends[:-1, None, None] + idx.clamp_min(0)).clamp_max(call.instances - 1)
    return idx.to(torch.int32), raw[branch, place].masked_fill(idx < 0, -math.inf)


def _mask_places(call: _Call, scores: Tensor, idx: Tensor) -> None:
    if idx.shape[2]:
        grid = (call.bags, call.branches)
        _launch(
            _mask_kernel,
            grid,
            idx,
            call.ends,
            scores,
            call.instances,
            idx.shape[2],
            B=call.branches,
            BLOCK=128,
            warps=4,
        )


def _stats(call: _Call, scores: Tensor, poison: Tensor, partial: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and entropy."""
    tiles = call.tiles
    _launch(
        _tile_stats_kernel, (tiles.count, call.branches), scores, tiles.ends, tiles.bag, tiles.first, partial,
        call.bags, call.instances, BN=INSTANCES, warps=4,
    )  # fmt: skip
    lse, entropy = call.real(call.bags, call.branches), call.real(call.bags, call.branches)
    _launch(
        _stats_kernel, (call.bags, call.branches), partial, poison, tiles.of_bag, lse, entropy, tiles.count,
        BLOCK=_NUMBERS, warps=4,
    )  # fmt: skip
    return lse, entropy


def _repair(call: _Call, scores: Tensor, idx: Tensor | None, stats: Tensor, pooled: Tensor) -> None:
    """Write stats and sums of the tiles that hold a masked instance again."""
    if idx is None or idx.shape[2] == 0:
        return
    features, size = min(64, triton.next_power_of_2(call.dim)), idx.shape[2]
    _launch(
        repair_kernel, (call.bags * size, call.branches, triton.cdiv(call.dim, features)), call.h, call.h.stride(0),
        call.rows, scores, idx.contiguous(), call.ends, call.tiles.of_bag, stats, pooled, size, call.instances,
        call.tiles.count, B=call.branches, D=call.dim, BN=INSTANCES, BD=features, ROWS=call.tensors.rows is not None,
        BLOCK=128, warps=4,
    )  # fmt: skip


def _combined(call: _Call, poison: Tensor, stats: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled instances, log-sum-exp and entropy."""
    shape = (call.bags, call.branches)
    z, lse, entropy = call.real(*shape, call.dim), call.real(*shape), call.real(*shape)
    features = min(32, triton.next_power_of_2(call.dim))
    _launch(
        combine_kernel, (*shape, triton.cdiv(call.dim, features)), stats, poison, pooled, call.tiles.of_bag, lse,
        entropy, z, call.tiles.count, B=call.branches, D=call.dim, BD=features, TILES=128, BLOCK=_NUMBERS, warps=8,
    )  # fmt: skip
    return z, lse, entropy


def _pooled(call: _Call, scores: Tensor, lse: Tensor) -> Tensor:
    tiles = call.tiles
    partial = call.real(tiles.count, call.branches, call.dim)
    features = min(64, triton.next_power_of_2(call.dim))
    _launch(
        _pool_kernel, (tiles.count, triton.cdiv(call.dim, features)), call.h, call.h.stride(0), call.rows, scores, lse,
        tiles.ends, tiles.bag, tiles.first, partial, call.bags, call.instances,
        B=call.branches, D=call.dim, BN=INSTANCES, BD=features, ROWS=call.tensors.rows is not None, warps=4,
    )  # fmt: skip
    return _sums(call, partial)


def _gram(call: _Call, scores: Tensor, lse: Tensor) -> Tensor:
    tiles, branches = call.tiles, call.branches
    partial = call.real(tiles.count, branches, branches)
    _launch(
        _gram_kernel, (tiles.count,), scores, lse, tiles.ends, tiles.bag, tiles.first, partial, call.bags,
        call.instances, B=branches, BB=triton.next_power_of_2(branches), BN=INSTANCES, warps=4,
    )  # fmt: skip
    return _sums(call, partial)


def _sums(call: _Call, partial: Tensor) -> Tensor:
    """Of the tiles of each bag, in their order."""
    result = call.real(call.bags, *partial.shape[1:])
    width = partial[0].numel()
    columns = min(64, triton.next_power_of_2(width))
    grid = (call.bags, triton.cdiv(width, columns))
    _launch(_sum_kernel, grid, partial, call.tiles.of_bag, result, width, BLOCK=16, BW=columns, warps=4)
    return result


def _backward(call: _Call, g: PoolCotangents, saved: PoolForward, need: Mapping[str, bool]) -> PoolGradients:
    t, width = call.tensors, call.width
    slope = _slopes(call, g, saved)
    to_matrix = need["w_v"] or need["w_u"]
    to_weights = any(asked for name, asked in need.items() if name != "h")
    h_grad = _h_gradient_like(t) if need["h"] else None
    matrix = slope.new_zeros(width, call.dim)
    bias, score = slope.new_zeros(width), slope.new_zeros(call.branches, call.length)
    chunk = min(CHUNK, call.instances)
    inner = torch.empty(chunk, width, dtype=call.h.dtype, device=slope.device)
    for begin in range(0, call.instances, chunk):
        end = min(begin + chunk, call.instances)
        whole = end - begin == call.instances
        tiles = call.tiles if whole else call.tiles_of(call.ends.clamp(begin, end), end - begin)
        sums = _gate_gradients(call, tiles, slope, inner, begin, to_weights=to_weights)
        if to_weights:
            bias += sums[0].sum(dim=0)
            score += sums[1].sum(dim=0)
        if to_matrix:
            x = call.h[begin:end] if t.rows is None else call.h.index_select(0, t.rows[begin:end])
            _add_product(matrix, inner[: end - begin], x)
        if h_grad is not None:
            _write_h_gradient(call, tiles, g, saved, inner, h_grad, begin)
    step = 2 if call.gated else 1

    def part(asked: bool, whole: Tensor, like: Tensor | None) -> Tensor | None:
        return None if like is None or not asked else whole.to(like.dtype).contiguous()

    return PoolGradients(
        h=h_grad,
        w_v=part(need["w_v"], matrix[::step], t.w_v),
        b_v=part(need["b_v"], bias[::step], t.b_v),
        w_u=part(need["w_u"], matrix[1::step], t.w_u),
        b_u=part(need["b_u"], bias[1::step], t.b_u),
        w=part(need["w"], score, t.w),
        c=part(need["c"], slope.sum(dim=1), t.c),
    )


def _h_gradient_like(tensors: PoolTensors) -> Tensor:
    make = torch.empty_like if tensors.rows is None else torch.zeros_like
    return make(tensors.h, memory_format=torch.contiguous_format)


def _slopes(call: _Call, g: PoolCotangents, saved: PoolForward) -> Tensor:
    """Gradient of the raw scores, [B, I]; where masked exactly 0, but for what they were themselves asked for.

    What is subtracted is the mean of the very numbers that it is subtracted from: a bag of which one instance is left has a
    gradient of exactly 0, which an optimizer such as Adam would tell from a rounding error.
    """
    tiles = call.tiles
    both = saved.gram if g.gram is None else (g.gram + g.gram.transpose(1, 2)).contiguous()
    slope, partial = call.real(call.branches, call.instances), call.real(tiles.count, call.branches)
    group = min(_BRANCHES, triton.next_power_of_2(call.branches))
    grid = (tiles.count, triton.cdiv(call.branches, group))
    _launch(
        _rise_kernel, grid, call.h, call.h.stride(0), call.rows, saved.scores, saved.lse, _given(g.z, slope),
        _given(g.entropy, slope), both, tiles.ends, tiles.bag, tiles.first, slope, partial, call.bags, call.instances,
        B=call.branches, BB=group, D=call.dim, BN=INSTANCES, BD=min(32, triton.next_power_of_2(call.dim)),
        ROWS=call.tensors.rows is not None, Z=g.z is not None, ENTROPY=g.entropy is not None, GRAM=g.gram is not None,
        warps=4,
    )  # fmt: skip
    mean = _sums(call, partial)
    _launch(
        _slope_kernel, grid, saved.scores, saved.lse, mean, _given(g.lse, slope), _given(g.scores, slope),
        _given(g.raw, slope), tiles.ends, tiles.bag, tiles.first, slope, call.bags, call.instances,
        B=call.branches, BB=group, BN=INSTANCES, LSE=g.lse is not None, SCORES=g.scores is not None, RAW=g.raw is not None,
        warps=4,
    )  # fmt: skip
    return slope


def _given(cotangent: Tensor | None, other: Tensor) -> Tensor:
    return other if cotangent is None else cotangent.contiguous()


def _gate_gradients(
    call: _Call, tiles: _Tiles, slope: Tensor, inner: Tensor, begin: int, *, to_weights: bool
) -> tuple[Tensor, Tensor]:
    """Write the gradient of what goes into the activations to `inner` [n, width]; returns sums of tiles for biases and w."""
    count = tiles.count if to_weights else 0
    sums = slope.new_zeros(count, call.width), slope.new_zeros(count, call.branches, call.length)
    args, constants = call.gates()
    _launch(
        _gate_gradient_kernel, (tiles.count,), *args, call.w, slope, call.ends, tiles.ends, tiles.bag, tiles.first,
        inner, *sums, begin, call.bags, call.instances, **constants, B=call.branches, SUMS=to_weights,
        **call.dot(_GRADIENT[call.precision], columns=call.width, depth=call.dim),
    )  # fmt: skip
    return sums


def _add_product(matrix: Tensor, inner: Tensor, x: Tensor) -> None:
    """Add `inner.T @ x`, summed in float32."""
    if x.dtype == matrix.dtype:
        matrix.addmm_(inner.t(), x)
    elif x.is_cuda and _HAS_OUT_DTYPE:
        matrix += torch.mm(inner.t(), x, out_dtype=torch.float32)
    else:
        matrix.addmm_(inner.t().float(), x.float())


def _write_h_gradient(
    call: _Call, tiles: _Tiles, g: PoolCotangents, saved: PoolForward, inner: Tensor, h_grad: Tensor, begin: int
) -> None:
    constants = call.dot(_PRODUCT[call.precision], columns=call.dim, depth=call.width)
    _launch(
        _h_gradient_kernel, (tiles.count, triton.cdiv(call.dim, constants["BC"])), inner, call.weight, saved.scores,
        saved.lse, _given(g.z, saved.lse), call.rows, tiles.ends, tiles.bag, tiles.first, h_grad, begin, call.bags,
        call.instances, B=call.branches, D=call.dim, WIDTH=call.width, BN=INSTANCES, Z=g.z is not None,
        ROWS=call.tensors.rows is not None, **constants,
    )  # fmt: skip


@triton.jit(do_not_specialize=["bags", "count"])
def _map_kernel(
    ends: tl.tensor, tile_bag: tl.tensor, tile_first: tl.tensor, of_bag: tl.tensor, bags: tl.tensor, count: tl.tensor,
    BN: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Program n writes the tiles of bag n; one more writes the surplus."""
    bag = tl.program_id(0)
    before = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, bag, BLOCK):
        other = begin + tl.arange(0, BLOCK)
        length = tl.load(ends + other + 1, mask=other < bag, other=0) - tl.load(ends + other, mask=other < bag, other=0)
        before += (length + BN - 1) // BN
    offset = tl.sum(before, 0)
    tl.store(of_bag + bag, offset)
    first = tl.load(ends + bag)
    last = tl.load(ends + tl.minimum(bag + 1, bags))
    own = tl.where(bag < bags, (last - first + BN - 1) // BN, count - offset)
    for begin in range(0, own, BLOCK):
        tile = begin + tl.arange(0, BLOCK)
        tl.store(tile_bag + offset + tile, tl.zeros([BLOCK], tl.int32) + bag, mask=tile < own)
        tl.store(tile_first + offset + tile, first + tile * BN, mask=tile < own)


@triton.jit
def _keys(s: tl.tensor, place: tl.tensor) -> tl.tensor:
    """Of which no two are equal: by score, then the first; -0 equals 0, NaN is above all."""
    bits = tl.where(s == 0, 0.0, s).to(tl.int32, bitcast=True)
    bits = tl.where(s != s, 0x7FC00000, bits)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 31) | (_LAST - place.to(tl.int64))


@triton.jit
def _tanh(x: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    if FAST:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:  # noqa: RET505  # a branch of compilation
        return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _sigmoid(x: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    if FAST:
        return 0.5 * _tanh(0.5 * x, FAST) + 0.5
    else:  # noqa: RET505
        return 1 / (1 + tl.exp(-x))


@triton.jit
def _activated(x: tl.tensor, ACTIVATION: tl.constexpr, FAST: tl.constexpr) -> tl.tensor:
    if ACTIVATION == "tanh":
        return _tanh(x, FAST)
    elif ACTIVATION == "relu":  # noqa: RET505
        return tl.where(x < 0, 0.0, x)  # a maximum would drop NaN
    else:
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _activation_slope(x: tl.tensor, shown: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    if ACTIVATION == "tanh":
        return 1 - shown * shown
    elif ACTIVATION == "relu":  # noqa: RET505
        return tl.where(x > 0, 1.0, 0.0)
    else:
        return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def _factors_in(
    lines: tl.tensor, valid: tl.tensor, weight: tl.tensor, bias: tl.tensor, columns: tl.tensor,
    D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, GATED: tl.constexpr,
    DOT: tl.constexpr, UPCAST: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """What goes into both activations, h @ weight.T + bias, [BN, BL] each; without a gate twice the same."""
    acc = tl.zeros([BN, BC], tl.float32)
    for k in range(0, D, BK):
        feature = k + tl.arange(0, BK)
        # Rows beyond the tile may hold anything: they are taken for 0.
        if D % BK == 0:
            a = tl.load(lines[:, None] + feature[None, :], mask=valid[:, None], other=0)
        else:
            a = tl.load(lines[:, None] + feature[None, :], mask=valid[:, None] & (feature < D)[None, :], other=0)
        place = weight + columns[None, :] * D + feature[:, None]
        if D % BK == 0 and WIDTH % BC == 0:
            b = tl.load(place)
        else:
            b = tl.load(place, mask=(columns < WIDTH)[None, :] & (feature < D)[:, None], other=0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=DOT)
    acc += tl.load(bias + columns, mask=columns < WIDTH, other=0)[None, :]
    if GATED:
        return tl.split(tl.reshape(acc, (BN, BC // 2, 2)))
    else:  # noqa: RET505
        return acc, acc


@triton.jit
def _kept(
    seed: tl.tensor, place: tl.tensor, begin: tl.tensor, bag_id: tl.tensor, stream: tl.tensor,
    DROP: tl.constexpr, BITS: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """What both factors are multiplied by, 0 or 1 / (1 - p); draws lie in words as on every backend."""
    GROUPS: tl.constexpr = BL * BITS // 64
    zero = tl.zeros([BN, GROUPS], tl.uint32)
    c0 = zero + place.to(tl.uint32)[:, None]
    c1 = zero + (begin * BITS // 64 + tl.arange(0, GROUPS)).to(tl.uint32)[None, :]
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, zero + bag_id.to(tl.uint32), zero + stream.to(tl.uint32))
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BN, GROUPS * 4))
    shifts = (tl.arange(0, 16 // BITS) * (2 * BITS)).to(tl.uint32)
    pairs = tl.reshape(words[:, :, None] >> shifts[None, None, :], (BN, BL))
    scale = 65536 / (65536 - DROP)
    LEVEL: tl.constexpr = DROP >> (16 - BITS)
    MASK: tl.constexpr = (1 << BITS) - 1
    return tl.where((pairs & MASK) >= LEVEL, scale, 0.0), tl.where(((pairs >> BITS) & MASK) >= LEVEL, scale, 0.0)


@triton.jit
def _weights(left: tl.tensor, lse: tl.tensor) -> tl.tensor:
    return tl.exp(left - tl.where(lse == float("-inf"), 0.0, lse))


@triton.jit(do_not_specialize=["stream", "bags", "instances", "count"])
def _score_kernel(
    h: tl.tensor, stride: tl.tensor, rows: tl.tensor, weight: tl.tensor, bias: tl.tensor, seed: tl.tensor,
    bag_ids: tl.tensor, stream: tl.tensor, w: tl.tensor, c: tl.tensor, ends: tl.tensor, tile_bag: tl.tensor,
    tile_first: tl.tensor, raw: tl.tensor, keys: tl.tensor, poison: tl.tensor, stats: tl.tensor, pooled: tl.tensor,
    bags: tl.tensor, instances: tl.tensor, count: tl.tensor,
    D: tl.constexpr, L: tl.constexpr, B: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    BK: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, FAST: tl.constexpr, DROP: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, POOL: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr, UPCAST: tl.constexpr,
) -> None:  # fmt: skip
    """s = (activation(h V + b) * sigmoid(h U + b)) @ w + c of one tile and up to 8 branches."""
    tile = tl.program_id(0)
    bag = tl.load(tile_bag + tile)
    if bag >= bags:
        return
    begin, end = tl.load(ends + bag), tl.load(ends + bag + 1)
    instance = tl.load(tile_first + tile) + tl.arange(0, BN)
    valid = instance < end
    line = instance
    if ROWS:
        line = tl.load(rows + instance, mask=valid, other=0)
    lines = h + line.to(tl.int64) * stride
    SIDES: tl.constexpr = 2 if GATED else 1
    BL: tl.constexpr = BC // SIDES
    branches = tl.program_id(1) * BB + tl.arange(0, BB)
    own = tl.minimum(B - tl.program_id(1) * BB, BB)
    s = tl.zeros([BN, BB], tl.float32)
    for first in range(0, L, BL):
        columns = first * SIDES + tl.arange(0, BC)
        to_value, to_gate = _factors_in(
            lines, valid, weight, bias, columns, D, L * SIDES, BN, BC, BK, GATED, DOT, UPCAST
        )
        product = _activated(to_value, ACTIVATION, FAST)
        if GATED:
            product *= _sigmoid(to_gate, FAST)
        if DROP:
            kept = _kept(tl.load(seed), instance - begin, first, tl.load(bag_ids + bag), stream, DROP, BITS, BN, BL)
            product *= kept[0]
            if GATED:
                product *= kept[1]
        unit = first + tl.arange(0, BL)
        for b in range(own):  # unrolled, it would spill
            w_b = tl.load(w + (tl.program_id(1) * BB + b) * L + unit, mask=unit < L, other=0)
            s = tl.where((tl.arange(0, BB) == b)[None, :], s + tl.sum(product * w_b[None, :], 1)[:, None], s)
    there = branches < B
    s += tl.load(c + branches, mask=there, other=0)[None, :]
    tl.store(
        raw + branches.to(tl.int64)[None, :] * instances + instance[:, None], s, mask=valid[:, None] & there[None, :]
    )
    place = branches * count + tile
    tl.store(poison + place, tl.sum(tl.where(valid[:, None], s * 0, 0.0), 0), mask=there)
    if KEYS:
        key = tl.where(valid[:, None], _keys(s, (instance - begin)[:, None]), _LOWEST)
        tl.store(keys + place, tl.max(key, 0), mask=there)
    if POOL:
        out = pooled + (tile.to(tl.int64) * B + tl.program_id(1) * BB) * D
        pool_tile(lines, valid, s, out, stats + place, B * count, own, D, BB, BD)


@triton.jit(do_not_specialize=["stream", "instances", "count"])
def _select_kernel(
    raw: tl.tensor, ends: tl.tensor, of_bag: tl.tensor, tile_keys: tl.tensor, counts: tl.tensor, seed: tl.tensor,
    bag_ids: tl.tensor, masked_idx: tl.tensor, masked_scores: tl.tensor, stream: tl.tensor, instances: tl.tensor,
    count: tl.tensor,
    B: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Mask some of the K highest scores of one bag and branch, which all lie in the K tiles with the highest maxima."""
    bag, branch = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(ends + bag), tl.load(ends + bag + 1)
    n = end - begin
    tiles_begin, tiles_end = tl.load(of_bag + bag), tl.load(of_bag + bag + 1)
    slot = tl.arange(0, KP)
    highest = tl.full([KP], _LOWEST, tl.int64)
    last = tl.full([], _HIGHEST, tl.int64)
    # Keys differ, so that the next one is the highest below the last one, and nothing has to be struck out.
    for j in range(K):
        best = tl.full([BLOCK], _LOWEST, tl.int64)
        for first in range(tiles_begin, tiles_end, BLOCK):
            tile = first + tl.arange(0, BLOCK)
            key = tl.load(tile_keys + branch * count + tile, mask=tile < tiles_end, other=_LOWEST)
            best = tl.maximum(best, tl.where(key < last, key, _LOWEST))
        last = tl.max(best, 0)
        highest = tl.where(slot == j, last, highest)
    found = highest > _LOWEST
    tile = tl.where(found, (_LAST - (highest & _LAST)) // BN, 0)
    place = tile[:, None] * BN + tl.arange(0, BN)[None, :]
    valid = found[:, None] & (place < n)
    line = raw + branch.to(tl.int64) * instances + begin
    keys = tl.where(valid, _keys(tl.load(line + place, mask=valid, other=0), place), _LOWEST)
    chosen = tl.full([KP], _LOWEST, tl.int64)
    last = tl.full([], _HIGHEST, tl.int64)
    for j in range(K):
        last = tl.max(tl.max(tl.where(keys < last, keys, _LOWEST), 1), 0)
        chosen = tl.where(slot == j, last, chosen)
    ranks = tl.minimum(n, K)
    ranked = slot < ranks
    instance = tl.where(ranked, _LAST - (chosen & _LAST), 0)
    zero = tl.zeros([KP], tl.uint32)
    word, _, _, _ = tl.philox(
        tl.load(seed), instance.to(tl.uint32), zero + branch.to(tl.uint32),
        zero + tl.load(bag_ids + bag).to(tl.uint32), zero + stream.to(tl.uint32),
    )  # fmt: skip
    order = tl.where(ranked, word.to(tl.int64) * KP + slot, _HIGHEST)
    before = tl.sum((order[None, :] < order[:, None]).to(tl.int32), 1)
    masked = ranked & (before < tl.minimum(tl.load(counts + ranks), n - 1))
    place = tl.cumsum(masked.to(tl.int32), 0) - masked.to(tl.int32)
    rest = (slot >= tl.sum(masked.to(tl.int32), 0)) & (slot < K)
    value = tl.load(line + instance, mask=masked, other=0)
    out = (bag * B + branch).to(tl.int64) * K
    tl.store(masked_idx + out + place, instance.to(tl.int32), mask=masked)
    tl.store(masked_idx + out + slot, tl.full([KP], -1, tl.int32), mask=rest)
    tl.store(masked_scores + out + place, value, mask=masked)
    tl.store(masked_scores + out + slot, tl.full([KP], float("-inf"), tl.float32), mask=rest)
    # Another thread may hold the same instance, and must have read its score.
    tl.debug_barrier()
    tl.store(line + instance, tl.full([KP], float("-inf"), tl.float32), mask=masked)


@triton.jit(do_not_specialize=["instances", "size"])
def _mask_kernel(
    idx: tl.tensor, ends: tl.tensor, scores: tl.tensor, instances: tl.tensor, size: tl.tensor,
    B: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Write -inf at places of one bag and branch; what lies outside of the bag is passed over."""
    bag, branch = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(ends + bag), tl.load(ends + bag + 1)
    for first in range(0, size, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        place = tl.load(idx + (bag * B + branch).to(tl.int64) * size + slot, mask=slot < size, other=-1)
        inside = (place >= 0) & (place < end - begin)
        tl.store(
            scores + branch.to(tl.int64) * instances + begin + place,
            tl.full([BLOCK], float("-inf"), tl.float32),
            mask=inside,
        )


@triton.jit(do_not_specialize=["bags", "instances"])
def _tile_stats_kernel(
    scores: tl.tensor, ends: tl.tensor, tile_bag: tl.tensor, tile_first: tl.tensor, partial: tl.tensor,
    bags: tl.tensor, instances: tl.tensor,
    BN: tl.constexpr,
) -> None:  # fmt: skip
    """m, l and e of one tile and branch, see `tile_powers`, to partial [3, B, tiles]."""
    tile, branch = tl.program_id(0), tl.program_id(1)
    count, branches = tl.num_programs(0), tl.num_programs(1)
    bag = tl.load(tile_bag + tile)
    if bag >= bags:
        return
    instance = tl.load(tile_first + tile) + tl.arange(0, BN)
    valid = instance < tl.load(ends + bag + 1)
    s = tl.load(scores + branch.to(tl.int64) * instances + instance, mask=valid, other=float("-inf"))
    _, m, total, mean = tile_powers(s)
    out = partial + branch * count + tile
    tl.store(out, m)
    tl.store(out + branches * count, total)
    tl.store(out + 2 * branches * count, mean)


@triton.jit(do_not_specialize=["count"])
def _stats_kernel(
    partial: tl.tensor, poison: tl.tensor, of_bag: tl.tensor, lse: tl.tensor, entropy: tl.tensor, count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Log-sum-exp and entropy of one bag and branch."""
    bag, branch = tl.program_id(0), tl.program_id(1)
    branches = tl.num_programs(1)
    begin, end = tl.load(of_bag + bag), tl.load(of_bag + bag + 1)
    largest, total, mean = bag_totals(partial + branch * count, branches * count, begin, end, BLOCK)
    poisoned = bag_poison(poison + branch * count, begin, end, BLOCK)
    own_lse, own_entropy, _ = bag_stats(largest, total, mean, poisoned)
    out = bag * branches + branch
    tl.store(lse + out, own_lse)
    tl.store(entropy + out, own_entropy)


@triton.jit(do_not_specialize=["bags", "instances"])
def _pool_kernel(
    h: tl.tensor, stride: tl.tensor, rows: tl.tensor, scores: tl.tensor, lse: tl.tensor, ends: tl.tensor,
    tile_bag: tl.tensor, tile_first: tl.tensor, partial: tl.tensor, bags: tl.tensor, instances: tl.tensor,
    B: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """partial[tile, b] = sum of exp(s_b - lse_b) h over one tile, for some features."""
    tile = tl.program_id(0)
    bag = tl.load(tile_bag + tile)
    if bag >= bags:
        return
    instance = tl.load(tile_first + tile) + tl.arange(0, BN)
    valid = instance < tl.load(ends + bag + 1)
    line = instance
    if ROWS:
        line = tl.load(rows + instance, mask=valid, other=0)
    feature = tl.program_id(1) * BD + tl.arange(0, BD)
    place = h + line.to(tl.int64)[:, None] * stride + feature[None, :]
    x = tl.load(place, mask=valid[:, None] & (feature < D)[None, :], other=0).to(tl.float32)
    for b in range(B):
        row = scores + tl.full([], b, tl.int64) * instances
        left = tl.load(row + instance, mask=valid, other=float("-inf"))
        weight = _weights(left, tl.load(lse + bag * B + b))
        out = partial + (tile.to(tl.int64) * B + b) * D + feature
        tl.store(out, tl.sum(weight[:, None] * x, 0), mask=feature < D)


@triton.jit(do_not_specialize=["bags", "instances"])
def _gram_kernel(
    scores: tl.tensor, lse: tl.tensor, ends: tl.tensor, tile_bag: tl.tensor, tile_first: tl.tensor, partial: tl.tensor,
    bags: tl.tensor, instances: tl.tensor,
    B: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr,
) -> None:  # fmt: skip
    """partial[tile, b, b'] = sum of A_b A_b' over one tile."""
    tile = tl.program_id(0)
    bag = tl.load(tile_bag + tile)
    if bag >= bags:
        return
    instance = tl.load(tile_first + tile) + tl.arange(0, BN)
    valid = instance < tl.load(ends + bag + 1)
    branch = tl.arange(0, BB)
    there = branch < B
    place = scores + branch.to(tl.int64)[None, :] * instances + instance[:, None]
    left = tl.load(place, mask=valid[:, None] & there[None, :], other=float("-inf"))
    weights = _weights(left, tl.load(lse + bag * B + branch, mask=there, other=0)[None, :])  # [BN, BB]
    for b in range(B):
        row = scores + tl.full([], b, tl.int64) * instances
        own = _weights(tl.load(row + instance, mask=valid, other=float("-inf")), tl.load(lse + bag * B + b))
        tl.store(partial + (tile.to(tl.int64) * B + b) * B + branch, tl.sum(own[:, None] * weights, 0), mask=there)


@triton.jit(do_not_specialize=["width"])
def _sum_kernel(
    partial: tl.tensor, of_bag: tl.tensor, result: tl.tensor, width: tl.tensor,
    BLOCK: tl.constexpr, BW: tl.constexpr,
) -> None:  # fmt: skip
    """result[bag] = sum of partial[tile] over its tiles, in their order, for some columns."""
    bag = tl.program_id(0)
    begin, end = tl.load(of_bag + bag), tl.load(of_bag + bag + 1)
    column = tl.program_id(1) * BW + tl.arange(0, BW)
    total = tl.zeros([BLOCK, BW], tl.float32)
    for first in range(begin, end, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        place = partial + tile.to(tl.int64)[:, None] * width + column[None, :]
        total += tl.load(place, mask=(tile < end)[:, None] & (column < width)[None, :], other=0)
    tl.store(result + bag.to(tl.int64) * width + column, tl.sum(total, 0), mask=column < width)


@triton.jit(do_not_specialize=["bags", "instances"])
def _rise_kernel(
    h: tl.tensor, stride: tl.tensor, rows: tl.tensor, scores: tl.tensor, lse: tl.tensor, g_z: tl.tensor,
    g_entropy: tl.tensor, both: tl.tensor, ends: tl.tensor, tile_bag: tl.tensor, tile_first: tl.tensor, rise: tl.tensor,
    partial: tl.tensor, bags: tl.tensor, instances: tl.tensor,
    B: tl.constexpr, BB: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
    Z: tl.constexpr, ENTROPY: tl.constexpr, GRAM: tl.constexpr,
) -> None:  # fmt: skip
    """dA_b = g_b . h - gH_b log A_b + sum_b' both_bb' A_b', up to a constant, and the sum of A_b dA_b over one tile."""
    tile = tl.program_id(0)
    bag = tl.load(tile_bag + tile)
    if bag >= bags:
        return
    instance = tl.load(tile_first + tile) + tl.arange(0, BN)
    valid = instance < tl.load(ends + bag + 1)
    line = instance
    if ROWS:
        line = tl.load(rows + instance, mask=valid, other=0)
    lines = h + line.to(tl.int64) * stride
    branch = tl.program_id(1) * BB + tl.arange(0, BB)
    there = branch < B
    out = bag * B + branch
    value = tl.zeros([BN, BB], tl.float32)
    if Z:
        for first in range(0, D, BD):
            feature = first + tl.arange(0, BD)
            inside = valid[:, None] & (feature < D)[None, :]
            x = tl.load(lines[:, None] + feature[None, :], mask=inside, other=0).to(tl.float32)
            for b in tl.static_range(BB):
                own = tl.program_id(1) * BB + b
                g_place = g_z + (bag * B + own).to(tl.int64) * D + feature
                g = tl.load(g_place, mask=feature < tl.where(own < B, D, 0), other=0)
                value = tl.where((tl.arange(0, BB) == b)[None, :], value + tl.sum(x * g[None, :], 1)[:, None], value)
    inside = valid[:, None] & there[None, :]
    place = branch.to(tl.int64)[None, :] * instances + instance[:, None]
    left = tl.load(scores + place, mask=inside, other=float("-inf"))
    total = tl.load(lse + out, mask=there, other=0)[None, :]
    if ENTROPY:
        log = tl.where(left == float("-inf"), 0.0, left - total)
        value -= tl.load(g_entropy + out, mask=there, other=0)[None, :] * log
    if GRAM:
        for b in range(B):
            row = scores + tl.full([], b, tl.int64) * instances
            other = _weights(tl.load(row + instance, mask=valid, other=float("-inf")), tl.load(lse + bag * B + b))
            value += other[:, None] * tl.load(both + (bag * B + b) * B + branch, mask=there, other=0)[None, :]
    tl.store(rise + place, value, mask=inside)
    tl.store(partial + tile.to(tl.int64) * B + branch, tl.sum(_weights(left, total) * value, 0), mask=there)


@triton.jit(do_not_specialize=["bags", "instances"])
def _slope_kernel(
    scores: tl.tensor, lse: tl.tensor, mean: tl.tensor, g_lse: tl.tensor, g_scores: tl.tensor, g_raw: tl.tensor,
    ends: tl.tensor, tile_bag: tl.tensor, tile_first: tl.tensor, slope: tl.tensor, bags: tl.tensor, instances: tl.tensor,
    B: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, LSE: tl.constexpr, SCORES: tl.constexpr, RAW: tl.constexpr,
) -> None:  # fmt: skip
    """In place of dA_b, ds_b = A_b (dA_b - sum A_b dA_b + gL_b) + gs_b, 0 where masked, + gr_b."""
    tile = tl.program_id(0)
    bag = tl.load(tile_bag + tile)
    if bag >= bags:
        return
    instance = tl.load(tile_first + tile) + tl.arange(0, BN)
    branch = tl.program_id(1) * BB + tl.arange(0, BB)
    there = branch < B
    inside = (instance < tl.load(ends + bag + 1))[:, None] & there[None, :]
    place = branch.to(tl.int64)[None, :] * instances + instance[:, None]
    out = bag * B + branch
    left = tl.load(scores + place, mask=inside, other=float("-inf"))
    value = tl.load(slope + place, mask=inside, other=0) - tl.load(mean + out, mask=there, other=0)[None, :]
    if LSE:
        value += tl.load(g_lse + out, mask=there, other=0)[None, :]
    value *= _weights(left, tl.load(lse + out, mask=there, other=0)[None, :])
    if SCORES:
        value += tl.load(g_scores + place, mask=inside, other=0)
    value = tl.where(left == float("-inf"), 0.0, value)
    if RAW:
        value += tl.load(g_raw + place, mask=inside, other=0)
    tl.store(slope + place, value, mask=inside)


@triton.jit(do_not_specialize=["stream", "begin", "bags", "instances"])
def _gate_gradient_kernel(
    h: tl.tensor, stride: tl.tensor, rows: tl.tensor, weight: tl.tensor, bias: tl.tensor, seed: tl.tensor,
    bag_ids: tl.tensor, stream: tl.tensor, w: tl.tensor, slope: tl.tensor, bag_ends: tl.tensor, ends: tl.tensor,
    tile_bag: tl.tensor, tile_first: tl.tensor, inner: tl.tensor, bias_sums: tl.tensor, w_sums: tl.tensor,
    begin: tl.tensor, bags: tl.tensor, instances: tl.tensor,
    D: tl.constexpr, L: tl.constexpr, B: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, FAST: tl.constexpr, DROP: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    SUMS: tl.constexpr, DOT: tl.constexpr, UPCAST: tl.constexpr,
) -> None:  # fmt: skip
    """d value = r q act', d gate = r t q (1 - q) with r = ds @ w, and sums over one tile for the biases and w."""
    tile = tl.program_id(0)
    bag = tl.load(tile_bag + tile)
    if bag >= bags:
        return
    instance = tl.load(tile_first + tile) + tl.arange(0, BN)
    valid = instance < tl.load(ends + bag + 1)
    line = instance
    if ROWS:
        line = tl.load(rows + instance, mask=valid, other=0)
    lines = h + line.to(tl.int64) * stride
    SIDES: tl.constexpr = 2 if GATED else 1
    BL: tl.constexpr = BC // SIDES
    for first in range(0, L, BL):
        columns = first * SIDES + tl.arange(0, BC)
        to_value, to_gate = _factors_in(
            lines, valid, weight, bias, columns, D, L * SIDES, BN, BC, BK, GATED, DOT, UPCAST
        )
        unit = first + tl.arange(0, BL)
        rise = tl.zeros([BN, BL], tl.float32)
        for b in range(B):
            ds = tl.load(slope + tl.full([], b, tl.int64) * instances + instance, mask=valid, other=0)
            rise += ds[:, None] * tl.load(w + b * L + unit, mask=unit < L, other=0)[None, :]
        value = _activated(to_value, ACTIVATION, FAST)
        to_value = rise * _activation_slope(to_value, value, ACTIVATION)
        if DROP:
            place = instance - tl.load(bag_ends + bag)
            kept = _kept(tl.load(seed), place, first, tl.load(bag_ids + bag), stream, DROP, BITS, BN, BL)
            value *= kept[0]
            to_value *= kept[0]
        product = value
        grown = to_value
        if GATED:
            gate = _sigmoid(to_gate, FAST)
            to_gate = rise * value * gate * (1 - gate)
            if DROP:
                to_gate *= kept[1]
                gate *= kept[1]
            product = value * gate
            grown = tl.reshape(tl.join(to_value * gate, to_gate), (BN, BC))
        out = inner + (instance - begin).to(tl.int64)[:, None] * (L * SIDES) + columns[None, :]
        tl.store(out, grown.to(inner.dtype.element_ty), mask=valid[:, None] & (columns < L * SIDES)[None, :])
        if SUMS:
            sums = bias_sums + tile.to(tl.int64) * (L * SIDES) + columns
            tl.store(sums, tl.sum(tl.where(valid[:, None], grown, 0.0), 0), mask=columns < L * SIDES)
            for b in range(B):
                ds = tl.load(slope + tl.full([], b, tl.int64) * instances + instance, mask=valid, other=0)
                place_w = w_sums + (tile.to(tl.int64) * B + b) * L + unit
                tl.store(place_w, tl.sum(ds[:, None] * product, 0), mask=unit < L)


@triton.jit(do_not_specialize=["begin", "bags", "instances"])
def _h_gradient_kernel(
    inner: tl.tensor, weight: tl.tensor, scores: tl.tensor, lse: tl.tensor, g_z: tl.tensor, rows: tl.tensor,
    ends: tl.tensor, tile_bag: tl.tensor, tile_first: tl.tensor, h_grad: tl.tensor, begin: tl.tensor, bags: tl.tensor,
    instances: tl.tensor,
    B: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    Z: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr, UPCAST: tl.constexpr,
) -> None:  # fmt: skip
    """dh = inner @ weight + sum_b A_b g_b of one tile and some features, rounded once."""
    tile = tl.program_id(0)
    bag = tl.load(tile_bag + tile)
    if bag >= bags:
        return
    instance = tl.load(tile_first + tile) + tl.arange(0, BN)
    valid = instance < tl.load(ends + bag + 1)
    feature = tl.program_id(1) * BC + tl.arange(0, BC)
    lines = inner + (instance - begin).to(tl.int64) * WIDTH
    acc = tl.zeros([BN, BC], tl.float32)
    for k in range(0, WIDTH, BK):
        column = k + tl.arange(0, BK)
        if WIDTH % BK == 0:
            a = tl.load(lines[:, None] + column[None, :], mask=valid[:, None], other=0)
        else:
            a = tl.load(lines[:, None] + column[None, :], mask=valid[:, None] & (column < WIDTH)[None, :], other=0)
        place = weight + column[:, None] * D + feature[None, :]
        if WIDTH % BK == 0 and D % BC == 0:
            b = tl.load(place)
        else:
            b = tl.load(place, mask=(column < WIDTH)[:, None] & (feature < D)[None, :], other=0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=DOT)
    if Z:
        for branch in range(B):
            row = scores + tl.full([], branch, tl.int64) * instances
            own = _weights(tl.load(row + instance, mask=valid, other=float("-inf")), tl.load(lse + bag * B + branch))
            g = tl.load(g_z + (bag * B + branch).to(tl.int64) * D + feature, mask=feature < D, other=0)
            acc += own[:, None] * g[None, :]
    line = instance
    if ROWS:
        line = tl.load(rows + instance, mask=valid, other=0)
    out = h_grad + line.to(tl.int64)[:, None] * D + feature[None, :]
    tl.store(out, acc.to(h_grad.dtype.element_ty), mask=valid[:, None] & (feature < D)[None, :])
