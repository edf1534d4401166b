"""AEM (https://github.com/dazhangyu123/AEM): its ABMIL, its multi-head attention, and its DSMIL with linear queries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints import acmil, dsmil
from wsimil.mil.checkpoints.base import OfficialModel, names_of

_MHA = {
    "dimreduction.fc1": "embed.linear",
    "q": "query",
    **{f"attention.{part}": f"attention.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")},
    "attention.layer_norm": "attention.norm",
    "classifier.fc": "classifier",
}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """Which of the three, by its keys. Raises ModelError."""
    if "q" in state:
        names = names_of(state, _MHA, source="AEM")
        embed = state["dimreduction.fc1.weight"]
        return OfficialModel(
            method="multihead",
            config={"hidden_dim": len(embed)},
            in_dim=embed.shape[1],
            num_classes=len(state["classifier.fc.weight"]),
            names=names,
            untold=("heads",),
        )
    if "i_classifier.fc.0.weight" in state:
        return dsmil.describe(state)
    return acmil.describe(state)
