"""What every method must hold; run `LAWS` on your own method.

    @pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
    def test_my_method_is_a_method(law):
        law(lambda in_dim, num_classes: MyMethod(MyMethod.Config(), in_dim=in_dim, num_classes=num_classes))

Each law takes a function that builds a new model, on CPU and in float32, for D features and C classes.
It raises AssertionError, with what was got and wanted, where the method breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import TypeAlias

import torch
from safetensors.torch import load, save
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, LossTerms, StepContext, pack
from wsimil.mil.masking import RankMasking, TopKMasking
from wsimil.ops.segment_softmax import segment_softmax
from wsimil.testing.live_bytes import LiveBytes

_BY_INSTANCE = {"attention_logits", "attention", "instance_logits", "masked"}

Build: TypeAlias = Callable[[int, int], MILModel]
Law: TypeAlias = Callable[[Build], None]

DIM, CLASSES = 24, 3
LENGTHS = (37, 1, 200, 2, 63)
BYTES_PER_INSTANCE = 1 << 15
"""Room for forward and backward: some eight thousand numbers an instance, which no table of pairs of instances fits."""


def make_bags(
    lengths: Sequence[int] = LENGTHS, *, dim: int = DIM, classes: int = CLASSES, dtype: torch.dtype = torch.float32
) -> BagBatch:
    """Bags of normal features, the first class's bags with some shifted instances; the same at every call."""
    generator = torch.Generator().manual_seed(sum(lengths))
    targets = [bag % classes for bag in range(len(lengths))]
    features = [torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in lengths]
    for rows, target in zip(features, targets, strict=True):
        rows[: 1 + len(rows) // 10] += float(target == 0)
    xy0 = [torch.randperm(4 * n, generator=generator)[:n, None] * torch.tensor([[256, 512]]) for n in lengths]
    names = [f"slide-{number}" for number in range(len(lengths))]
    return pack([rows.to(dtype) for rows in features], xy0=xy0, slide_ids=names, targets=targets)


def permuting_instances_changes_nothing(build: Build) -> None:
    """Rows of a bag in another order, each with its place: the same answer, and scores that move with their rows."""
    model, bags = build(DIM, CLASSES).double(), make_bags(dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    begins = bags.cu_seqlens.tolist()[:-1]
    order = torch.cat(
        [begin + torch.randperm(n, generator=generator) for begin, n in zip(begins, bags.lengths, strict=True)]
    )
    plain = model(bags)
    moved = model(replace(bags, features=bags.features[order], xy0=bags.xy0[order]))
    for name, got, wanted in _pairs(moved, plain):
        wanted = wanted[order] if name in _BY_INSTANCE else wanted
        _close(got, wanted, 1e-10, f"{name} of permuted bags")


def packing_changes_nothing(build: Build) -> None:
    """On CPU a bag's output has the same bits alone and in a pack."""
    model, bags = build(DIM, CLASSES), make_bags()
    packed = model(bags)
    for number, alone in enumerate(_singles(bags)):
        rows = slice(*bags.cu_seqlens[number : number + 2].tolist())
        for name, got, wanted in _pairs(model(alone), packed):
            wanted = wanted[rows] if name in _BY_INSTANCE else wanted[number : number + 1]
            _hold(torch.equal(got, wanted), f"{name} of bag {number} alone differs by {_gap(got, wanted):.2e} relative")


def forward_is_blind_to_mode_chance_and_targets(build: Build) -> None:
    """Train or eval mode, the state of the global generator and the targets change no bit of `forward`."""
    model, bags = build(DIM, CLASSES), make_bags()
    wanted = model.eval()(bags)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        for got in (model.train()(bags), model(replace(bags, targets=None))):
            _hold(_same(got, wanted), "forward changes with the mode, the global generator or the targets")


def chance_comes_from_the_step(build: Build) -> None:
    """One seed gives one loss and one gradient to the bit, and the global generator is never touched."""
    model, bags = build(DIM, CLASSES), make_bags()
    state = torch.get_rng_state()
    first, second = (_gradients(model, bags) for _ in range(2))
    _hold(torch.equal(torch.get_rng_state(), state), "a step draws from the global generator; draw from step.generator")
    for name, gradient in first.items():
        _hold(torch.equal(gradient, second[name]), f"the gradient of {name} differs between runs of one seed")


def every_parameter_learns(build: Build) -> None:
    """Each parameter has a finite gradient, which is zero exactly for those declared in `without_gradient`."""
    model = build(DIM, CLASSES).double()
    gradients = _gradients(model, make_bags(dtype=torch.float64))
    parameters = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    unreached = parameters - set(gradients) - model.without_gradient
    _hold(not unreached, f"no gradient reaches {sorted(unreached)}")
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        learns = float(gradient.abs().max()) > 1e-12 * scale
        wanted = name not in model.without_gradient
        _hold(learns == wanted, f"{name} {'has no gradient' if wanted else 'learns, though declared not to'}")


def tiny_and_uniform_bags_work(build: Build) -> None:
    """Bags of one, of two and of equal instances give finite outputs, losses and gradients; equal instances equal weight.

    The last but for methods that declare `mixes_instances`.
    """
    for lengths in ((1,), (2,), (1, 2, 1)):
        _finite(build(DIM, CLASSES), make_bags(lengths))
    bags = make_bags((63,), dtype=torch.float64)
    uniform = replace(bags, features=bags.features[:1].expand(63, -1).clone())
    model = build(DIM, CLASSES).double()
    _finite(model, uniform)
    output = model(uniform)
    if output.attention_logits is not None and not model.mixes_instances:
        weights = 63 * segment_softmax(output.attention_logits, uniform.cu_seqlens)
        _close(weights, torch.ones_like(weights), 1e-9, "attention on equal instances, times their number,")


def extreme_features_stay_finite(build: Build) -> None:
    """Features of 1e4 deviations, and all float16 holds: no NaN or infinity in outputs or gradients."""
    bags = make_bags()
    _finite(build(DIM, CLASSES), replace(bags, features=1e4 * bags.features))
    largest = torch.finfo(torch.float16).max
    _finite(build(DIM, CLASSES), replace(bags, features=(bags.features.sign() * largest).half()))


def narrow_features_are_only_widened(build: Build) -> None:
    """Features stored in float16 give the bits that the same numbers in float32 give."""
    model, bags = build(DIM, CLASSES), make_bags(dtype=torch.float16)
    _hold(_same(model(bags), model(bags.to(dtype=torch.float32))), "float16 features are not simply brought to float32")


def float32_agrees_with_float64(build: Build) -> None:
    """Outputs and gradients agree to 1e-5 of their norm: rounding of some hundred terms, and no more.

    What is left of a gradient where its terms cancel may be off by one rounding of the whole gradient.
    """
    model, bags = build(DIM, CLASSES), make_bags()
    output, gradients = model(bags), _gradients(model, bags)
    model = model.double()
    wide, wide_gradients = model(bags.to(dtype=torch.float64)), _gradients(model, bags.to(dtype=torch.float64))
    for name, got, wanted in _pairs(output, wide):
        _close(got.double(), wanted, 1e-5, f"{name} in float32")
    whole = float(torch.stack([gradient.norm() for gradient in wide_gradients.values()]).norm())
    floor = torch.finfo(torch.float32).eps * whole
    for name in set(gradients) - model.without_gradient:
        _close(gradients[name].double(), wide_gradients[name], 1e-5, f"gradient of {name} in float32", floor=floor)


def autocast_agrees_with_float64(build: Build) -> None:
    """With layers in bfloat16 logits are off by ten roundings to it at most, and a step's loss and gradients are finite.

    Between a feature and a logit lie up to ten layers, each of which rounds once; sums are wider. Whoever declares
    `picks_instances` may answer from other instances, and is only asked for finite answers.
    """
    model, bags = build(DIM, CLASSES), make_bags()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(bags).logits.double()
        total = model.losses(bags, _step()).total
    total.backward()  # type: ignore[no-untyped-call]  # torch does not type it
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    finite = bool(total.isfinite()) and all(bool(gradient.isfinite().all()) for gradient in gradients)
    _hold(finite and bool(got.isfinite().all()), "a step or an answer with layers in bfloat16 holds NaN or infinity")
    if not model.picks_instances:
        wanted = model.double()(bags.to(dtype=torch.float64)).logits
        _close(got, wanted, 10 * torch.finfo(torch.bfloat16).eps / 2, "logits with layers in bfloat16")


def contributions_are_complete(build: Build) -> None:
    """Where a method splits its logits over instances, bias and parts sum to them, and its output is that of `forward`."""
    model, bags = build(DIM, CLASSES).double(), make_bags(dtype=torch.float64)
    split = model.contributions(bags)
    if split is None:
        return
    _hold(_same(split.output, model(bags)), "contributions come with another output than that of forward")
    total = torch.zeros_like(split.output.logits).index_add_(0, bags.bag_ids, split.values) + split.bias
    _close(total, split.output.logits, 1e-10, "bias and contributions, summed,")


def what_it_is_made_linear_to_is_affine_and_itself(build: Build) -> None:
    """Where a method is made linear at a point: affine, there the logits of `forward`, and blind to where the point came from."""
    model, bags = build(DIM, CLASSES).double(), make_bags((37, 2), dtype=torch.float64)
    at = model.embed_instances(bags, None).detach().requires_grad_()
    found = model.linearized(at.detach(), bags, at=at)
    if found is None:
        return
    _close(found, model(bags).logits, 1e-10, "logits of what a method is made linear to, at the point itself,")
    _hold(not found.requires_grad or _idle(found, at), "a gradient passes through the point at which all else is held")
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randn(at.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    values = [model.linearized(x, bags, at=at) for x in (first, second, first + second, torch.zeros_like(first))]
    one, two, both, none = (value for value in values if value is not None)
    _close(both, one + two - none, 1e-10, "what a method is made linear to, at the sum of two inputs,")


def leaving_out_by_formula_is_leaving_out(build: Build) -> None:
    """Where a closed form says what a bag's logits lose with an instance, the bag without it has logits less by that."""
    model, bags = build(DIM, CLASSES).double(), make_bags((37, 2, 11), dtype=torch.float64)
    h = model.embed_instances(bags, None)
    closed = model.left_out(h, bags)
    if closed is None:
        return
    whole = model(bags).logits
    for row in closed.known.nonzero()[:, 0].tolist():
        bag = int(bags.bag_ids[row])
        kept = ((bags.bag_ids == bag) & (torch.arange(len(h)) != row)).nonzero()[:, 0]
        rest = pack([bags.features[kept]], xy0=[bags.xy0[kept]], slide_ids=[bags.slide_ids[bag]])
        wanted = whole[bag] - model(rest).logits[0]
        # What is left of two logits is as exact as they are.
        floor = 1e-12 * float(whole[bag].detach().norm())
        _close(closed.values[row], wanted, 1e-10, f"what leaving out instance {row} takes away", floor=floor)


def what_a_step_masks_weighs_nothing(build: Build) -> None:
    """A method that takes a step's masking masks by it; where it tells its attention, this is 0 wherever it is masked."""
    model, bags = build(DIM, CLASSES), make_bags()
    if not model.takes_masking:
        return
    maskings = (TopKMasking(k=10, drop=0.6), RankMasking(random=0.5))
    outputs = [model.losses(bags, replace(_step(), masking=masking)).output for masking in maskings]
    masks = [output.masked for output in outputs if output.masked is not None]
    acts = len(masks) == len(maskings) and not torch.equal(masks[0], masks[1])
    _hold(acts, f"a step's masking does not act: {' and '.join(map(repr, maskings))} mask the same instances, or none")
    for masking, output, masked in zip(maskings, outputs, masks, strict=True):
        if output.attention is not None:
            most = float(output.attention.detach()[masked].abs().max())
            _hold(most == 0, f"an instance that {masking!r} masked has attention {most:.2e}, 0 wanted")


def state_survives_safetensors(build: Build) -> None:
    """All that a model has learned, its standardization included, is in its state; another model takes it to the bit."""
    model, bags = build(DIM, CLASSES), make_bags()
    model.standardize.fit([3 * bags.features + 1])
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.mul_(1 + 0.01 * (number + 1))
    other = build(DIM, CLASSES)
    other.load_state_dict(load(save({name: value.contiguous() for name, value in model.state_dict().items()})))
    _hold(_same(other(bags), model(bags)), "a model that was saved and loaded answers otherwise")


def another_width_is_refused(build: Build) -> None:
    """Features of another encoder raise ModelError."""
    try:
        build(DIM, CLASSES)(make_bags(dim=DIM + 1))
    except ModelError:
        return
    raise AssertionError(f"a model for {DIM} features takes {DIM + 1}; pass bags.features through self.standardize")


def a_bag_of_100k_fits_in_memory(build: Build) -> None:
    """Forward and backward of 100 000 instances stay below BYTES_PER_INSTANCE each."""
    model, bags = build(DIM, CLASSES), make_bags((100_000,))
    with LiveBytes() as memory:
        gradients = _gradients(model, bags)
    _hold(
        all(bool(gradient.isfinite().all()) for gradient in gradients.values()),
        "a gradient of a bag of 100 000 is not finite",
    )
    limit = BYTES_PER_INSTANCE * len(bags.features)
    _hold(
        memory.peak <= limit,
        f"a bag of 100 000 takes {memory.peak / 2**30:.1f} GiB, at most {limit / 2**30:.1f} wanted",
    )


LAWS: tuple[Law, ...] = (
    permuting_instances_changes_nothing,
    packing_changes_nothing,
    forward_is_blind_to_mode_chance_and_targets,
    chance_comes_from_the_step,
    every_parameter_learns,
    tiny_and_uniform_bags_work,
    extreme_features_stay_finite,
    narrow_features_are_only_widened,
    float32_agrees_with_float64,
    autocast_agrees_with_float64,
    contributions_are_complete,
    what_it_is_made_linear_to_is_affine_and_itself,
    leaving_out_by_formula_is_leaving_out,
    what_a_step_masks_weighs_nothing,
    state_survives_safetensors,
    another_width_is_refused,
    a_bag_of_100k_fits_in_memory,
)


def _step(seed: int = 0) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(seed), progress=0.5)


def _gradients(model: MILModel, bags: BagBatch) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model.losses(bags, _step()).total.backward()  # type: ignore[no-untyped-call]  # torch does not type it
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _finite(model: MILModel, bags: BagBatch) -> None:
    with torch.no_grad():
        output: BagOutput = model(bags)
    for name, value in _tensors(output):
        _hold(bool(value.isfinite().all()), f"{name} of bags of {bags.lengths} holds NaN or infinity")
    terms: LossTerms = model.losses(bags, _step())
    _hold(bool(terms.total.isfinite()), f"the loss of bags of {bags.lengths} is {terms.total.item()}")
    for name, gradient in _gradients(model, bags).items():
        _hold(
            bool(gradient.isfinite().all()), f"the gradient of {name} holds NaN or infinity on bags of {bags.lengths}"
        )


def _idle(value: Tensor, leaf: Tensor) -> bool:
    return torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] is None


def _singles(bags: BagBatch) -> Iterator[BagBatch]:
    for number, (begin, end) in enumerate(zip(bags.cu_seqlens[:-1], bags.cu_seqlens[1:], strict=True)):
        name = bags.slide_ids[number]
        yield pack([bags.features[begin:end].clone()], xy0=[bags.xy0[begin:end]], slide_ids=[name])


def _tensors(output: BagOutput) -> Iterator[tuple[str, Tensor]]:
    for field in fields(output):
        value = getattr(output, field.name)
        if value is not None:
            yield field.name, value


def _pairs(got: BagOutput, wanted: BagOutput) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, value in _tensors(wanted):
        yield name, getattr(got, name), value


def _same(got: BagOutput, wanted: BagOutput) -> bool:
    return all(torch.equal(ours, theirs) for _, ours, theirs in _pairs(got, wanted))


def _gap(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.detach(), wanted.detach()
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-300))


def _close(got: Tensor, wanted: Tensor, bound: float, what: str, *, floor: float = 0.0) -> None:
    gap = _gap(got, wanted)
    near = float((got.detach() - wanted.detach()).norm()) <= floor
    _hold(gap <= bound or near, f"{what} differs by {gap:.2e} of its norm, at most {bound:.0e} wanted")


def _hold(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
