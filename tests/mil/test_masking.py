"""Maskings: how many, which, and drawn from the step alone."""

from __future__ import annotations

import math

import pytest
import torch

from wsimil.errors import ModelError
from wsimil.mil import registry
from wsimil.mil.batch import StepContext, take
from wsimil.mil.masking import RankMasking, TopKMasking
from wsimil.testing.method_laws import CLASSES, DIM, make_bags


def step(seed=0, **rest):
    return StepContext(generator=torch.Generator().manual_seed(seed), progress=0.0, **rest)


@pytest.mark.parametrize(("k", "drop", "count"), [(10, 0.6, 6), (10, 0.65, 6), (3, 1.0, 3), (10, 0.0, 0), (0, 0.6, 0)])
def test_stochastic_top_k_masks_that_many_of_the_best(k, drop, count):
    bags = make_bags((63, 200))
    scores = torch.randn(263, 4, generator=torch.Generator().manual_seed(1))
    masked = TopKMasking(k=k, drop=drop)(scores, bags, step())
    for part, of in zip(masked.split([63, 200]), scores.split([63, 200]), strict=True):
        assert part.sum(dim=0).tolist() == [count] * 4
        if count:
            worst_of_top = of.topk(k, dim=0).values[-1]
            assert (of[part.any(dim=1)].max(dim=0).values >= worst_of_top).all()
            for head in range(4):
                assert (of[part[:, head], head] >= worst_of_top[head]).all()


def test_small_bags_lose_no_more_than_they_have():
    bags = make_bags((1, 2, 5))
    masked = TopKMasking(k=10, drop=0.6)(torch.randn(8, 2), bags, step())
    assert [part.sum(dim=0).tolist() for part in masked.split([1, 2, 5])] == [[0, 0], [1, 1], [3, 3]]


def test_every_one_of_the_best_is_masked_as_often():
    bags, masking = make_bags((63,)), TopKMasking(k=10, drop=0.6)
    scores = torch.arange(63.0)[:, None]
    context = step()
    rate = torch.stack([masking(scores, bags, context)[:, 0].double() for _ in range(2000)]).mean(dim=0)
    assert (rate[:-10] == 0).all()
    assert (rate[-10:] - 0.6).abs().max() < 5 * (0.6 * 0.4 / 2000) ** 0.5


def test_any_attention_method_takes_the_masking_of_a_step():
    bags = make_bags((63, 200))
    calm = {"embed_dropout": 0.0, "attention_dropout": 0.0}
    model = registry.build("abmil", calm, in_dim=DIM, num_classes=CLASSES)
    output = model.losses(bags, step(masking=TopKMasking(k=10, drop=0.6))).output
    assert output.masked is not None
    assert output.masked.sum().item() == 12
    plain = model(bags)
    assert torch.equal(output.attention_logits, plain.attention_logits)
    assert not torch.equal(output.logits, plain.logits)
    kept = (~output.masked[:, 0]).nonzero()[:, 0]
    torch.testing.assert_close(model(take(bags, kept)).logits, output.logits)


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match="less than or equal to 1"):
        TopKMasking(k=1, drop=1.5)


def test_rank_masking_masks_shares_of_whole_bags_for_all_heads():
    bags = make_bags((63, 200))
    scores = torch.randn(263, 3, generator=torch.Generator().manual_seed(1))
    masked = RankMasking(random=0.1, low=0.2, high=0.05, fusion="max")(scores, bags, step())
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    for part, of in zip(masked[:, 0].split([63, 200]), scores.split([63, 200]), strict=True):
        highest = of.amax(dim=1)
        n = len(of)
        assert part[highest.topk(math.ceil(n * 0.05)).indices].all()
        assert part[highest.topk(math.ceil(n * 0.2), largest=False).indices].all()
        assert math.ceil(n * 0.25) <= int(part.sum()) <= math.ceil(n * 0.2) + math.ceil(n * 0.05) + math.ceil(n * 0.1)


@pytest.mark.parametrize("fusion", ["vote", "mean", "max"])
def test_a_random_share_is_of_all_instances(fusion):
    mask = RankMasking(random=0.5, fusion=fusion)
    scores = torch.rand(201, 8)
    seen = torch.stack([mask.choose(scores, step(seed)) for seed in range(200)])
    assert (seen.sum(dim=1) == 101).all()
    assert (seen.double().mean(dim=0) - 0.5).abs().max() < 5 * (0.25 / 200) ** 0.5


def test_a_mask_that_would_take_all_takes_none_but_officially():
    scores = torch.tensor([[0.3], [0.7]])
    mask = RankMasking(high=0.9)
    assert not mask.choose(scores, step()).any()
    assert mask.choose(scores, step(), official=True).all()


def test_a_mask_after_one_that_took_one_instance_raises_officially():
    scores = torch.rand(5, 1)
    mask = RankMasking(low=0.2, high=0.02)
    assert mask.choose(scores, step()).sum() == 2
    with pytest.raises(ModelError, match="raises where a first mask takes exactly one"):
        mask.choose(scores, step(), official=True)


def test_the_high_share_is_drawn_from_as_many_more():
    scores = torch.arange(100.0)[:, None]
    mask = RankMasking(high=0.1, high_share=0.5)
    seen = torch.stack([mask.choose(scores, step(seed)) for seed in range(300)]).double().mean(dim=0)
    assert (seen[:80] == 0).all()
    assert (seen[80:] - 0.5).abs().max() < 5 * (0.25 / 300) ** 0.5


def test_a_drawn_share_is_rounded_up_to_whole_instances():
    masked = RankMasking(high=0.25, high_share=0.5).choose(torch.arange(10.0)[:, None], step())
    assert int(masked.sum()) == math.ceil(10 * 0.25)
    assert not masked[:5].any()


def test_heads_name_an_even_part_each_where_fusion_is_the_mean():
    scores = torch.zeros(9, 3)
    for head in range(3):
        scores[3 * head : 3 * head + 3, head] = torch.tensor([1.0, 3.0, 2.0])
    masked = RankMasking(high=2 / 3, fusion="mean").choose(scores, step())
    assert masked.nonzero()[:, 0].tolist() == [1, 2, 4, 5, 7, 8]


def test_the_high_share_decays_to_nothing():
    scores = torch.arange(100.0)[:, None]
    mask = RankMasking(high=0.1, decay=True)
    counts = [int(mask.choose(scores, step_at(p)).sum()) for p in (0.0, 0.5, 0.999, 1.0)]
    assert counts == [10, 5, 1, 0]


def step_at(progress):
    return StepContext(generator=torch.Generator().manual_seed(0), progress=progress)
