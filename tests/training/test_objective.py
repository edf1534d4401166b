"""What a run minimizes and what it watches, against formulas written out anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.made import QUICK, MadeBags, made_cohort, run
from wsimil.mil.batch import pack
from wsimil.mil.saved import load_model
from wsimil.targets import Classification, MultiLabel
from wsimil.training.config import FitConfig
from wsimil.training.objective import criterion_of, resolved


def test_training_costs_weights_and_smoothing_and_validation_weights_alone() -> None:
    task = Classification(classes=("a", "b", "c"))
    targets, asked = np.array([0] * 6 + [1] * 3 + [2]), np.array([2, 0, 1])
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = resolved(FitConfig(label_smoothing=0.3), task)
    train, val = criterion_of(config, task, targets, device="cpu")
    weights = (10 / 3 / np.array([6, 3, 1])).astype(np.float32)
    minus_log = -logits.log_softmax(dim=1).numpy()
    own = np.eye(3)[asked]
    smoothed = 0.7 * own + 0.3 / 3
    assert float(val(logits, torch.from_numpy(asked))) == pytest.approx(
        weights[asked] @ (own * minus_log).sum(axis=1) / 3
    )
    assert float(train(logits, torch.from_numpy(asked))) == pytest.approx(
        weights[asked] @ (smoothed * minus_log).sum(axis=1) / 3
    )


def test_labels_weigh_by_how_often_bags_have_and_have_not_what_is_known_of_them() -> None:
    task = MultiLabel(columns=("er", "pr"))
    # Two of five bags have the first label, two of three the second.
    targets = np.array([[1, -1], [1, -1], [0, 1], [0, 1], [0, 0]])
    for criterion in criterion_of(resolved(FitConfig(), task), task, targets, device="cpu"):
        zeros = torch.zeros(1, 2)
        one = float(criterion(zeros, torch.tensor([[1, -1]]))) / np.log(2)
        none = float(criterion(zeros, torch.tensor([[0, -1]]))) / np.log(2)
        assert (one, none) == pytest.approx((5 / 4, 5 / 6))
        one = float(criterion(zeros, torch.tensor([[-1, 1]]))) / np.log(2)
        none = float(criterion(zeros, torch.tensor([[-1, 0]]))) / np.log(2)
        assert (one, none) == pytest.approx((3 / 4, 3 / 2))


@pytest.mark.parametrize(("average", "most"), [(None, None), (0.5, 4)])
def test_what_is_watched_is_of_the_kept_weights_on_each_whole_bag_with_its_own_label(
    tmp_path: Path, average: float | None, most: int | None
) -> None:
    cohort = made_cohort(26)
    config = QUICK.model_copy(update={"epochs": 2, "keep": "last", "average": average, "max_instances": most})
    result = run(tmp_path, cohort=cohort, config=config)
    model, bags = load_model(tmp_path).model, MadeBags(cohort.slides)
    share = np.bincount(cohort.targets(cohort.of("train")))
    costs = []
    for slide in cohort.of("val"):
        bag = bags.load(slide.slide_id)
        with torch.no_grad():
            logits = model(pack([bag.features], xy0=[bag.xy0], slide_ids=[slide.slide_id])).logits[0].double()
        target = "nt".index(slide.label)
        costs.append(-float(logits.log_softmax(dim=0)[target]) * share.sum() / (2 * share[target]))
    assert share[0] != share[1]
    assert result.history[-1].val_loss == pytest.approx(np.mean(costs), rel=1e-5)
