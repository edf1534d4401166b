"""Maskings: how many, which, and drawn from the step alone."""

from __future__ import annotations

import pytest
import torch

from wsimil.mil import registry
from wsimil.mil.batch import StepContext, take
from wsimil.mil.masking import TopKMasking
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
    with pytest.raises(ValueError, match=r"drop lies in \[0, 1\]"):
        TopKMasking(k=1, drop=1.5)
