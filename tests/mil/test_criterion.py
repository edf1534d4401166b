"""Cross entropy with class weights that matter."""

from __future__ import annotations

import torch

from wsimil.mil.criterion import BinaryCrossEntropy, CrossEntropy


def test_a_class_weight_counts_for_a_bag_that_stands_alone():
    logits, targets = torch.tensor([[0.3, -0.2]]), torch.tensor([1])
    weighted = CrossEntropy(torch.tensor([1.0, 4.0]))(logits, targets)
    assert torch.isclose(weighted, 4 * CrossEntropy()(logits, targets), rtol=1e-6)


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
