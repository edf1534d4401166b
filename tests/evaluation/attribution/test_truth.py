"""Bags whose every tile is known to speak for the class, against it, or not at all."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from wsimil.evaluation.attribution import ScoreKind
from wsimil.evaluation.attribution.scoring import score
from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, StepContext, pack

FOR, AGAINST, STRIKING = 1, -1, 2


def make(bags: int, *, seed: int) -> tuple[BagBatch, Tensor]:
    """Bags of 100 tiles; class 1 are those with more tiles for it than against it. Also what each tile is."""
    generator = torch.Generator().manual_seed(seed)
    features, truths, targets = [], [], []
    for number in range(bags):
        more, less = 8 + number % 5, 2 + number % 3
        counts = (more, less) if number % 2 else (less, more)
        truth = torch.zeros(100, dtype=torch.int64)
        truth[: counts[0]], truth[counts[0] : sum(counts)], truth[sum(counts) : sum(counts) + 10] = (
            FOR,
            AGAINST,
            STRIKING,
        )
        x = 0.5 * torch.randn(100, 8, generator=generator)
        for axis, kind in enumerate((FOR, AGAINST, STRIKING)):
            x[truth == kind, axis] += 3
        features.append(x)
        truths.append(truth)
        targets.append(number % 2)
    names = [str(number) for number in range(bags)]
    places = [torch.arange(200).view(100, 2)] * bags
    return pack(features, xy0=places, slide_ids=names, targets=targets), torch.cat(truths)


def learn(bags: BagBatch) -> MILModel:
    model = registry.build("abmil", {"hidden_dim": 16, "attention_dim": 16}, in_dim=8, num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(80):
        optimizer.zero_grad()
        context = StepContext(generator=torch.Generator().manual_seed(step), progress=step / 80)
        model.losses(bags, context).total.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def learned() -> MILModel:
    return learn(make(30, seed=0)[0])


def signed(model: MILModel, kind: ScoreKind) -> float:
    """AUROC of the score of class 1 for telling tiles for the class from tiles against it."""
    bags, truth = make(40, seed=1)
    values = score(model, bags, kind).values.detach()
    speaks = (truth == FOR) | (truth == AGAINST)
    return float(roc_auc_score(truth[speaks] == FOR, values[speaks, -1]))


def test_the_model_that_is_asked_has_learned_the_class(learned: MILModel) -> None:
    bags, _ = make(40, seed=1)
    with torch.no_grad():
        found = learned(bags).logits.argmax(dim=1)
    assert (found == bags.known_targets).float().mean() >= 0.9


@pytest.mark.parametrize("kind", ["contribution", "single", "leave_one_out"])
def test_a_score_of_evidence_tells_for_from_against_where_attention_cannot(kind: ScoreKind, learned: MILModel) -> None:
    assert signed(learned, kind) > 0.95
    assert signed(learned, "attention") < 0.75
