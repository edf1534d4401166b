"""A model drawn anew: other weights, the same method, and features that are standardized as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluation.faithfulness.toys import DIM, SMALL, evidence_bag
from wsimil.evaluation.faithfulness.cohort import rank_correlation
from wsimil.evaluation.faithfulness.randomized import MOST_CORRELATED, reinitialized
from wsimil.mil import registry
from wsimil.mil.ensemble import Ensemble


@pytest.mark.parametrize("name", registry.names())
def test_every_weight_is_new_and_standardization_stays(name: str) -> None:
    model = registry.build(name, SMALL.get(name, {}), in_dim=DIM, num_classes=2)
    model.standardize.fit([np.random.default_rng(0).normal(3, 2, size=(50, DIM))])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    state = torch.get_rng_state()
    first, again, other = (reinitialized(model, name, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.config == model.config
    for key, value in model.state_dict().items():
        if "standardize" in key:
            assert torch.equal(first.state_dict()[key], value)
    weights = dict(model.named_parameters())
    for key, value in first.named_parameters():
        assert not torch.equal(value, weights[key]), key
        assert torch.equal(value, dict(again.named_parameters())[key])
    assert any(not torch.equal(value, dict(other.named_parameters())[key]) for key, value in first.named_parameters())


def test_an_ensemble_is_drawn_anew_member_by_member() -> None:
    members = [registry.build("abmil", {}, in_dim=DIM, num_classes=2, seed=seed) for seed in range(2)]
    fresh = reinitialized(Ensemble(members, ["abmil", "abmil"]), "ensemble", seed=0)
    drawn = [member.state_dict()["classifier.weight"] for member in fresh.members]
    assert not torch.equal(*drawn)


def test_a_map_of_what_was_learned_does_not_look_like_those_of_random_weights() -> None:
    """And one that does not ask the weights looks the same: what the check is for."""
    model = registry.build("abmil", {}, in_dim=DIM, num_classes=2)
    found, blind = [], []
    for number in range(40):
        bag, says = evidence_bag(number)
        maps = [
            m.contributions(bag).values[:, 1].detach().double().numpy()
            for m in (model, reinitialized(model, "abmil", seed=number))
        ]
        found.append(rank_correlation(*maps))
        blind.append(rank_correlation(says, says))
    assert abs(np.mean(found)) < MOST_CORRELATED
    assert np.mean(blind) == pytest.approx(1)
