"""The one encoder class: a model that timm builds, normalization before it, the card's pooling behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from torch import nn

from wsimil.encoders.base import EncoderCard, Precision
from wsimil.encoders.conv_stem import ConvStem
from wsimil.encoders.fold import fold_batchnorm
from wsimil.encoders.hub import published_weights
from wsimil.encoders.normalize import Normalize
from wsimil.encoders.weights import sha256_of, shapes_of, state_for
from wsimil.errors import EncoderError
from wsimil.provenance import Json

_DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LAYERS: Mapping[str, object] = {
    "SwiGLUPacked": SwiGLUPacked,
    "SiLU": nn.SiLU,
    "ConvStem": ConvStem,
    "LayerNorm 1e-12": partial(LayerNorm, eps=1e-12),
}
_GLOBAL_POOL = {"cls": "token", "cls+mean": "", "mean": "avg"}


class Pooled(nn.Module):
    """A backbone and the pooling of its card: pixels [b, 3, h, w], normalized, to [b, dim]."""

    def __init__(self, backbone: nn.Module, card: EncoderCard) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = card.pooling

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The embedding, in the type that the backbone computes in."""
        out = self.backbone(pixels)
        if self.pooling == "cls+mean":
            patches = out[:, self.backbone.num_prefix_tokens :]
            return torch.cat([out[:, 0], patches.mean(dim=1)], dim=1)
        if isinstance(out, list):  # a truncated backbone gives the one map it was cut at
            return torch.as_tensor(out[0].mean(dim=(2, 3)))
        return torch.as_tensor(out)


class TimmEncoder:
    """An encoder built by timm; `model` maps normalized pixels [b, 3, h, w] to [b, dim].

    No step looks at more than one tile, so a tile's vector does not depend on its batch beyond the rounding of the libraries.
    """

    def __init__(
        self,
        card: EncoderCard,
        model: nn.Module,
        *,
        weights_sha256: str,
        device: str,
        precision: Precision,
        compiled: bool = False,
    ) -> None:
        self.card = card
        self.compiled = compiled
        self.precision: Precision = precision
        self.weights_sha256 = weights_sha256
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.model.to(memory_format=torch.channels_last)
        self._run: Callable[[torch.Tensor], torch.Tensor] = torch.compile(self.model) if compiled else self.model
        self._normalize = Normalize(card.mean, card.std, self.device)

    @classmethod
    def build(
        cls,
        card: EncoderCard,
        *,
        weights: Path | None = None,
        device: str = "cpu",
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> TimmEncoder:
        """The encoder of `card` with the weights of a local file, else the published ones. Raises EncoderError."""
        if card.unavailable:
            raise EncoderError(f"encoder {card.name!r} cannot be built: {card.unavailable}")
        path = published_weights(card) if weights is None else weights
        backbone = load_backbone(card, path)
        digest = sha256_of(path)
        if weights is None and card.weights_sha256 not in (None, digest):
            raise EncoderError(
                f"encoder {card.name!r}: {path} is not the published file: its SHA-256 is {digest}, wanted"
                f" {card.weights_sha256}; delete it and run again, or give the file you mean with --encoder-weights"
            )
        if card.fold_batchnorm:
            fold_batchnorm(backbone)
        model = Pooled(backbone, card)
        return cls(card, model, weights_sha256=digest, device=device, precision=precision, compiled=compiled)

    @property
    def transform(self) -> Mapping[str, Json]:
        """What is done to a tile's pixels, which come at the side that the tiling gives: (pixel / 255 - mean) / std."""
        return {"scale": "1/255", "mean": list(self.card.mean), "std": list(self.card.std), "resize": "none"}

    @property
    def provenance(self) -> Mapping[str, Json]:
        """What fixes the embedding. The precision does not, and is recorded apart."""
        return {
            "name": self.card.name,
            "pooling": self.card.pooling,
            "dim": self.card.dim,
            "input_px": self.card.input_px,
            "transform": self.transform,
            "weights_sha256": self.weights_sha256,
        }

    def embed(self, tiles: torch.Tensor, *, precision: Precision | None = None) -> torch.Tensor:
        """Map uint8 [b, h, w, 3] on any device to [b, dim] on the encoder's; autocast where the precision is not fp32.

        Raises ValueError for another type, layout or side.
        """
        self._check(tiles)
        dtype = _DTYPES[precision or self.precision]
        if not len(tiles):
            return torch.empty((0, self.card.dim), device=self.device)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32),
        ):
            return self._run(self._normalize(tiles))

    def _check(self, tiles: torch.Tensor) -> None:
        good = tiles.dtype == torch.uint8 and tiles.ndim == 4 and tiles.shape[3] == 3
        if not good or tiles.shape[1] != tiles.shape[2] or not self.card.accepts(tiles.shape[1]):
            side = str(self.card.input_px)
            if self.card.multiple_px == 1:
                side = "any"
            elif self.card.multiple_px:
                side += f" (or another multiple of {self.card.multiple_px})"
            raise ValueError(
                f"encoder {self.card.name!r}: got {str(tiles.dtype).removeprefix('torch.')} {list(tiles.shape)}, wanted uint8"
                f" [b, side, side, 3] with side {side} px"
            )


def make_backbone(card: EncoderCard, *, classes: int = 0) -> nn.Module:
    """The model of `card` as timm builds it, on torch's current default device, with the weights that it starts from.

    With `classes` it has the classifier that an encoder goes without.
    """
    arguments: dict[str, Any] = {
        key: _LAYERS.get(value, value) if isinstance(value, str) else value for key, value in card.arguments.items()
    }
    if not arguments.get("features_only"):
        arguments["num_classes"] = classes
        if card.pooling != "own":
            arguments["global_pool"] = _GLOBAL_POOL[card.pooling]
    backbone: nn.Module = timm.create_model(card.architecture, pretrained=False, **arguments)
    return backbone


def load_backbone(card: EncoderCard, path: Path) -> nn.Module:
    """The model of `card` with the weights of `path`. Raises EncoderError where they do not fit."""
    with torch.device("meta"):
        backbone = make_backbone(card)
    state = state_for(card, path, shapes_of(backbone), classifier=_classifier(card, backbone))
    backbone.load_state_dict(state, assign=True)
    if any(buffer.is_meta for buffer in backbone.buffers()):
        # Some models compute buffers that no file holds; these need a real device.
        backbone = make_backbone(card)
        backbone.load_state_dict(state, assign=True)
    return backbone


def _classifier(card: EncoderCard, backbone: nn.Module) -> list[str]:
    """Prefixes of the classifier that the published file has and the encoder has not."""
    names = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    names = [names] if isinstance(names, str) else names
    held = {key.rpartition(".")[0] for key in backbone.state_dict()}
    found = [f"{name}." for name in names if name not in held]
    if card.pooling == "own":
        # Of some models more goes than timm names, such as the batch norm before the classifier of LeViT.
        with torch.device("meta"):
            found += make_backbone(card, classes=1).state_dict().keys() - backbone.state_dict().keys()
    return found
