"""CLAM: which instances get a label, and what tiny bags do, here and in the official code."""

from __future__ import annotations

import pytest
import torch

from wsimil.errors import ModelError
from wsimil.mil import registry
from wsimil.mil.batch import StepContext, pack
from wsimil.testing.method_laws import CLASSES, DIM, make_bags


def losses(bags, **config):
    config = {"hidden_dim": 32, "attention_dim": 16, "embed_dropout": 0.0, "attention_dropout": 0.0, **config}
    model = registry.build("clam", config, in_dim=DIM, num_classes=CLASSES)
    terms = model.losses(bags, StepContext(generator=torch.Generator().manual_seed(0), progress=0.0))
    return model, terms


@pytest.mark.parametrize("branches", ["single", "multi"])
def test_the_most_attended_are_to_be_positive_and_the_least_negative(branches):
    bags = make_bags((63,))
    model, terms = losses(bags, branches=branches, k_sample=5)
    (target,) = bags.targets.tolist()
    scores = terms.output.attention_logits[:, target if branches == "multi" else 0]
    order = scores.argsort(descending=True)
    h = model.embed_instances(bags, None)
    judge = model.instance_classifiers[target]
    wanted = judge(torch.cat([h[order[:5]], h[order.flip(0)[:5]]]))
    assert terms.details["instance_labels"].tolist() == [1] * 5 + [0] * 5
    torch.testing.assert_close(terms.details["instance_logits"], wanted)
    assert terms.weights == {"bag": 0.7, "instance": pytest.approx(0.3)}


def test_subtyping_adds_the_most_attended_as_negatives_of_the_other_classes():
    bags = make_bags((63,))
    plain, subtyping = losses(bags, k_sample=4)[1], losses(bags, k_sample=4, subtyping=True)[1]
    assert subtyping.details["instance_labels"].tolist() == [1] * 4 + [0] * 4 + [0] * 4 * (CLASSES - 1)
    torch.testing.assert_close(subtyping.details["instance_logits"][:8], plain.details["instance_logits"])
    assert subtyping.terms["instance"] != plain.terms["instance"]


@pytest.mark.parametrize(("count", "labels"), [(1, []), (2, [1, 0]), (11, [1] * 5 + [0] * 5), (16, [1] * 8 + [0] * 8)])
def test_no_instance_of_a_small_bag_gets_both_labels(count, labels):
    terms = losses(make_bags((count,)))[1]
    assert terms.details["instance_labels"].tolist() == labels
    assert bool(terms.terms["instance"] > 0) == (count > 1)


def test_the_official_code_refuses_bags_below_k_sample_and_labels_instances_twice_below_double():
    with pytest.raises(ModelError, match="slide 'slide-0': 7 instances, and the official CLAM needs 8"):
        losses(make_bags((7,)), compat="official")
    twice = losses(make_bags((10,)), compat="official")[1].details
    assert twice["instance_labels"].tolist() == [1] * 8 + [0] * 8
    assert len(twice["instance_logits"].unique(dim=0)) == 10


def test_a_pack_has_the_mean_of_its_bags_instance_losses():
    bags = make_bags((63, 1, 20))
    packed = losses(bags)[1].terms["instance"]
    singles = []
    for number, (begin, end) in enumerate(zip([0, 63, 64], [63, 64, 84], strict=True)):
        one = pack(
            [bags.features[begin:end]],
            xy0=[bags.xy0[begin:end]],
            slide_ids=[bags.slide_ids[number]],
            targets=[int(bags.targets[number])],
        )
        singles.append(losses(one)[1].terms["instance"])
    torch.testing.assert_close(packed, torch.stack(singles).mean())


def test_the_smooth_svm_is_that_of_its_paper():
    bags = make_bags((63,))
    details = losses(bags)[1].details
    logits, labels = details["instance_logits"], details["instance_labels"]
    truth = logits.gather(1, labels[:, None])
    others = 1 - torch.nn.functional.one_hot(labels, 2)
    wanted = (logits + others - truth).logsumexp(dim=1).mean()
    torch.testing.assert_close(losses(bags, instance_loss="svm")[1].terms["instance"], wanted)


def test_the_gradient_of_judged_instances_is_theirs_alone_and_beside_that_of_the_bag():
    bags = make_bags((63, 1, 20))
    model, terms = losses(bags, k_sample=5)
    weight = model.embed.linear.weight
    bag, instance, both = (
        torch.autograd.grad(term, weight, retain_graph=True)[0] for term in (*terms.terms.values(), terms.total)
    )
    torch.testing.assert_close(both, 0.7 * bag + 0.3 * instance)
    h = model.embed_instances(bags, None)
    wanted = 0.0
    for begin, end, target in ((0, 63, 0), (64, 84, 2)):
        order = terms.output.attention_logits[begin:end, 0].argsort(descending=True) + begin
        logits = model.instance_classifiers[int(bags.targets[target])](h[torch.cat([order[:5], order[-5:]])])
        wanted = wanted + torch.nn.functional.cross_entropy(logits, torch.tensor([1] * 5 + [0] * 5)) / 3
    torch.testing.assert_close(terms.terms["instance"], wanted)
    torch.testing.assert_close(instance, torch.autograd.grad(wanted, weight)[0])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_under_autocast_judged_instances_give_their_gradient_to_the_rounding_of_its_type(kind):
    bags, found = make_bags((63, 1, 20)), []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=kind, enabled=enabled):
            model, terms = losses(bags, branches="multi", k_sample=5)
        weight = model.embed.linear.weight
        torch.autograd.grad(terms.total, weight, retain_graph=True)
        found.append(torch.autograd.grad(terms.terms["instance"], weight)[0])
    assert (found[1] - found[0]).norm() < torch.finfo(kind).eps * found[0].norm()
