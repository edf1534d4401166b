"""Gradients, and their integral from the mean tile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.evaluation.attribution.models import ALL, PICKING, build
from wsimil.evaluation.attribution import gradients
from wsimil.evaluation.attribution.scoring import score
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch
from wsimil.mil.ensemble import Ensemble
from wsimil.mil.layers.standardize import Standardize
from wsimil.testing.method_laws import make_bags

WHOLE = [case for case in ALL if case not in (*PICKING, "ensemble", "rrt", "rrt shortcut")]
"""Whose answers do not jump on the way from the mean tile."""


def mean_tiles(model, bags: BagBatch) -> BagBatch:
    return replace(bags, features=model.standardize.mean.expand_as(bags.features).clone())


@pytest.mark.parametrize("case", WHOLE)
def test_integrated_gradients_and_bias_sum_to_the_logit_to_what_the_rule_says(case: str) -> None:
    outputs = 3 if "clam" in case or case == "mhim recycled" else 1
    model, bags = build(case, outputs=outputs), make_bags((5,), dtype=torch.float64)
    found = score(model, bags, "integrated_gradients")
    with torch.no_grad():
        begin, end = model(mean_tiles(model, bags)).logits, model(bags).logits
    torch.testing.assert_close(found.bias, begin)
    said = float(found.rule.rpartition(" ")[2].removesuffix("%")) / 100
    assert said <= 0.05
    left = (found.values.sum(dim=0) + begin - end).abs().max() / (end - begin).abs().max()
    # The rule has one decimal of a percent.
    assert abs(left - said) <= 0.0005


def test_integrated_gradients_that_a_jump_leaves_incomplete_say_so() -> None:
    model, bags = build("rrt", outputs=1), make_bags((5,), dtype=torch.float64)
    found = score(model, bags, "integrated_gradients")
    with torch.no_grad():
        begin, end = model(mean_tiles(model, bags)).logits, model(bags).logits
    left = (found.values.sum(dim=0) + begin - end).abs().max() / (end - begin).abs().max()
    assert left > 0.01
    assert found.rule == f"from the mean tile, 128 steps, complete to {float(left):.1%}"


@pytest.mark.parametrize("kind", ["gradient_x_input", "integrated_gradients"])
def test_the_rule_names_the_baseline_which_is_no_mean_tile_where_nothing_is_standardized(kind) -> None:
    made, bags = build("abmil"), make_bags((5,), dtype=torch.float64)
    assert "from the mean tile" in score(made, bags, kind).rule
    plain = build("abmil")
    plain.standardize.load_state_dict(Standardize(plain.in_dim).double().state_dict())
    assert "from features of zero" in score(plain, bags, kind).rule
    joined = score(Ensemble([made, plain], ("abmil", "abmil")), bags, kind).rule
    assert "from the mean tile" in joined
    assert "from features of zero" in joined


def riemann(model: MILModel, bags: BagBatch, steps: int) -> Tensor:
    """The integral at the middles of so many even steps."""
    begin = mean_tiles(model, bags).features
    way = bags.features - begin
    total = torch.zeros(len(way), model.num_classes, dtype=torch.float64)
    for step in range(steps):
        x = (begin + (step + 0.5) / steps * way).requires_grad_()
        logits = model(replace(bags, features=x)).logits[0]
        for column in range(model.num_classes):
            (gradient,) = torch.autograd.grad(logits[column], x, retain_graph=True)
            total[:, column] += (gradient * way).sum(dim=1) / steps
    return total


def test_without_bends_on_the_way_integrated_gradients_are_a_fine_sum() -> None:
    model, bags = build("abmil of features"), make_bags((5,), dtype=torch.float64)
    coarse, fine = (riemann(model, bags, steps) for steps in (100, 200))
    # Middles err by the square of a step: two sums tell the integral to the fourth power.
    wanted = fine + (fine - coarse) / 3
    torch.testing.assert_close(score(model, bags, "integrated_gradients").values, wanted, rtol=1e-7, atol=1e-9)


def test_each_bend_of_relu_costs_at_most_the_weight_of_a_step() -> None:
    model, bags = build("mean of features"), make_bags((5,), dtype=torch.float64)
    found = score(model, bags, "integrated_gradients").values
    way = (bags.features - model.standardize.mean) / model.standardize.scale
    # A unit of a tile bends once on the way: its part of the slope jumps by this.
    jumps = (way @ model.embed.linear.weight.t()).abs() @ model.classifier.weight.abs().t() / 5
    heaviest = np.polynomial.legendre.leggauss(32)[1].max() / 2
    assert ((found - riemann(model, bags, 400)).abs() <= jumps * (heaviest + 1 / 400)).all()


def test_integrated_gradients_are_captums() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    model, bags = build("abmil of features"), make_bags((7,), dtype=torch.float64)

    def answer(x):
        return torch.cat([model(replace(bags, features=one)).logits for one in x])

    oracle = captum.IntegratedGradients(answer)
    begin = mean_tiles(model, bags).features
    found = score(model, bags, "integrated_gradients").values
    for column in range(3):
        wanted = oracle.attribute(
            bags.features[None], baselines=begin[None], target=column, n_steps=300, internal_batch_size=1
        )
        # Without a bend on the way both quadratures are exact to rounding.
        torch.testing.assert_close(found[:, column], wanted[0].sum(dim=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", ALL)
def test_gradient_x_input_is_the_slope_at_the_bag_toward_the_mean_tile(case: str) -> None:
    model, bags = build(case), make_bags((9,), dtype=torch.float64)
    with torch.no_grad():  # as those who predict ask
        found = score(model, bags, "gradient_x_input")
    assert found.bias is None
    if case == "ensemble":  # its members differ in their mean tiles
        return
    way, row, step = bags.features - mean_tiles(model, bags).features, 4, 1e-6
    with torch.no_grad():
        logits = []
        for sign in (1, -1):
            features = bags.features.clone()
            features[row] += sign * step * way[row]
            logits.append(model(replace(bags, features=features)).logits[0])
    torch.testing.assert_close(found.values[row], (logits[0] - logits[1]) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["gradient_x_input", "integrated_gradients"])
@pytest.mark.parametrize("case", ["abmil", "ensemble"])
def test_packing_changes_no_gradient(case: str, kind) -> None:
    model, bags = build(case, outputs=2), make_bags((5, 2, 1), dtype=torch.float64)
    packed = score(model, bags, kind).values
    begin = 0
    for number, count in enumerate(bags.lengths):
        rows = slice(begin, begin + count)
        begin += count
        one = BagBatch(
            features=bags.features[rows].clone(),
            xy0=bags.xy0[rows],
            cu_seqlens=torch.tensor([0, count], dtype=torch.int32),
            slide_ids=(bags.slide_ids[number],),
        )
        torch.testing.assert_close(score(model, one, kind).values, packed[rows], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ["abmil", "acmil multihead", "clam multi", "dsmil", "dtfd afs", "rrt", "transmil"])
def test_steps_that_go_together_give_the_bits_of_steps_one_by_one(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, bags = build(case, outputs=2, wide=False), make_bags((5,))
    monkeypatch.setattr(gradients, "_STEPS", (6,))
    passes = []
    handle = model.register_forward_hook(lambda _model, given, _found: passes.append(len(given[0])))
    together = score(model, bags, "integrated_gradients")
    assert max(passes) == 6
    passes.clear()
    monkeypatch.setattr(gradients, "_ROWS", 12)
    by_two = score(model, bags, "integrated_gradients")
    assert max(passes) == 2
    monkeypatch.setattr(gradients, "_ROWS", 1)
    one_by_one = score(model, bags, "integrated_gradients")
    handle.remove()
    for other in (by_two, one_by_one):
        assert torch.equal(together.values, other.values)
        assert together.rule == other.rule
