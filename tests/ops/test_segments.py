"""Operations on packs against one dense line of torch for each bag, in float64."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
import torch

from wsimil.ops.packed_linear import packed_linear, row_linear
from wsimil.ops.segment_max import segment_max, shares_of_max
from wsimil.ops.segment_softmax import segment_softmax
from wsimil.ops.segment_sum import segment_sum
from wsimil.ops.varlen import bag_ids, cu_seqlens_of, join_bags, lengths_of, split_bags

PACKS = [(1,), (63,), (1, 1), (37, 1, 1000, 2), (5000, 63)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def each(lengths, *packs):
    return zip(*(torch.split(x, list(lengths)) for x in packs), strict=True)


@pytest.mark.parametrize("lengths", PACKS)
def test_softmax_is_that_of_each_bag(lengths):
    scores = draw(sum(lengths), 3).mul(5).requires_grad_()
    got = segment_softmax(scores, cu_seqlens_of(lengths))
    wanted = torch.cat([part.softmax(0) for (part,) in each(lengths, scores)])
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-300)
    seed = draw(sum(lengths), 3, seed=1)
    grads = [torch.autograd.grad(value, scores, seed, retain_graph=True)[0] for value in (got, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)


def test_softmax_is_safe_for_any_finite_score_and_even_for_equal_ones():
    scores = torch.tensor([[3e38], [-3e38], [0.0], [65504.0], [65504.0], [-1e9], [-1e9], [-1e9]])
    got = segment_softmax(scores, cu_seqlens_of([3, 2, 3]))[:, 0]
    assert torch.equal(got, torch.tensor([1.0, 0, 0, 0.5, 0.5] + 3 * [1 / 3]))


def test_narrow_scores_have_float32_weights():
    scores = draw(1000, 1, dtype=torch.bfloat16)
    got = segment_softmax(scores, cu_seqlens_of([1000]))
    assert got.dtype == torch.float32
    assert torch.equal(got, segment_softmax(scores.float(), cu_seqlens_of([1000])))


@pytest.mark.parametrize("lengths", PACKS)
def test_sums_are_products_of_each_bag(lengths):
    weights = draw(sum(lengths), 3).requires_grad_()
    values = draw(sum(lengths), 17, seed=1).requires_grad_()
    got = segment_sum(weights, values, cu_seqlens_of(lengths))
    wanted = torch.stack([w.t() @ v for w, v in each(lengths, weights, values)])
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    seed = draw(*got.shape, seed=2)
    ours = torch.autograd.grad(got, (weights, values), seed)
    for mine, theirs in zip(ours, torch.autograd.grad(wanted, (weights, values), seed), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_long_sum_of_narrow_values_is_rounded_as_a_short_one(dtype, even):
    n = 100_000
    weights = torch.ones(n, 1).double() if even else draw(n, 1).square()
    weights = (weights / weights.sum()).float()
    values = (draw(n, 3, seed=1) + 5).to(dtype)
    got = segment_sum(weights, values, cu_seqlens_of([n]))[0, 0].double()
    wanted = (weights.double().t() @ values.double())[0]
    # Rounding to the type of the values once, and of a sum of 4096 terms and 25 blocks before, in float32.
    budget = torch.finfo(dtype).eps / 2 + 64 * 2.0**-24
    assert ((got - wanted).abs() / wanted).max() <= budget


@pytest.mark.parametrize("lengths", PACKS)
def test_maxima_are_those_of_each_bag_and_say_their_row(lengths):
    values = draw(sum(lengths), 17)
    got = segment_max(values, cu_seqlens_of(lengths))
    assert torch.equal(got.values, torch.stack([part.amax(0) for (part,) in each(lengths, values)]))
    assert torch.equal(values.gather(0, got.rows), got.values)
    assert torch.equal(
        bag_ids(cu_seqlens_of(lengths), total=len(values))[got.rows], torch.arange(len(lengths))[:, None].expand(-1, 17)
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", PACKS)
def test_a_packed_linear_layer_is_a_linear_layer(lengths, bias):
    x = draw(sum(lengths), 17).requires_grad_()
    weight = draw(5, 17, seed=1).requires_grad_()
    offset = draw(5, seed=2) if bias else None
    got = packed_linear(x, weight, offset, cu_seqlens_of(lengths))
    wanted = torch.nn.functional.linear(x, weight, offset)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    seed = draw(*got.shape, seed=3)
    ours = torch.autograd.grad(got, (x, weight), seed)
    for mine, theirs in zip(ours, torch.autograd.grad(wanted, (x, weight), seed), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 17, 63, 100, 1024])
def test_a_bag_has_the_same_bits_alone_and_in_a_pack(width, dtype):
    lengths = (3, 1, 37, 2, 200)
    ends = cu_seqlens_of(lengths).tolist()
    x, weight, scores = (
        draw(ends[-1], width, dtype=dtype),
        draw(7, width, seed=1, dtype=dtype),
        draw(ends[-1], 2, dtype=dtype),
    )
    cu_seqlens = cu_seqlens_of(lengths)
    linear, soft = packed_linear(x, weight, None, cu_seqlens), segment_softmax(scores, cu_seqlens)
    total = segment_sum(soft, x, cu_seqlens)
    rows = row_linear(x, weight, None)
    for bag, (begin, end) in enumerate(pairwise(ends)):
        alone, one = x[begin:end].clone(), cu_seqlens_of([end - begin])
        assert torch.equal(packed_linear(alone, weight, None, one), linear[begin:end])
        weights = segment_softmax(scores[begin:end].clone(), one)
        assert torch.equal(weights, soft[begin:end])
        assert torch.equal(segment_sum(weights, alone, one)[0], total[bag])
        assert torch.equal(row_linear(alone[:1].clone(), weight, None), rows[begin : begin + 1])


def test_bits_do_not_hang_on_where_the_numbers_lie():
    weight, cu_seqlens = draw(63, 63, dtype=torch.float32), cu_seqlens_of([37])
    room = torch.empty(37 * 63 + 16)
    x = draw(37, 63, seed=1, dtype=torch.float32)
    wanted = packed_linear(x, weight, None, cu_seqlens)
    for offset in range(16):
        moved = room[offset : offset + 37 * 63].view(37, 63).copy_(x)
        assert torch.equal(packed_linear(moved, weight, None, cu_seqlens), wanted)


def test_bags_are_split_and_joined():
    x, cu_seqlens = draw(101, 2), cu_seqlens_of([37, 1, 63])
    parts = split_bags(x, cu_seqlens)
    assert [len(part) for part in parts] == lengths_of(cu_seqlens) == [37, 1, 63]
    assert torch.equal(join_bags(parts), x)


@pytest.mark.parametrize(
    ("lengths", "message"), [([], "one bag or more"), ([3, 0], "bag 1 of 2 has 0 rows"), ([-1], "bag 0"), ([2**31], "fewer than")]
)  # fmt: skip
def test_lengths_that_cannot_be_packed_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        cu_seqlens_of(lengths)


def test_shares_of_a_maximum_are_what_rows_add_to_those_before_them_over_all_orders():
    """Below 0 too, where the first row of an order lowers what a bag of nothing has, and with rows that tie."""
    values = torch.cat([draw(5, 3) - 0.7, draw(1, 3, seed=1), draw(4, 3, seed=2)])
    values[7] = values[8]
    wanted = []
    for (part,) in each((5, 1, 4), values):
        orders, total = list(permutations(range(len(part)))), torch.zeros_like(part)
        for order in orders:
            most = torch.cat([torch.zeros_like(part[:1]), part[list(order)].cummax(0).values])
            total[list(order)] += most.diff(dim=0)
        wanted.append(total / len(orders))
    got = shares_of_max(values, cu_seqlens_of([5, 1, 4]))
    torch.testing.assert_close(got, torch.cat(wanted), rtol=1e-13, atol=1e-15)
    assert got[7].tolist() == got[8].tolist()


@pytest.mark.parametrize("lengths", PACKS)
def test_shares_of_a_maximum_add_up_to_it(lengths):
    values, ends = draw(sum(lengths), 70), cu_seqlens_of(lengths)
    got = segment_sum(torch.ones_like(values[:, :1]), shares_of_max(values, ends), ends)[:, 0]
    torch.testing.assert_close(got, segment_max(values, ends).values, rtol=1e-12, atol=1e-12)
