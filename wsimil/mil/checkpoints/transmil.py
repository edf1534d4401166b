"""TransMIL (https://github.com/szc19990412/TransMIL), also as ACMIL's repository has it with widths as arguments.

Heads are those of the convolution over values. A checkpoint trained with nystrom-attention 0.0.9, which the official requirements
pin, needs `method.shifted_output=true`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue
from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, names_of

_ENDS = {"_fc1.0": "embed.linear", "_fc2": "classifier"}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """TransMIL. Raises ModelError."""
    names = names_of(state, _ENDS | layers(prefix="", ppeg="pos_layer"), source="TransMIL")
    embed = state["_fc1.0.weight"]
    return OfficialModel(
        method="transmil",
        config={"hidden_dim": len(embed), **config_of(state, prefix="")},
        in_dim=embed.shape[1],
        num_classes=len(state["_fc2.weight"]),
        names=names,
        untold=("landmarks", "iterations", "shifted_output"),
    )


def layers(*, prefix: str, ppeg: str) -> dict[str, str]:
    """Our names of all between embedding and classifier, for keys that begin with `prefix`; theirs differ in that of PPEG."""
    theirs = {
        "cls_token": "class_token",
        **{f"layer{n}.norm": f"layer{n}.norm" for n in (1, 2)},
        **{f"layer{n}.attn.to_qkv": f"layer{n}.attention.to_qkv" for n in (1, 2)},
        **{f"layer{n}.attn.to_out.0": f"layer{n}.attention.to_out" for n in (1, 2)},
        **{f"layer{n}.attn.res_conv": f"layer{n}.attention.conv" for n in (1, 2)},
        f"{ppeg}.proj": "ppeg.conv7",
        f"{ppeg}.proj1": "ppeg.conv5",
        f"{ppeg}.proj2": "ppeg.conv3",
        "norm": "norm",
    }
    return {prefix + name: ours for name, ours in theirs.items()}


def config_of(state: Mapping[str, Tensor], *, prefix: str) -> dict[str, JsonValue]:
    """Heads, their width and the kernel of the convolution over values."""
    conv, qkv = state[f"{prefix}layer1.attn.res_conv.weight"], state[f"{prefix}layer1.attn.to_qkv.weight"]
    return {"heads": len(conv), "head_dim": len(qkv) // (3 * len(conv)), "kernel": conv.shape[2]}
