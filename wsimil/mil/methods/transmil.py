"""TransMIL: instances attend to each other, a class token to all of them.

Shao, Bian, Chen, Wang, Zhang, Ji & Zhang 2021, "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide
Image Classification", NeurIPS, arXiv:2106.00908; https://github.com/szc19990412/TransMIL.

The order of instances matters: they are laid out as a square image, row by row, whatever their coordinates. The official order is
that of the file; here it is by (y, x), which is the order of our files: a bag's answer does not hang on the order of its rows.
The square is filled up with the first instances, which so count twice. `shifted_output` reproduces nystrom-attention 0.0.9, which
the official requirements pin: its rows are shifted by the padding, and the class token reads a row of padding.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math
from typing import Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsimil.config import FrozenConfig
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, StepContext
from wsimil.mil.layers.embedding import InstanceEmbedding
from wsimil.mil.layers.nystrom import PPEG, NystromAttention
from wsimil.mil.layers.raster import raster_order
from wsimil.ops.packed_linear import row_linear
from wsimil.ops.varlen import join_bags, split_bags


class TransMILConfig(FrozenConfig):
    """Hyperparameters of TransMIL; `landmarks` null are half of `hidden_dim`, which `heads` divide.

    `attention_layer`: the layer, 1 or 2, whose class token's weights are given as attention.
    """

    hidden_dim: int = Field(512, ge=2)
    heads: int = Field(8, ge=1)
    landmarks: int | None = Field(None, ge=1)
    iterations: int = Field(6, ge=1)
    kernel: int = Field(33, ge=1)
    embed_dropout: float = Field(0.0, ge=0, lt=1)
    out_dropout: float = Field(0.1, ge=0, lt=1)
    attention_layer: int = Field(1, ge=1, le=2)
    shifted_output: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_dim % self.heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is no multiple of heads {self.heads}")
        return self


class Layer(nn.Module):
    """`x + attention(norm(x))`; there is no feed-forward block. State: `norm.*`, `attention.*`."""

    def __init__(self, config: TransMILConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.attention = NystromAttention(
            config.hidden_dim,
            heads=config.heads,
            landmarks=config.landmarks or config.hidden_dim // 2,
            iterations=config.iterations,
            kernel=config.kernel,
            drop=config.out_dropout,
            shifted=config.shifted_output,
        )

    def forward(self, x: Float[Tensor, "S L"], keep: Bool[Tensor, "padded L"] | None) -> Float[Tensor, "S L"]:
        """Tokens, the class token first; `keep` is the attention's draw."""
        mixed: Tensor = self.attention(self.norm(x), keep)
        return x + mixed

    def row(self, x: Float[Tensor, "S L"]) -> Float[Tensor, "heads S"]:
        """The weights of the class token."""
        return self.attention.row(self.norm(x), 0)


class TransMIL(MILModel):
    """`t = [class; h; first h]; t = layer1(t); t[1:] = ppeg(t[1:]); t = layer2(t); logits = classifier(norm(t)[0])`.

    `BagOutput.attention` is the row of the class token, of each head; an instance that fills up the square gets both its weights.
    State: `standardize.*`, `embed.linear.*`, `class_token`, `layer{1,2}.norm.*`, `layer{1,2}.attention.{to_qkv,to_out,conv}.*`,
    `ppeg.conv{7,5,3}.*`, `norm.*`, `classifier.*`.
    """

    Config = TransMILConfig
    mixes_instances = True

    def __init__(self, config: TransMILConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        width = config.hidden_dim
        self.embed = InstanceEmbedding(in_dim, width, bias=True, activation="relu", drop=config.embed_dropout)
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.layer1, self.layer2 = Layer(config), Layer(config)
        self.ppeg = PPEG(width)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        self.attention_layer = config.attention_layer

    def embed_instances(self, bags: BagBatch, step: StepContext | None) -> Float[Tensor, "T L"]:
        """See `MILModel.embed_instances`."""
        h: Tensor = self.embed(self.standardize(bags.features), bags, step)
        return h

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`; attention is given at inference alone."""
        embeddings, rows = [], []
        for part, xy0 in zip(split_bags(h, bags.cu_seqlens), split_bags(bags.xy0, bags.cu_seqlens), strict=True):
            order = raster_order(xy0)
            embedding, row = self._bag(part if order is None else part[order], step)
            embeddings.append(embedding)
            rows.append(row if order is None or row is None else torch.empty_like(row).index_copy_(0, order, row))
        embedding = torch.stack(embeddings)
        given = [row for row in rows if row is not None]
        return BagOutput(
            logits=row_linear(embedding, self.classifier.weight, self.classifier.bias),
            embedding=embedding,
            attention=join_bags(given) if given else None,
        )

    def _bag(self, h: Float[Tensor, "N L"], step: StepContext | None) -> tuple[Tensor, Tensor | None]:
        count = len(h)
        side = math.isqrt(count - 1) + 1
        filling = side * side - count
        tokens = torch.cat([self.class_token, h, h[:filling]])
        first = self._layer(self.layer1, tokens, step)
        second = torch.cat([first[:1], self.ppeg(first[1:], side)])
        third = self._layer(self.layer2, second, step)
        embedding: Tensor = self.norm(third[0])
        if step is not None:
            return embedding, None
        row = self.layer1.row(tokens) if self.attention_layer == 1 else self.layer2.row(second)
        row = row[:, 1:].t()  # [side * side, heads]
        weights = row[:count].clone()
        weights[:filling] += row[count:]
        return embedding, weights

    @staticmethod
    def _layer(layer: Layer, tokens: Tensor, step: StepContext | None) -> Tensor:
        keep = layer.attention.draw(len(tokens), step, device=tokens.device)
        if step is None:
            plain: Tensor = layer(tokens, keep)
            return plain
        # Recomputed in the backward pass: what a layer would hold is some thirty times its input.
        again: Tensor = checkpoint(layer, tokens, keep, use_reentrant=False, preserve_rng_state=False)
        return again
