"""Mean and max pooling, of features or of logits: what every other method has to beat.

The logit level is instance-space MIL as in MHIM-MIL's `mean_max` (https://github.com/DearCaat/MHIM-MIL).
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from wsimil.config import FrozenConfig
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, ClassScores, Contributions, LeftOut, StepContext
from wsimil.mil.layers.embedding import Activation, InstanceEmbedding
from wsimil.mil.layers.initialize import Init, initialize
from wsimil.mil.layers.left_out import left_out_of_sums
from wsimil.ops.packed_linear import packed_linear, row_linear
from wsimil.ops.segment_max import segment_max, shares_of_max
from wsimil.ops.segment_sum import segment_sum

_COLUMNS = 64


class PoolingConfig(FrozenConfig):
    """Hyperparameters of mean and max pooling; `hidden_dim` null pools the features themselves."""

    pool: Literal["mean", "max"] = "mean"
    level: Literal["feature", "logit"] = "logit"
    hidden_dim: int | None = Field(512, ge=1)
    activation: Activation = "relu"
    embed_dropout: float = Field(0.25, ge=0, lt=1)
    init: Init = "torch"


class Pooling(MILModel):
    """`classifier(pool(embed(x)))` at the feature level, `pool(classifier(embed(x)))` at the logit level; pool is over rows.

    Means of logits and of features give the same logits, maxima do not. The embedding of a bag is its mean instance, the
    maximum of each feature, or, where logits are maxed, the mean over classes of the instance that each class takes.
    State: `standardize.*`, `embed.linear.*`, `classifier.*`.
    """

    Config = PoolingConfig

    def __init__(self, config: PoolingConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        self.embed = InstanceEmbedding(
            in_dim, config.hidden_dim, bias=True, activation=config.activation, drop=config.embed_dropout
        )
        self.classifier = nn.Linear(self.embed.out_dim, num_classes)
        self.pool = config.pool
        self.level = config.level
        self.shows_each_alone = config.pool == "max"
        initialize(self, config.init)

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions:
        """Each instance has its share in a mean, and in a maximum its Shapley value, where a bag of nothing has the bias."""
        output = self._pool(h, bags)
        weight, bias, ends = self.classifier.weight, self.classifier.bias, bags.cu_seqlens
        if self.pool == "mean":
            values = _mean_weights(bags).to(h.dtype) * packed_linear(h, weight, None, ends)
        elif output.instance_logits is None:
            values = torch.zeros(len(h), len(bias), dtype=weight.dtype, device=h.device)
            # The order of a column takes three times its memory.
            for at in range(0, h.shape[1], _COLUMNS):
                shares = shares_of_max(h[:, at : at + _COLUMNS], ends)
                values += packed_linear(shares, weight[:, at : at + _COLUMNS], None, ends)
        else:
            values = shares_of_max(output.instance_logits - bias, ends)
        return Contributions(output=output, values=values, bias=bias, of_maximum=self.pool == "max")

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`."""
        return self._pool(h, bags)

    def class_scores(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> ClassScores | None:
        """See `MILModel.class_scores`: of a maximum each instance's own logits, which training steps need not share out."""
        if self.pool == "mean":
            return super().class_scores(h, bags, step)
        output = self._pool(h, bags)
        own = output.instance_logits
        if own is None:
            own = packed_linear(h, self.classifier.weight, self.classifier.bias, bags.cu_seqlens)
        return ClassScores(output=output, values=own)

    def left_out(self, h: Float[Tensor, "T L"], bags: BagBatch) -> LeftOut:
        """See `MILModel.left_out`: of a maximum only the instance that alone reaches it takes something away."""
        values = packed_linear(h, self.classifier.weight, None, bags.cu_seqlens)
        if self.pool == "mean":
            return left_out_of_sums(torch.zeros_like(values[:, :1]), values[:, None], bags)
        x = h if self.level == "feature" else values
        best = segment_max(x, bags.cu_seqlens)
        lost = best.values - segment_max(x.scatter(0, best.rows, -torch.inf), bags.cu_seqlens).values  # [B, K]
        known = torch.ones(len(h), dtype=torch.bool, device=h.device)
        if self.level == "logit":
            return LeftOut(values=torch.zeros_like(values).scatter(0, best.rows, lost), known=known)
        parts = (lost[..., None] * self.classifier.weight.t()).flatten(0, 1)  # [B * K, C]
        return LeftOut(values=torch.zeros_like(values).index_add_(0, best.rows.flatten(), parts), known=known)

    def _pool(self, h: Float[Tensor, "T L"], bags: BagBatch) -> BagOutput:
        if self.level == "feature":
            embedding = self._mean(h, bags) if self.pool == "mean" else segment_max(h, bags.cu_seqlens).values
            logits = row_linear(embedding, self.classifier.weight, self.classifier.bias)
            return BagOutput(logits=logits, embedding=embedding)
        scores = packed_linear(h, self.classifier.weight, self.classifier.bias, bags.cu_seqlens)  # [T, C]
        if self.pool == "mean":
            return BagOutput(logits=self._mean(scores, bags), embedding=self._mean(h, bags), instance_logits=scores)
        best = segment_max(scores, bags.cu_seqlens)
        return BagOutput(logits=best.values, embedding=h[best.rows].mean(dim=1), instance_logits=scores)

    @staticmethod
    def _mean(x: Float[Tensor, "T K"], bags: BagBatch) -> Float[Tensor, "B K"]:
        return segment_sum(_mean_weights(bags), x, bags.cu_seqlens)[:, 0]


def _mean_weights(bags: BagBatch) -> Float[Tensor, "T 1"]:
    lengths = bags.cu_seqlens.diff()
    wide = torch.promote_types(bags.features.dtype, torch.float32)
    return lengths.to(wide).reciprocal()[bags.bag_ids, None]
