"""RRT-MIL (https://github.com/DearCaat/RRT-MIL)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsimil.errors import ModelError
from wsimil.mil.checkpoints.base import OfficialModel, names_of

_LAYERS = {
    "patch_to_emb.0": "embed.linear",
    "online_encoder.cr_msa.norm": "cross.norm",
    "online_encoder.cr_msa.attn.attn.qkv": "cross.attention.qkv",
    "online_encoder.cr_msa.attn.attn.proj": "cross.attention.proj",
    "online_encoder.norm": "norm",
    "pool_fn.attention.attention.0": "pool.value",
    "pool_fn.attention.attention.2": "pool.score",
    "predictor": "classifier",
}


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """Its widths, kernel and representatives. Raises ModelError."""
    layers = dict(_LAYERS)
    inner = [key.split(".")[2] for key in state if key.startswith("online_encoder.layers.")]
    count = len(set(inner))
    kernel = state.get("online_encoder.layers.0.attn.attn.pe.weight")
    if kernel is not None and len(kernel) == len(state["patch_to_emb.0.weight"]):
        raise ModelError(
            "the checkpoint is an RRT-MIL whose EPEG works on values (--epeg_type value_bf or value_af), which is not ours"
        )
    if count:
        layers |= {"online_encoder.layers.*.norm": "layers.*.norm"}
        parts = {"qkv": "qkv", "proj": "proj"} | ({"pe": "epeg"} if kernel is not None else {})
        layers |= {
            f"online_encoder.layers.*.attn.attn.{theirs}": f"layers.*.attention.{ours}"
            for theirs, ours in parts.items()
        }
    mlp = "online_encoder.cr_msa.attn.phi" not in state
    phi = "online_encoder.cr_msa.attn.phi"
    layers |= {f"{phi}.{n}": f"cross.phi.{n}" for n in (0, 2)} if mlp else {phi: "cross.phi"}
    names = names_of(state, layers, source="RRT-MIL")
    embed = state["patch_to_emb.0.weight"]
    return OfficialModel(
        method="rrt",
        config={
            "hidden_dim": len(embed),
            "layers": count,
            "epeg_kernel": None if kernel is None else kernel.shape[2],
            "heads": 8 if kernel is None else len(kernel),
            "representatives": len(state[f"{phi}.2.weight"]) if mlp else state[phi].shape[1],
            "phi_mlp": mlp,
            "attention_dim": len(state["pool_fn.attention.attention.0.weight"]),
        },
        in_dim=embed.shape[1],
        num_classes=len(state["predictor.weight"]),
        names=names,
        untold=("cross_heads", "region_side", "shortcut", "score_activation", *(("heads",) if kernel is None else ())),
    )
