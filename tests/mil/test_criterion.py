"""What each criterion costs, against its formula written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from wsimil.evaluation.survival import kaplan_meier
from wsimil.mil.criterion import (
    BinaryCrossEntropy,
    Corn,
    CoxLikelihood,
    CrossEntropy,
    Deviation,
    HazardLikelihood,
    LabelCrossEntropy,
)
from wsimil.targets import Ordinal, Survival


def test_a_class_weight_counts_for_a_bag_that_stands_alone():
    logits, targets = torch.tensor([[0.3, -0.2]]), torch.tensor([1])
    weighted = CrossEntropy(torch.tensor([1.0, 4.0]))(logits, targets)
    assert torch.isclose(weighted, 4 * CrossEntropy()(logits, targets), rtol=1e-6)


def test_smoothing_leaves_a_bag_the_weight_of_its_own_class():
    logits, targets = torch.tensor([[0.3, -0.2, 2.0], [1.0, 0.0, -1.0]]).double(), torch.tensor([2, 0])
    weights = torch.tensor([5.0, 1.0, 2.0]).double()
    shares = 0.7 * F.one_hot(targets, 3) + 0.1
    each = -(shares * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(CrossEntropy(weights, 0.3)(logits, targets), (2 * each[0] + 5 * each[1]) / 2)


def test_what_costs_a_bag_of_a_frequent_class_least_is_that_class():
    # Of 100 bags 95 are of class 0; so weighed, a step of gradient for one of them must go its way from one half on.
    logits = torch.zeros(1, 2, requires_grad=True)
    CrossEntropy(100 / 2 / torch.tensor([95.0, 5.0]), 0.1)(logits, torch.tensor([0])).backward()
    assert logits.grad[0, 0] < -0.1 < 0.1 < logits.grad[0, 1]


def test_the_cost_of_a_pack_is_the_mean_of_the_costs_of_its_bags():
    logits, targets = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double(),
        torch.tensor([0, 1, 2, 2, 1]),
    )
    criterion = CrossEntropy(torch.tensor([1.0, 4.0, 0.5]))
    alone = torch.stack([criterion(logits[i : i + 1], targets[i : i + 1]) for i in range(5)]).mean()
    assert torch.isclose(criterion(logits, targets), alone, rtol=1e-12)


def test_half_logits_are_widened_first():
    logits, targets = torch.tensor([[11.0, -3.0]]), torch.tensor([1])
    assert CrossEntropy()(logits.half(), targets) == CrossEntropy()(logits, targets)


def test_binary_cross_entropy_asks_each_class_by_itself():
    logits, targets = torch.tensor([[0.3, -0.2, 2.0], [1.0, 0.0, -1.0]]).double(), torch.tensor([2, 0])
    p = logits.sigmoid()
    right = torch.tensor([[0.0, 0, 1], [1, 0, 0]]).double()
    each = -(right * p.log() + (1 - right) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(BinaryCrossEntropy()(logits, targets), each.mean())
    weights = torch.tensor([5.0, 1.0, 2.0])
    torch.testing.assert_close(BinaryCrossEntropy(weights)(logits, targets), (2 * each[0] + 5 * each[1]) / 2)
    smooth = BinaryCrossEntropy(label_smoothing=0.3)(logits, targets)
    shares = 0.7 * right + 0.1
    torch.testing.assert_close(smooth, -(shares * p.log() + (1 - shares) * (1 - p).log()).mean())


def test_a_label_that_is_not_known_costs_nothing_and_gets_no_gradient():
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, -1, 0], [-1, -1, -1]])
    cost = LabelCrossEntropy()(logits, targets)
    wanted = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(2.0))) / 2 / 2
    assert cost.item() == pytest.approx(wanted, rel=1e-12)
    (gradient,) = torch.autograd.grad(cost, logits)
    assert gradient[0, 1] == 0
    assert (gradient[1] == 0).all()
    weighted = LabelCrossEntropy(torch.tensor([[2.0, 1, 1], [3.0, 1, 5]]))(logits, targets)
    wanted = (3 * math.log1p(math.exp(-0.3)) + math.log1p(math.exp(2.0))) / 4
    assert weighted.item() == pytest.approx(wanted, rel=1e-12)


def test_corn_is_the_likelihood_of_the_level():
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task = Ordinal(levels=("a", "b", "c", "d"))
    targets = torch.tensor([0, 1, 2, 3, 3])
    p = torch.from_numpy(task.values(logits.numpy()))[torch.arange(5), targets]
    torch.testing.assert_close(Corn()(logits, targets), -p.log().mean())
    # The published loop, whose divisor is the number of pairs.
    total, pairs = 0.0, 0
    for k in range(3):
        rows = targets > k - 1
        pairs += int(rows.sum())
        total -= float((F.logsigmoid(logits[rows, k]) * (targets[rows] > k)).sum())
        total -= float((F.logsigmoid(-logits[rows, k]) * (targets[rows] <= k)).sum())
    assert total / pairs == pytest.approx(Corn()(logits, targets).item() * 5 / pairs, rel=1e-12)
    weights = torch.tensor([1.0, 2, 3, 4])
    torch.testing.assert_close(Corn(weights)(logits, targets), -(p.log() * weights[targets]).mean())


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_hazard_loss_is_that_of_porpoise(alpha):
    """Written out as Chen et al. 2022 have it, without the 1e-7 inside logarithms; an edge ends its interval."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 4, dtype=torch.float64, generator=generator)
    times = 12 * torch.rand(40, dtype=torch.float64, generator=generator)
    times[:3] = torch.tensor([2.0, 5.0, 9.0])
    events = (torch.rand(40, generator=generator) > 0.4).double()
    edges = torch.tensor([2.0, 5.0, 7.0, 9.0], dtype=torch.float64)
    wanted = []
    for row, time, event in zip(logits.tolist(), times.tolist(), events.tolist(), strict=True):
        y = sum(time > edge for edge in (2.0, 5.0, 7.0))
        hazards = [1 / (1 + math.exp(-x)) for x in row]
        survival = [1.0]
        for hazard in hazards:
            survival.append(survival[-1] * (1 - hazard))
        uncensored = -event * (math.log(survival[y]) + math.log(hazards[y]))
        censored = -(1 - event) * math.log(survival[y + 1])
        wanted.append((1 - alpha) * (censored + uncensored) + alpha * uncensored)
    got = HazardLikelihood(edges, alpha)(logits, torch.stack([times, events], dim=1))
    assert got.item() == pytest.approx(sum(wanted) / 40, rel=1e-12)


