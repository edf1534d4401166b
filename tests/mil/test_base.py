"""The contract: what the base does for every method."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsimil.errors import ConfigError
from wsimil.evaluation.attribution.table import attribute
from wsimil.mil import registry
from wsimil.mil.base import MOST_ROWS
from wsimil.mil.batch import StepContext, chunks, pack, shared
from wsimil.testing.method_laws import CLASSES, DIM, make_bags


def make_step(seed=0, **rest):
    return StepContext(generator=torch.Generator().manual_seed(seed), progress=0.0, **rest)


@pytest.fixture
def model():
    return registry.build("abmil", {}, in_dim=DIM, num_classes=CLASSES)


def test_a_step_drops_and_inference_does_not(model):
    bags = make_bags()
    calm = model(bags).logits
    dropped = model.losses(bags, make_step(0)).output.logits
    assert not torch.equal(dropped, calm)
    assert not torch.equal(dropped, model.losses(bags, make_step(1)).output.logits)


def test_dropout_leaves_the_expectation_of_a_linear_method():
    pooling = registry.build(
        "pooling", {"hidden_dim": None, "embed_dropout": 0.5}, in_dim=DIM, num_classes=CLASSES
    ).double()
    bags = make_bags((2000,), dtype=torch.float64)
    with torch.no_grad():
        draws = torch.stack([pooling.losses(bags, make_step(seed)).output.logits[0] for seed in range(100)])
    gap = (draws.mean(0) - pooling(bags).logits[0]).abs()
    assert (gap <= 5 * draws.std(0) / 10).all()


def test_the_default_loss_is_the_criterion_of_the_step(model):
    bags = make_bags()
    terms = model.losses(bags, make_step(criterion=lambda logits, targets: logits[:, 0].sum() + targets.sum()))
    assert list(terms.terms) == ["bag"]
    assert terms.total == terms.output.logits[:, 0].sum() + bags.targets.sum()


def test_bags_without_targets_have_no_loss(model):
    with pytest.raises(ValueError, match="without targets"):
        model.losses(replace(make_bags(), targets=None), make_step())


def test_every_learned_parameter_is_in_one_group_and_vectors_do_not_decay(model):
    model.classifier.bias.requires_grad_(False)
    groups = model.param_groups()
    ids = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {group.decay: {p.ndim for p in group.parameters} for group in groups} == {True: {2}, False: {1}}


@pytest.mark.parametrize("name", registry.names())
@torch.no_grad()
def test_a_long_bag_is_embedded_in_parts_and_gets_the_bits_that_it_gets_in_a_pack(name):
    model = registry.build(name, {}, in_dim=DIM, num_classes=CLASSES)
    lengths = (1000, 2 * MOST_ROWS + 63, 1)
    bags = make_bags(lengths)
    model.standardize.fit([bags.features])
    seen = []
    model.standardize.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    packed = model.embed_instances(bags, None)
    assert sum(seen) == sum(lengths)
    assert max(seen) == MOST_ROWS
    alone = [part for _, part in chunks(bags, max(lengths))][1]
    assert torch.equal(model.embed_instances(alone, None), packed[1000:-1])
    # Products of other numbers of rows may be other kernels of a library, and round otherwise.
    whole, exact = model.embed_rows(alone, None), model.double().embed_rows(alone, None)
    error, allowed = ((h.double() - exact).abs().max() for h in (packed[1000:-1], whole))
    assert error <= allowed + torch.finfo(whole.dtype).eps * exact.abs().max()


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_no_method_writes_to_the_features_that_it_answers_for(name, dtype):
    """Features of a store are given to the model as they lie in memory."""
    options = {"hidden_dim": None} if "hidden_dim" in registry.method_class(name).Config.model_fields else {}
    try:
        model = registry.build(name, options, in_dim=DIM, num_classes=CLASSES)
    except ConfigError:  # a method that works in a width of its own
        model = registry.build(name, {}, in_dim=DIM, num_classes=CLASSES)
    rows = np.random.default_rng(0).normal(size=(20, DIM)).astype(dtype)
    before = rows.copy()
    bags = pack([shared(rows)], xy0=[make_bags((20,)).xy0], slide_ids=["a"])
    attribute(
        model, bags, outputs=[str(c) for c in range(CLASSES)], kinds=("contribution", "single", "gradient_x_input")
    )
    assert np.array_equal(rows, before)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models_answer_near_the_full_one(name, dtype):
    full, half = (registry.build(name, {}, in_dim=DIM, num_classes=CLASSES) for _ in range(2))
    half = half.to(dtype)
    bags = make_bags((37, 5000))
    got, wanted = half(bags).logits.float(), full(bags).logits
    assert half(bags).logits.dtype == dtype
    # Five roundings lie between a feature and a logit; sums are kept in float32, so their length does not count.
    assert (got - wanted).norm() / wanted.norm() <= 10 * torch.finfo(dtype).eps


SHAPES = """
import inspect, types, typing
import torch, wsimil
from jaxtyping import AbstractArray, TypeCheckError, install_import_hook

