"""Scores of instances: named, complete, one bag at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsimil.errors import ModelError
from wsimil.evaluation.attribution import attribute
from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagOutput
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
        assert (np.abs(scores[:, 1:].sum(0) + attribution.bias.numpy() - logits.numpy()) <= budget).all()
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
    (scores,) = attribute(model, bags, outputs=NAMES).per_bag()
    np.testing.assert_array_equal(scores[0], scores[1])
    logits = scores[:, :3].sum(0) + model.classifier.bias.detach().numpy()
    np.testing.assert_allclose(logits, model(bags).logits[0].detach().numpy(), rtol=1e-5)


def test_a_maximum_of_logits_goes_to_the_instance_that_has_it():
    model, bags = build("pooling", pool="max"), make_bags((63,))
    (scores,) = attribute(model, bags, outputs=NAMES).per_bag()
    for column in range(3):
        assert np.flatnonzero(scores[:, column]).tolist() == [int(scores[:, 3 + column].argmax())]


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


def test_a_method_without_an_exact_split_gives_what_it_has():
    bags = make_bags((37, 2))
    heads = attribute(TwoHeads(TwoHeads.Config(), in_dim=DIM, num_classes=CLASSES), bags, outputs=NAMES)
    assert heads.names == ("attention:1", "attention:2")
    for scores in heads.per_bag():
        np.testing.assert_allclose(scores.sum(0), [1, 1], rtol=1e-6)
    silent = attribute(Silent(Silent.Config(), in_dim=DIM, num_classes=CLASSES), bags, outputs=NAMES)
    assert silent.names == ()
    assert silent.bias is None
    assert [scores.shape for scores in silent.per_bag()] == [(37, 0), (2, 0)]


def test_names_of_another_number_of_classes_are_refused():
    with pytest.raises(ModelError, match="3 logits, got 2 names: a, b"):
        attribute(build("abmil"), make_bags(), outputs=["a", "b"])
