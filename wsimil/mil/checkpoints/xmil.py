"""The attention MIL of xMIL (https://github.com/bifold-pathomics/xMIL): plain ABMIL with one linear layer before it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, names_of

_LAYERS = {
    "linear_layers.0.0": "embed.linear",
    "attention.0": "attention.value",
    "attention.2": "attention.score",
}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """ABMIL; published heads call their last layer `classifier`, later code `linear_head`. Raises ModelError."""
    head = "linear_head" if "linear_head.weight" in state else "classifier"
    names = names_of(state, {**_LAYERS, head: "classifier"}, source="xMIL")
    embed = state["linear_layers.0.0.weight"]
    return OfficialModel(
        method="abmil",
        config={
            "hidden_dim": len(embed),
            "attention_dim": len(state["attention.0.weight"]),
            "gated": False,
            "embed_dropout": 0.0,
            "centered_classifier": False,
        },
        in_dim=embed.shape[1],
        num_classes=len(state[f"{head}.weight"]),
        names=names,
    )
