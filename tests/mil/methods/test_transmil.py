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


def test_a_kernel_without_a_middle_is_refused_with_its_config() -> None:
    with pytest.raises(ValueError, match="kernel is odd"):
        TransMILConfig(kernel=4)
