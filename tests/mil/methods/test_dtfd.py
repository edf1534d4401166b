"""DTFD-MIL: how bags are dealt, what is handed on, and which loss trains what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wsimil.mil import registry
from wsimil.mil.batch import StepContext
from wsimil.mil.masking import TopKMasking
from wsimil.ops.segment_sum import segment_sum
from wsimil.testing.method_laws import CLASSES, DIM, make_bags


def build(**config):
    config = {"hidden_dim": 32, "attention_dim": 16, **config}
    return registry.build("dtfd", config, in_dim=DIM, num_classes=CLASSES)


def step(seed=0):
    return StepContext(generator=torch.Generator().manual_seed(seed), progress=0.0)


@pytest.mark.parametrize(("config", "weighed"), [({}, 63), ({"distill": "maxs", "distilled": 8}, 8)])
def test_what_an_instance_weighs_in_both_tiers_makes_the_bags_vector(config, weighed):
    model, bags = build(**config), make_bags((63,))
    output = model(bags)
    assert int((output.attention > 0).sum()) == weighed
    assert output.attention.sum().item() == pytest.approx(1)
    vector = segment_sum(output.attention, model.embed_instances(bags, None), bags.cu_seqlens)[:, 0]
    torch.testing.assert_close(vector, output.embedding)


@pytest.mark.parametrize("distill", ["maxs", "maxmins"])
def test_a_pseudo_bag_hands_on_what_a_mask_left_of_it(distill):
    masking = TopKMasking(k=15, drop=0.6)
    output = build(distill=distill, distilled=60).losses(make_bags((60,)), replace(step(), masking=masking)).output
    assert int(output.masked.sum()) == 4 * 9
    assert torch.equal(output.attention > 0, ~output.masked)
    assert output.attention.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("distill", ["maxs", "maxmins"])
def test_where_a_mask_takes_all_of_a_pseudo_bag_layers_in_bfloat16_learn_too(distill):
    model = build(distill=distill)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model.losses(make_bags((3, 63)), replace(step(), masking=TopKMasking(k=10, drop=1.0)))
    assert terms.output.masked[:3].all()
    assert terms.total.isfinite()


def test_maxmins_hands_on_the_most_and_the_least_probable_of_each_pseudo_bag():
    model, bags = build(distill="maxmins", pseudo_bags=2, distilled=6), make_bags((20,))
    assert int((model(bags).attention > 0).sum()) == 2 * (3 + 3)
    tiny = model(make_bags((2,)))
    assert tiny.attention.sum().item() == pytest.approx(1)


def test_each_step_deals_anew_and_inference_always_alike():
    model, bags = build(), make_bags((63,))
    first, second = (model.losses(bags, step(seed)).details["pseudo_logits"] for seed in (0, 1))
    assert first.shape == (4, CLASSES)
    assert not torch.equal(first, second)
    assert torch.equal(model(bags).logits, model(bags).logits)


def test_a_bag_of_three_makes_three_pseudo_bags():
    assert len(build().losses(make_bags((3, 9)), step()).details["pseudo_logits"]) == 3 + 4


@pytest.mark.parametrize("config", [{}, {"distill": "maxs"}])
def test_the_second_loss_trains_the_first_tier_only_end_to_end(config):
    for end_to_end in (False, True):
        model = build(**config, end_to_end=end_to_end)
        model.losses(make_bags((63,)), step()).terms["tier2"].backward()
        assert (model.embed.linear.weight.grad is not None) == end_to_end
        assert model.second_classifier.weight.grad is not None
