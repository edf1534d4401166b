"""All scores of a pack in one table: named, ruled, one bag at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.evaluation.attribution.models import build as small
from wsimil.errors import ConfigError, ModelError
from wsimil.evaluation.attribution import SCORE_KINDS, kinds_of
from wsimil.evaluation.attribution.scoring import score
from wsimil.evaluation.attribution.table import attribute
from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagOutput, pack
from wsimil.mil.ensemble import Ensemble
from wsimil.testing.method_laws import CLASSES, DIM, make_bags

NAMES = ["benign", "grade 1", "grade 2"]


def build(name, **config):
    return registry.build(name, config, in_dim=DIM, num_classes=CLASSES)


def test_contributions_sum_to_the_logits_less_the_bias():
    model, bags = build("abmil"), make_bags()
    attribution = attribute(model, bags, outputs=NAMES)
    assert attribution.names == ("attention", "contribution:benign", "contribution:grade 1", "contribution:grade 2")
    assert [len(scores) for scores in attribution.per_bag()] == list(bags.lengths)
    for scores, logits in zip(attribution.per_bag(), attribution.output.logits, strict=True):
        assert scores.dtype == np.float32
        # 200 terms below 1 in size, each rounded once: far below 1e-6 of the sum of sizes plus the bias.
        budget = 1e-6 * (np.abs(scores[:, 1:]).sum(0) + 1)
        assert (np.abs(scores[:, 1:].sum(0) + attribution.bias[0].numpy() - logits.numpy()) <= budget).all()
        assert scores[:, 0].sum() == pytest.approx(1, abs=1e-6)


def test_attribution_answers_as_forward_does():
    for name in registry.names():
        model, bags = build(name), make_bags()
        with torch.no_grad():
            answer = model(bags)
        assert torch.equal(attribute(model, bags, outputs=NAMES).output.logits, answer.logits)


def test_a_mean_gives_each_instance_its_own_logit_by_the_number():
    model, bags = build("pooling"), make_bags((63,))
    (scores,) = attribute(model, bags, outputs=NAMES).per_bag()
    bias = model.classifier.bias.detach().numpy()
    np.testing.assert_allclose(scores[:, :3], (scores[:, 3:] - bias) / 63, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("level", ["feature", "logit"])
def test_instances_that_tie_for_a_maximum_share_it(level):
    model, bags = build("pooling", pool="max", level=level), make_bags((2,))
    bags.features[1] = bags.features[0]
    (scores,) = attribute(model, bags, outputs=NAMES, kinds=("contribution",)).per_bag()
    np.testing.assert_array_equal(scores[0], scores[1])
    logits = scores[:, :3].sum(0) + model.classifier.bias.detach().numpy()
    np.testing.assert_allclose(logits, model(bags).logits[0].detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("level", ["feature", "logit"])
def test_a_maximum_is_shared_by_what_each_instance_adds_to_those_before_it_over_all_orders(level):
    model, bags = small(f"max of {level}s"), make_bags((5,), dtype=torch.float64)
    nothing = model.classifier.bias.detach()
    total, orders = torch.zeros(5, 3, dtype=torch.float64), list(itertools.permutations(range(5)))
    for order in orders:
        before = nothing
        for count, row in enumerate(order, start=1):
            part = pack([bags.features[list(order[:count])]], xy0=[np.zeros((count, 2), np.int64)], slide_ids=["a"])
            with torch.no_grad():
                answer = model(part).logits[0]
            total[row] += answer - before
            before = answer
    found = score(model, bags, "contribution")
    assert found.rule == "Shapley values of the maximum"
    torch.testing.assert_close(found.values.detach(), total / len(orders), rtol=1e-12, atol=1e-12)


def test_an_ensemble_with_a_maximum_in_it_is_no_sum() -> None:
    (mean, other), maximum = [build("pooling") for _ in range(2)], build("pooling", pool="max")
    for second, wanted in ((maximum, True), (other, False)):
        split = Ensemble([mean, second], ["pooling", "pooling"]).contributions(make_bags((5,)))
        assert split.of_maximum is wanted


class TwoHeads(MILModel):
    """A method that splits nothing: two heads of attention, no instance logits."""

    Config = registry.config_class("abmil")

    def embed_instances(self, bags, step):
        return self.standardize(bags.features)

    def aggregate(self, x, bags, step):
        zeros = torch.zeros(len(bags), self.num_classes)
        return BagOutput(logits=zeros, embedding=zeros, attention_logits=x[:, :2])


class Silent(TwoHeads):
    """A method that says nothing of its instances."""

    def aggregate(self, x, bags, step):
        zeros = torch.zeros(len(bags), self.num_classes)
        return BagOutput(logits=zeros, embedding=zeros)


def test_a_method_without_a_rule_gives_single_under_its_name_and_never_attention() -> None:
    bags = make_bags((37, 2))
    for method, attention in ((TwoHeads, ("attention:1", "attention:2")), (Silent, ())):
        model = method(method.Config(), in_dim=DIM, num_classes=CLASSES)
        found = attribute(model, bags, outputs=NAMES)
        assert found.names == (*attention, "single:benign", "single:grade 1", "single:grade 2")
        assert found.rules[len(attention) :] == ("single, as the method has no rule",) * 3
        assert found.bias is None
        assert torch.equal(found.values[:, len(attention) :], score(model, bags, "single").values)
        stands_in = score(model, bags, "contribution")
        assert (stands_in.rule, stands_in.bias) == ("single, as the method has no rule", None)
        for scores in found.per_bag():
            np.testing.assert_allclose(scores[:, : len(attention)].sum(0), [1] * len(attention), rtol=1e-6)


def test_an_ensemble_with_a_member_that_has_no_rule_has_none_either() -> None:
    members = [build("abmil"), TwoHeads(TwoHeads.Config(), in_dim=DIM, num_classes=CLASSES)]
    found = attribute(Ensemble(members, ["abmil", "abmil"]), make_bags((37, 2)), outputs=NAMES)
    assert found.names == ("attention", "single:benign", "single:grade 1", "single:grade 2")


def first_kinds(model: MILModel) -> list[str]:
    """Of the scores that come where none are named, in order."""
    names = attribute(model, make_bags((37, 2)), outputs=NAMES).names
    return list(dict.fromkeys(name.partition(":")[0] for name in names))


def test_a_maximum_is_shown_by_what_it_was_taken_of() -> None:
    assert first_kinds(build("pooling", pool="max", level="logit")) == ["single", "score"]
    assert first_kinds(build("pooling", pool="max", level="feature")) == ["single"]
    assert first_kinds(build("pooling")) == ["contribution", "score"]
    assert first_kinds(build("abmil")) == ["attention", "contribution"]


def test_a_transmil_is_shown_by_each_tile_alone() -> None:
    assert first_kinds(build("transmil", hidden_dim=16)) == ["attention", "single"]
    assert first_kinds(build("mhim", base={"name": "transmil", "hidden_dim": 16})) == ["attention", "single"]
    assert first_kinds(build("rrt", hidden_dim=16)) == ["attention", "contribution"]


def test_an_ensemble_is_shown_as_its_members_are_where_they_agree() -> None:
    maxima, mean = [build("pooling", pool="max", level="feature") for _ in range(2)], build("pooling", level="feature")
    assert first_kinds(Ensemble(maxima, ["pooling", "pooling"])) == ["single"]
    assert first_kinds(Ensemble([maxima[0], mean], ["pooling", "pooling"])) == ["contribution"]


@pytest.mark.parametrize("case", ["abmil", "acmil multihead", "dsmil", "max of logits", "ensemble"])
def test_every_kind_stands_in_the_table_as_it_is_scored(case: str) -> None:
    model, bags = small(case), make_bags((5, 2), dtype=torch.float64)
    found = attribute(model, bags, outputs=NAMES, kinds=SCORE_KINDS)
    assert len(set(found.names)) == len(found.names) == len(found.rules) == found.values.shape[1]
    for kind in SCORE_KINDS:
        columns = [i for i, column in enumerate(found.names) if column.partition(":")[0] == kind]
        if kind == "attention" and not columns:
            with pytest.raises(ModelError, match="pools without attention"):
                score(model, bags, kind)
            continue
        scored = score(model, bags, kind)
        torch.testing.assert_close(found.values[:, columns], scored.values.detach(), rtol=1e-5, atol=1e-7)
        assert {found.rules[i] for i in columns} == {scored.rule}


def test_kinds_that_were_not_asked_for_are_not_made() -> None:
    assert attribute(build("pooling"), make_bags((9,)), outputs=NAMES, kinds=()).names == ()
    found = attribute(build("pooling"), make_bags((9,)), outputs=NAMES, kinds=("single",))
    assert [name.partition(":")[0] for name in found.names] == ["single"] * 3 + ["score"] * 3
    assert found.bias is None


def test_attention_that_is_no_softmax_says_so() -> None:
    rules = {name: score(build(name), make_bags((9,)), "attention").rule for name in ("abmil", "dtfd", "transmil")}
    assert rules == {
        "abmil": "softmax over the bag",
        "dtfd": "weights of the method, no softmax over the bag",
        "transmil": "weights of the method, no softmax over the bag",
    }
    both = Ensemble([build("abmil"), build("transmil")], ["abmil", "transmil"])
    assert score(both, make_bags((9,)), "attention").rule == " / ".join((rules["abmil"], rules["transmil"]))


def test_a_list_of_kinds_is_read_and_a_typo_refused() -> None:
    assert kinds_of("single, contribution,single") == ("single", "contribution")
    with pytest.raises(ConfigError, match="unknown kind of score 'lrp'; known are contribution, single, leave_one_out"):
        kinds_of("single,lrp")
    with pytest.raises(ConfigError, match="no kind of score is named"):
        kinds_of(" , ")
    with pytest.raises(ValueError, match="a score is one of contribution"):
        score(build("abmil"), make_bags((9,)), "lrp")  # type: ignore[arg-type]


def test_names_of_another_number_of_classes_are_refused():
    with pytest.raises(ModelError, match="3 logits, got 2 names: a, b"):
        attribute(build("abmil"), make_bags(), outputs=["a", "b"])
