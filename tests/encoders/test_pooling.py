"""Which tokens become a vector, on small models with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from wsimil.encoders import EncoderCard, card
from wsimil.encoders.timm_encoder import TimmEncoder, make_backbone

TINY = replace(
    card("uni_v1"),
    name="tiny",
    dim=48,
    input_px=64,
    architecture="vit_tiny_patch16_224",
    arguments={
        "img_size": 64,
        "depth": 2,
        "embed_dim": 48,
        "num_heads": 3,
        "init_values": 0.5,
        "dynamic_img_size": True,
    },
)


def build(entry: EncoderCard, folder: Path) -> tuple[TimmEncoder, torch.nn.Module]:
    """An encoder of `entry` with random weights, and the plain model with the same."""
    torch.manual_seed(0)
    plain = make_backbone(entry).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.2)
    safetensors.torch.save_file(plain.state_dict(), folder / "weights.safetensors")
    return TimmEncoder.build(entry, weights=folder / "weights.safetensors"), plain


def normalized(entry: EncoderCard, tiles: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (entry.mean, entry.std))
    return (tiles.permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.fixture
def tiles() -> torch.Tensor:
    return torch.randint(0, 256, (3, 64, 64, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize("registers", [0, 1, 8])
@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
def test_registers_are_in_no_vector(pooling: str, registers: int, tiles: torch.Tensor, tmp_path: Path) -> None:
    entry = replace(
        TINY,
        pooling=pooling,
        dim=96 if "mean" in pooling else 48,
        arguments={**TINY.arguments, "reg_tokens": registers, "no_embed_class": True},
    )
    encoder, plain = build(entry, tmp_path)
    with torch.inference_mode():
        tokens = plain.forward_features(normalized(entry, tiles))  # [3, 1 + registers + 16, 48]
    assert tokens.shape[1] == 1 + registers + 16
    wanted = tokens[:, 0]
    if pooling == "cls+mean":
        wanted = torch.cat([wanted, tokens[:, -16:].mean(1)], dim=1)
    torch.testing.assert_close(encoder.embed(tiles), wanted, rtol=1e-4, atol=1e-5)
    # Each vector ends in the last norm: the class token is normalized, not taken before it.
    unnormalized = plain.forward_intermediates(normalized(entry, tiles), norm=False, return_prefix_tokens=True)
    assert not torch.allclose(unnormalized[1][-1][1][:, 0], encoder.embed(tiles)[:, :48], atol=1e-2)


def test_mean_averages_all_positions_of_a_map(tiles: torch.Tensor, tmp_path: Path) -> None:
    entry = replace(TINY, architecture="resnet10t", arguments={}, dim=512, pooling="mean", fold_batchnorm=False)
    encoder, plain = build(entry, tmp_path)
    with torch.inference_mode():
        feature_map = plain.forward_features(normalized(entry, tiles))  # [3, 512, 2, 2]
    torch.testing.assert_close(encoder.embed(tiles), feature_map.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_truncated_resnet_ends_after_its_third_stage(tmp_path: Path) -> None:
    entry = replace(card("resnet50_trunc"), input_px=63)
    full = make_backbone(replace(entry, arguments={}, architecture="resnet50")).eval()
    torch.manual_seed(0)
    full.reset_classifier(1000)
    for module in full.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    torch.save(full.state_dict(), tmp_path / "resnet50.pth")  # as published: with the last stage and the classifier
    encoder = TimmEncoder.build(entry, weights=tmp_path / "resnet50.pth")
    tiles = torch.randint(0, 256, (2, 63, 63, 3), dtype=torch.uint8)
    with torch.inference_mode():
        x = full.maxpool(full.act1(full.bn1(full.conv1(normalized(entry, tiles)))))
        wanted = full.layer3(full.layer2(full.layer1(x))).mean((2, 3))
    assert wanted.shape == (2, 1024)
    torch.testing.assert_close(encoder.embed(tiles), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.model.modules())


def test_a_side_that_is_no_multiple_of_the_patch_is_refused(tmp_path: Path) -> None:
    encoder, _ = build(TINY, tmp_path)
    assert encoder.embed(torch.zeros(1, 80, 80, 3, dtype=torch.uint8)).shape == (1, 48)
    with pytest.raises(ValueError, match=r"side 64 \(or another multiple of 16\) px"):
        encoder.embed(torch.zeros(1, 72, 72, 3, dtype=torch.uint8))
    fixed = TimmEncoder.build(replace(TINY, multiple_px=0), weights=tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="side 64 px"):
        fixed.embed(torch.zeros(1, 80, 80, 3, dtype=torch.uint8))
