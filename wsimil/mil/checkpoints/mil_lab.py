"""ABMIL of MIL-Lab (https://github.com/mahmoodlab/MIL-Lab); FEATHER weights have the prefix "model." and no classifier.

With one layer in the embedding there is no dropout after it; a classifier that is absent is refused, as nothing answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, names_of

_LAYERS = {
    "patch_embed.0": "embed.linear",
    "global_attn.attention_a.0": "attention.value",
    "global_attn.attention_b.0": "attention.gate",
    "global_attn.attention_c": "attention.score",
    "classifier": "classifier",
}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """Gated ABMIL. Raises ModelError."""
    prefix = "model." if all(key.startswith("model.") for key in state) else ""
    names = names_of(state, {prefix + theirs: ours for theirs, ours in _LAYERS.items()}, source="MIL-Lab's ABMIL")
    embed = state[f"{prefix}patch_embed.0.weight"]
    return OfficialModel(
        method="abmil",
        config={
            "hidden_dim": len(embed),
            "attention_dim": len(state[f"{prefix}global_attn.attention_a.0.weight"]),
            "embed_dropout": 0.0,
            "attention_dropout": 0.25,
            "centered_classifier": False,
        },
        in_dim=embed.shape[1],
        num_classes=len(state[f"{prefix}classifier.weight"]),
        names=names,
    )
