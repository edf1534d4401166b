"""DTFD-MIL (https://github.com/hrzhang1123/DTFD-MIL): four groups of tensors, as its checkpoints hold them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, names_of

_ATTENTION = {"attention_V.0": "value", "attention_U.0": "gate", "attention_weights": "score"}
_LAYERS = {
    "dim_reduction.fc1": "embed.linear",
    "classifier.fc": "classifier",
    **{f"attention.{theirs}": f"attention.{ours}" for theirs, ours in _ATTENTION.items()},
    "att_classifier.classifier.fc": "second_classifier",
    **{f"att_classifier.attention.{theirs}": f"second_attention.{ours}" for theirs, ours in _ATTENTION.items()},
}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """Both tiers. Raises ModelError."""
    names = names_of(state, _LAYERS, source="DTFD-MIL")
    embed = state["dim_reduction.fc1.weight"]
    return OfficialModel(
        method="dtfd",
        config={"hidden_dim": len(embed), "attention_dim": len(state["attention.attention_V.0.weight"])},
        in_dim=embed.shape[1],
        num_classes=len(state["classifier.fc.weight"]),
        names=names,
        untold=("distill", "pseudo_bags", "distilled"),
    )
