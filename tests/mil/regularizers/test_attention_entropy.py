"""Attention entropy: its range, its heads, its largest weights."""

from __future__ import annotations

import math

import pytest
import torch

from wsimil.mil import registry
from wsimil.mil.batch import BagOutput, StepContext
from wsimil.mil.regularizers.attention_entropy import attention_entropy
from wsimil.testing.method_laws import CLASSES, DIM, make_bags


def of(scores, bags, **options):
    nothing = torch.zeros(len(bags), 2)
    return attention_entropy(BagOutput(logits=nothing, embedding=nothing, attention_logits=scores), bags, **options)


def test_even_attention_has_the_entropy_of_its_number_of_instances():
    bags = make_bags((63, 5))
    assert of(torch.zeros(68, 4), bags).item() == pytest.approx(-(math.log(63) + math.log(5)) / 2, rel=1e-6)
    assert of(torch.zeros(68, 4), bags, top_k=7).item() == pytest.approx(-(math.log(7) + math.log(5)) / 2, rel=1e-6)


def test_heads_and_bags_are_averaged():
    bags = make_bags((37, 63))
    scores = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    each = [
        of(scores[rows, head, None], make_bags((count,)))
        for rows, count in ((slice(37), 37), (slice(37, 100), 63))
        for head in range(3)
    ]
    torch.testing.assert_close(of(scores, bags), torch.stack(each).mean())


@pytest.mark.parametrize("top_k", [None, 5])
def test_weights_that_underflow_count_nothing_and_give_no_nan(top_k):
    scores = torch.tensor([500.0, 0, 0, -500, 1, 2, 3])[:, None].requires_grad_()
    value = of(scores, make_bags((7,)), top_k=top_k)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("config", [{}, {"distill": "maxs"}, {"distill": "maxmins"}])
@pytest.mark.parametrize("top_k", [None, 5])
def test_attention_that_is_no_softmax_over_the_bag_has_no_entropy(config, top_k):
    base, bags = {"hidden_dim": 16, **config}, make_bags((63, 5))
    for name, options in (("dtfd", base), ("mhim", {"base": {"name": "dtfd", **base}})):
        model = registry.build(name, options, in_dim=DIM, num_classes=CLASSES)
        terms = model.losses(bags, StepContext(generator=torch.Generator().manual_seed(0), progress=0.0))
        assert attention_entropy(terms.output, terms.seen or bags, top_k=top_k) is None


def test_a_method_without_attention_has_no_entropy():
    nothing = torch.zeros(1, 2)
    assert attention_entropy(BagOutput(logits=nothing, embedding=nothing), make_bags((3,))) is None
