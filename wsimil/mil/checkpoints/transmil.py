"""TransMIL (https://github.com/szc19990412/TransMIL), also as ACMIL's repository has it with widths as arguments.

Heads are those of the convolution over values; landmarks and iterations are not in the tensors (official: half the width, and
6). A checkpoint trained with nystrom-attention 0.0.9, which the official requirements pin, needs `method.shifted_output=true`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.mil.checkpoints.base import OfficialModel, names_of

_LAYERS = {
    "_fc1.0": "embed.linear",
    "cls_token": "class_token",
    **{f"layer{n}.norm": f"layer{n}.norm" for n in (1, 2)},
    **{f"layer{n}.attn.to_qkv": f"layer{n}.attention.to_qkv" for n in (1, 2)},
    **{f"layer{n}.attn.to_out.0": f"layer{n}.attention.to_out" for n in (1, 2)},
    **{f"layer{n}.attn.res_conv": f"layer{n}.attention.conv" for n in (1, 2)},
    "pos_layer.proj": "ppeg.conv7",
    "pos_layer.proj1": "ppeg.conv5",
    "pos_layer.proj2": "ppeg.conv3",
    "norm": "norm",
    "_fc2": "classifier",
}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """TransMIL. Raises ModelError."""
    names = names_of(state, _LAYERS, source="TransMIL")
    embed, conv = state["_fc1.0.weight"], state["layer1.attn.res_conv.weight"]
    return OfficialModel(
        method="transmil",
        config={"hidden_dim": len(embed), "heads": len(conv), "kernel": conv.shape[2]},
        in_dim=embed.shape[1],
        num_classes=len(state["_fc2.weight"]),
        names=names,
    )
