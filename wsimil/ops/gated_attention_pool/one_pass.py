"""Device code of pooling in one pass: what the kernel that scores adds, and repair and sum of what it wrote.

Each tile has a maximum of its own, to which its sums are relative. So a masked instance, however far above the others, takes
none of their precision: the tile that holds it is summed again, and all others are as they were. Nothing is subtracted.
"""
# ruff: noqa: N803  # constants of compilation are written in capitals, as in all Triton code

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_powers(s: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """exp(s - m), m = max s, l = sum exp(s - m) and e = sum exp(s - m) (s - m) over the first axis; -inf is nothing."""
    m = tl.max(s, 0)
    nothing = s == float("-inf")
    shifted = tl.where(nothing, 0.0, s - tl.where(m == float("-inf"), 0.0, m))
    power = tl.where(nothing, 0.0, tl.exp(shifted))
    return power, m, tl.sum(power, 0), tl.sum(power * shifted, 0)


@triton.jit
def pool_tile(
    lines: tl.tensor, valid: tl.tensor, s: tl.tensor, out: tl.tensor, stats: tl.tensor, size: tl.tensor,
    branches: tl.tensor, D: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr,
) -> None:  # fmt: skip
    """Write m, l and e of a tile to `stats` [BB], `size` apart, and sum exp(s - m) h to `out` [BB, D], of some branches."""
    left = tl.where(valid[:, None], s, float("-inf"))
    power, m, total, mean = tile_powers(left)
    branch = tl.arange(0, BB)
    tl.store(stats, m, mask=branch < branches)
    tl.store(stats + size, total, mask=branch < branches)
    tl.store(stats + 2 * size, mean, mask=branch < branches)
    for first in range(0, D, BD):
        feature = first + tl.arange(0, BD)
        inside = valid[:, None] & (feature < D)[None, :]
        x = tl.load(lines[:, None] + feature[None, :], mask=inside, other=0).to(tl.float32)
        for b in range(branches):
            weight = tl.sum(tl.where((branch == b)[None, :], power, 0.0), 1)
            tl.store(out + b * D + feature, tl.sum(weight[:, None] * x, 0), mask=feature < D)


@triton.jit
def bag_totals(
    stats: tl.tensor, size: tl.tensor, begin: tl.tensor, end: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """M = max m, l = sum c l_t and e = sum c (e_t + (m - M) l_t) over the tiles of a bag, with c = exp(m - M)."""
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(begin, end, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, tl.load(stats + tile, mask=tile < end, other=float("-inf")))
    largest = tl.max(highest, 0)
    total = tl.zeros([BLOCK], tl.float32)
    mean = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        m = tl.load(stats + tile, mask=tile < end, other=float("-inf"))
        own = tl.load(stats + size + tile, mask=tile < end, other=0)
        own_mean = tl.load(stats + 2 * size + tile, mask=tile < end, other=0)
        factor, shift = tile_factors(m, largest)
        total += factor * own
        mean += factor * (own_mean + shift * own)
    return largest, tl.sum(total, 0), tl.sum(mean, 0)


@triton.jit
def tile_factors(m: tl.tensor, largest: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """exp(m - M) and m - M; of a tile with nothing 0 and 0."""
    nothing = m == float("-inf")
    shift = tl.where(nothing, 0.0, m - largest)
    return tl.where(nothing, 0.0, tl.exp(shift)), shift


@triton.jit
def bag_poison(poison: tl.tensor, begin: tl.tensor, end: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """NaN where a tile of the bag says so, else 0."""
    bad = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        bad += tl.load(poison + tile, mask=tile < end, other=0)
    return tl.sum(bad, 0)


@triton.jit
def bag_stats(
    largest: tl.tensor, total: tl.tensor, mean: tl.tensor, poisoned: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Log-sum-exp, entropy, and 1 / l; of nothing -inf, 0 and 0."""
    nothing = total == 0
    safe = tl.where(nothing, 1.0, total)
    lse = tl.where(nothing, float("-inf"), largest + tl.log(safe)) + poisoned
    entropy = tl.where(nothing, 0.0, tl.log(safe) - mean / safe) + poisoned
    return lse, entropy, tl.where(nothing, 0.0, 1 / safe) + poisoned


@triton.jit(do_not_specialize=["size", "instances", "count"])
def repair_kernel(
    h: tl.tensor, stride: tl.tensor, rows: tl.tensor, scores: tl.tensor, idx: tl.tensor, ends: tl.tensor,
    of_bag: tl.tensor, stats: tl.tensor, pooled: tl.tensor, size: tl.tensor, instances: tl.tensor, count: tl.tensor,
    B: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Sum a tile of one branch again, for some features, where a place of `idx` [N, B, size] is its first that is masked."""
    bag, slot = tl.program_id(0) // size, tl.program_id(0) % size
    branch = tl.program_id(1)
    begin, end = tl.load(ends + bag), tl.load(ends + bag + 1)
    line = idx + (bag * B + branch).to(tl.int64) * size
    place = tl.load(line + slot)
    if (place < 0) | (place >= end - begin):
        return
    own = place // BN
    before = tl.zeros([BLOCK], tl.int32)
    for first in range(0, slot, BLOCK):
        other = first + tl.arange(0, BLOCK)
        earlier = tl.load(line + other, mask=other < slot, other=-1)
        before += ((earlier >= 0) & (earlier < end - begin) & (earlier // BN == own)).to(tl.int32)
    if tl.sum(before, 0) > 0:
        return
    tile = tl.load(of_bag + bag) + own
    instance = begin + own * BN + tl.arange(0, BN)
    valid = instance < end
    s = tl.load(scores + branch.to(tl.int64) * instances + instance, mask=valid, other=float("-inf"))
    power, m, total, mean = tile_powers(s)
    if tl.program_id(2) == 0:
        out = stats + branch * count + tile
        tl.store(out, m)
        tl.store(out + B * count, total)
        tl.store(out + 2 * B * count, mean)
    row = instance
    if ROWS:
        row = tl.load(rows + instance, mask=valid, other=0)
    feature = tl.program_id(2) * BD + tl.arange(0, BD)
    inside = valid[:, None] & (feature < D)[None, :]
    x = tl.load(h + row.to(tl.int64)[:, None] * stride + feature[None, :], mask=inside, other=0).to(tl.float32)
    summed = pooled + (tile.to(tl.int64) * B + branch) * D + feature
    tl.store(summed, tl.sum(power[:, None] * x, 0), mask=feature < D)


@triton.jit(do_not_specialize=["count"])
def combine_kernel(
    stats: tl.tensor, poison: tl.tensor, pooled: tl.tensor, of_bag: tl.tensor, lse: tl.tensor, entropy: tl.tensor,
    z: tl.tensor, count: tl.tensor,
    B: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """z = sum c acc_t / l of one bag and branch over its tiles, in their order, for some features; log-sum-exp and entropy."""
    bag, branch = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(of_bag + bag), tl.load(of_bag + bag + 1)
    line = stats + branch * count
    largest, total, mean = bag_totals(line, B * count, begin, end, BLOCK)
    poisoned = bag_poison(poison + branch * count, begin, end, BLOCK)
    own_lse, own_entropy, share = bag_stats(largest, total, mean, poisoned)
    feature = tl.program_id(2) * BD + tl.arange(0, BD)
    acc = tl.zeros([TILES, BD], tl.float32)
    for first in range(begin, end, TILES):
        tile = first + tl.arange(0, TILES)
        factor, _ = tile_factors(tl.load(line + tile, mask=tile < end, other=float("-inf")), largest)
        place = pooled + (tile.to(tl.int64)[:, None] * B + branch) * D + feature[None, :]
        acc += factor[:, None] * tl.load(place, mask=(tile < end)[:, None] & (feature < D)[None, :], other=0)
    out = bag * B + branch
    tl.store(z + out.to(tl.int64) * D + feature, tl.sum(acc, 0) * share, mask=feature < D)
    if tl.program_id(2) == 0:
        tl.store(lse + out, own_lse)
        tl.store(entropy + out, own_entropy)
