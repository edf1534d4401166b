"""A map is turned the way of what was said, and attention has the head of the output where a method has one for each."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from tests.evaluation.faithfulness.toys import DIM, SMALL, linear_model
from wsimil.evaluation.attribution.scored import Scored
from wsimil.evaluation.faithfulness.maps import BagMaps
from wsimil.evaluation.faithfulness.said import Said
from wsimil.mil import registry
from wsimil.targets import MultiLabel

LABELS = MultiLabel(columns=("er", "pr"))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_map_of_what_is_not_there_is_turned_and_attention_never(sign: Literal[1, -1]) -> None:
    parts = Scored(values=torch.tensor([[1.0, 2.0], [3.0, -4.0]]), rule="exact", bias=torch.tensor([[0.5, 0.25]]))
    said = Said(output=1, name="pr", sign=sign, measure="probability")
    maps = BagMaps(model=linear_model(), task=LABELS, logits=np.array([4.5, -1.75]))
    found = maps.tile_map(parts, "contribution", said)
    assert found.values.tolist() == [2.0 * sign, -4.0 * sign]
    assert found.total == pytest.approx(sign * -1.75)
    looked = maps.tile_map(Scored(values=torch.tensor([[0.2], [0.8]]), rule=""), "attention", said)
    assert looked.values == pytest.approx([0.2, 0.8])
    assert looked.total is None


def test_attention_has_the_head_of_the_output_where_there_is_one_for_each() -> None:
    heads = Scored(values=torch.tensor([[0.1, 0.7], [0.9, 0.3]], dtype=torch.float64), rule="")
    of_each = registry.build("dsmil", SMALL["dsmil"], in_dim=DIM, num_classes=2)
    for model, wanted in ((of_each, [0.7, 0.3]), (linear_model(), [0.4, 0.6])):
        maps = BagMaps(model=model, task=LABELS, logits=np.zeros(2))
        assert maps.column(heads, "attention", 1) == pytest.approx(wanted)
