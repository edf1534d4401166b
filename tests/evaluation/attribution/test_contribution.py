"""Contributions: of every method, complete, and by a rule that is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.attribution.models import ALL, CASES, MIXED, build
from wsimil.evaluation.attribution.scoring import score
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch
from wsimil.mil.layers.region_attention import CrossRegionLayer
from wsimil.testing.method_laws import make_bags

LRP = {"acmil multihead", "mhim recycled", "multihead", *MIXED}
WITHOUT_RULE = ("mean of features", "mean of logits", "max of features", "max of logits")
"""Which split their logits, and are not made linear."""


def summed(values: Tensor, bags: BagBatch) -> Tensor:
    return torch.zeros(len(bags), values.shape[1], dtype=values.dtype).index_add_(0, bags.bag_ids, values)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("case", ALL)
def test_contributions_and_bias_sum_to_the_logit(case: str, outputs: int) -> None:
    if case.startswith("clam") or case == "mhim recycled":
        outputs = 3
    model, bags = build(case, outputs=outputs), make_bags((37, 1, 120, 2), dtype=torch.float64)
    found = score(model, bags, "contribution")
    with torch.no_grad():
        logits = model(bags).logits
    assert found.bias is not None
    assert found.values.shape == (len(bags.features), outputs)
    # Every step of either way rounds to 1e-16 of what it adds; a thousand times that is room for some hundred steps.
    allowed = 1e-12 * (1 + summed(found.values.abs(), bags) + found.bias.abs())
    assert ((summed(found.values, bags) + found.bias - logits).abs() <= allowed).all()


@pytest.mark.parametrize("case", sorted(LRP))
def test_in_float32_the_sum_is_far_within_what_a_prediction_allows(case: str) -> None:
    model, bags = build(case, wide=False), make_bags((37, 500))
    found = score(model, bags, "contribution")
    with torch.no_grad():
        logits = model(bags).logits
    assert found.bias is not None
    # A prediction allows 1e-4 of this; a hundred roundings in a row are a tenth of that.
    allowed = 1e-5 * (1 + summed(found.values.abs(), bags) + found.bias.abs())
    assert ((summed(found.values, bags) + found.bias - logits).abs() <= allowed).all()


@pytest.mark.parametrize("case", CASES)
def test_the_rule_tells_sums_from_maxima_and_constant_attention(case: str) -> None:
    rule = score(build(case), make_bags((5,), dtype=torch.float64), "contribution").rule
    of_sums = "Shapley values of the maximum" if case.startswith("max") else "exact"
    assert rule == ("attention-constant LRP" if case in LRP else of_sums)


@pytest.mark.parametrize("case", sorted(LRP))
def test_the_bias_of_lrp_is_what_the_linear_network_says_of_nothing(case: str) -> None:
    model, bags = build(case), make_bags((37, 1, 120, 2), dtype=torch.float64)
    found = score(model, bags, "contribution")
    h = model.embed_instances(bags, None)
    with torch.no_grad():
        nothing = model.linearized(torch.zeros_like(h), bags, at=h)
        half = model.linearized(h / 2, bags, at=h)
    assert nothing is not None
    assert half is not None
    assert found.bias is not None
    torch.testing.assert_close(found.bias, nothing, rtol=0, atol=0)
    torch.testing.assert_close(summed(found.values, bags) / 2 + found.bias, half, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def made_affine(model: MILModel, monkeypatch: pytest.MonkeyPatch) -> MILModel:
    """The model with attention that is even whatever it sees, and norms that divide by a constant."""

    def even(layer: CrossRegionLayer, tokens: Tensor) -> tuple[Tensor, Tensor]:
        weights = tokens.new_full((len(tokens), layer.representatives, tokens.shape[1]), 0.1)
        return weights, 2 * weights

    monkeypatch.setattr(CrossRegionLayer, "_weights", even)
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e16
            module.weight.mul_(1e8)
        elif leaf in ("to_qkv", "qkv") and isinstance(module, nn.Linear):
            module.weight[: 2 * len(module.weight) // 3] = 0
            if module.bias is not None:
                module.bias[: 2 * len(module.bias) // 3] = 0
        elif leaf in ("to_q", "q_proj", "score") and isinstance(module, nn.Linear):
            for parameter in module.parameters():
                parameter.zero_()
    return model


@pytest.mark.parametrize("case", sorted(LRP))
def test_lrp_of_a_network_in_which_nothing_needs_to_be_held_is_its_gradient(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bags = made_affine(build(case), monkeypatch), make_bags((37, 90), dtype=torch.float64)
    x = model.embed_instances(bags, None).detach().requires_grad_()
    logits = model.aggregate(x, bags, None).logits.sum(dim=0)
    found = score(model, bags, "contribution")
    for column, logit in enumerate(logits.unbind()):
        (gradient,) = torch.autograd.grad(logit, x, retain_graph=True)
        # What norms divide by varies by the variance of their input over 1e16; half the digits are lost in that sum.
        torch.testing.assert_close((gradient * x).sum(dim=1).detach(), found.values[:, column], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", [case for case in CASES if case not in (*LRP, *WITHOUT_RULE, "dsmil values")])
def test_where_a_method_splits_exactly_lrp_gives_the_same(case: str) -> None:
    model, bags = build(case), make_bags((37, 1, 120), dtype=torch.float64)
    h = model.embed_instances(bags, None).detach()
    x = h.clone().requires_grad_()
    logits = model.linearized(x, bags, at=h)
    assert logits is not None
    exact = score(model, bags, "contribution")
    for column in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, column].sum(), x, retain_graph=True)
        torch.testing.assert_close((gradient * h).sum(dim=1), exact.values[:, column], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ALL)
def test_packing_changes_no_contribution(case: str) -> None:
    model, bags = build(case, wide=False), make_bags((37, 1, 63))
    packed = score(model, bags, "contribution")
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
        alone = score(model, one, "contribution")
        assert alone.bias is not None
        assert packed.bias is not None
        torch.testing.assert_close(alone.values, packed.values[rows], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(alone.bias[0], packed.bias[number], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["abmil", "transmil", "ensemble"])
def test_no_parameter_gets_a_gradient_and_none_stays(case: str) -> None:
    model, bags = build(case), make_bags((9,), dtype=torch.float64)
    found = score(model, bags, "contribution")
    assert not found.values.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
