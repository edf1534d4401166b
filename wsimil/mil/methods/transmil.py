"""TransMIL: instances attend to each other, a class token to all of them.

Shao, Bian, Chen, Wang, Zhang, Ji & Zhang 2021, "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide
Image Classification", NeurIPS, arXiv:2106.00908; https://github.com/szc19990412/TransMIL.

The order of instances matters: they are laid out as a square image, row by row, whatever their coordinates. The official order is
that of the file; here it is by (y, x), which is the order of our files: a bag's answer does not hang on the order of its rows.
The square is filled up with the first instances, which so count twice. `shifted_output` reproduces nystrom-attention 0.0.9, which
the official requirements pin: its rows are shifted by the padding, and the class token reads a row of padding.

The encoder that MHIM-MIL calls TransMIL or "selfattn" (https://github.com/DearCaat/MHIM-MIL) differs: `filling: ppeg`,
`embed_dropout: 0.25` and `init: xavier_normal`.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from wsimil.config import FrozenConfig
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, ClassScores, StepContext
from wsimil.mil.layers.embedding import Activation, InstanceEmbedding
from wsimil.mil.layers.held import held_norm
from wsimil.mil.layers.initialize import Init, initialize
from wsimil.mil.layers.nystrom import PPEG, NystromAttention
from wsimil.mil.layers.raster import raster_order
from wsimil.mil.layers.recompute import recomputed
from wsimil.ops.landmark_attention import LandmarkAttention
from wsimil.ops.packed_linear import row_linear
from wsimil.ops.varlen import join_bags, split_bags

_SMALLEST_SIDE = 7


class TransMILConfig(FrozenConfig):
    """Hyperparameters of TransMIL; `landmarks` null are half of `hidden_dim`, `head_dim` null is `hidden_dim` / `heads`.

    `attention_layer`: the layer, 1 or 2, whose class token's weights are given as attention. `filling`: instances fill up the
    "square" before everything, as in TransMIL, or for the positional convolution alone and then up to 7 by 7 with zeros ("ppeg").
    """

    hidden_dim: int = Field(512, ge=2)
    activation: Activation = "relu"
    heads: int = Field(8, ge=1)
    head_dim: int | None = Field(None, ge=1)
    landmarks: int | None = Field(None, ge=1)
    iterations: int = Field(6, ge=1)
    kernel: int = Field(33, ge=1)
    embed_dropout: float = Field(0.0, ge=0, lt=1)
    out_dropout: float = Field(0.1, ge=0, lt=1)
    attention_layer: int = Field(1, ge=1, le=2)
    filling: Literal["square", "ppeg"] = "square"
    init: Init = "torch"
    shifted_output: bool = False

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is odd, so that it has a middle; got {self.kernel}")
        if self.head_dim is None and self.hidden_dim % self.heads:
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
            head_dim=config.head_dim or config.hidden_dim // config.heads,
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

    def held(self, x: Float[Tensor, "S L"], *, at: Float[Tensor, "S L"]) -> Float[Tensor, "S L"]:
        """The tokens `x`, each with what it took of them, with weights and deviations that `at` gives."""
        with torch.no_grad():
            normed = self.norm(at)
        return x + self.attention.held(held_norm(self.norm, x, at=at), at=normed)

    def short(self, tokens: Float[Tensor, "B S L"]) -> Float[Tensor, "B S L"]:
        """Tokens of bags that have few, after this layer; see `NystromAttention.short`."""
        return self.attention.short(tokens, self.norm)

    def streamed(self, tokens: Float[Tensor, "S L"]) -> LandmarkAttention:
        """What the weights of the class token are asked of."""
        return self.attention.streamed(tokens, self.norm)

    def follow(
        self, tokens: Float[Tensor, "S L"], step: StepContext | None, *, class_token_alone: bool = False
    ) -> tuple[Float[Tensor, "S L"], LandmarkAttention | None]:
        """Tokens after this layer, or at least the class token; where no gradient is asked for also what made them."""
        keep = self.attention.draw(len(tokens), step, device=tokens.device)
        if torch.is_grad_enabled() and tokens.device.type == "cpu":
            return self.attention.learn(tokens, self.norm, keep, count=1 if class_token_alone else len(tokens)), None
        if torch.is_grad_enabled():
            return recomputed(self, tokens, keep, step=step), None
        streamed = self.streamed(tokens)
        return self.attention.add(streamed, keep, count=1 if class_token_alone else len(tokens)), streamed


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
        self.embed = InstanceEmbedding(
            in_dim, width, bias=True, activation=config.activation, drop=config.embed_dropout
        )
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.layer1, self.layer2 = Layer(config), Layer(config)
        self.ppeg = PPEG(width)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        initialize(self, config.init)
        self.attention_layer, self.filling = config.attention_layer, config.filling
        # Else the class token of an instance alone reads a row of padding, or shares its landmark.
        self.shows_each_alone = not config.shifted_output and self.layer1.attention.landmarks > 1

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`; attention is given where no gradient is asked for, and at inference."""
        return self._bags(h, bags, step, spoken=False).output

    def linearized(self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]) -> Float[Tensor, "B C"]:
        """See `MILModel.linearized`: with the attention of all tokens held, and what norms divide by."""
        embeddings = []
        for part, held, xy0 in zip(*(split_bags(y, bags.cu_seqlens) for y in (x, at, bags.xy0)), strict=True):
            order = raster_order(xy0)
            pair = (part, held) if order is None else (part[order], held[order])
            embeddings.append(self._held_bag(*pair))
        return row_linear(torch.stack(embeddings), self.classifier.weight, self.classifier.bias)

    def class_scores(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> ClassScores:
        """See `MILModel.class_scores`: what the class token takes from an instance, as the classifier would read it.

        MHIM-MIL v2's score, in the layer `attention_layer`; a transformer's logits do not split over instances.
        """
        return self._bags(h, bags, step, spoken=True)

    @torch.no_grad()
    def alone(self, h: Float[Tensor, "T L"]) -> Float[Tensor, "T C"] | None:
        """See `MILModel.alone`: the class token and the instance; of the positional convolution the middle is left."""
        if not self.shows_each_alone:
            return None
        tokens = self.layer1.short(torch.stack([self.class_token.expand(len(h), -1), h], dim=1))
        tokens = self.layer2.short(torch.stack([tokens[:, 0], self.ppeg.alone(tokens[:, 1])], dim=1))
        logits: Tensor = self.classifier(self.norm(tokens[:, 0]))
        return logits

    def of_nothing(self, h: Float[Tensor, "0 L"], step: StepContext | None) -> BagOutput:
        """See `MILModel.of_nothing`: the class token alone."""
        embedding = self._bag(h, step, asked=False)[0][None]
        logits = row_linear(embedding, self.classifier.weight, self.classifier.bias)
        return BagOutput(logits=logits, embedding=embedding)

    def _bags(self, h: Tensor, bags: BagBatch, step: StepContext | None, *, spoken: bool) -> ClassScores:
        embeddings, rows, values = [], [], []
        asked = step is None or spoken or not torch.is_grad_enabled()
        for part, xy0 in zip(split_bags(h, bags.cu_seqlens), split_bags(bags.xy0, bags.cu_seqlens), strict=True):
            order = raster_order(xy0)
            embedding, layer, attention = self._bag(part if order is None else part[order], step, asked=asked)
            embeddings.append(embedding)
            if attention is None:
                continue
            tokens = attention.tokens
            row = attention.row(0)[:, 1:]  # [heads, tokens]
            if spoken:
                keep = layer.attention.draw_rows(len(part), step, device=h.device)
                said = layer.attention.spoken(layer.norm(tokens[1 : len(part) + 1]), row[:, : len(part)], keep)
                values.append(_as_given(F.linear(said, self.classifier.weight), order))
            rows.append(_as_given(_fold(row.t(), len(part)), order))
        embedding = torch.stack(embeddings)
        output = BagOutput(
            logits=row_linear(embedding, self.classifier.weight, self.classifier.bias),
            embedding=embedding,
            attention=join_bags(rows) if rows else None,
        )
        return ClassScores(output=output, values=join_bags(values) if values else output.logits[:0])

    def _bag(
        self, h: Float[Tensor, "N L"], step: StepContext | None, *, asked: bool
    ) -> tuple[Tensor, Layer, LandmarkAttention | None]:
        """The bag's vector, the layer whose attention is given, and where `asked` for that attention."""
        first, side = self._tokens(h)
        second, one = self.layer1.follow(first, step)
        third = torch.cat([second[:1], self._placed(second[1:], side)])
        last, two = self.layer2.follow(third, step, class_token_alone=True)
        embedding: Tensor = self.norm(last[0])
        layer, tokens, attention = (self.layer1, first, one) if self.attention_layer == 1 else (self.layer2, third, two)
        return embedding, layer, (attention or layer.streamed(tokens)) if asked else None

    def _tokens(self, h: Tensor) -> tuple[Tensor, int]:
        """The class token and those that follow it, and the side of the square that they lie in."""
        count = len(h)
        side = math.isqrt(count - 1) + 1 if count else 0
        square = torch.cat([h, h[: side * side - count]]) if self.filling == "square" else h
        return torch.cat([self.class_token, square]), side

    def _held_bag(self, x: Float[Tensor, "N L"], at: Float[Tensor, "N L"]) -> Float[Tensor, " L"]:
        """The bag's vector of `x` with all that is not linear held at `at`."""
        first, side = self._tokens(x)
        with torch.no_grad():
            at, _ = self._tokens(at)
        second = self.layer1.held(first, at=at)
        third = torch.cat([second[:1], self._placed(second[1:], side)])
        with torch.no_grad():
            at, _ = self.layer1.follow(at, None)
            at = torch.cat([at[:1], self._placed(at[1:], side)])
        last = self.layer2.held(third, at=at)
        with torch.no_grad():
            at, _ = self.layer2.follow(at, None, class_token_alone=True)
        return held_norm(self.norm, last[0], at=at[0])

    def _placed(self, tokens: Tensor, side: int) -> Tensor:
        """The positional convolution on tokens that fill a square, or with `filling` ppeg are made to."""
        count = len(tokens)
        if count == side * side and (self.filling == "square" or side >= _SMALLEST_SIDE):
            square: Tensor = self.ppeg(tokens, side)
            return square
        tokens = torch.cat([tokens, tokens[: side * side - count]])
        side = max(side, _SMALLEST_SIDE)
        tokens = F.pad(tokens, (0, 0, 0, side * side - len(tokens)))
        placed: Tensor = self.ppeg(tokens, side)
        return placed[:count]


def _fold(row: Float[Tensor, "tokens heads"], count: int) -> Float[Tensor, "N heads"]:
    """Weights of the first `count` tokens, those that fill up a square added to the instances that they repeat."""
    weights = row[:count].clone()
    weights[: len(row) - count] += row[count:]
    return weights


def _as_given(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else torch.empty_like(values).index_copy_(0, order, values)