def fits(value, hint):
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(fits(value, part) for part in typing.get_args(hint))
    if hint is type(None):
        return value is None
    return not (isinstance(hint, type) and issubclass(hint, AbstractArray)) or isinstance(value, hint)

def checked(function):
    signature = inspect.signature(function)
    def wrapper(*args, **kwargs):
        hints = typing.get_type_hints(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if not fits(value, hints.get(name)):
                raise TypeError(f"{function.__qualname__}: {name} is no {hints[name]}")
        result = function(*args, **kwargs)
        if not fits(result, hints.get("return")):
            raise TypeError(f"{function.__qualname__}: the result is no {hints['return']}")
        return result
    wrapper.__annotations__ = function.__annotations__
    return wrapper

rooms = ["wsimil.mil.base", "wsimil.mil.batch", "wsimil.mil.criterion", "wsimil.mil.layers", "wsimil.mil.methods", "wsimil.ops"]
# The operations name their shapes for checkers alone; this is one.
typing.TYPE_CHECKING = True
with install_import_hook([*rooms, "wsimil.evaluation.attribution"], "__main__.checked"):
    from wsimil.ops import packed_linear, segment_max, segment_softmax
    from wsimil.ops.segment_sum import segment_sum
    typing.TYPE_CHECKING = False
    from wsimil.evaluation.attribution.table import attribute
    from wsimil.mil import registry
    from wsimil.mil.batch import StepContext
    from wsimil.testing.method_laws import make_bags
    for name in registry.names():
        registry.method_class(name)
for name in registry.names():
    for lengths in ((37, 1, 63), (5,)):
        bags, model = make_bags(lengths), registry.build(name, {}, in_dim=24, num_classes=3)
        model.standardize.fit([bags.features])
        model.losses(bags, StepContext(generator=torch.Generator(), progress=0.5)).total.backward()
        attribute(model, bags, outputs=["a", "b", "c"])
try:
    segment_sum(torch.ones(5, 1), torch.ones(6, 2), bags.cu_seqlens)
except (TypeCheckError, TypeError) as error:
    assert "values" in str(error), error
else:
    raise SystemExit("nothing is checked")
"""


def test_annotated_shapes_are_those_at_run_time():
    subprocess.run([sys.executable, "-c", SHAPES], check=True)


@pytest.mark.parametrize("level", ["feature", "logit"])
def test_how_instances_speak_for_classes_of_a_maximum_is_the_answer_to_each_alone(level):
    """MHIM masks by it in each step: what the maximum shares out among them would take a sort of all features."""
    model = registry.build("pooling", {"pool": "max", "level": level}, in_dim=DIM, num_classes=CLASSES).eval()
    bags, ones = make_bags((5,)), make_bags((1,) * 5)
    ones.features[:] = bags.features
    with torch.no_grad():
        scored = model.class_scores(model.embed_instances(bags, None), bags, None)
        torch.testing.assert_close(scored.values, model(ones).logits)
        assert torch.equal(scored.output.logits, model(bags).logits)
