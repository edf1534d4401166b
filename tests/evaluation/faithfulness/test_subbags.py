"""Parts of a bag answer as bags of those tiles do, whatever goes through the model together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluation.faithfulness.toys import SMALL
from wsimil.errors import ModelError
from wsimil.evaluation.cases import Floats, Ints
from wsimil.evaluation.faithfulness.subbags import SubBags
from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, pack
from wsimil.mil.ensemble import Ensemble
from wsimil.testing.method_laws import CLASSES, DIM, make_bags

NAMES = [*registry.names(), "ensemble", "without embedded instances"]


class Its(MILModel):
    """A method that answers in a way of its own."""

    Config = registry.config_class("abmil")

    def forward(self, bags):
        return registry_model("abmil")(bags)

    def embed_instances(self, bags, step):
        return self.standardize(bags.features)

    def aggregate(self, h, bags, step):
        zeros = torch.zeros(len(bags), self.num_classes, dtype=h.dtype)
        return BagOutput(logits=zeros, embedding=zeros)


def registry_model(name: str) -> MILModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return registry.build(name, SMALL.get(name, {}), in_dim=DIM, num_classes=CLASSES).double()


def build(name: str) -> MILModel:
    if name == "ensemble":
        return Ensemble([registry_model("abmil"), registry_model("transmil")], ["abmil", "transmil"]).double()
    if name == "without embedded instances":
        return Its(Its.Config(), in_dim=DIM, num_classes=CLASSES).double()
    return registry_model(name)


def one_bag() -> BagBatch:
    return make_bags((67,), dtype=torch.float64)


def parts_of(count: int) -> list[Ints]:
    rng = np.random.default_rng(0)
    return [np.sort(rng.permutation(count)[:size]).astype(np.int64) for size in (67, 1, 2, 40, 63, 9)]


def naive(model: MILModel, bag: BagBatch, rows: Ints) -> Floats:
    """The bag as it would have been without the other tiles."""
    alone = pack([bag.features[rows]], xy0=[bag.xy0[rows]], slide_ids=["alone"])
    with torch.no_grad():
        return model(alone).logits[0].double().numpy()


@pytest.mark.parametrize("name", NAMES)
def test_a_part_answers_as_a_bag_of_those_tiles(name: str) -> None:
    model, bag = build(name), one_bag()
    parts = parts_of(67)
    found = SubBags(model, bag).logits(parts)
    wanted = np.stack([naive(model, bag, rows) for rows in parts])
    # Both are float64; embedding 67 rows at once or a few rounds otherwise in the last digits, which a pseudo-inverse enlarges.
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["abmil", "transmil", "ensemble"])
def test_how_many_go_together_changes_no_bit(name: str) -> None:
    model, bag = build(name).float(), make_bags((67,))
    parts = parts_of(67)
    wanted = SubBags(model, bag).logits(parts)
    for budget in (1, 50, 70, 182):
        np.testing.assert_array_equal(SubBags(model, bag, max_instances=budget).logits(parts), wanted)


def test_a_budget_bounds_what_goes_together() -> None:
    class Counting(SubBags):
        def _pass(self, parts):
            rows.append([len(part) for part in parts])
            return super()._pass(parts)

    rows: list[list[int]] = []
    Counting(build("abmil"), one_bag(), max_instances=70).logits(parts_of(67))
    assert rows == [[67, 1, 2], [40], [63], [9]] or rows == [[67, 1, 2], [40], [63, 9]]
    assert all(sum(group) <= 70 for group in rows)


def test_instances_are_embedded_once() -> None:
    model, bag = build("abmil"), one_bag()
    calls = []
    model.embed.register_forward_hook(lambda *_: calls.append(1))
    SubBags(model, bag, max_instances=50).logits(parts_of(67))
    assert len(calls) == 1


def test_what_is_no_part_is_refused() -> None:
    with pytest.raises(ModelError, match="one instance or more"):
        SubBags(build("abmil"), one_bag()).logits([np.zeros(0, np.int64)])
    with pytest.raises(ModelError, match="got 2 bags"):
        SubBags(build("abmil"), make_bags((4, 5), dtype=torch.float64))
