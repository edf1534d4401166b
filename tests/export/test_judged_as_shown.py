"""A map is judged as it is shown."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from tests.evaluation.faithfulness.toys import DIM, evidence_bag
from wsimil.evaluation.attribution.scoring import score
from wsimil.evaluation.faithfulness.maps import column
from wsimil.export.scores import score_table
from wsimil.export.shown import shown
from wsimil.mil import registry
from wsimil.targets import Classification, MultiLabel

THREE = ("a", "b", "c")


def test_single_of_a_class_is_judged_as_it_is_shown(make_prediction) -> None:
    torch.manual_seed(2)
    model = registry.build("abmil", {"hidden_dim": 8, "centered_classifier": False}, in_dim=DIM, num_classes=3)
    bag, _ = evidence_bag(0, tiles=63)
    found = score(model, bag, "single")
    made = score_table(make_prediction(n=63, classes=THREE))
    names = tuple(f"single:{name}" for name in THREE)
    table = dataclasses.replace(
        made, score_names=names, scores=found.values.numpy(), score_rules=dict.fromkeys(names, "bags of one tile")
    )
    for output, name in enumerate(THREE):
        own = column(found, "single", model, Classification(classes=THREE), output)
        np.testing.assert_allclose(own, shown(table, f"single:{name}").values, rtol=1e-4, atol=1e-5)
        logit = column(found, "single", model, MultiLabel(columns=THREE, labels=THREE), output)
        np.testing.assert_allclose(logit, found.values[:, output].numpy())
        assert np.corrcoef(np.argsort(np.argsort(own)), np.argsort(np.argsort(logit)))[0, 1] < 0.999
