"""MHIM-MIL: what the student sees, how the teacher moves, and which official accidents come back when asked for."""

from __future__ import annotations

import pytest
import torch

from wsimil.errors import ConfigError, ModelError
from wsimil.mil import registry
from wsimil.mil.batch import StepContext, take
from wsimil.mil.masking import RankMasking
from wsimil.testing.method_laws import CLASSES, DIM, make_bags

SMALL = {"name": "abmil", "hidden_dim": 16, "attention_dim": 8, "embed_dropout": 0.0}


def build(seed=0, **config):
    config = {"base": SMALL, "mask": {"high": 0.1}, **config}
    return registry.build("mhim", config, in_dim=DIM, num_classes=CLASSES, seed=seed)


def step(seed=0, progress=0.0, **rest):
    return StepContext(generator=torch.Generator().manual_seed(seed), progress=progress, **rest)


def test_the_student_sees_what_the_teachers_mask_leaves():
    model, bags = build(), make_bags((63, 20))
    terms = model.losses(bags, step())
    scores = terms.details["teacher_scores"]
    kept = terms.details["kept"]
    assert len(kept) == 63 - 7 + 20 - 2
    for rows in (range(63), range(63, 83)):
        masked = [row for row in rows if row not in kept]
        assert min(scores[masked]) >= max(scores[[row for row in rows if row in kept]])
    alone = model.student.method.losses(take(bags, kept), step())
    torch.testing.assert_close(terms.output.logits, alone.output.logits)
    torch.testing.assert_close(terms.terms["bag"], alone.terms["bag"])


def test_inference_is_the_student_on_whole_bags():
    model, bags = build(), make_bags()
    assert torch.equal(model(bags).logits, model.student.method(bags).logits)


def test_the_teacher_follows_after_each_step_and_learns_nothing_else():
    model, bags = build(momentum=0.9), make_bags((63,))
    optimizer = torch.optim.SGD([p for g in model.param_groups() for p in g.parameters], lr=0.1)
    before = [p.clone() for p in model.teacher.parameters()]
    context = step()
    model.losses(bags, context).total.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    optimizer.step()
    model.after_step(context)
    for was, now, student in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * student)


def test_momentum_rises_to_one():
    model, bags = build(momentum=0.5, momentum_schedule="cosine"), make_bags((63,))
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(1)
    before = next(model.teacher.parameters()).clone()
    model.losses(bags, step(progress=1.0))
    model.after_step(step(progress=1.0))
    assert torch.equal(next(model.teacher.parameters()), before)


@pytest.mark.parametrize("drops", [True, False])
def test_the_teacher_drops_out_as_configured(drops):
    model, bags = build(base={**SMALL, "embed_dropout": 0.5}, teacher_dropout=drops), make_bags((63,))
    first, second = (model.losses(bags, step(seed)).details["teacher_scores"] for seed in (0, 1))
    assert torch.equal(first, second) != drops


def test_a_bag_of_one_is_emptied_only_by_the_official_code():
    bag = make_bags((1,))
    terms = build().losses(bag, step())
    assert terms.details["kept"].tolist() == [0]
    official = build(compat="official")
    emptied = official.losses(bag, step())
    assert len(emptied.details["kept"]) == 0
    assert torch.equal(emptied.output.logits[0], official.student.method.classifier.bias)
    with pytest.raises(ModelError, match="DSMIL has no answer for a bag whose every instance is masked"):
        build(base={"name": "dsmil", "hidden_dim": 8}, score="instance", compat="official").losses(bag, step())


def test_kept_instances_come_in_the_order_of_a_set_only_in_the_official_code():
    bag = make_bags((1000,))
    sane = build(mask={"low": 0.8}).losses(bag, step()).details["kept"]
    official = build(mask={"low": 0.8}, compat="official").losses(bag, step()).details["kept"]
    assert torch.equal(sane, sane.sort().values)
    assert not torch.equal(official, sane)
    assert torch.equal(official.sort().values, sane)


def test_recycled_queries_move_after_the_step_and_officially_before():
    recycle = {"tokens": 3, "heads": 2, "head_dim": 4, "momentum": 0.5}
    for compat, moves in (("wsimil", False), ("official", True)):
        model, bags = build(recycle=recycle, score="class", compat=compat), make_bags((63,))
        before = model.student.recycle.queries.clone()
        terms = model.losses(bags, step())
        assert torch.equal(model.student.recycle.queries, before) != moves
        model.after_step(step())
        assert not torch.equal(model.student.recycle.queries, before)
        assert int(terms.details["shown"]) == int(0.8 * (63 - 7)) + 3


def test_the_official_code_takes_one_bag_a_step():
    with pytest.raises(ModelError, match="one bag a step, got 2"):
        build(compat="official").losses(make_bags((5, 9)), step())


def test_a_warm_start_gives_the_teacher_a_trained_base():
    bags = make_bags()
    base = registry.build(
        "abmil", {k: v for k, v in SMALL.items() if k != "name"}, in_dim=DIM, num_classes=CLASSES, seed=7
    )
    base.standardize.fit([2 * bags.features + 1])
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.5)
    for init, same in (("embedding", "embed"), ("all", ""), ("nothing", "none of it")):
        model = build(student_init=init)
        model.warm_start(base)
        for name, value in base.state_dict().items():
            if name.startswith("standardize."):
                assert torch.equal(model.state_dict()[name], value)
                continue
            assert torch.equal(model.teacher.method.state_dict()[name], value)
            assert torch.equal(model.student.method.state_dict()[name], value) == name.startswith(same)
    with pytest.raises(ModelError, match=r"ABMIL of the same hyperparameters; these differ: attention_dim 128 -> 8$"):
        model.warm_start(registry.build("abmil", {"hidden_dim": 16}, in_dim=DIM, num_classes=CLASSES))


def test_a_score_that_the_base_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="'attention' asks for what method 'pooling' does not have"):
        build(base={"name": "pooling"})
    with pytest.raises(ConfigError, match="wanted a method other than mhim itself, got 'mhim'"):
        build(base={"name": "mhim"})
    with pytest.raises(ConfigError, match=r"method.base.hiden_dim: unknown key.*did you mean 'hidden_dim'"):
        build(base={"name": "abmil", "hiden_dim": 3})


def test_tokens_of_recycled_instances_can_join_at_inference():
    recycle = {"tokens": 3, "heads": 2, "head_dim": 4, "at_inference": True}
    model, bags = build(recycle=recycle, score="class"), make_bags()
    output = model(bags)
    assert output.attention.shape == (len(bags.features), 1)
    sums = torch.zeros(len(bags)).index_add_(0, bags.bag_ids, output.attention[:, 0])
    assert bool((sums < 1).all())
    assert model.contributions(bags) is None


def test_masks_of_shares_that_meet_are_unions():
    mask = RankMasking(low=0.3, high=0.3)
    scores = torch.arange(10.0)[:, None]
    assert mask.choose(scores, step()).tolist() == [True] * 3 + [False] * 4 + [True] * 3
    inverted = RankMasking(low=0.3, high=0.3, invert=True).choose(scores, step())
    assert inverted.tolist() == [False] * 3 + [True] * 4 + [False] * 3
