"""A model whose evidence is known: every tile weighs alike, and feature 0 alone speaks, for or against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from wsimil.evaluation.cases import Floats
from wsimil.evaluation.faithfulness.flipping import FlipConfig
from wsimil.evaluation.faithfulness.said import said_of
from wsimil.evaluation.faithfulness.slide import FlippedBag, TileMap, flip
from wsimil.evaluation.faithfulness.subbags import SubBags
from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, pack
from wsimil.targets import Classification

TASK = Classification(classes=("benign", "malignant"))
DIM = 5
SMALL = {
    "transmil": {"hidden_dim": 16, "heads": 2, "landmarks": 8},
    "rrt": {"hidden_dim": 16, "heads": 2},
    **{name: {"hidden_dim": 16} for name in ("acmil", "clam", "dsmil", "dtfd", "multihead", "pooling")},
}
"""Hyperparameters that make methods small."""


def linear_model() -> MILModel:
    """ABMIL with even attention: the log odds of "malignant" are 8 times the mean of feature 0 plus a half."""
    model = registry.build("abmil", {"hidden_dim": None}, in_dim=DIM, num_classes=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.classifier.weight[:, 0] = torch.tensor([-4.0, 4.0])
        model.classifier.bias.copy_(torch.tensor([-0.25, 0.25]))
    return model


def evidence_bag(number: int, *, tiles: int = 60) -> tuple[BagBatch, Floats]:
    """A bag of mostly silent tiles, eight that speak for "malignant", five against it; and what each says, [N]."""
    rng = np.random.default_rng([number, 5])
    features = rng.normal(size=(tiles, DIM)).astype(np.float32)
    says = np.zeros(tiles)
    chosen = rng.permutation(tiles)
    says[chosen[:8]], says[chosen[8:13]] = rng.uniform(2, 4, 8), -rng.uniform(2, 4, 5)
    features[:, 0] = says
    return packed(features, f"s{number}"), says


def packed(features: np.ndarray, name: str = "s") -> BagBatch:
    xy0 = np.stack([np.arange(len(features)) % 7 * 256, np.arange(len(features)) // 7 * 256], axis=1)
    return pack([features], xy0=[xy0], slide_ids=[name])


def flipped(
    model: MILModel, bag: BagBatch, values: Callable[[Floats], Floats], *, config: FlipConfig, seed: int = 0
) -> FlippedBag:
    """One map, that `values` makes of the contributions to what was said, judged."""
    parts = SubBags(model, bag, max_instances=config.max_instances)
    logits = parts.logits([np.arange(len(parts))])
    said = said_of(TASK, TASK.values(logits)[0], logits[0])
    with torch.no_grad():
        split = model.contributions(bag)
    assert split is not None
    for_it, against_it = said.output, 1 - said.output
    own = (split.values[:, for_it] - split.values[:, against_it]).double().numpy()
    rest = float((split.bias[for_it] - split.bias[against_it]).detach())
    one = TileMap(score="made", values=values(own), total=float(own.sum()) + rest)
    rng = np.random.default_rng(seed)
    return flip(parts, [one], said, task=TASK, values_of=TASK.values, config=config, rng=rng)
