"""The pooling layer: what the operation computes is the formula, whatever masks and drops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wsimil.mil.batch import BagOutput, StepContext
from wsimil.mil.layers.gated_attention import GatedAttention
from wsimil.mil.layers.pooled import pool_by_scores
from wsimil.mil.masking import RankMasking, TopKMasking
from wsimil.mil.regularizers.attention_entropy import attention_entropy
from wsimil.ops.packed_linear import packed_linear
from wsimil.testing.method_laws import make_bags

LENGTHS = (63, 1, 200)
WIDTH = 24


def step(seed=0, **rest):
    return StepContext(generator=torch.Generator().manual_seed(seed), progress=0.0, **rest)


def layer(*, drop=0.0, gated=True, heads=3):
    torch.manual_seed(1)
    made = GatedAttention(WIDTH, 10, gated=gated, activation="tanh", bias=True, drop=drop, heads=heads)
    return made.double()


def instances():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(sum(LENGTHS), WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)


def by_formula(attention, h, bags, masked):
    hidden = torch.tanh(packed_linear(h, attention.value.weight, attention.value.bias, bags.cu_seqlens))
    if attention.gate is not None:
        hidden = hidden * packed_linear(h, attention.gate.weight, attention.gate.bias, bags.cu_seqlens).sigmoid()
    scores = packed_linear(hidden, attention.score.weight, attention.score.bias, bags.cu_seqlens)
    return pool_by_scores(scores, h, bags, step(), own=lambda *_: masked, gram=True)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    "masking", [None, TopKMasking(k=5, drop=0.6), RankMasking(random=0.2, high=0.1), TopKMasking(drop=1.0)]
)
def test_the_operation_is_the_formula(masking, gated):
    attention, bags, h = layer(gated=gated), make_bags(LENGTHS), instances()
    got = attention(h, bags, step(masking=masking), gram=True)
    masked = torch.zeros(len(h), 3, dtype=torch.bool) if got.masked is None else got.masked
    assert bool(masked.any()) == (masking is not None)
    wanted = by_formula(attention, h, bags, masked)
    for name in ("vectors", "scores", "gram", "weights"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), rtol=1e-11, atol=1e-13)
    leaves = [h, *attention.parameters()]
    ours, theirs = (
        torch.autograd.grad(each.vectors.square().sum() + each.gram.sum() + each.scores.sin().sum(), leaves)
        for each in (got, wanted)
    )
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-9, atol=1e-11)


def test_where_a_mask_takes_all_of_a_bag_attention_is_even():
    attention, bags, h = layer(), make_bags(LENGTHS), instances()
    got = attention(h, bags, step(masking=TopKMasking(k=300, drop=1.0)))
    assert bool(got.masked.all())
    torch.testing.assert_close(got.vectors[2], h[64:].mean(dim=0).expand(3, -1))


@pytest.mark.parametrize("whole", [False, True])
def test_a_mask_takes_the_best_by_the_scores_that_are_told_though_another_bag_is_masked_whole(whole):
    attention, h = layer(drop=0.3), instances()
    bags, masking = make_bags(LENGTHS), TopKMasking(k=10, drop=1.0)
    if not whole:
        h, bags = h[64:], replace(make_bags((200,)), slide_ids=bags.slide_ids[2:])
    got = attention(h, bags, step(masking=masking))
    masked, scores = got.masked[-200:], got.scores[-200:]
    assert torch.equal(masked, torch.zeros_like(masked).scatter_(0, scores.topk(10, dim=0).indices, True))
    left = h[-200:].T @ scores.masked_fill(masked, -torch.inf).softmax(dim=0)
    torch.testing.assert_close(got.vectors[-1], left.T, rtol=1e-11, atol=1e-13)
    wanted = attention(instances(), make_bags(LENGTHS), step()).scores[-200:]
    torch.testing.assert_close(scores, wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_what_a_bag_loses_does_not_depend_on_its_pack(drop):
    attention, h = layer(drop=drop), instances().detach()
    bags, begin = make_bags(LENGTHS), 0
    masking = TopKMasking(k=10, drop=0.5)
    pack = attention(h, bags, step(masking=masking))
    for number, length in enumerate(LENGTHS):
        rows = slice(begin, begin + length)
        begin += length
        alone = replace(
            bags,
            features=bags.features[rows],
            xy0=bags.xy0[rows],
            cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
            targets=None,
            slide_ids=bags.slide_ids[number : number + 1],
        )
        got = attention(h[rows].clone(), alone, step(masking=masking))
        assert torch.equal(got.masked, pack.masked[rows])
        assert torch.equal(got.vectors[0], pack.vectors[number])
    again = attention(h, bags, step(1, masking=masking))
    assert not torch.equal(again.masked, pack.masked)


def test_dropout_drops_on_each_factor_as_often_as_it_says():
    attention, bags, h = layer(drop=0.25, heads=1), make_bags(LENGTHS), instances()
    torch.nn.init.constant_(attention.value.weight, 0.0)
    torch.nn.init.constant_(attention.value.bias, 0.5)
    torch.nn.init.constant_(attention.gate.weight, 0.0)
    torch.nn.init.constant_(attention.gate.bias, 0.0)
    attention.score.weight.data = torch.eye(10, dtype=torch.float64)[:1]
    attention.score.bias.data.zero_()
    one = float(torch.tanh(torch.tensor(0.5, dtype=torch.float64))) / 2
    scores = torch.cat([attention(h, bags, step(seed)).scores for seed in range(20)])
    assert set((scores / one * 0.75**2).flatten().round(decimals=6).tolist()) == {0.0, 1.0}
    rate = float((scores > 0).double().mean())
    assert abs(rate - 0.75**2) < 5 * (0.75**2 * (1 - 0.75**2) / len(scores)) ** 0.5


def test_rows_name_instances():
    attention, bags, h = layer(), make_bags(LENGTHS), instances()
    rows = torch.randperm(len(h), generator=torch.Generator().manual_seed(3))
    got, wanted = attention(h, bags, None, rows=rows), attention(h[rows], bags, None)
    assert torch.equal(got.vectors, wanted.vectors)
    assert torch.equal(got.scores, wanted.scores)


def test_the_entropy_that_is_known_is_that_of_the_scores():
    attention, bags, h = layer(), make_bags(LENGTHS), instances()
    got, nothing = attention(h, bags, None), torch.zeros(3, 2)
    told = BagOutput(logits=nothing, embedding=nothing, attention_logits=got.scores, attention_entropy=got.entropy)
    torch.testing.assert_close(
        attention_entropy(told, bags), attention_entropy(replace(told, attention_entropy=None), bags)
    )
    assert attention(h, bags, step(masking=TopKMasking())).entropy is None
