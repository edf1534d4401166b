"""The op in plain torch: chunks against the definition, the definition against one line of torch, and hostile bags."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wsimil.ops.gated_attention_pool import GateDropout, IndexMask, TopKMask, cpu, gated_attention_pool
from wsimil.ops.philox import philox
from wsimil.ops.varlen import cu_seqlens_of

NAMES = ("h", "w_v", "b_v", "w_u", "b_u", "w", "c")
SEED = torch.tensor([5])
PACK = (100, 37, 1, 65)
FROZEN = [
    [[0, 1, 4, 5, 6, 9], [2, 3, 7, 8, 10, 11], [0, 2, 3, 6, 8, 9]],
    [[1, 3, 5, 7, 8, 9], [1, 4, 6, 7, 9, 11], [1, 3, 8, 9, 10, 11]],
]
OUTPUTS = ("z", "lse", "entropy", "gram", "scores", "raw_scores")
BACKEND = os.environ.get("WSIMIL_TEST_BACKEND", "cpu")
WIDE = torch.float64 if BACKEND == "cpu" else torch.float32
"""The widest type that the backend has, in which it is held against the definition."""
MEMORY = ["keep", "recompute"] if BACKEND == "cpu" else ["recompute"]
PASSES = ["one", "two"] if BACKEND == "triton" else ["auto"]
by_kernels = pytest.mark.skipif(BACKEND != "triton", reason="of the Triton backend, which alone has two ways")
in_float64 = pytest.mark.skipif(BACKEND != "cpu", reason="in float64, which only the CPU backend has")


def bound(exact, single=2e-5):
    """Of an error, by the widest type that the backend has."""
    return exact if torch.float64 == WIDE else single


@dataclass(frozen=True, kw_only=True)
class Case:
    """Shapes and options of one call."""

    lengths: tuple[int, ...] = PACK
    dim: int = 37
    length: int = 19
    branches: int = 3
    gated: bool = True
    biases: bool = True
    rows: bool = False
    scale: float = 1.0
    options: dict = field(default_factory=dict)

    def tensors(self, dtype=torch.float64):
        """Leaves, the same numbers in every type."""
        generator = torch.Generator().manual_seed(1)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        count = sum(self.lengths) * (2 if self.rows else 1)
        found = {
            "h": normal(count, self.dim),
            "w_v": normal(self.length, self.dim) / 5,
            "b_v": normal(self.length) if self.biases else None,
            "w_u": normal(self.length, self.dim) / 5 if self.gated else None,
            "b_u": normal(self.length) if self.biases and self.gated else None,
            "w": normal(self.branches, self.length) * self.scale,
            "c": normal(self.branches) if self.biases else None,
        }
        return {name: None if x is None else x.to(dtype).requires_grad_() for name, x in found.items()}

    def index(self):
        """Which rows make the pack, every other one, from the last."""
        count = 2 * sum(self.lengths)
        return torch.arange(count - 1, 0, -2, dtype=torch.int32) if self.rows else None

    def run(self, tensors, **more):
        return gated_attention_pool(
            **tensors, cu_seqlens=cu_seqlens_of(self.lengths), rows=self.index(), entropy=True, gram=True, scores=True,
            raw_scores=True, **{"backend": BACKEND, **self.options, **more},
        )  # fmt: skip


def gradients(output, tensors):
    """Of all leaves, with all cotangents on at once."""
    generator = torch.Generator().manual_seed(2)
    total = 0.0
    for name in OUTPUTS:
        values = getattr(output, name)
        finite = values.masked_fill(values == -math.inf, 0)
        total = total + (finite * torch.randn(finite.shape, generator=generator, dtype=torch.float64)).sum()
    leaves = {name: x for name, x in tensors.items() if x is not None and x.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True))


def distance(got, wanted):
    """Relative, by Frobenius norms; -inf must be at the same places."""
    got, wanted = got.detach().double(), wanted.detach().double()
    assert got.shape == wanted.shape
    assert torch.equal(got == -math.inf, wanted == -math.inf)
    got, wanted = got.masked_fill(got == -math.inf, 0), wanted.masked_fill(wanted == -math.inf, 0)
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))


def compare(case, dtype, most, **more):
    tensors, exact = case.tensors(dtype), case.tensors()
    got, wanted = case.run(tensors, **more), case.run(exact, backend="reference")
    for name in OUTPUTS:
        assert distance(getattr(got, name), getattr(wanted, name)) < most, name
    for name in ("masked_idx", "top_idx", "bottom_idx"):
        assert (getattr(got, name) is None) == (getattr(wanted, name) is None)
        assert getattr(got, name) is None or torch.equal(getattr(got, name), getattr(wanted, name)), name
    ours, theirs = gradients(got, tensors), gradients(wanted, exact)
    for name, gradient in ours.items():
        if name == "c":  # the softmax does not change when all scores do: 0 but for the gradient through lse and scores
            assert (gradient - theirs[name]).abs().max() < 100 * most
        else:
            assert distance(gradient, theirs[name]) < most, name


def dense(h, w_v, b_v, w_u, b_u, w, c, masked, activation=torch.tanh):
    """The formula of the docstring for one bag."""
    s = w @ (activation(F.linear(h, w_v, b_v)) * torch.sigmoid(F.linear(h, w_u, b_u))).t() + c[:, None]
    a = s.masked_fill(masked, -math.inf).softmax(-1)
    return s, a, a @ h


TOP = {"mask": TopKMask(k=10, drop=0.6, seed=SEED)}
CASES = {
    "one bag": Case(lengths=(150,)),
    "a pack": Case(),
    "one branch": Case(branches=1, options=TOP),
    "eight branches": Case(branches=8, options=TOP),
    "no biases": Case(biases=False),
    "tanh alone": Case(gated=False),
    "relu alone": Case(gated=False, biases=False, options={"activation": "relu"}),
    "gelu": Case(options={"activation": "gelu"}),
    "relu": Case(options={"activation": "relu"}),
    "top-k": Case(options=TOP),
    "top 100": Case(options={"mask": TopKMask(k=100, drop=0.3, seed=SEED, stream=3)}),
    "k 0": Case(options={"mask": TopKMask(k=0, drop=0.6, seed=SEED)}),
    "k 1": Case(options={"mask": TopKMask(k=1, drop=1.0, seed=SEED)}),
    "drop 0": Case(options={"mask": TopKMask(k=5, drop=0.0, seed=SEED)}),
    "drop 1": Case(options={"mask": TopKMask(k=50, drop=1.0, seed=SEED)}),
    "index mask": Case(
        options={
            "mask": IndexMask(
                idx=torch.tensor([[[0, 0, -1]] * 3, [[5, 36, 0]] * 3, [[-1] * 3] * 3, [[64, 1, 2]] * 3]).int()
            )
        }
    ),
    "nothing left": Case(options={"mask": IndexMask(idx=torch.zeros(4, 3, 1, dtype=torch.int32))}),
    "rows": Case(rows=True, options=TOP),
    "dropout": Case(options={"dropout": GateDropout(p=0.25, seed=torch.tensor([7]))}),
    "dropout of 8 bits": Case(options={"dropout": GateDropout(p=77 / 256, seed=SEED)}),
    "dropout of 16 bits": Case(options={"dropout": GateDropout(p=0.1, seed=SEED)}),
    "dropout, gelu alone": Case(gated=False, options={"activation": "gelu", "dropout": GateDropout(p=0.5, seed=SEED)}),
    "ends": Case(options={"top_k": 8, "bottom_k": 3}),
}  # fmt: skip


@pytest.fixture
def _small_chunks(monkeypatch):
    if BACKEND == "triton":
        from wsimil.ops.gated_attention_pool import kernels

        monkeypatch.setattr(kernels, "INSTANCES", 32)
        monkeypatch.setattr(kernels, "CHUNK", 80)
    monkeypatch.setattr(cpu, "CHUNK", 32)
    monkeypatch.setattr(cpu, "_BLOCK", 8)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("_small_chunks")
def test_chunks_are_the_definition(case, memory):
    compare(case, WIDE, bound(1e-13), memory=memory)


AROUND_A_TILE = Case(lengths=(31, 32, 33, 64, 65, 1), branches=2, options=TOP)
OTHERWISE = {
    "a pack": ("two", CASES["a pack"]),
    "gelu": ("two", CASES["gelu"]),
    "dropout": ("two", CASES["dropout"]),
    "top-k": ("one", CASES["top-k"]),
    "top 100": ("one", CASES["top 100"]),
    "drop 1": ("one", CASES["drop 1"]),
    "index mask": ("one", CASES["index mask"]),
    "nothing left": ("one", CASES["nothing left"]),
    "rows": ("one", CASES["rows"]),
    "nine branches": ("one", Case(lengths=(70,), branches=9, options={"mask": TopKMask(k=3, drop=0.7, seed=SEED)})),
    "around a tile": ("one", AROUND_A_TILE),
}  # fmt: skip


@by_kernels
@pytest.mark.parametrize(("passes", "case"), OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.usefixtures("_small_chunks")
def test_the_way_that_is_not_taken_by_itself_is_the_definition(passes, case):
    compare(case, WIDE, bound(1e-13), passes=passes)


@by_kernels
@pytest.mark.parametrize("k", [1, 10, 31, 32, 33, 64])
@pytest.mark.usefixtures("_small_chunks")
def test_one_pass_is_two_and_reads_nothing_that_was_not_written(k, monkeypatch):
    from wsimil.ops.gated_attention_pool import kernels

    def poisoned(call, *shape):
        return torch.full(shape, math.nan, device=call.h.device)

    monkeypatch.setattr(kernels._Call, "real", poisoned)
    mask = TopKMask(k=k, drop=0.7, seed=SEED)
    one, two = (AROUND_A_TILE.run(AROUND_A_TILE.tensors(WIDE), mask=mask, passes=passes) for passes in PASSES)
    assert torch.equal(one.masked_idx, two.masked_idx)
    assert torch.equal(one.masked_scores, two.masked_scores)
    for name in OUTPUTS:
        assert distance(getattr(one, name), getattr(two, name)) < 1e-6, name


@by_kernels
@pytest.mark.parametrize(
    ("taken", "dim", "options"), [("one", 37, {}), ("two", 400, {}), ("two", 37, {"mask": TopKMask(k=3, drop=0.5, seed=SEED)})]
)  # fmt: skip
def test_one_pass_is_taken_without_a_mask_while_rows_are_short(taken, dim, options):
    case = Case(lengths=(150,), dim=dim, branches=2, options=options)
    z = {passes: case.run(case.tensors(WIDE), passes=passes).z for passes in ("auto", "one", "two")}
    assert torch.equal(z["auto"], z[taken])
    assert not torch.equal(z["one"], z["two"])


@pytest.mark.parametrize("case", [CASES[name] for name in ("a pack", "top-k", "rows", "gelu", "dropout")])
def test_float32_rounds_and_no_more(case):
    compare(case, torch.float32, bound(2e-6))


@pytest.mark.parametrize("masked", [(), (3, 0)])
def test_the_definition_is_the_formula(masked):
    case = Case(lengths=(63,), branches=2)
    tensors = case.tensors()
    where = torch.zeros(2, 63, dtype=torch.bool)
    where[:, list(masked)] = True
    mask = IndexMask(idx=torch.tensor(masked, dtype=torch.int32).expand(1, 2, -1))
    got = case.run(tensors, mask=mask, backend="reference")
    s, a, z = dense(**tensors, masked=where)
    assert distance(got.scores, s.masked_fill(where, -math.inf)) < 1e-14
    assert distance(got.raw_scores, s) < 1e-14
    assert distance(got.z[0], z) < 1e-14
    assert distance(got.lse[0], s.masked_fill(where, -math.inf).logsumexp(-1)) < 1e-14
    assert distance(got.entropy[0], torch.special.entr(a).sum(-1)) < 1e-13
    assert distance(got.gram[0], a @ a.t()) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_err_less_than_plain_torch_in_them(dtype):
    case = Case(lengths=(2000,), dim=64, length=32, branches=1, scale=3.0)
    narrow = {name: x.detach().requires_grad_() for name, x in case.tensors(dtype).items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in narrow.items()}
    masked = torch.zeros(1, 2000, dtype=torch.bool)
    results = {
        "ours": gated_attention_pool(**narrow, backend=BACKEND).z[0],
        "plain": dense(**narrow, masked=masked)[2],
        "exact": dense(**exact, masked=masked)[2],
    }
    errors = {name: distance(results[name], results["exact"]) for name in ("ours", "plain")}
    assert errors["ours"] < 0.5 * errors["plain"]
    grads = {
        name: torch.autograd.grad(
            result.double().square().sum(), list((exact if name == "exact" else narrow).values())[:5]
        )
        for name, result in results.items()
    }
    for ours, plain, wanted in zip(grads["ours"], grads["plain"], grads["exact"], strict=True):
        assert ours.dtype == dtype
        assert distance(ours, wanted) < 1.2 * distance(plain, wanted)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "passes"), [(37, PASSES[-1]), (64, PASSES[-1])] + [(37, "one")] * (BACKEND == "triton")
)
def test_a_bag_alone_is_the_same_bits_as_in_a_pack(dtype, dim, passes, memory):
    long = 3000 if BACKEND == "cpu" else 300
    case = replace(CASES["top-k"], lengths=(long, 37, 1, 65), dim=dim, options={**TOP, "passes": passes})
    tensors = case.tensors(dtype)
    pack = case.run(tensors, memory=memory)
    again = case.run(tensors, memory=memory)
    assert torch.equal(pack.z, again.z)
    ends = [0, long, long + 37, long + 38, long + 103]
    for bag, (begin, end) in enumerate(pairwise(ends)):
        alone = {**tensors, "h": tensors["h"].detach()[begin:end].clone().requires_grad_()}
        got = replace(case, lengths=(end - begin,)).run(alone, bag_ids=torch.tensor([bag]), memory=memory)
        for name in ("z", "lse", "entropy", "gram", "masked_idx"):
            assert torch.equal(getattr(got, name)[0], getattr(pack, name)[bag]), name
        assert torch.equal(got.scores, pack.scores[:, begin:end])
        seeds = [torch.ones_like(pack.z), torch.ones_like(pack.entropy)]
        (mine,) = torch.autograd.grad([got.z, got.entropy], alone["h"], [seed[:1] for seed in seeds])
        (theirs,) = torch.autograd.grad([pack.z, pack.entropy], tensors["h"], seeds, retain_graph=True)
        assert torch.equal(mine, theirs[begin:end])


def test_masks_do_not_depend_on_chunks(monkeypatch):
    case = CASES["top-k"]
    if BACKEND == "triton":
        from wsimil.ops.gated_attention_pool import kernels as module
    else:
        module = cpu
    name = "CHUNK" if module is cpu else "INSTANCES"
    wanted = case.run(case.tensors(WIDE)).masked_idx
    for chunk in (16, 33, 64) if module is cpu else (16, 32, 64):
        monkeypatch.setattr(module, name, chunk)
        assert torch.equal(case.run(case.tensors(WIDE)).masked_idx, wanted)


@pytest.mark.parametrize(("n", "k", "drop", "masked"), [
    (100, 10, 0.6, 6), (100, 100, 0.29, 28), (5, 10, 0.6, 3), (1, 10, 0.6, 0), (1, 1, 1.0, 0), (10, 10, 1.0, 9),
    (50, 10, 1.0, 10), (50, 0, 0.5, 0),
])  # fmt: skip
@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_so_many_of_the_highest_are_masked(n, k, drop, masked, backend):
    case = Case(lengths=(n,), options={"top_k": max(k, 1)})
    got = case.run(case.tensors(WIDE), mask=TopKMask(k=k, drop=drop, seed=SEED), backend=backend)
    count = (got.scores == -math.inf).sum(dim=1)
    assert count.tolist() == [masked] * 3
    if k:
        highest = [set(row) for row in got.top_idx[0].tolist()]
        for branch, (row, scores) in enumerate(zip(got.masked_idx[0].tolist(), got.masked_scores[0], strict=True)):
            assert set(row[:masked]) <= highest[branch]
            assert row[masked:] == [-1] * (k - masked)
            assert scores[:masked].tolist() == sorted(scores[:masked].tolist(), reverse=True)
            assert (scores[masked:] == -math.inf).all()


@pytest.mark.parametrize("gated", [True, False])
def test_scores_of_a_bag_with_one_instance_left_have_a_gradient_of_exactly_nothing(gated):
    """Adam makes a whole step of a rounding error."""
    case = Case(lengths=(1, 2, 40), dim=64, branches=2, gated=gated)
    tensors = case.tensors(torch.float32)
    idx = torch.arange(40, dtype=torch.int32).expand(3, 2, -1).clone()
    idx[0], idx[1, :, 1:], idx[2, :, 7] = -1, -1, -1
    out = case.run(tensors, mask=IndexMask(idx=idx))
    total = sum((getattr(out, name) * torch.randn(getattr(out, name).shape)).sum() for name in ("z", "entropy", "gram"))
    for name in ("w_v", "b_v", "w", "c"):
        assert not torch.autograd.grad(total, tensors[name], retain_graph=True)[0].any(), name


def test_equal_scores_are_masked_from_the_first():
    tensors = {**Case(lengths=(200,)).tensors(WIDE), "w": torch.zeros(3, 19, dtype=WIDE)}
    got = gated_attention_pool(
        **tensors, mask=TopKMask(k=4, drop=0.5, seed=SEED), scores=True, backend=BACKEND, top_k=4, bottom_k=4
    )
    assert got.top_idx.tolist() == got.bottom_idx.tolist() == [[[0, 1, 2, 3]] * 3]
    assert (got.masked_idx[..., :2] < 4).all()
    weights = (got.scores - got.lse[0, :, None]).exp()
    assert torch.allclose(weights[weights > 0], torch.tensor(1 / 198, dtype=WIDE), rtol=bound(1e-14, 1e-6))


def masked_of_equal(n, *, bag_ids, branches=3, seed=5, stream=2):
    """What is masked of bags whose scores are all equal, half of each."""
    tensors = {
        **Case(lengths=(n,) * len(bag_ids)).tensors(WIDE),
        "w": torch.zeros(branches, 19, dtype=WIDE),
        "c": None,
    }
    mask = TopKMask(k=n, drop=0.5, seed=torch.tensor([seed]), stream=stream)
    ends = cu_seqlens_of([n] * len(bag_ids))
    got = gated_attention_pool(**tensors, cu_seqlens=ends, mask=mask, bag_ids=torch.tensor(bag_ids), backend=BACKEND)
    return got.masked_idx[:, :, : n // 2].tolist()


def test_masks_are_frozen():
    """The masked have the lowest first words of the counter (instance, branch, bag, 2 x stream)."""
    found = masked_of_equal(12, bag_ids=[3, 2**32 - 1])
    for bag, number in enumerate((3, 2**32 - 1)):
        for branch in range(3):
            words = philox(torch.tensor([5]), (torch.arange(12), branch, number, 4))[0].tolist()
            assert found[bag][branch] == sorted(sorted(range(12), key=words.__getitem__)[:6])
    assert found == FROZEN


def test_bags_branches_seeds_and_streams_draw_apart():
    base = masked_of_equal(40, bag_ids=[7, 8, 7])
    assert base[0] == base[2] != base[1]
    assert len({tuple(branch) for branch in base[0]}) == 3
    assert masked_of_equal(40, bag_ids=[7], seed=6) != base[:1]
    assert masked_of_equal(40, bag_ids=[7], stream=3) != base[:1]


@pytest.mark.skipif(BACKEND == "triton", reason="600 runs; the draws are compared one by one elsewhere")
def test_draws_are_spread_evenly_over_seeds():
    """Of 4 of the 10 highest, each is masked in four runs of ten, whatever its rank."""
    case = Case(lengths=(40,), branches=2)
    tensors = case.tensors()
    named = torch.zeros(2, 40)
    for seed in range(-300, 300):
        masked = case.run(tensors, mask=TopKMask(k=10, drop=0.4, seed=torch.tensor([seed]))).masked_idx[0, :, :4]
        named.scatter_add_(1, masked.long(), torch.ones(2, 4))
    share = named[named > 0] / 600
    assert len(share) == 20
    assert (share - 0.4).abs().max() < 4 * (0.24 / 600) ** 0.5


def test_dropout_falls_on_each_factor_by_itself():
    """With a value of 1 and a gate of 1/2 everywhere, a quarter of the products is left of two halves, four times as large."""
    n, length = 4000, 3
    zeros = {
        "h": torch.ones(n, 1),
        "w_v": torch.full((length, 1), 50.0),
        "b_v": None,
        "w_u": torch.zeros(length, 1),
        "b_u": None,
    }
    got = gated_attention_pool(
        **zeros, w=torch.eye(length), scores=True, backend=BACKEND, dropout=GateDropout(p=0.5, seed=SEED)
    ).scores
    assert set(got.unique().tolist()) == {0.0, 2.0}
    assert ((got > 0).float().mean(dim=1) - 0.25).abs().max() < 4 * (0.1875 / n) ** 0.5
    assert torch.corrcoef(got).fill_diagonal_(0).abs().max() < 0.06


@pytest.mark.parametrize(("p", "bits"), [(0.25, 4), (77 / 256, 8), (0.1, 16)])
def test_a_word_has_the_draws_of_as_many_columns_as_the_probability_leaves_room_for(p, bits):
    """From its lowest bits up, of each column that of the value first; a factor is dropped where its draw is below p."""
    n, length = 5, 37
    level = round(p * 65536) >> (16 - bits)
    seed, columns = torch.tensor([-3]), torch.arange(length)
    words = torch.stack(philox(seed, (torch.arange(n)[:, None], columns * bits // 64, 9, 2 * 4 + 1)))  # [4, n, L]
    word = words.gather(0, (columns * bits // 16 % 4).expand(1, n, length))[0]
    shift = columns % (16 // bits) * 2 * bits
    value, gate = word >> shift & (2**bits - 1), word >> shift + bits & (2**bits - 1)
    got = gated_attention_pool(
        torch.ones(n, 1), torch.full((length, 1), 50.0), None, torch.zeros(length, 1), None, torch.eye(length),
        scores=True, backend=BACKEND, bag_ids=torch.tensor([9]), dropout=GateDropout(p=p, seed=seed, stream=4),
    ).scores  # fmt: skip
    assert torch.equal(got.t() > 0, (value >= level) & (gate >= level))


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("factor", [20.7, 100.0, 1e4])
def test_a_masked_instance_far_above_the_rest_leaves_them_exact(factor, passes):
    """Masked mass 1 - 1e-9 and more: what is left is not a difference of large numbers."""
    case = Case(lengths=(300,), branches=1, options={"passes": passes})
    tensors = case.tensors(torch.float32)
    scores = case.run(tensors).scores.detach()
    top = int(scores.argmax())
    tensors["w"].data *= factor / float(scores.max() - scores.median())
    exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    mask = IndexMask(idx=torch.tensor([[[top]]], dtype=torch.int32))
    got, wanted = case.run(tensors, mask=mask), case.run(exact, mask=mask, backend="reference")
    near = factor * 2e-6  # scores of this size are rounded so
    assert distance(got.z, wanted.z) < near
    assert distance(gradients(got, tensors)["h"], gradients(wanted, exact)["h"]) < 20 * near


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize(
    "options",
    [{}, TOP, {"mask": IndexMask(idx=torch.tensor([[[-1]], [[20]], [[-1]], [[-1]]]).int())}]
    + [{**TOP, "passes": "one"}] * (BACKEND == "triton"),
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [100, 120, 136])
def test_a_bag_with_a_score_that_is_no_number_says_so_and_harms_no_other(bad, place, options, backend):
    case = Case(gated=False, branches=1, options={"activation": "relu", **options})
    tensors, clean = case.tensors(torch.float32), case.tensors(torch.float32)
    tensors["h"].data[place] = bad
    got, wanted = case.run(tensors, backend=backend), case.run(clean, backend=backend)
    others = [0, 2, 3]
    for name in ("z", "lse", "entropy", "gram"):
        assert getattr(got, name)[1].isnan().all(), name
        assert torch.equal(getattr(got, name)[others], getattr(wanted, name)[others]), name
    ours, theirs = (
        torch.autograd.grad(out.z[others].sum() + out.entropy[others].sum(), leaves["h"])[0]
        for out, leaves in ((got, tensors), (wanted, clean))
    )
    assert torch.equal(ours[:100], theirs[:100])
    assert torch.equal(ours[137:], theirs[137:])


def test_rows_that_are_not_chosen_may_hold_anything():
    case = CASES["rows"]
    tensors, poisoned = case.tensors(WIDE), case.tensors(WIDE)
    unused = sorted(set(range(len(tensors["h"]))) - set(case.index().tolist()))
    poisoned["h"].data[unused] = math.nan
    got, wanted = case.run(poisoned), case.run(tensors)
    assert torch.equal(got.z, wanted.z)
    ours, theirs = gradients(got, poisoned), gradients(wanted, tensors)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (ours["h"][unused] == 0).all()


@pytest.mark.parametrize("memory", MEMORY)
def test_only_what_is_asked_for_gets_a_gradient(memory):
    case = CASES["top-k"]
    whole = gradients(case.run(tensors := case.tensors(WIDE), memory=memory), tensors)
    for chosen in (["h"], ["w_v"], ["b_u", "w"], ["c"], ["h", "w_u", "b_v"]):
        some = {name: x.detach().requires_grad_(name in chosen) for name, x in case.tensors(WIDE).items()}
        got = gradients(case.run(some, memory=memory), some)
        assert set(got) == set(chosen)
        for name, gradient in got.items():
            assert distance(gradient, whole[name]) < bound(1e-13)


def test_frozen_instances_cost_no_gradient(monkeypatch):
    if BACKEND == "triton":
        from wsimil.ops.gated_attention_pool import kernels as module
    else:
        module = cpu
    monkeypatch.setattr(module, "_h_gradient_like", lambda tensors: pytest.fail("room for what nobody asked for"))
    tensors = Case().tensors(WIDE)
    tensors["h"] = tensors["h"].detach()
    Case().run(tensors).z.sum().backward()
    assert tensors["w_v"].grad is not None


@pytest.mark.skipif(BACKEND != "cpu", reason="of the CPU backend, which alone keeps gates")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dim", "length"), [(16, 8), (37, 8), (37, 18)])
@pytest.mark.usefixtures("_small_chunks")
def test_the_gradient_of_instances_goes_over_the_gates_and_is_the_same_at_every_pass(dim, length, dtype, monkeypatch):
    case = Case(dim=dim, length=length, options={"dropout": GateDropout(p=0.25, seed=SEED)})
    tensors = case.tensors(dtype)
    leaves, out = list(tensors.values()), case.run(tensors, memory="keep")
    total = out.z.square().sum() + out.entropy.sum()
    # Where a derivative of the gradient might be asked for, nothing is written over.
    apart = torch.autograd.grad(total, leaves, create_graph=True)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "_h_gradient_like", lambda tensors: pytest.fail("room that the gates leave"))
        over = torch.autograd.grad(total, leaves, retain_graph=True)
    kept = [gradient.clone() for gradient in over]
    again = torch.autograd.grad(total, leaves)
    for first, *others in zip(apart, over, kept, again, strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("memory", MEMORY)
def test_a_checkpoint_gives_the_same_gradients_once_and_again(memory):
    case = CASES["dropout"]
    tensors = case.tensors(torch.float32)
    leaves = list(tensors.values())

    def total(h):
        return case.run({**tensors, "h": h}, memory=memory).z.square().sum()

    wanted = torch.autograd.grad(total(tensors["h"].sin()), leaves)
    again = checkpoint(total, tensors["h"].sin(), use_reentrant=False)
    for more in (True, False):
        for got, each in zip(torch.autograd.grad(again, leaves, retain_graph=more), wanted, strict=True):
            assert torch.equal(got, each)


def test_one_output_alone_has_its_gradient():
    case = CASES["top-k"]
    for name in OUTPUTS:
        grads = []
        for backend in (BACKEND, "reference"):
            tensors = case.tensors(WIDE)
            values = getattr(case.run(tensors, backend=backend), name)
            grads.append(
                torch.autograd.grad(values.masked_fill(values == -math.inf, 0).square().sum(), tensors["h"])[0]
            )
        assert distance(*grads) < bound(1e-12), name


def test_columns_and_rows_may_lie_anywhere():
    case = Case(lengths=(150,))
    tensors = case.tensors(WIDE)
    wanted = case.run(tensors).z
    for h in (tensors["h"].t().contiguous().t(), torch.cat([tensors["h"], tensors["h"]], dim=1)[:, :37]):
        assert distance(case.run({**tensors, "h": h}).z, wanted) < bound(1e-14)


@in_float64
def test_gradients_are_those_of_differences():
    tensors = Case(lengths=(7, 3), dim=3, length=2, branches=2).tensors()
    mask = IndexMask(idx=torch.tensor([[[1], [4]], [[-1], [0]]], dtype=torch.int32))

    def run(*leaves):
        out = gated_attention_pool(
            *leaves,
            cu_seqlens=cu_seqlens_of([7, 3]),
            mask=mask,
            entropy=True,
            gram=True,
            scores=True,
            raw_scores=True,
            backend="cpu",
        )
        return out.z, out.lse, out.entropy, out.gram, out.scores.masked_fill(out.scores == -math.inf, 0), out.raw_scores

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own doing
@pytest.mark.parametrize("name", ["a pack", "top-k", "rows", "dropout", "no biases", "tanh alone", "ends"])
def test_torch_finds_no_fault_with_the_op(name):
    from wsimil.ops.gated_attention_pool import autograd

    case = CASES[name]
    seen = []
    forward = autograd._forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autograd._Pool, "apply", lambda *values: seen.append(values) or forward(*values))
        tensors = case.tensors(WIDE)
        case.run(tensors, memory="recompute")
    torch.library.opcheck(forward, seen[0])


def test_one_compiled_graph_serves_all_lengths():
    import torch._dynamo.testing

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def step(h, w_v, b_v, w_u, b_u, w, c, cu_seqlens, seed):
        mask = TopKMask(k=5, drop=0.6, seed=seed)
        out = gated_attention_pool(
            h, w_v, b_v, w_u, b_u, w, c, cu_seqlens=cu_seqlens, mask=mask, entropy=True, backend=BACKEND
        )
        return out.z.square().sum() + out.entropy.sum()

    for lengths in ((50, 13), (70, 5), (31, 8, 9), (44, 20, 3)):
        case = Case(lengths=lengths, branches=5, options={"mask": TopKMask(k=5, drop=0.6, seed=SEED)})
        tensors, exact = case.tensors(WIDE), case.tensors()
        got = step(*tensors.values(), cu_seqlens_of(lengths), SEED)
        wanted = case.run(exact, backend="reference")
        loss = wanted.z.square().sum() + wanted.entropy.sum()
        assert distance(got, loss) < bound(1e-13)
        ours, theirs = (torch.autograd.grad(x, list(y.values())[:6]) for x, y in ((got, tensors), (loss, exact)))
        assert all(distance(a, b) < bound(1e-11) for a, b in zip(ours, theirs, strict=True))
    assert counter.frame_count == 1


def test_no_two_arguments_share_a_name():
    """Which torch allows and its compiler for CPUs and GPUs refuses."""
    from wsimil.ops.gated_attention_pool import autograd

    for op in (autograd._forward, autograd._backward):
        names = [argument.name for argument in op._opoverload._schema.arguments]
        assert len(set(names)) == len(names)


def test_autocast_takes_its_type_and_leaves_gradients_in_theirs():
    case = Case(lengths=(500,), branches=2)
    tensors, exact = case.tensors(torch.float32), case.tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = case.run(tensors)
    narrow = case.run({**tensors, "h": tensors["h"].bfloat16()})
    assert got.z.dtype == torch.float32
    assert torch.equal(got.z, narrow.z)
    ours, theirs = gradients(got, tensors), gradients(case.run(exact, backend="reference"), exact)
    for name in ("h", "w_v", "w_u", "w"):
        assert ours[name].dtype == torch.float32
        assert distance(ours[name], theirs[name]) < 2e-2


def test_nothing_of_the_size_of_the_gate_is_held():
    case = Case(lengths=(5000,), dim=16, length=64, branches=1)
    tensors = case.tensors(torch.float32)
    held = {}
    for memory in MEMORY:
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):  # noqa: B023
            case.run(tensors, memory=memory)
        inputs = {x.data_ptr() for x in tensors.values()}
        held[memory] = sum(x.numel() for pointer, x in kept.items() if pointer not in inputs)
    assert held["recompute"] < 2 * 5000
    assert BACKEND != "cpu" or held["keep"] > 5000 * 128


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("_small_chunks")
def test_what_memory_held_before_shows_nowhere(case):
    found = []
    for poisoned in (False, True):
        torch.use_deterministic_algorithms(poisoned)  # which fills what is not yet written with NaN
        try:
            assert torch.empty(1).isnan() or not poisoned
            tensors = case.tensors(WIDE)
            out = case.run(tensors)
            values = [value for value in out if value is not None]
            found.append([*values, *(x for x in gradients(out, tensors).values() if x is not None)])
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(torch.equal(got, wanted) for got, wanted in zip(*found, strict=True))


def test_a_second_derivative_is_refused():
    tensors = Case(lengths=(20,)).tensors(WIDE)
    z = gated_attention_pool(**tensors, backend=BACKEND).z
    (first,) = torch.autograd.grad(z.square().sum(), tensors["h"], create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        first.sum().backward()


def test_the_environment_forces_the_definition(monkeypatch):
    monkeypatch.setenv("WSIMIL_OPS_BACKEND", "reference")
    tensors = Case(lengths=(20,)).tensors()
    (first,) = torch.autograd.grad(gated_attention_pool(**tensors).z.square().sum(), tensors["h"], create_graph=True)
    first.sum().backward()  # which the op cannot


WRONG = {
    "h: got": {"h": torch.zeros(5)},
    "h: got torch.int64": {"h": torch.zeros(5, 4, dtype=torch.int64)},
    "h: got 0 instances": {"h": torch.zeros(0, 4)},
    r"w_v: got shape \[3, 5\], wanted \[3, 4\]": {"w_v": torch.zeros(3, 5)},
    "b_u: got a bias of a gate": {"w_u": None},
    "w: got shape .* 1 to 64 branches": {"w": torch.zeros(65, 3)},
    "c: got shape": {"c": torch.zeros(3)},
    "cu_seqlens: got torch.int64": {"cu_seqlens": torch.tensor([0, 5])},
    r"cu_seqlens: got \[0, 4\]": {"cu_seqlens": torch.tensor([0, 4]).int()},
    r"cu_seqlens: got \[0, 2, 2, 5\]": {"cu_seqlens": torch.tensor([0, 2, 2, 5]).int()},
    "rows: got rows from 0 to 5": {"rows": torch.tensor([0, 5]).int()},
    "rows: got some row twice": {"rows": torch.tensor([1, 1]).int()},
    "rows: got 0 instances": {"rows": torch.tensor([]).int()},
    "bag_ids: got": {"bag_ids": torch.tensor([0, 1])},
    "mask: got k -1": {"mask": TopKMask(k=-1, drop=0.5, seed=SEED)},
    "mask: got k 3 and drop 1.5": {"mask": TopKMask(k=3, drop=1.5, seed=SEED)},
    "mask.seed: got torch.float32": {"mask": TopKMask(k=3, drop=0.5, seed=torch.zeros(1))},
    "mask.idx: got torch.int64": {"mask": IndexMask(idx=torch.zeros(1, 2, 1, dtype=torch.int64))},
    "mask.idx: instance 5 of bag 0, which has 5": {"mask": IndexMask(idx=torch.full((1, 2, 1), 5, dtype=torch.int32))},
    "dropout.p: got 1.0": {"dropout": GateDropout(p=1.0, seed=SEED)},
    "activation: got 'selu'": {"activation": "selu"},
    "precision: got 'half'": {"precision": "half"},
    "passes: got 'three'": {"passes": "three"},
    "memory: got 'lots'": {"memory": "lots"},
    "top_k, bottom_k: got -1": {"top_k": -1},
    "backend: got 'gpu'": {"backend": "gpu"},
}  # fmt: skip


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize(("message", "wrong"), WRONG.items(), ids=WRONG)
def test_what_does_not_fit_is_refused_by_name(message, wrong, backend):
    good = {
        "h": torch.zeros(5, 4, requires_grad=True), "w_v": torch.zeros(3, 4), "b_v": torch.zeros(3), "w_u": torch.zeros(3, 4),
        "b_u": torch.zeros(3), "w": torch.zeros(2, 3), "c": torch.zeros(2), "backend": backend,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        gated_attention_pool(**{**good, **wrong})


@in_float64
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    dim=st.integers(1, 20), length=st.integers(1, 9), branches=st.integers(1, 4), gated=st.booleans(), rows=st.booleans(),
    k=st.integers(0, 12), drop=st.floats(0, 1), seed=st.integers(-(2**63), 2**63 - 1), scale=st.sampled_from([0.0, 1.0, 1e4]),
)  # fmt: skip
def test_any_pack_is_the_definition(lengths, dim, length, branches, gated, rows, k, drop, seed, scale):
    mask = TopKMask(k=k, drop=drop, seed=torch.tensor([seed]))
    case = Case(
        lengths=tuple(lengths), dim=dim, length=length, branches=branches, gated=gated, rows=rows, scale=scale,
        options={"mask": mask},
    )  # fmt: skip
    tensors, exact = case.tensors(), case.tensors()
    got, wanted = case.run(tensors, backend="cpu"), case.run(exact, backend="reference")
    assert torch.equal(got.masked_idx, wanted.masked_idx)
    most = 1e-10 * max(1.0, scale)
    for name in OUTPUTS:
        assert torch.allclose(getattr(got, name), getattr(wanted, name), rtol=most, atol=most), name
    ours, theirs = gradients(got, tensors), gradients(wanted, exact)
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], rtol=most, atol=most * (1 + float(theirs[name].abs().max()))), (
            name
        )
