"""DSMIL: the instance that speaks loudest for a class, and attention to all that resemble it.

Li, Li & Eliceiri 2021, "Dual-stream Multiple Instance Learning Network for Whole Slide Image Classification with Self-supervised
Contrastive Learning", CVPR, arXiv:2011.08939; https://github.com/binli123/dsmil-wsi.

The official loss is a binary cross-entropy for each class (`fit.loss: binary_cross_entropy`); AEM's is a cross-entropy. Which
instance is critical is not differentiated, its query is. Of equal instances the first is critical.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wsimil.config import FrozenConfig
from wsimil.mil.base import MILModel, refuse_task
from wsimil.mil.batch import BagBatch, BagOutput, Contributions, LeftOut, LossTerms, StepContext
from wsimil.mil.layers.dropout import dropout
from wsimil.mil.layers.embedding import Activation, InstanceEmbedding
from wsimil.mil.layers.initialize import Init, initialize
from wsimil.mil.layers.left_out import left_out_of_sums
from wsimil.mil.layers.pooled import Pooled, pool_by_scores
from wsimil.ops.packed_linear import packed_linear, row_linear
from wsimil.ops.segment_max import segment_max
from wsimil.ops.varlen import join_bags, split_bags
from wsimil.targets import Classification, MultiLabel, Task


class DSMILConfig(FrozenConfig):
    """Hyperparameters of DSMIL; `hidden_dim` null, the official choice, works on the features themselves.

    `nonlinear`: queries are tanh(Linear(relu(Linear(h)))), otherwise Linear(h), of `query_dim`. `value_layer`: what is pooled is
    relu(Linear(dropout(h))), otherwise h. `max_weight` is the share of the loss of the highest instance logits; with
    `joined_loss`, as MHIM-MIL's second version has it, the share is one of logits, and the loss is that of their mean.
    """

    hidden_dim: int | None = Field(None, ge=1)
    activation: Activation = "relu"
    embed_dropout: float = Field(0.0, ge=0, lt=1)
    query_dim: int = Field(128, ge=1)
    nonlinear: bool = True
    value_layer: bool = False
    value_dropout: float = Field(0.0, ge=0, lt=1)
    max_weight: float = Field(0.5, ge=0, le=1)
    joined_loss: bool = False
    init: Init = "torch"


class DSMIL(MILModel):
    """`c = instance(h); i_k = argmax c_k; a_k = softmax(q(h) · q(h[i_k]) / sqrt(Q)); z_k = a_k value(h); logits = bag([z])`.

    State: `standardize.*`, `embed.linear.*` where there is one, `instance.*`, `query.{0,2}.*` or `query.*`, `value.*` where there
    is one, `bag.weight` [C, C, L] and `bag.bias`.
    """

    Config = DSMILConfig
    in_training_only = frozenset({"init", "joined_loss"})
    takes_masking = True

    def __init__(self, config: DSMILConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        self.embed = InstanceEmbedding(
            in_dim, config.hidden_dim, bias=True, activation=config.activation, drop=config.embed_dropout
        )
        width, query = self.embed.out_dim, config.query_dim
        self.instance = nn.Linear(width, num_classes)
        self.query: nn.Module = nn.Linear(width, query)
        if config.nonlinear:
            self.query = nn.Sequential(nn.Linear(width, query), nn.ReLU(), nn.Linear(query, query), nn.Tanh())
        self.value = nn.Linear(width, width) if config.value_layer else None
        self.bag = nn.Conv1d(num_classes, num_classes, kernel_size=width)
        initialize(self, config.init)
        self.embedding_parts = num_classes
        self.value_dropout, self.max_weight = config.value_dropout, config.max_weight
        self.joined_loss = config.joined_loss

    def check_task(self, task: Task) -> None:
        """See `MILModel.check_task`: the highest logit of an instance is to be the class's strongest evidence."""
        if not isinstance(task, Classification | MultiLabel):
            refuse_task("dsmil", task, "it takes the tile with the highest logit for the strongest evidence of a class")

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions:
        """Instance i adds `sum_k a_ki (w_ck · value(h_i))` to logit c: every class reads the pooled vectors of all classes."""
        passed = self._pass(h, bags, step)
        classes = self.num_classes
        reads = packed_linear(passed.values, self.bag.weight.flatten(0, 1), None, bags.cu_seqlens)
        values = (reads.view(-1, classes, classes) * passed.pooled.weights[:, None, :].to(reads.dtype)).sum(dim=2)
        return Contributions(output=passed.output, values=values, bias=self._bias)

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`."""
        return self._pass(h, bags, step).output

    def linearized(self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]) -> Float[Tensor, "B C"]:
        """See `MILModel.linearized`: with attention and the gates of the value layer held."""
        with torch.no_grad():
            passed = self._pass(at, bags, None)
        values = x
        if self.value is not None:
            values = packed_linear(x, self.value.weight, self.value.bias, bags.cu_seqlens) * (passed.values > 0)
        embedding = passed.pooled.over(values).vectors.flatten(1)
        return row_linear(embedding, self.bag.weight.flatten(1), self._bias)

    def left_out(self, h: Float[Tensor, "T L"], bags: BagBatch) -> LeftOut:
        """See `MILModel.left_out`; without a critical instance another one would be it, which no closed form tells."""
        passed = self._pass(h, bags, None)
        classes = self.num_classes
        reads = packed_linear(passed.values, self.bag.weight.flatten(0, 1), None, bags.cu_seqlens)
        reads = reads.view(-1, classes, classes).transpose(1, 2)  # [T, K, C]
        found = left_out_of_sums(passed.pooled.left, reads, bags)
        return replace(found, known=found.known.index_fill(0, passed.critical.flatten(), False))

    def loss_terms(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext) -> LossTerms:
        """See `MILModel.loss_terms`; "max" is the criterion on the highest instance logit of each class."""
        output = self.aggregate(h, bags, step)
        if output.instance_logits is None:
            raise TypeError("DSMIL always has instance logits")
        highest = segment_max(output.instance_logits, bags.cu_seqlens).values
        if self.joined_loss:
            logits = (1 - self.max_weight) * output.logits + self.max_weight * highest
            terms = {"bag": step.criterion(logits, bags.known_targets)}
            return LossTerms(output=replace(output, logits=logits), terms=terms)
        terms = {
            "bag": step.criterion(output.logits, bags.known_targets),
            "max": step.criterion(highest, bags.known_targets),
        }
        return LossTerms(output=output, terms=terms, weights={"bag": 1 - self.max_weight, "max": self.max_weight})

    def _pass(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> _Pass:
        ends = bags.cu_seqlens
        instances = packed_linear(h, self.instance.weight, self.instance.bias, ends)
        critical = segment_max(instances.detach(), ends).rows  # [B, C]
        scores = self._scores(h, critical, bags)
        values = self._values(h, bags, step)
        pooled = pool_by_scores(scores, values, bags, step)
        embedding = pooled.vectors.flatten(1)  # [B, C * L]
        output = BagOutput(
            logits=row_linear(embedding, self.bag.weight.flatten(1), self._bias),
            embedding=embedding,
            attention_logits=scores,
            instance_logits=instances,
            masked=pooled.masked,
        )
        return _Pass(output=output, pooled=pooled, values=values, critical=critical)

    @property
    def _bias(self) -> Tensor:
        if self.bag.bias is None:
            raise TypeError("DSMIL's bag layer has a bias")
        return self.bag.bias

    def _scores(self, h: Float[Tensor, "T L"], critical: Int64[Tensor, "B C"], bags: BagBatch) -> Float[Tensor, "T C"]:
        ends = bags.cu_seqlens
        layers = [layer for layer in self.query.modules() if isinstance(layer, nn.Linear)]
        queries = packed_linear(h, layers[0].weight, layers[0].bias, ends)
        if len(layers) > 1:
            queries = torch.tanh(packed_linear(F.relu(queries), layers[1].weight, layers[1].bias, ends))
        scale = queries.shape[1] ** 0.5
        parts = [
            part @ queries[rows].t() / scale for part, rows in zip(split_bags(queries, ends), critical, strict=True)
        ]
        return join_bags(parts)

    def _values(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Float[Tensor, "T L"]:
        if self.value is None:
            return h
        return F.relu(
            packed_linear(dropout(h, self.value_dropout, step), self.value.weight, self.value.bias, bags.cu_seqlens)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pass:
    output: BagOutput
    pooled: Pooled
    values: Float[Tensor, "T L"]
    critical: Int64[Tensor, "B C"]
