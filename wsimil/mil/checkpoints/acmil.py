"""ACMIL (https://github.com/dazhangyu123/ACMIL): its ABMIL, and ACMIL with gated or multi-head attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, names_of

_GATED = {
    "dimreduction.fc1": "embed.linear",
    "attention.attention_V.0": "attention.value",
    "attention.attention_U.0": "attention.gate",
    "attention.attention_weights": "attention.score",
}
_HEADS = {"classifier.*.fc": "branch_classifiers.*", "Slide_classifier.fc": "classifier"}
_MHA = {
    "dimreduction.fc1": "embed.linear",
    "q": "queries",
    **{f"sub_attention.*.{part}": f"branches.*.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")},
    "sub_attention.*.layer_norm": "branches.*.norm",
    "bag_attention.v_proj": "bag.v_proj",
    "bag_attention.out_proj": "bag.out_proj",
    "bag_attention.layer_norm": "bag.norm",
}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """Which of the three, by its keys. Raises ModelError."""
    if "q" in state:
        names = names_of(state, _MHA | _HEADS, source="ACMIL")
        branches = state["q"].shape[1]
        return replace(
            _model(state, "acmil", {"attention": "multihead", "branches": branches}, names), untold=("heads",)
        )
    if "Slide_classifier.fc.weight" in state:
        names = names_of(state, _GATED | _HEADS, source="ACMIL")
        branches = len(state["attention.attention_weights.weight"])
        width = len(state["attention.attention_V.0.weight"])
        return _model(state, "acmil", {"attention": "gated", "branches": branches, "attention_dim": width}, names)
    names = names_of(state, _GATED | {"classifier.fc": "classifier"}, source="ACMIL")
    config = {
        "attention_dim": len(state["attention.attention_V.0.weight"]),
        "embed_bias": False,
        "embed_dropout": 0.0,
        "centered_classifier": False,
    }
    return _model(state, "abmil", config, names)


def _model(
    state: Mapping[str, Tensor], method: str, config: Mapping[str, int | float | bool | str], names: Mapping[str, str]
) -> OfficialModel:
    embed = state["dimreduction.fc1.weight"]
    head = state["Slide_classifier.fc.weight" if method == "acmil" else "classifier.fc.weight"]
    return OfficialModel(
        method=method,
        config={"hidden_dim": len(embed), **config},
        in_dim=embed.shape[1],
        num_classes=len(head),
        names=names,
    )
