"""TransMIL: its answer does not depend on whether a gradient is asked for."""

from __future__ import annotations

import pytest
import torch

from wsimil.mil import registry
from wsimil.mil.batch import StepContext
from wsimil.mil.methods.transmil import TransMILConfig
from wsimil.ops import landmark_attention
from wsimil.testing.method_laws import CLASSES, DIM, make_bags


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("options", [{}, {"filling": "ppeg"}, {"shifted_output": True}])
def test_the_streamed_answer_is_the_held_one(options, layer, monkeypatch):
    monkeypatch.setattr(landmark_attention, "_NUMBERS", {"cpu": 50 * 4 * 8})
    config = {"hidden_dim": 16, "heads": 4, "landmarks": 8, "kernel": 5, "attention_layer": layer, **options}
    torch.manual_seed(0)
    model = registry.build("transmil", config, in_dim=DIM, num_classes=CLASSES).double()
    bags = make_bags((1, 2, 63, 200))

    def ask(draws):
        step = StepContext(generator=torch.Generator().manual_seed(3), progress=0.0) if draws else None
        h = model.embed_instances(bags, step)
        scored = model.class_scores(h, bags, step)
        return scored.output.logits, scored.output.embedding, scored.output.attention, scored.values

    for draws in (False, True):
        held = ask(draws)
        with torch.no_grad():
            streamed = ask(draws)
        for got, wanted in zip(streamed, held, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "options",
    [{}, {"landmarks": 2}, {"landmarks": 3, "kernel": 1}, {"filling": "ppeg"}, {"head_dim": 3, "iterations": 1}],
)
def test_an_instance_alone_is_answered_as_a_bag_of_it(options):
    config = {"hidden_dim": 16, "heads": 4, "landmarks": 8, "kernel": 5, **options}
    torch.manual_seed(0)
    model = registry.build("transmil", config, in_dim=DIM, num_classes=CLASSES).double()
    bags = make_bags((1,) * 9)
    h = model.embed_instances(bags, None).detach()
    found = model.alone(h)
    assert not found.requires_grad
    torch.testing.assert_close(found, model(bags).logits.detach(), rtol=1e-12, atol=1e-12)
    assert found.std(dim=0).min() > 1e-3


@pytest.mark.parametrize("options", [{"shifted_output": True}, {"landmarks": 1}])
def test_an_instance_alone_is_left_to_the_bag_where_tokens_are_no_landmarks(options):
    model = registry.build("transmil", {"hidden_dim": 16, "heads": 4, **options}, in_dim=DIM, num_classes=CLASSES)
    assert model.alone(torch.zeros(3, 16)) is None
    assert not model.shows_each_alone


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_bags_of_few_tokens_are_answered_together_as_each_by_itself(count):
    config = {"hidden_dim": 16, "heads": 4, "landmarks": 8, "kernel": 5}
    layer = registry.build("transmil", config, in_dim=DIM, num_classes=CLASSES).double().layer1
    tokens = torch.randn(5, count, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = layer.short(tokens)
    for bag, found in zip(tokens, together, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, layer(bag, None), rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match="9 tokens are more than 8 landmarks"):
        layer.short(torch.zeros(1, 9, 16, dtype=torch.float64))


def test_a_kernel_without_a_middle_is_refused_with_its_config() -> None:
    with pytest.raises(ValueError, match="kernel is odd"):
        TransMILConfig(kernel=4)
