"""Key names: what published files call their tensors, brought to what timm calls them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from wsimil.encoders.base import Layout

State = dict[str, torch.Tensor]
Shapes = Mapping[str, torch.Size]


def to_timm(layout: Layout, state: State, shapes: Shapes) -> State:
    """`state` with timm's key names, for a model whose parameters have `shapes`.

    A key that is not understood is kept as it is, so that the caller's check names it. A file that carries timm's names
    already is returned as it is.
    """
    return _LAYOUTS[layout](state, shapes)


def _timm(state: State, _shapes: Shapes) -> State:
    return state


_TRANSFORMERS = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.weights_out)\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
_PART = re.compile(r"(.*\.)attention\.attention\.(query|key|value)\.(weight|bias)$")


def _transformers(state: State, shapes: Shapes) -> State:
    """ViTModel, Dinov2Model and Dinov2WithRegistersModel of transformers, whose files keep these names in every version."""
    if not any(key.startswith(("embeddings.", "encoder.layer.")) for key in state):
        return state
    renamed: State = {}
    for key, tensor in state.items():
        if key != "embeddings.mask_token" and not key.startswith("pooler."):
            renamed[_replace(key, _TRANSFORMERS)] = tensor
    for key in [key for key in renamed if ".query." in key]:
        if match := _PART.match(key):
            block, _, kind = match.groups()
            parts = [f"{block}attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
            if all(part in renamed for part in parts):
                renamed[f"{block}attn.qkv.{kind}"] = torch.cat([renamed.pop(part) for part in parts])
    return _positions(renamed, shapes)


def _positions(state: State, shapes: Shapes) -> State:
    """Fold the class token's position into it where timm has none for it, and fit the grid as transformers does."""
    if not {"pos_embed", "cls_token"} <= state.keys() or "pos_embed" not in shapes:
        return state
    first, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    has_registers = "reg_token" in state
    length, dim = shapes["pos_embed"][1] - (0 if has_registers else 1), grid.shape[2]
    if grid.shape[1] != length:
        old, new = round(grid.shape[1] ** 0.5), round(length**0.5)
        if old**2 != grid.shape[1] or new**2 != length:
            return state
        # Only the variant with registers filters before it shrinks.
        image = grid.float().reshape(1, old, old, dim).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False, antialias=has_registers)
        grid = image.permute(0, 2, 3, 1).reshape(1, length, dim)
    if has_registers:
        return state | {"cls_token": state["cls_token"] + first, "pos_embed": grid}
    return state | {"pos_embed": torch.cat([first, grid.to(first.dtype)], dim=1)}


def _dinov2(state: State, _shapes: Shapes) -> State:
    """Training checkpoints of Meta's DINOv2: blocks in chunks, heads and mask token beside the backbone."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): tensor for key, tensor in state.items()}


_EFFICIENTNET = (
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_bn0\.", "bn1."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn1\.", "bn2."),
)


def _efficientnet_pytorch(state: State, shapes: Shapes) -> State:
    """EfficientNet-PyTorch: blocks counted through, names of a block's layers fixed by what they do, not by their order."""
    if "_conv_stem.weight" not in state:
        return state
    places = sorted({(int(m[1]), int(m[2])) for key in shapes if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", key))})
    expanded = {m[1] for key in state if (m := re.match(r"_blocks\.(\d+)\._expand_conv\.", key))}
    renamed: State = {}
    for key, tensor in state.items():
        match = re.match(r"_blocks\.(\d+)\.(.+)$", key)
        if match and int(match[1]) < len(places):
            stage, block = places[int(match[1])]
            # timm numbers batch norms from 1 in order of use; a block without expansion starts at the depthwise one.
            names = ("bn1", "bn2", "bn3") if match[1] in expanded else ("", "bn1", "bn2")
            project = "conv_pwl" if match[1] in expanded else "conv_pw"
            rest = re.sub(r"^_bn([012])\.", lambda m, n=names: n[int(m[1])] + ".", match[2])
            rest = rest.replace("_expand_conv.", "conv_pw.").replace("_project_conv.", f"{project}.")
            renamed[f"blocks.{stage}.{block}.{rest.replace('_depthwise_conv.', 'conv_dw.')}"] = tensor
        else:
            renamed[_replace(key, _EFFICIENTNET)] = tensor
    return renamed


def _swin(state: State, _shapes: Shapes) -> State:
    """Swin as first published: it shrinks at the end of a stage, timm at the start of the next; and saves its indices."""
    kept = {key: t for key, t in state.items() if not key.endswith(("relative_position_index", "attn_mask"))}
    if "layers.0.downsample.reduction.weight" not in kept:
        return kept
    return {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", key): tensor
        for key, tensor in kept.items()
    }


def _replace(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


_LAYOUTS: Mapping[Layout, Callable[[State, Shapes], State]] = {
    "timm": _timm,
    "transformers": _transformers,
    "dinov2": _dinov2,
    "efficientnet_pytorch": _efficientnet_pytorch,
    "swin": _swin,
}
