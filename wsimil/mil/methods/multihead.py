"""Multi-head attention pooling: one learned query looks at the bag with several heads.

The MHA baseline of ACMIL and AEM (Zhang et al. 2024, arXiv:2406.15303; https://github.com/dazhangyu123/AEM), without forming keys
and values of all instances: see `wsimil.mil.layers.multihead`.
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
from wsimil.mil.batch import BagBatch, BagOutput, LeftOut, StepContext
from wsimil.mil.layers.dropout import dropout
from wsimil.mil.layers.embedding import InstanceEmbedding
from wsimil.mil.layers.held import held_norm
from wsimil.mil.layers.left_out import left_out_of_vectors
from wsimil.mil.layers.multihead import MultiHeadPool, fold_queries
from wsimil.mil.layers.pooled import Pooled, pool_by_scores
from wsimil.ops.packed_linear import packed_linear, row_linear


class MultiHeadConfig(FrozenConfig):
    """Hyperparameters of multi-head attention pooling; `heads` divide `hidden_dim`."""

    hidden_dim: int = Field(256, ge=1)
    heads: int = Field(8, ge=1)
    embed_dropout: float = Field(0.0, ge=0, lt=1)
    out_dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_dim % self.heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is no multiple of heads {self.heads}")
        return self


class MultiHead(MILModel):
    """`h = embed(x); a_k = softmax(q_k · key_k(h) / sqrt(L / heads)); z = norm(out([a_k value_k(h)])); logits = classifier(z)`.

    State: `standardize.*`, `embed.linear.weight`, `query`, `attention.{q_proj,k_proj,v_proj,out_proj,norm}.*`, `classifier.*`.
    """

    Config = MultiHeadConfig
    takes_masking = True
    without_gradient = frozenset({"attention.k_proj.bias"})

    def __init__(self, config: MultiHeadConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        width = config.hidden_dim
        self.embed = InstanceEmbedding(in_dim, width, bias=False, activation="relu", drop=config.embed_dropout)
        self.query = nn.Parameter(torch.randn(1, width) * 1e-6)
        self.attention = MultiHeadPool(width, config.heads, with_query=True)
        self.classifier = nn.Linear(width, num_classes)
        self.drop = config.out_dropout

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`."""
        pooled = self._pool(h, bags, step)
        embedding = self.attention.norm(dropout(self.attention.project(pooled.vectors), self.drop, step))
        logits = row_linear(embedding, self.classifier.weight, self.classifier.bias)
        return BagOutput(logits=logits, embedding=embedding, attention_logits=pooled.scores, masked=pooled.masked)

    def linearized(self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]) -> Float[Tensor, "B C"]:
        """See `MILModel.linearized`: with attention held, and what the norm divides by."""
        with torch.no_grad():
            pooled = self._pool(at, bags, None)
        linear, held = (self.attention.project(one.vectors) for one in (pooled.over(x), pooled))
        return row_linear(held_norm(self.attention.norm, linear, at=held), self.classifier.weight, self.classifier.bias)

    def left_out(self, h: Float[Tensor, "T L"], bags: BagBatch) -> LeftOut:
        """See `MILModel.left_out`; the head answers for each pooled vector anew."""
        pooled = self._pool(h, bags, None)
        return left_out_of_vectors(pooled, h, bags, self._logits(pooled.vectors), self._logits)

    def _pool(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Pooled:
        keys, offsets = fold_queries(self.query, [self.attention])
        scores = packed_linear(h, keys, offsets, bags.cu_seqlens)
        return pool_by_scores(scores, h, bags, step)

    def _logits(self, vectors: Float[Tensor, "n heads L"]) -> Float[Tensor, "n C"]:
        embedding = self.attention.norm(self.attention.project(vectors))
        return row_linear(embedding, self.classifier.weight, self.classifier.bias)