def test_hazards_of_highest_likelihood_tell_the_survival_of_kaplan_meier_where_times_are_whole():
    """Whole months and years have events at the very edges; counted in the next interval, they were told as survived."""
    generator = torch.Generator().manual_seed(3)
    times = torch.randint(1, 5, (400,), generator=generator).double()
    events = (torch.rand(400, generator=generator) > 0.3).double()
    task = Survival(edges=(1.0, 2.0, 3.0, 4.0))
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    loss = HazardLikelihood(torch.tensor(task.edges, dtype=torch.float64))
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def cost():
        optimizer.zero_grad()
        found = loss(logits.expand(400, 4), torch.stack([times, events], dim=1))
        found.backward()
        return found

    optimizer.step(cost)
    curve = kaplan_meier(times.numpy(), events.numpy() == 1)
    told = task.values(logits.detach().numpy())[0, 1:]
    assert told == pytest.approx(curve.survival, abs=1e-6)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_is_a_slow_loop_over_events_and_those_at_risk(ties):
    generator = torch.Generator().manual_seed(2)
    risk = 3 * torch.randn(60, dtype=torch.float64, generator=generator)
    times = torch.randint(1, 15, (60,), generator=generator).double()
    events = (torch.rand(60, generator=generator) > 0.5).double()
    wanted = 0.0
    for time in sorted(set(times[events == 1].tolist())):
        tied = [math.exp(r) for r, t, e in zip(risk, times, events, strict=True) if t == time and e == 1]
        whole = sum(math.exp(r) for r, t in zip(risk, times, strict=True) if t >= time)
        for place in range(len(tied)):
            share = place / len(tied) if ties == "efron" else 0.0
            wanted += math.log(whole - share * sum(tied)) - math.log(tied[place])
    got = CoxLikelihood(ties)(risk[:, None], torch.stack([times, events], dim=1))
    assert got.item() == pytest.approx(wanted / events.sum().item(), rel=1e-10)
    order = torch.randperm(60, generator=generator)
    moved = CoxLikelihood(ties)(risk[order, None], torch.stack([times, events], dim=1)[order])
    torch.testing.assert_close(moved, got)


