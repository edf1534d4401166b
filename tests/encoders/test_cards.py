"""Laws over the zoo: what holds for every card, and how cards are found."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
import torch

from wsimil.encoders import EncoderCard, build_encoder, card, list_cards
from wsimil.encoders.registry import families
from wsimil.encoders.timm_encoder import Pooled, make_backbone
from wsimil.errors import ConfigError, EncoderError

CARDS = list_cards()
BUILDABLE = [entry for entry in CARDS if not entry.unavailable]

# Lengths as their authors and the tools of the field state them, written down apart from the cards.
DIMS = {
    "conch_v15": 768, "ctranspath": 768, "efficientnet_lite0": 1280, "gigapath": 1536, "gpfm": 1024, "h0-mini": 768,
    "h0-mini-full": 1536, "hibou_b": 768, "hibou_l": 1024, "hoptimus0": 1536, "hoptimus1": 1536, "kaiko-vitb16": 768,
    "kaiko-vitb8": 768, "kaiko-vitl14": 1024, "kaiko-vits16": 384, "kaiko-vits8": 384, "lunit-vits16": 384,
    "lunit-vits8": 384, "midnight12k": 3072, "midnight12k-cls": 1536, "phikon": 768, "phikon_v2": 1024,
    "resnet50_trunc": 1024, "uni_v1": 1024, "uni_v2": 1536, "virchow": 2560, "virchow-cls": 1280, "virchow2": 2560,
    "virchow2-cls": 1280,
}  # fmt: skip

# Millions of parameters as published, to the last whole one: a wrong keyword changes them.
MILLIONS = {
    "uni_v1": 303, "uni_v2": 681, "virchow": 631, "virchow2": 631, "hoptimus0": 1134, "h0-mini": 85, "gigapath": 1134,
    "phikon": 85, "phikon_v2": 303, "hibou_b": 85, "hibou_l": 303, "midnight12k": 1134, "kaiko-vits16": 21, "gpfm": 303,
    "ctranspath": 27,
}  # fmt: skip


def test_the_zoo_holds_the_encoders_of_the_field() -> None:
    assert {name: card(name).dim for name in DIMS} == DIMS


@pytest.mark.parametrize("entry", BUILDABLE, ids=lambda entry: entry.name)
def test_a_model_built_from_its_card_gives_vectors_of_the_stated_length(entry: EncoderCard) -> None:
    with torch.device("meta"), torch.inference_mode():
        model = Pooled(make_backbone(entry), entry).eval()
        embedded = model(torch.empty(3, 3, entry.input_px, entry.input_px))
    assert embedded.shape == (3, entry.dim)
    millions = sum(parameter.numel() for parameter in model.parameters()) // 10**6
    assert millions == MILLIONS.get(entry.name, millions)


@pytest.mark.parametrize("entry", [e for e in BUILDABLE if e.multiple_px], ids=lambda entry: entry.name)
def test_a_side_that_a_card_accepts_is_one_that_the_model_takes(entry: EncoderCard) -> None:
    side = entry.input_px - entry.multiple_px
    assert entry.accepts(side)
    with torch.device("meta"), torch.inference_mode():
        embedded = Pooled(make_backbone(entry), entry).eval()(torch.empty(1, 3, side, side))
    assert embedded.shape == (1, entry.dim)


@pytest.mark.parametrize("entry", CARDS, ids=lambda entry: entry.name)
def test_a_card_says_where_its_license_and_weights_are(entry: EncoderCard) -> None:
    assert entry.license
    assert entry.license_url.startswith("https://")
    assert entry.paper
    assert bool(entry.package_file) != bool(entry.hub_id and entry.hub_files)
    assert all(0 < mean < 1 for mean in entry.mean)
    assert all(0 < std < 1 for std in entry.std)


@pytest.mark.parametrize("family", families())
def test_every_card_is_named_after_its_file(family: str) -> None:
    names = [entry.name for entry in import_module(f"wsimil.encoders.zoo.{family}").CARDS]
    assert names
    assert all(name.replace("-", "_").startswith(family) for name in names)


def test_cards_are_read_without_torch_and_timm() -> None:
    code = (
        "import sys; from wsimil.encoders import list_cards, card; list_cards(); card('uni_v1');"
        "print([m for m in ('torch', 'timm', 'torchvision', 'huggingface_hub', 'pydantic') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(("wrong", "meant"), [("un1_v1", "uni_v1"), ("virchow-2", "virchow2"), ("UNI_v2", "uni_v2")])
def test_a_wrong_name_is_answered_with_the_right_one(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown encoder '{wrong}'; did you mean .*'{meant}'"):
        card(wrong)


def test_a_name_like_no_other_is_answered_with_where_to_look() -> None:
    with pytest.raises(ConfigError, match=r"wsimil list encoders.*timm:<model>"):
        card("zzzzzzzz")


def test_an_encoder_that_cannot_be_built_says_why_and_what_to_do() -> None:
    with pytest.raises(EncoderError, match=r"'conch_v15' cannot be built: its attention pooling .* TRIDENT"):
        build_encoder("conch_v15")


def test_a_card_with_neither_architecture_nor_reason_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="either an architecture or a reason"):
        replace(card("uni_v1"), architecture="")
    with pytest.raises(ValueError, match="dim and input_px"):
        replace(card("uni_v1"), dim=0)
    with pytest.raises(ValueError, match="mpp and std"):
        replace(card("uni_v1"), std=(0.1, 0.0, 0.1))
