"""ACMIL: several branches of attention that are kept apart, and lose their best instances at random.

Zhang, Li, Sun, Zheng, Zhu & Yang 2024, "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification",
ECCV, arXiv:2311.07125; https://github.com/dazhangyu123/ACMIL.

Of the official code two things look odd and stay: with one branch the branch has no loss (its classifier never learns), and the
masked scores of a step act on the branches, on the bag and on the diversity loss alike. The classifier of the bag works on the
mean of the branches' pooled vectors, which is the official second pass over all instances without that pass; with multi-head
attention keys are folded into the queries and values are applied after pooling: the same numbers, and no [N, L] projections.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsimil.config import FrozenConfig
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, Contributions, LeftOut, LossTerms, StepContext
from wsimil.mil.criterion import compares_bags
from wsimil.mil.layers.dropout import dropout
from wsimil.mil.layers.embedding import InstanceEmbedding
from wsimil.mil.layers.gated_attention import GatedAttention
from wsimil.mil.layers.held import held_norm
from wsimil.mil.layers.left_out import left_out_of_sums, left_out_of_vectors
from wsimil.mil.layers.multihead import MultiHeadPool, fold_queries
from wsimil.mil.layers.pooled import Pooled, pool_by_scores
from wsimil.mil.masking import TopKMasking
from wsimil.ops.packed_linear import packed_linear, row_linear


class ACMILConfig(FrozenConfig):
    """Hyperparameters of ACMIL.

    `attention`: gated (GA) or multihead (MHA) in each of `branches`. `top_k` and `drop`: STKIM masks int(k * drop) of the k
    instances that a branch (and head) scores highest; `top_k` 0 masks nothing. `attention_dim` belongs to gated attention,
    `heads` and `out_dropout` to multi-head attention. `branch_weight` and `diversity_weight` weigh the two further terms.
    """

    attention: Literal["gated", "multihead"] = "gated"
    branches: int = Field(5, ge=1)
    top_k: int = Field(10, ge=0)
    drop: float = Field(0.6, ge=0, le=1)
    hidden_dim: int = Field(256, ge=1)
    attention_dim: int = Field(128, ge=1)
    heads: int = Field(8, ge=1)
    embed_dropout: float = Field(0.0, ge=0, lt=1)
    out_dropout: float = Field(0.1, ge=0, lt=1)
    branch_weight: float = Field(1.0, ge=0)
    diversity_weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.attention == "multihead" and self.hidden_dim % self.heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is no multiple of heads {self.heads}")
        return self


class ACMIL(MILModel):
    """`h = embed(x); p_m = softmax(mask(a_m)); z_m = p_m h; logits = classifier(mean_m z_m), branch logits = head_m(z_m)`.

    The loss is criterion(logits) + mean over branches of criterion(branch logits) + mean cosine similarity of p_i and p_j.
    State: `standardize.*`, `embed.linear.weight`, `classifier.*`, `branch_classifiers.<m>.*`; gated:
    `attention.{value,gate,score}.*`; multihead: `queries`, `branches.<m>.{q_proj,k_proj,v_proj,out_proj,norm}.*`,
    `bag.{v_proj,out_proj,norm}.*`.
    """

    Config = ACMILConfig
    in_training_only = frozenset({"drop", "top_k"})
    attention: GatedAttention
    bag: MultiHeadPool

    def __init__(self, config: ACMILConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        width, count = config.hidden_dim, config.branches
        self.embed = InstanceEmbedding(in_dim, width, bias=False, activation="relu", drop=config.embed_dropout)
        self.masking = TopKMasking(k=config.top_k, drop=config.drop) if config.top_k else None
        self.takes_masking = self.masking is None
        self.gated = config.attention == "gated"
        idle: set[str] = set()
        if self.gated:
            self.attention = GatedAttention(
                width, config.attention_dim, heads=count, gated=True, activation="tanh", bias=True, drop=0.0
            )
            idle.add("attention.score.bias")
        else:
            self.queries = nn.Parameter(torch.randn(count, width) * 1e-6)
            self.branches = nn.ModuleList(MultiHeadPool(width, config.heads, with_query=True) for _ in range(count))
            self.bag = MultiHeadPool(width, config.heads, with_query=False)
            idle |= {f"branches.{m}.k_proj.bias" for m in range(count)}
        self.branch_classifiers = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(count))
        self.classifier = nn.Linear(width, num_classes)
        if count == 1:
            idle |= {f"branch_classifiers.0.{leaf}" for leaf in ("weight", "bias")}
            if not self.gated:
                parts = ("v_proj", "out_proj", "norm")
                idle |= {f"branches.0.{part}.{leaf}" for part in parts for leaf in ("weight", "bias")}
        self.without_gradient = frozenset(idle)
        self.heads = 1 if self.gated else config.heads
        self.drop = config.out_dropout
        self.weights = {"branches": config.branch_weight, "diversity": config.diversity_weight}

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions | None:
        """Gated: instance i adds the mean over branches of its attention, times `w_c · h_i`; multi-head: no exact split."""
        if not self.gated:
            return None
        pooled = self._pool(h, bags, step)
        values = packed_linear(h, self.classifier.weight, None, bags.cu_seqlens)
        values = pooled.weights.mean(dim=1, keepdim=True) * values
        return Contributions(output=self._answer(pooled, step), values=values, bias=self.classifier.bias)

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`."""
        return self._answer(self._pool(h, bags, step), step)

    def linearized(self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]) -> Float[Tensor, "B C"]:
        """See `MILModel.linearized`: with attention held, and with multi-head attention what the norm divides by."""
        with torch.no_grad():
            pooled = self._pool(at, bags, None)
        if self.gated:
            whole = pooled.over(x).vectors.mean(dim=1)
        else:
            means = [self._mean_of_branches(one) for one in (pooled.over(x), pooled)]
            linear, held = (self.bag.project(mean) for mean in means)
            whole = held_norm(self.bag.norm, linear, at=held)
        return row_linear(whole, self.classifier.weight, self.classifier.bias)

    def left_out(self, h: Float[Tensor, "T L"], bags: BagBatch) -> LeftOut:
        """See `MILModel.left_out`; with multi-head attention the bag's head answers for each pooled vector anew."""
        pooled = self._pool(h, bags, None)
        if self.gated:
            values = packed_linear(h, self.classifier.weight, None, bags.cu_seqlens)[:, None] / pooled.left.shape[1]
            return left_out_of_sums(pooled.left, values.expand(-1, pooled.left.shape[1], -1), bags)
        logits = self._answer(pooled, None).logits
        return left_out_of_vectors(pooled, h, bags, logits, self._whole_logits)

    def loss_terms(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext) -> LossTerms:
        """See `MILModel.loss_terms`."""
        pooled = self._pool(h, bags, step, gram=True)
        output = self._answer(pooled, step)
        terms = {"slide": step.criterion(output.logits, bags.known_targets)}
        count = len(self.branch_classifiers)
        if count > 1 and output.branch_logits is not None:
            terms["branches"] = _branches(output.branch_logits, bags, step)
            terms["diversity"] = self._diversity(pooled)
        weights = {name: weight for name, weight in self.weights.items() if name in terms}
        return LossTerms(output=output, terms=terms, weights=weights)

    def _pool(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None, *, gram: bool = False) -> Pooled:
        """By raw scores, branch by branch and in each head by head."""
        if self.gated:
            pooled: Pooled = self.attention(h, bags, step, own=self.masking, gram=gram)
            return pooled
        keys, offsets = fold_queries(self.queries, self._branch_pools())
        scores = packed_linear(h, keys, offsets, bags.cu_seqlens)
        return pool_by_scores(scores, h, bags, step, own=self.masking, gram=gram)

    def _branch_pools(self) -> list[MultiHeadPool]:
        return [branch for branch in self.branches if isinstance(branch, MultiHeadPool)]

    def _answer(self, pooled: Pooled, step: StepContext | None) -> BagOutput:
        count = len(self.branch_classifiers)
        vectors = pooled.vectors.view(len(pooled.vectors), count, self.heads, -1)  # [B, M, heads, L]
        if self.gated:
            branches, whole = vectors[:, :, 0], vectors[:, :, 0].mean(dim=1)
        else:
            pools = self._branch_pools()
            branches = torch.stack([pool.project(vectors[:, m]) for m, pool in enumerate(pools)], dim=1)
            branches = dropout(branches, self.drop, step)
            branches = torch.stack([pool.norm(branches[:, m]) for m, pool in enumerate(pools)], dim=1)
            whole = self.bag.norm(dropout(self.bag.project(vectors.mean(dim=1)), self.drop, step))
        heads = [
            row_linear(branches[:, m], head.weight, head.bias)
            for m, head in enumerate(self.branch_classifiers)
            if isinstance(head, nn.Linear)
        ]
        return BagOutput(
            logits=row_linear(whole, self.classifier.weight, self.classifier.bias),
            embedding=whole,
            attention_logits=pooled.scores,
            attention_entropy=pooled.entropy,
            branch_logits=torch.stack(heads, dim=1),
            masked=pooled.masked,
        )

    def _mean_of_branches(self, pooled: Pooled) -> Float[Tensor, "B heads L"]:
        return _by_branch(pooled.vectors, self.heads).mean(dim=1)

    def _whole_logits(self, vectors: Float[Tensor, "n H L"]) -> Float[Tensor, "n C"]:
        """The bag's logits that pooled vectors give in multi-head attention."""
        whole = self.bag.norm(self.bag.project(_by_branch(vectors, self.heads).mean(dim=1)))
        return row_linear(whole, self.classifier.weight, self.classifier.bias)

    def _diversity(self, pooled: Pooled) -> Float[Tensor, ""]:
        count = len(self.branch_classifiers)
        if pooled.gram is None:
            raise TypeError("the diversity of branches is told by their Gram matrix")
        gram = pooled.gram.view(-1, count, self.heads, count, self.heads)
        gram = torch.diagonal(gram, dim1=2, dim2=4)  # [B, M, M, heads]
        norms = torch.diagonal(gram, dim1=1, dim2=2).sqrt()  # [B, heads, M]
        norms = norms[..., :, None] * norms[..., None, :]
        cosines = gram.permute(0, 3, 1, 2) / norms.clamp_min(1e-8)
        first, second = torch.triu_indices(count, count, offset=1)
        return cosines[..., first, second].mean()


def _by_branch(vectors: Float[Tensor, "n H L"], heads: int) -> Float[Tensor, "n M heads L"]:
    return vectors.view(len(vectors), -1, heads, vectors.shape[2])


def _branches(logits: Float[Tensor, "B M C"], bags: BagBatch, step: StepContext) -> Float[Tensor, ""]:
    """The mean criterion of the branches."""
    targets = bags.known_targets
    if compares_bags(step.criterion):
        return torch.stack([step.criterion(branch, targets) for branch in logits.unbind(dim=1)]).mean()
    return step.criterion(logits.flatten(0, 1), targets.repeat_interleave(logits.shape[1], dim=0))
