"""The encoder that is there without a network, against the plain model it is built from."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from wsimil.encoders import build_encoder, card
from wsimil.encoders.hub import published_weights
from wsimil.encoders.timm_encoder import TimmEncoder, load_backbone
from wsimil.encoders.weights import sha256_of


@pytest.fixture(scope="module")
def encoder() -> TimmEncoder:
    built = build_encoder("efficientnet_lite0")
    assert isinstance(built, TimmEncoder)
    return built


def tiles(count: int, side_px: int = 97, seed: int = 0) -> torch.Tensor:
    """Smooth colored noise, which unlike white noise excites the network as pictures do."""
    coarse = torch.rand((count, 3, 9, 9), generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(side_px, side_px), mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def test_it_is_the_plain_model_behind_a_plain_normalization(encoder: TimmEncoder) -> None:
    batch = tiles(3)
    plain = load_backbone(card("efficientnet_lite0"), published_weights(card("efficientnet_lite0"))).eval()
    assert type(plain) is type(timm.create_model("tf_efficientnet_lite0"))
    pixels = batch.permute(0, 3, 1, 2)
    mean = std = torch.full((1, 3, 1, 1), 0.5)
    with torch.inference_mode():
        single = plain((pixels.float() / 255 - mean) / std)
        double = plain.double()((pixels.double() / 255 - mean) / std)
    ours = encoder.embed(batch)
    # Folded batch norms round in another place: the plain model's error, and one rounding for each of 50 layers.
    allowance = 50 * torch.finfo(torch.float32).eps * double.abs().max()
    assert (ours - double).abs().max() <= (single - double).abs().max() + allowance
    assert double.abs().max() > 1


def test_published_weights_tell_pictures_apart(encoder: TimmEncoder) -> None:
    features = encoder.embed(tiles(8)).double()
    similarity = torch.corrcoef(features)[~torch.eye(8, dtype=torch.bool)]
    assert similarity.max() < 0.99
    assert (features.std(dim=0) > 1e-3).double().mean() > 0.5


def test_the_same_tiles_give_the_same_bits(encoder: TimmEncoder) -> None:
    batch = tiles(5)
    again = build_encoder("efficientnet_lite0")
    assert torch.equal(encoder.embed(batch), encoder.embed(batch))
    assert torch.equal(encoder.embed(batch), again.embed(batch.clone()))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_tile_does_not_see_its_batch(encoder: TimmEncoder, count: int) -> None:
    batch = tiles(7)
    whole = encoder.embed(batch)
    other = encoder.embed(torch.cat([batch[:count], torch.full_like(batch[count:], 255)]))[:count]
    assert torch.equal(whole[:count], other)
    # Libraries choose their algorithm by batch size: 50 layers of float32 rounding, relative to the largest feature.
    smaller = encoder.embed(batch[:count])
    assert (whole[:count] - smaller).abs().max() <= 50 * torch.finfo(torch.float32).eps * whole.abs().max()


def test_memory_layout_changes_nothing(encoder: TimmEncoder) -> None:
    batch = tiles(2)
    strided = batch.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(encoder.embed(batch), encoder.embed(strided))


def test_no_tiles_give_no_vectors(encoder: TimmEncoder) -> None:
    assert encoder.embed(tiles(1)[:0]).shape == (0, 1280)


@pytest.mark.parametrize("side_px", [8, 63, 224, 256])
def test_other_sides_are_taken_where_the_card_says_so(encoder: TimmEncoder, side_px: int) -> None:
    assert encoder.embed(tiles(1, side_px)).shape == (1, 1280)


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (torch.zeros(2, 224, 224, 3), r"float32 \[2, 224, 224, 3\]"),
        (torch.zeros(2, 3, 224, 224, dtype=torch.uint8), r"uint8 \[2, 3, 224, 224\]"),
        (torch.zeros(224, 224, 3, dtype=torch.uint8), r"uint8 \[224, 224, 3\]"),
        (torch.zeros(1, 224, 192, 3, dtype=torch.uint8), r"uint8 \[1, 224, 192, 3\]"),
    ],
)
def test_what_is_no_batch_of_tiles_is_refused(encoder: TimmEncoder, batch: torch.Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"efficientnet_lite0': got {got}, wanted uint8 \[b, side, side, 3\]"):
        encoder.embed(batch)


def test_provenance_says_what_fixes_the_embedding(encoder: TimmEncoder) -> None:
    assert encoder.provenance == {
        "name": "efficientnet_lite0",
        "pooling": "mean",
        "dim": 1280,
        "input_px": 224,
        "transform": {"scale": "1/255", "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "none"},
        "weights_sha256": card("efficientnet_lite0").weights_sha256,
    }


def test_the_model_is_frozen_and_in_evaluation(encoder: TimmEncoder) -> None:
    assert not any(module.training for module in encoder.model.modules())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.embed(tiles(1)).requires_grad


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_gives_its_own_type_and_fp32_can_be_asked_for(precision: str, dtype: torch.dtype) -> None:
    low = build_encoder("efficientnet_lite0", precision=precision)
    batch = tiles(1, 33)
    assert low.precision == precision
    assert low.embed(batch).dtype == dtype
    assert torch.equal(low.embed(batch, precision="fp32"), build_encoder("efficientnet_lite0").embed(batch))


def test_a_digest_is_that_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    import hashlib

    file = tmp_path / "weights"
    for content in (b"first", b"second, longer"):
        file.write_bytes(content)
        assert sha256_of(file) == hashlib.sha256(content).hexdigest()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_the_features_of_the_cpu(precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, which is not here")
    batch = tiles(9, 224)
    reference = build_encoder("efficientnet_lite0").embed(batch)
    on_gpu = build_encoder("efficientnet_lite0", device="cuda", precision=precision)
    embedded = on_gpu.embed(batch)
    assert embedded.device.type == "cuda"
    assert torch.equal(embedded, on_gpu.embed(batch.cuda()))
    # Float32 convolutions run in TF32 on a GPU: 10 bits, as in fp16; bf16 has 7. Errors of 50 layers add as a random walk.
    bits = {"fp32": 10, "fp16": 10, "bf16": 7}[precision]
    error = (embedded.float().cpu() - reference).norm(dim=1) / reference.norm(dim=1)
    assert error.max() <= 50**0.5 * 2.0**-bits