def test_cox_of_bags_without_an_event_is_nothing_and_of_huge_risks_is_finite():
    logits = torch.tensor([[1.0], [2.0]], requires_grad=True)
    cost = CoxLikelihood()(logits, torch.tensor([[1.0, 0], [2.0, 0]], dtype=torch.float64))
    cost.backward()
    assert cost == 0
    assert (logits.grad == 0).all()
    huge = torch.tensor([[900.0], [-900.0], [900.0]], requires_grad=True)
    cost = CoxLikelihood()(huge, torch.tensor([[1.0, 1], [1.0, 1], [2.0, 0]], dtype=torch.float64))
    cost.backward()
    assert torch.isfinite(cost)
    assert torch.isfinite(huge.grad).all()


@pytest.mark.parametrize("kind", ["squared", "huber", "absolute"])
def test_deviations_are_in_deviations(kind):
    mean, scale = torch.tensor([10.0, 0.0]), torch.tensor([2.0, 4.0])
    logits = torch.tensor([[0.5, 3.0]], dtype=torch.float64)
    off = [0.5 - (13 - 10) / 2, 3.0 - 8 / 4]
    each = {
        "squared": lambda x: x * x / 2,
        "huber": lambda x: x * x / 2 if abs(x) < 1 else abs(x) - 0.5,
        "absolute": abs,
    }
    got = Deviation(mean, scale, kind)(logits, torch.tensor([[13.0, 8.0]], dtype=torch.float64))
    assert got.item() == pytest.approx(sum(map(each[kind], off)) / 2)


SURVIVAL = torch.tensor([[1.0, 1], [2.0, 1], [2.0, 1], [2.5, 0], [4.0, 1], [0.5, 0]], dtype=torch.float64)
EVERY = [
    (LabelCrossEntropy(label_smoothing=0.1), torch.tensor([[1, 0], [0, -1], [1, 1], [0, 0], [-1, 1], [0, 1]]), 2),
    (Corn(torch.tensor([1.0, 2, 3])), torch.tensor([0, 1, 2, 2, 1, 0]), 2),
    (Deviation(torch.tensor([1.0]), torch.tensor([2.0])), SURVIVAL[:, :1], 1),
    (HazardLikelihood(torch.tensor([1.0, 2.0, 4.0]), 0.3), SURVIVAL, 3),
    (CoxLikelihood("efron"), SURVIVAL, 1),
    (CoxLikelihood("breslow"), SURVIVAL, 1),
]


@pytest.mark.parametrize(("criterion", "targets", "width"), EVERY, ids=lambda value: type(value).__name__)
def test_gradients_are_those_of_differences_and_half_precision_is_widened(criterion, targets, width):
    logits = torch.randn(6, width, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: criterion(x, targets), (logits,))
    half = criterion(logits.detach().bfloat16(), targets)
    assert half.dtype == torch.float32
    assert half == criterion(logits.detach().bfloat16().float(), targets)


@pytest.mark.parametrize(("criterion", "targets", "width"), EVERY[:4], ids=lambda value: type(value).__name__)
def test_a_cost_of_several_bags_is_the_mean_of_each(criterion, targets, width):
    logits = torch.randn(6, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    alone = torch.stack([criterion(logits[i : i + 1], targets[i : i + 1]) for i in range(6)]).mean()
    torch.testing.assert_close(criterion(logits, targets), alone)


def test_smoothing_of_labels_goes_to_yes_and_no_alike() -> None:
    logits, targets = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, -1]])
    wanted = F.binary_cross_entropy_with_logits(logits[0, :2], torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(LabelCrossEntropy(label_smoothing=0.2)(logits, targets), wanted)
