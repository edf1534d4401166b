"""The default encoder: EfficientNet-Lite0 read after its last block, before the head made for ImageNet's classes."""

from __future__ import annotations

import torch

from wsimil.encoders import build_encoder, card
from wsimil.encoders.hub import published_weights
from wsimil.encoders.timm_encoder import load_backbone


def test_it_is_the_mean_of_the_last_blocks_map() -> None:
    tiles = torch.randint(0, 256, (2, 97, 97, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = load_backbone(card("efficientnet_lite0"), published_weights(card("efficientnet_lite0"))).eval()
    with torch.inference_mode():
        x = whole.bn1(whole.conv_stem((tiles.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5))
        feature_map = whole.blocks(x)
    assert feature_map.shape[1] == 320
    ours = build_encoder("efficientnet_lite0_trunc").embed(tiles)
    torch.testing.assert_close(ours, feature_map.mean((2, 3)), rtol=1e-4, atol=1e-5 * float(feature_map.abs().max()))


def test_its_vectors_are_not_taken_for_those_of_the_whole_model() -> None:
    trunc, whole = build_encoder("efficientnet_lite0_trunc"), build_encoder("efficientnet_lite0")
    assert trunc.provenance["weights_sha256"] == whole.provenance["weights_sha256"]
    assert trunc.provenance["name"] != whole.provenance["name"]
