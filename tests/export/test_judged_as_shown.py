"""A map is judged as it is shown."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch

from tests.evaluation.faithfulness.toys import DIM, evidence_bag
from wsimil.evaluation.attribution import ScoreKind
from wsimil.evaluation.attribution.scored import NO_RULE
from wsimil.evaluation.attribution.scoring import score
from wsimil.evaluation.calibration import Calibration
from wsimil.evaluation.faithfulness.maps import BagMaps
from wsimil.evaluation.faithfulness.said import said_of
from wsimil.export.scores import score_table
from wsimil.export.shown import shown
from wsimil.mil import registry
from wsimil.targets import Classification, MultiLabel

THREE = ("a", "b", "c")
TASK = Classification(classes=THREE)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(2)
    return registry.build("abmil", {"hidden_dim": 8, "centered_classifier": False}, in_dim=DIM, num_classes=3)


CALIBRATED = Calibration(
    kind="bias_corrected", classes=3, fitted_on="val", rows=9, temperature=0.3, shifts=(1.0, -2.0, 0.5)
)


@pytest.mark.parametrize("calibration", [None, CALIBRATED], ids=["plain", "calibrated"])
@pytest.mark.parametrize("kind", [kind for kind in get_args(ScoreKind) if kind != "attention"])
def test_a_score_of_a_class_is_judged_as_it_is_shown(kind: ScoreKind, calibration, model, make_prediction) -> None:
    bag, _ = evidence_bag(0, tiles=63)
    logits = model(bag).logits[0].detach().double().numpy()
    found = score(model, bag, kind)
    made = score_table(make_prediction(n=63, classes=THREE))
    names = tuple(f"{kind}:{name}" for name in THREE)
    values = found.values.detach().numpy()
    facts = {} if calibration is None else {"calibration": calibration.to_json()}
    answer = TASK.values(logits[None])[0] if calibration is None else calibration.apply(logits[None])[0]
    table = dataclasses.replace(
        made, score_names=names, scores=values, score_rules={}, logits=logits, values=answer, model=facts
    )
    maps = BagMaps(model=model, task=TASK, logits=logits, calibration=calibration)
    labels = BagMaps(model=model, task=MultiLabel(columns=THREE, labels=THREE), logits=logits)
    for output, name in enumerate(names):
        own = maps.column(found, kind, output)
        np.testing.assert_allclose(own, shown(table, name).values, rtol=1e-4, atol=1e-5)
        label = labels.column(found, kind, output)
        np.testing.assert_allclose(label, values[:, output])
        assert np.corrcoef(np.argsort(np.argsort(own)), np.argsort(np.argsort(label)))[0, 1] < 0.999


def test_single_in_the_place_of_contributions_is_judged_as_single(model) -> None:
    bag, _ = evidence_bag(0, tiles=63)
    logits = model(bag).logits[0].detach().double().numpy()
    alone = score(model, bag, "single")
    standing_in = dataclasses.replace(alone, rule=NO_RULE)
    maps = BagMaps(model=model, task=TASK, logits=logits)
    assert np.array_equal(maps.column(standing_in, "contribution", 1), maps.column(alone, "single", 1))


def test_contributions_claim_to_sum_to_the_log_odds_of_what_was_said(model) -> None:
    bag, _ = evidence_bag(0, tiles=63)
    logits = model(bag).logits.detach().double().numpy()
    found = score(model, bag, "contribution")
    said = said_of(TASK, TASK.values(logits)[0], logits[0])
    maps = BagMaps(model=model, task=TASK, logits=logits[0], calibration=CALIBRATED)
    one = maps.tile_map(found, "contribution", said)
    assert one.total == pytest.approx(said.logit(TASK, logits)[0], rel=1e-5, abs=1e-6)
    assert found.bias is not None
    wrong = dataclasses.replace(found, bias=found.bias + torch.tensor([0.0, 1.0, 0.0]))
    other = maps.tile_map(wrong, "contribution", said)
    assert abs(other.total - said.logit(TASK, logits)[0]) > 0.1
