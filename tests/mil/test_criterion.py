"""Cross entropy with class weights that matter."""

from __future__ import annotations

import torch

from wsimil.mil.criterion import CrossEntropy


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
