"""Files in the layout of transformers give what transformers gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from wsimil.encoders import EncoderCard, card
from wsimil.encoders.timm_encoder import TimmEncoder
from wsimil.errors import EncoderError

transformers = pytest.importorskip("transformers", reason="needs transformers, whose outputs are compared")

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 224}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "phikon": ("ViT", {"patch_size": 16, "intermediate_size": 192, "layer_norm_eps": 1e-12}),
    "phikon_v2": ("Dinov2", {"patch_size": 16}),
    "midnight12k": ("Dinov2", {"patch_size": 14, "use_swiglu_ffn": True}),
    "hibou_l": ("Dinov2WithRegisters", {"patch_size": 14, "use_swiglu_ffn": True, "num_register_tokens": 4}),
}


def published(name: str, folder: Path, **changed: object) -> tuple[torch.nn.Module, Path]:
    """A small model of the published kind with random weights, and the file that transformers saves of it."""
    kind, facts = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **facts, **changed})
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return model, folder / "model.safetensors"


def small_card(name: str) -> EncoderCard:
    entry = card(name)
    arguments = {**entry.arguments, "embed_dim": 48, "depth": 2, "num_heads": 3}
    if "mlp_ratio" in arguments:
        arguments["mlp_ratio"] = (
            2 * 128 / 48
        )  # the width that DINOv2 gives a SwiGLU of 48: 2/3 of 4 * 48, up to a multiple of 8
    return replace(entry, arguments=arguments, dim=96 if entry.pooling == "cls+mean" else 48)


def outputs(name: str, model: torch.nn.Module, tiles: torch.Tensor) -> torch.Tensor:
    entry = card(name)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (entry.mean, entry.std))
    with torch.inference_mode():
        tokens = model((tiles.permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1) if entry.pooling == "cls+mean" else tokens[:, 0]


@pytest.fixture
def tiles() -> torch.Tensor:
    return torch.randint(0, 256, (2, 224, 224, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_transformers_gives_its_features(name: str, tiles: torch.Tensor, tmp_path: Path) -> None:
    model, path = published(name, tmp_path)
    ours = TimmEncoder.build(small_card(name), weights=path).embed(tiles)
    torch.testing.assert_close(ours, outputs(name, model, tiles), rtol=1e-4, atol=1e-4)
    assert ours.std() > 0.1


@pytest.mark.parametrize("name", ["midnight12k", "hibou_l"])
def test_positions_of_another_image_size_are_fitted_as_transformers_does(
    name: str, tiles: torch.Tensor, tmp_path: Path
) -> None:
    model, path = published(name, tmp_path, image_size=518)
    ours = TimmEncoder.build(small_card(name), weights=path).embed(tiles)
    torch.testing.assert_close(ours, outputs(name, model, tiles), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_key_that_is_missing_or_unknown_is_named(name: str, tmp_path: Path) -> None:
    _, path = published(name, tmp_path)
    state = safetensors.torch.load_file(path)
    key = next(key for key in state if key.endswith("attention.attention.key.weight"))
    del state[key]
    state["encoder.layer.0.surprise"] = torch.zeros(1)
    safetensors.torch.save_file(state, path)
    with pytest.raises(EncoderError) as caught:
        TimmEncoder.build(small_card(name), weights=path)
    assert "missing (blocks.0.attn.qkv.weight)" in str(caught.value)
    assert "blocks.0.surprise" in str(caught.value)


def test_a_file_that_was_brought_to_timm_already_is_taken_as_it_is(tiles: torch.Tensor, tmp_path: Path) -> None:
    from wsimil.encoders.timm_encoder import load_backbone

    _, path = published("hibou_l", tmp_path)
    entry = small_card("hibou_l")
    safetensors.torch.save_file(load_backbone(entry, path).state_dict(), tmp_path / "timm.safetensors")
    first, second = (TimmEncoder.build(entry, weights=file) for file in (path, tmp_path / "timm.safetensors"))
    assert torch.equal(first.embed(tiles), second.embed(tiles))
