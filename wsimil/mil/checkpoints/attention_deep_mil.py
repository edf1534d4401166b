"""AttentionDeepMIL of Ilse et al. (https://github.com/AMLab-Amsterdam/AttentionDeepMIL), from the instance embedding on.

The convolutional stem for MNIST is not ours; a checkpoint that holds one is refused by its keys. One logit, a Bernoulli's.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, first_layout, names_of

_NAME = "AttentionDeepMIL"
_PLAIN = {"attention.0": "attention.value", "attention.2": "attention.score", "classifier.0": "classifier"}
_GATED = {
    "attention_V.0": "attention.value",
    "attention_U.0": "attention.gate",
    "attention_w": "attention.score",
    "classifier.0": "classifier",
}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """Plain or gated. Raises ModelError."""
    kind = first_layout(state, [("plain", "attention.0.weight"), ("gated", "attention_V.0.weight")], source=_NAME)
    names = names_of(state, _PLAIN if kind == "plain" else _GATED, source=_NAME)
    value = state["attention.0.weight" if kind == "plain" else "attention_V.0.weight"]
    return OfficialModel(
        method="abmil",
        config={
            "hidden_dim": None,
            "attention_dim": len(value),
            "gated": kind == "gated",
            "embed_dropout": 0.0,
            "centered_classifier": False,
        },
        in_dim=value.shape[1],
        num_classes=len(state["classifier.0.weight"]),
        names=names,
    )
