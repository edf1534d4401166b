"""RRT-MIL: instances are embedded anew among those of their region and of other regions, then pooled by attention.

Tang, Zhou, Li, Huang, Zhang, Huang & Liu 2024, "Feature Re-Embedding: Towards Foundation Model-Level Performance in Computational
Pathology", CVPR, arXiv:2402.17228; https://github.com/DearCaat/RRT-MIL.

The order of instances matters: regions are cut from a square that is filled with them row by row, whatever their coordinates.
The official order is that of the file; here it is by (y, x), which is the order of our files. The square is filled up with zeros,
which take part in attention as in the official code. Attention within a region is quadratic in its tokens: `region_side` sets
their number, 64 regions by default.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsimil.config import FrozenConfig
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, Contributions, StepContext
from wsimil.mil.layers.embedding import Activation, InstanceEmbedding
from wsimil.mil.layers.gated_attention import GatedAttention, ScoreActivation
from wsimil.mil.layers.held import held_norm
from wsimil.mil.layers.initialize import initialize
from wsimil.mil.layers.pooled import Pooled
from wsimil.mil.layers.raster import raster_order
from wsimil.mil.layers.region_attention import CrossRegionLayer, RegionLayer, Regions
from wsimil.ops.packed_linear import packed_linear, row_linear
from wsimil.ops.varlen import join_bags, split_bags


class RRTConfig(FrozenConfig):
    """Hyperparameters of RRT-MIL.

    `layers` of attention within regions, of which there are `region_side` squared; `epeg_kernel` null for no positional encoding.
    Then one layer between `cross_region_side` squared regions (officially always 64), with `representatives` of each
    (`cross_heads` heads; `phi_mlp`: a small network chooses them). `shortcut` adds the embedded instances to what comes out.
    `score_activation` and `attention_dim` are those of the pooling.
    """

    hidden_dim: int = Field(512, ge=4)
    activation: Activation = "relu"
    embed_dropout: float = Field(0.25, ge=0, lt=1)
    layers: int = Field(1, ge=0)
    heads: int = Field(8, ge=1)
    region_side: int = Field(8, ge=1)
    epeg_kernel: int | None = Field(15, ge=1)
    representatives: int = Field(3, ge=1)
    cross_heads: int = Field(8, ge=1)
    cross_region_side: int = Field(8, ge=1)
    phi_mlp: bool = False
    shortcut: bool = False
    out_dropout: float = Field(0.1, ge=0, lt=1)
    attention_dim: int = Field(128, ge=1)
    score_activation: ScoreActivation = "tanh"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, heads in {"heads": self.heads, "cross_heads": self.cross_heads}.items():
            if self.hidden_dim % heads:
                raise ValueError(f"hidden_dim {self.hidden_dim} is no multiple of {name} {heads}")
        if self.epeg_kernel is not None and self.epeg_kernel % 2 == 0:
            raise ValueError(f"epeg_kernel is odd, so that it has a middle, got {self.epeg_kernel}")
        return self


class RRT(MILModel):
    """`t = embed(x); t = layer(t) ...; t = cross(t); t = norm(t); z = softmax(pool(t)) t; logits = classifier(z)`.

    State: `standardize.*`, `embed.linear.*`, `layers.<i>.{norm,attention.{qkv,proj,epeg}}.*`,
    `cross.{norm.*,phi,attention.{qkv,proj}.*}`, `norm.*`, `pool.{value,score}.weight`, `classifier.*`.
    """

    Config = RRTConfig
    takes_masking = True
    mixes_instances = True

    def __init__(self, config: RRTConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        width, drop = config.hidden_dim, config.out_dropout
        self.embed = InstanceEmbedding(
            in_dim, width, bias=True, activation=config.activation, drop=config.embed_dropout
        )
        self.layers = nn.ModuleList(
            RegionLayer(width, heads=config.heads, kernel=config.epeg_kernel, drop=drop) for _ in range(config.layers)
        )
        self.cross = CrossRegionLayer(
            width,
            heads=config.cross_heads,
            representatives=config.representatives,
            mlp=config.phi_mlp,
            drop=drop,
        )
        self.norm = nn.LayerNorm(width)
        self.pool = GatedAttention(
            width, config.attention_dim, gated=False, activation=config.score_activation, bias=False, drop=0.0
        )
        self.classifier = nn.Linear(width, num_classes)
        initialize(self, "xavier_normal")
        self.side, self.cross_side, self.shortcut = config.region_side, config.cross_region_side, config.shortcut
        if config.epeg_kernel is not None:
            self.without_gradient = frozenset(f"layers.{i}.attention.epeg.bias" for i in range(config.layers))

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions:
        """Instance i adds `softmax(pool(t))_i * (w_c · t_i)` to logit c, where t_i has seen its region and the others."""
        tokens = self._mix(h, bags, step)
        pooled = self.pool(tokens, bags, step)
        values = pooled.weights * packed_linear(tokens, self.classifier.weight, None, bags.cu_seqlens)
        return Contributions(output=self._answer(pooled), values=values, bias=self.classifier.bias)

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`."""
        return self._answer(self.pool(self._mix(h, bags, step), bags, step))

    def linearized(self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]) -> Float[Tensor, "B C"]:
        """See `MILModel.linearized`: with all attention held, what norms divide by, and what regions choose of one another."""
        ends = bags.cu_seqlens
        parts = zip(*(split_bags(part, ends) for part in (x, at, bags.xy0)), strict=True)
        tokens, held = zip(*[self._held_bag(*part) for part in parts], strict=True)
        with torch.no_grad():
            pooled = self.pool.pool(join_bags(held), ends)
        return self._answer(pooled.over(join_bags(tokens))).logits

    def _answer(self, pooled: Pooled) -> BagOutput:
        embedding = pooled.vectors[:, 0]
        return BagOutput(
            logits=row_linear(embedding, self.classifier.weight, self.classifier.bias),
            embedding=embedding,
            attention_logits=pooled.scores,
            attention_entropy=pooled.entropy,
            masked=pooled.masked,
        )

    def _mix(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Float[Tensor, "T L"]:
        """The tokens that are pooled, in the order of the instances."""
        parts = zip(split_bags(h, bags.cu_seqlens), split_bags(bags.xy0, bags.cu_seqlens), strict=True)
        return join_bags([self._bag(part, xy0, step) for part, xy0 in parts])

    def _bag(self, h: Tensor, xy0: Tensor, step: StepContext | None) -> Tensor:
        order = raster_order(xy0)
        start = h if order is None else h[order]
        regions = Regions(len(start), self.side)
        tokens = start
        for layer in self.layers:
            tokens = layer(tokens, regions, step)
        tokens = self.cross(tokens, Regions(len(start), self.cross_side), step)
        tokens = self.norm(tokens + start if self.shortcut else tokens)
        return tokens if order is None else torch.empty_like(tokens).index_copy(0, order, tokens)

    def _held_bag(self, x: Tensor, at: Tensor, xy0: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of `x` with all that is not linear held at `at`, and the tokens of `at`, in raster order both."""
        order = raster_order(xy0)
        x, at = (part if order is None else part[order] for part in (x, at))
        start, held_start = x, at
        layers: list[RegionLayer | CrossRegionLayer] = [one for one in self.layers if isinstance(one, RegionLayer)]
        for layer in [*layers, self.cross]:
            regions = Regions(len(x), self.cross_side if layer is self.cross else self.side)
            x = layer.held(x, regions, at=at)
            with torch.no_grad():
                at = layer(at, regions, None)
        if self.shortcut:
            x, at = x + start, at + held_start
        with torch.no_grad():
            normed = self.norm(at)
        return held_norm(self.norm, x, at=at), normed
