"""Weight files as users have them: good ones in every wrapping, and bad ones with a message each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from wsimil.encoders import build_encoder, card
from wsimil.encoders.timm_encoder import TimmEncoder, make_backbone
from wsimil.encoders.weights import read_state, sha256_of
from wsimil.errors import EncoderError

CARD = replace(
    card("kaiko-vits16"),
    name="small",
    dim=48,
    arguments={"depth": 1, "embed_dim": 48, "num_heads": 3, "dynamic_img_size": True},
)
TILES = torch.randint(0, 256, (2, 224, 224, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return make_backbone(CARD).state_dict()


def embed(path: Path) -> torch.Tensor:
    return TimmEncoder.build(CARD, weights=path).embed(TILES)


@pytest.fixture(scope="module")
def wanted(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    path = tmp_path_factory.mktemp("plain") / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    return embed(path)


def test_a_published_encoder_takes_a_local_file_of_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.manual_seed(1)
    safetensors.torch.save_file(make_backbone(card("kaiko-vits16")).state_dict(), path)
    encoder = build_encoder("kaiko-vits16", weights=path)
    assert encoder.embed(TILES).shape == (2, 384)
    assert encoder.provenance["weights_sha256"] == sha256_of(path)


WRAPPINGS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 7},
    "model": lambda s: {"model": s},
    "teacher": lambda s: {"teacher": s, "student": {}},
    "twice": lambda s: {"state_dict": {"model": s}},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "module.backbone.": lambda s: {f"module.backbone.{k}": v for k, v in s.items()},
    "half": lambda s: {k: v.double() for k, v in s.items()},
    "with a classifier": lambda s: s | {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_weights_are_the_same_weights(
    wrapping: str, state: dict[str, torch.Tensor], wanted: torch.Tensor, tmp_path: Path
) -> None:
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "weights.bin")
    assert torch.equal(embed(tmp_path / "weights.bin"), wanted)


def test_an_old_torch_file_and_a_safetensors_file_of_any_name_are_read(
    state: dict[str, torch.Tensor], wanted: torch.Tensor, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "blob")
    assert torch.equal(embed(tmp_path / "old.pth"), wanted)
    assert torch.equal(embed(tmp_path / "blob"), wanted)


def test_half_precision_weights_are_used_as_float32(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "weights.bin")
    encoder = TimmEncoder.build(CARD, weights=tmp_path / "weights.bin")
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    assert encoder.embed(TILES).dtype == torch.float32


def test_a_prefix_that_only_some_keys_have_is_kept_and_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({f"module.{k}" if "norm" in k else k: v for k, v in state.items()}, tmp_path / "weights.bin")
    with pytest.raises(EncoderError, match=r"missing \(.*norm1.weight.*unexpected \(module\."):
        embed(tmp_path / "weights.bin")


def test_a_misfit_names_what_is_missing_unexpected_and_misshapen(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    wrong = {k: v for k, v in state.items() if k != "cls_token"} | {"extra": torch.zeros(1)}
    wrong["pos_embed"] = torch.zeros(1, 5, 48)
    torch.save(wrong, tmp_path / "weights.bin")
    with pytest.raises(EncoderError) as caught:
        embed(tmp_path / "weights.bin")
    text = str(caught.value)
    assert "1 missing (cls_token)" in text
    assert "1 unexpected (extra)" in text
    assert "1 of another shape (pos_embed [1, 5, 48] where [1, 197, 48] was wanted)" in text
    assert "model.safetensors of 1aurent/vit_small_patch16_224" in text


def test_another_encoders_file_is_refused_with_few_names(tmp_path: Path) -> None:
    torch.save(
        make_backbone(replace(CARD, architecture="resnet10t", arguments={}, pooling="mean")).state_dict(),
        tmp_path / "w.bin",
    )
    with pytest.raises(EncoderError, match="does not fit") as caught:
        embed(tmp_path / "w.bin")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_in_float32_are_refused(
    value: float, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    bad = {k: v.double() for k, v in state.items()}
    bad["norm.bias"][3] = value
    torch.save(bad, tmp_path / "weights.bin")
    with pytest.raises(EncoderError, match=r"NaN or infinity .* 'norm.bias'"):
        embed(tmp_path / "weights.bin")


def test_a_file_that_would_run_code_is_not_run(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1)}, tmp_path / "weights.bin")
    with pytest.raises(EncoderError, match=r"would run code.*save its state dict alone as safetensors"):
        embed(tmp_path / "weights.bin")


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"x", b"<!DOCTYPE html><html>not found</html>", bytes(1000), b"\x80\x02}q\x00."]
)
def test_a_file_that_holds_no_weights_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncoderError, match=f"weights file .*{name}"):
        read_state(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_download_is_refused(
    name: str, share: float, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / name
    (safetensors.torch.save_file if "safe" in name else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(EncoderError, match="download it again"):
        read_state(path)


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no-such\.bin does not exist"):
        build_encoder("kaiko-vits16", weights=tmp_path / "no-such.bin")
    with pytest.raises(EncoderError, match="is a folder"):
        build_encoder("kaiko-vits16", weights=tmp_path)


def test_a_file_of_other_things_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "weights.bin")
    with pytest.raises(EncoderError, match=r"holds no state dict: got keys epoch, optimizer, wanted"):
        read_state(tmp_path / "weights.bin")
    torch.save([torch.zeros(3)], tmp_path / "list.bin")
    with pytest.raises(EncoderError, match="holds a list"):
        read_state(tmp_path / "list.bin")


def test_published_weights_that_were_changed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered = replace(card("efficientnet_lite0"), weights_sha256="0" * 64)
    with pytest.raises(EncoderError, match=r"is not the published file: its SHA-256 is 57934424"):
        TimmEncoder.build(tampered)


def test_any_timm_model_works_offline_with_a_file(tmp_path: Path) -> None:
    entry = card("timm:resnet10t.c3_in1k")
    assert (entry.dim, entry.input_px, entry.pooling, entry.hub_id) == (512, 176, "own", "timm/resnet10t.c3_in1k")
    torch.manual_seed(0)
    model = make_backbone(entry)
    model.reset_classifier(1000)
    torch.save(model.state_dict(), tmp_path / "resnet10t.pth")
    encoder = build_encoder(entry.name, weights=tmp_path / "resnet10t.pth")
    assert encoder.embed(torch.zeros(1, 176, 176, 3, dtype=torch.uint8)).shape == (1, 512)
    assert encoder.embed(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 512)
    assert encoder.provenance["name"] == "timm:resnet10t.c3_in1k"


def test_what_goes_with_a_classifier_may_be_in_the_file(tmp_path: Path) -> None:
    """LeViT and RepViT have a batch norm before it, which timm does not name: their published weights were refused."""
    entry = card("timm:levit_128s")
    torch.manual_seed(0)
    whole = make_backbone(entry, classes=1000).eval()
    assert "head.bn.weight" in whole.state_dict()
    torch.save(whole.state_dict(), tmp_path / "levit.pth")
    tiles = torch.randint(0, 256, (1, 224, 224, 3)).to(torch.uint8)
    with torch.inference_mode():
        pixels = (tiles.permute(0, 3, 1, 2) / 255 - torch.tensor(entry.mean).view(3, 1, 1)) / torch.tensor(
            entry.std
        ).view(3, 1, 1)
        wanted = whole.forward_features(pixels).mean(dim=1)
    torch.testing.assert_close(build_encoder(entry.name, weights=tmp_path / "levit.pth").embed(tiles), wanted)


@pytest.mark.parametrize(
    ("name", "hint"), [("timm:resnet5O", "resnet50"), ("timm:resnet18.nope", "resnet18"), ("timm:", "list_models")]
)
def test_an_unknown_timm_model_is_named(name: str, hint: str) -> None:
    from wsimil.errors import ConfigError

    with pytest.raises(ConfigError, match=f"unknown encoder '{name}': timm has no such model; .*{hint}"):
        card(name)


def test_a_swin_keeps_the_indices_that_no_file_holds(tmp_path: Path) -> None:
    entry = card("ctranspath")
    torch.manual_seed(0)
    plain = make_backbone(entry).eval()
    state = plain.state_dict()
    old = {}
    for key, tensor in state.items():  # as its authors published it
        parts = key.split(".")
        if "downsample" in key:
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts)] = tensor
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    old["head.weight"] = torch.zeros(5, 768)
    torch.save({"model": old}, tmp_path / "ctranspath.pth")
    encoder = TimmEncoder.build(entry, weights=tmp_path / "ctranspath.pth")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (entry.mean, entry.std))
    with torch.inference_mode():
        wanted = plain((TILES[:1].permute(0, 3, 1, 2) / 255 - mean) / std)
    torch.testing.assert_close(encoder.embed(TILES[:1]), wanted, rtol=1e-3, atol=1e-4)


def test_a_training_checkpoint_of_dinov2_is_taken_apart(tmp_path: Path) -> None:
    entry = replace(
        card("gpfm"),
        dim=48,
        arguments={"img_size": 224, "init_values": 1e-5, "depth": 2, "embed_dim": 48, "num_heads": 3},
    )
    torch.manual_seed(0)
    state = make_backbone(entry).state_dict()
    chunked = {f"backbone.{k.replace('blocks.', 'blocks.0.')}": v for k, v in state.items()}
    chunked |= {"backbone.mask_token": torch.zeros(1, 48), "dino_head.mlp.0.weight": torch.zeros(3, 48)}
    torch.save({"teacher": chunked, "iteration": 9}, tmp_path / "checkpoint.pth")
    torch.save(state, tmp_path / "bare.pth")
    taken, bare = (TimmEncoder.build(entry, weights=tmp_path / f"{n}.pth") for n in ("checkpoint", "bare"))
    assert torch.equal(taken.embed(TILES), bare.embed(TILES))
