"""ABMIL: a bag is the attention-weighted mean of its instances.

Ilse, Tomczak & Welling 2018, "Attention-based Deep Multiple Instance Learning", ICML, arXiv:1802.04712;
https://github.com/AMLab-Amsterdam/AttentionDeepMIL.

Several heads go under this name. What differs between them, as config:

    Ilse, plain / gated     hidden_dim null, gated false / true, dropouts 0 (over a network of their own)
    ACMIL, AEM              embed_bias false, attention_dim 128, dropouts 0
    MHIM "attn"             gated false, score_activation relu, attention_bias false, attention_dropout 0, init xavier_normal
    MHIM v2 gated           attention_dim 384, init xavier_normal
    CLAM's attention        attention_dim 256
    MIL-Lab                 attention_dim 384, embed_dropout 0, init kaiming_uniform
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from wsimil.config import FrozenConfig
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, Contributions, LeftOut, StepContext
from wsimil.mil.layers.embedding import Activation, InstanceEmbedding
from wsimil.mil.layers.gated_attention import GatedAttention, ScoreActivation
from wsimil.mil.layers.initialize import Init, center, initialize
from wsimil.mil.layers.left_out import left_out_of_sums
from wsimil.mil.layers.pooled import Pooled
from wsimil.ops.packed_linear import packed_linear, row_linear


class ABMILConfig(FrozenConfig):
    """Hyperparameters of ABMIL; `hidden_dim` null pools the features themselves.

    `centered_classifier` starts the classifier with rows whose mean over classes is 0: what an instance adds to one class of two
    is then the opposite of what it adds to the other, and stays so under cross-entropy. Nobody's code has it, and it changes
    no probability of classes. A single logit has no mean to take off.
    """

    hidden_dim: int | None = Field(128, ge=1)
    embed_bias: bool = True
    activation: Activation = "relu"
    embed_dropout: float = Field(0.25, ge=0, lt=1)
    attention_dim: int = Field(128, ge=1)
    gated: bool = True
    score_activation: ScoreActivation = "tanh"
    attention_bias: bool = True
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    init: Init = "torch"
    centered_classifier: bool = True


class ABMIL(MILModel):
    """`h = embed(x); a = attention(h); z = (softmax(a, 0) * h).sum(0); logits = classifier(z)`.

    State: `standardize.*`, `embed.linear.*`, `attention.{value,gate,score}.*`, `classifier.*`.
    """

    Config = ABMILConfig
    in_training_only = frozenset({"centered_classifier", "init"})
    takes_masking = True
    without_gradient = frozenset({"attention.score.bias"})

    def __init__(self, config: ABMILConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        self.embed = InstanceEmbedding(
            in_dim,
            config.hidden_dim,
            bias=config.embed_bias,
            activation=config.activation,
            drop=config.embed_dropout,
        )
        self.attention = GatedAttention(
            self.embed.out_dim,
            config.attention_dim,
            gated=config.gated,
            activation=config.score_activation,
            bias=config.attention_bias,
            drop=config.attention_dropout,
        )
        self.classifier = nn.Linear(self.embed.out_dim, num_classes)
        initialize(self, config.init)
        if config.centered_classifier and num_classes > 1:
            center(self.classifier)

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions:
        """Instance i adds `softmax(a)_i * (w_c · h_i)` to logit c."""
        pooled = self.attention(h, bags, step)
        values = pooled.weights * packed_linear(h, self.classifier.weight, None, bags.cu_seqlens)
        return Contributions(output=self._answer(pooled), values=values, bias=self.classifier.bias)

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`."""
        return self._answer(self.attention(h, bags, step))

    def linearized(self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]) -> Float[Tensor, "B C"]:
        """See `MILModel.linearized`: with attention held."""
        with torch.no_grad():
            pooled = self.attention.pool(at, bags.cu_seqlens)
        return self._answer(pooled.over(x)).logits

    def left_out(self, h: Float[Tensor, "T L"], bags: BagBatch) -> LeftOut:
        """See `MILModel.left_out`."""
        pooled = self.attention.pool(h, bags.cu_seqlens)
        values = packed_linear(h, self.classifier.weight, None, bags.cu_seqlens)
        return left_out_of_sums(pooled.left, values[:, None], bags)

    def of_nothing(self, h: Float[Tensor, "0 L"], step: StepContext | None) -> BagOutput:
        """See `MILModel.of_nothing`: a vector of zeros."""
        # With a gradient of 0 for the attention, which an optimizer lets decay.
        idle = torch.stack([parameter.sum() for parameter in self.attention.parameters()]).sum() * 0
        embedding = h.sum(dim=0, keepdim=True) + idle
        logits = row_linear(embedding, self.classifier.weight, self.classifier.bias)
        return BagOutput(logits=logits, embedding=embedding)

    def _answer(self, pooled: Pooled) -> BagOutput:
        embedding = pooled.vectors[:, 0]  # [B, L]
        return BagOutput(
            logits=row_linear(embedding, self.classifier.weight, self.classifier.bias),
            embedding=embedding,
            attention_logits=pooled.scores,
            attention_entropy=pooled.entropy,
            masked=pooled.masked,
        )
