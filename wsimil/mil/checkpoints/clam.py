"""CLAM (https://github.com/mahmoodlab/CLAM): single or multi branch, gated or not, of the branches master and deprecated.

The index of the attention in the network tells no dropout from dropout in the deprecated layout alone; elsewhere set
`method.embed_dropout` and `method.attention_dropout` before further training. The plain attention has a key more with dropout.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, first_layout, names_of

_NAME = "CLAM"


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """CLAM-SB or CLAM-MB, by its keys. Raises ModelError."""
    layouts = [
        (place, f"attention_net.{place}.{key}")
        for place in ("3", "2")
        for key in ("attention_a.0.weight", "module.0.weight")
    ]
    place = first_layout(state, layouts, source=_NAME)
    net = f"attention_net.{place}"
    gated = f"{net}.attention_a.0.weight" in state
    layers = {"attention_net.0": "embed.linear", "instance_classifiers.*": "instance_classifiers.*"}
    if gated:
        layers |= {
            f"{net}.attention_a.0": "attention.value",
            f"{net}.attention_b.0": "attention.gate",
            f"{net}.attention_c": "attention.score",
        }
    else:
        last = "3" if f"{net}.module.3.weight" in state else "2"
        layers |= {f"{net}.module.0": "attention.value", f"{net}.module.{last}": "attention.score"}
    multi = "classifiers.weight" not in state
    layers |= {"classifiers.*": "classifiers.*"} if multi else {"classifiers": "classifier"}
    names = names_of(state, layers, source=_NAME)
    value = state[f"{net}.attention_a.0.weight" if gated else f"{net}.module.0.weight"]
    config: dict[str, str | int | float | bool] = {
        "branches": "multi" if multi else "single",
        "hidden_dim": value.shape[1],
        "attention_dim": len(value),
        "gated": gated,
    }
    if place == "2" or (not gated and f"{net}.module.2.weight" in state):
        config |= {"embed_dropout": 0.0, "attention_dropout": 0.0}
    return OfficialModel(
        method="clam",
        config=config,
        in_dim=state["attention_net.0.weight"].shape[1],
        num_classes=sum(name.startswith("classifiers.") for name in names.values()) // 2
        if multi
        else len(state["classifiers.weight"]),
        names=names,
    )
