"""DSMIL (https://github.com/binli123/dsmil-wsi): linear or nonlinear queries, with or without a value layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, names_of


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """DSMIL on the features themselves. Raises ModelError."""
    nonlinear, values = "b_classifier.q.0.weight" in state, "b_classifier.v.1.weight" in state
    layers = {"i_classifier.fc.0": "instance", "b_classifier.fcc": "bag"}
    layers |= {f"b_classifier.q.{n}": f"query.{n}" for n in (0, 2)} if nonlinear else {"b_classifier.q": "query"}
    if values:
        layers["b_classifier.v.1"] = "value"
    names = names_of(state, layers, source="DSMIL")
    query = state["b_classifier.q.0.weight" if nonlinear else "b_classifier.q.weight"]
    return OfficialModel(
        method="dsmil",
        config={"query_dim": len(query), "nonlinear": nonlinear, "value_layer": values},
        in_dim=query.shape[1],
        num_classes=len(state["b_classifier.fcc.weight"]),
        names=names,
    )
