"""MHIM-MIL's baselines (https://github.com/DearCaat/MHIM-MIL, branch master): ABMIL, plain or gated, and mean or max pooling.

Tensors do not tell an activation, nor mean from max pooling: set `method.activation` (its v2 configs use gelu) and `method.pool`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, first_layout, names_of

_NAME = "MHIM-MIL's baselines"
_PLAIN = {
    "feature.0": "embed.linear",
    "attention.0": "attention.value",
    "attention.2": "attention.score",
    "classifier": "classifier",
}
_GATED = {
    "feature.0": "embed.linear",
    "attention_a.0": "attention.value",
    "attention_b.0": "attention.gate",
    "attention_c": "attention.score",
    "classifier.0": "classifier",
}
_POOLING = {"head.0": "embed.linear", "head.3": "classifier"}
_LAYOUTS = [("pooling", "head.0.weight"), ("plain", "attention.0.weight"), ("gated", "attention_a.0.weight")]


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """Which of the three, by its keys. Raises ModelError."""
    kind = first_layout(state, _LAYOUTS, source=_NAME)
    if kind == "pooling":
        embed, head = state["head.0.weight"], state["head.3.weight"]
        names = names_of(state, _POOLING, source=_NAME)
        return OfficialModel(
            method="pooling",
            config={"hidden_dim": len(embed)},
            in_dim=embed.shape[1],
            num_classes=len(head),
            names=names,
        )
    names = names_of(state, _PLAIN if kind == "plain" else _GATED, source=_NAME)
    value = state["attention.0.weight" if kind == "plain" else "attention_a.0.weight"]
    embed = state["feature.0.weight"]
    return OfficialModel(
        method="abmil",
        config={
            "hidden_dim": len(embed),
            "attention_dim": len(value),
            "gated": kind == "gated",
            "attention_bias": f"attention{'.0' if kind == 'plain' else '_a.0'}.bias" in state,
            "attention_dropout": 0.25 if kind == "gated" else 0.0,
            "centered_classifier": False,
        },
        in_dim=embed.shape[1],
        num_classes=len(state["classifier.weight" if kind == "plain" else "classifier.0.weight"]),
        names=names,
    )
