"""DTFD-MIL: a bag is dealt into pseudo-bags, and a second attention reads what a first one distilled from each.

Zhang, Meng, Zhao, Qiao, Yang, Coupland & Zheng 2022, "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for
Histopathology Whole Slide Image Classification", CVPR, arXiv:2203.12081; https://github.com/hrzhang1123/DTFD-MIL.

A training step deals at random. The official code does so at inference too, and answers differently each time; here instances
are then dealt in turn by (y, x): every pseudo-bag sees all of the slide, and the answer is one. A bag with fewer instances than
pseudo-bags makes as many as it has instances. The official loop lets the second loss reach the first tier through weights that
were changed in between, which current torch refuses and older torch then discarded: the first tier learns from its own loss
alone, unless `end_to_end` says otherwise.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from wsimil.config import FrozenConfig
from wsimil.mil.base import MILModel, refuse_task
from wsimil.mil.batch import BagBatch, BagOutput, Contributions, LossTerms, StepContext
from wsimil.mil.layers.embedding import InstanceEmbedding
from wsimil.mil.layers.gated_attention import GatedAttention
from wsimil.mil.layers.pooled import Pooled
from wsimil.mil.layers.raster import raster_order
from wsimil.ops.packed_linear import packed_linear, row_linear
from wsimil.ops.segment_sum import segment_sum
from wsimil.ops.varlen import CuSeqlens, cu_seqlens_of, split_bags
from wsimil.targets import Classification, Survival, Task


class DTFDConfig(FrozenConfig):
    """Hyperparameters of DTFD-MIL.

    `distill`: what a pseudo-bag hands on. "afs": its pooled vector; "maxs": of `distilled` instances in all, its share of those
    most probable to be of the last class; "maxmins": its share of the most and of the least probable, one that is both twice.
    `end_to_end`: the second loss trains the first tier too.
    """

    pseudo_bags: int = Field(4, ge=2)
    distill: Literal["afs", "maxs", "maxmins"] = "afs"
    distilled: int = Field(4, ge=1)
    hidden_dim: int = Field(512, ge=1)
    attention_dim: int = Field(128, ge=1)
    embed_dropout: float = Field(0.0, ge=0, lt=1)
    end_to_end: bool = False


class DTFD(MILModel):
    """`z_g = softmax(a_g) h_g; v = distill(z, h); p = softmax(second.attention(v)); logits = second.classifier(p v)`.

    The loss is the mean criterion of `classifier(z_g)` with the bag's label, and that of the logits. `attention_logits` are those
    of the first tier; `attention` is what an instance weighs in the bag's vector, both tiers together. `LossTerms.details`:
    `pseudo_logits` [G, C] of all bags. State: `standardize.*`, `embed.linear.weight`, `attention.{value,gate,score}.*`,
    `classifier.*`, `second_attention.{value,gate,score}.*`, `second_classifier.*`.
    """

    Config = DTFDConfig
    in_training_only = frozenset({"end_to_end"})
    takes_masking = True
    without_gradient = frozenset({"attention.score.bias", "second_attention.score.bias"})

    def __init__(self, config: DTFDConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        width = config.hidden_dim
        self.embed = InstanceEmbedding(in_dim, width, bias=False, activation="relu", drop=config.embed_dropout)
        self.attention, self.second_attention = (
            GatedAttention(width, config.attention_dim, gated=True, activation="tanh", bias=True, drop=0.0)
            for _ in range(2)
        )
        self.classifier, self.second_classifier = nn.Linear(width, num_classes), nn.Linear(width, num_classes)
        self.pseudo_bags, self.distill, self.end_to_end = config.pseudo_bags, config.distill, config.end_to_end
        self.picks_instances = config.distill != "afs"
        self.share = max(config.distilled // config.pseudo_bags, 1)

    def check_task(self, task: Task) -> None:
        """See `MILModel.check_task`: maxs and maxmins choose by a class, and the first tier costs a bag's parts by themselves."""
        if self.distill != "afs" and not isinstance(task, Classification):
            refuse_task(
                "dtfd",
                task,
                f"distill {self.distill} picks tiles by the probability of the last class; use distill afs",
            )
        if isinstance(task, Survival) and task.model == "cox":
            refuse_task(
                "dtfd", task, "its first tier costs the parts of one bag, which Cox's likelihood cannot compare"
            )

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions:
        """Instance i adds what it weighs in the bag's vector, over both tiers, times `w_c · h_i`."""
        output = self.aggregate(h, bags, step)
        if output.attention is None:
            raise TypeError("DTFD-MIL always has attention")
        values = output.attention * packed_linear(h, self.second_classifier.weight, None, bags.cu_seqlens)
        return Contributions(output=output, values=values, bias=self.second_classifier.bias)

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`."""
        return self._second_tier(self._first_tier(h, bags, step))

    def linearized(self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]) -> Float[Tensor, "B C"]:
        """See `MILModel.linearized`: with the attention of both tiers held."""
        with torch.no_grad():
            attention = self.aggregate(at, bags, None).attention
        if attention is None:
            raise TypeError("DTFD-MIL always has attention")
        embedding = segment_sum(attention, x, bags.cu_seqlens)[:, 0]
        return row_linear(embedding, self.second_classifier.weight, self.second_classifier.bias)

    def loss_terms(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext) -> LossTerms:
        """See `MILModel.loss_terms`; "tier1" is the mean over pseudo-bags, bag by bag, "tier2" the bag's own."""
        first = self._first_tier(h, bags, step)
        logits = row_linear(first.vectors, self.classifier.weight, self.classifier.bias)
        parts = zip(split_bags(logits, first.groups), bags.known_targets, strict=True)
        losses = [step.criterion(part, target.expand(len(part), *target.shape)) for part, target in parts]
        output = self._second_tier(first if self.end_to_end else first.detached())
        terms = {"tier1": torch.stack(losses).mean(), "tier2": step.criterion(output.logits, bags.known_targets)}
        return LossTerms(output=output, terms=terms, details={"pseudo_logits": logits})

    def _first_tier(self, h: Tensor, bags: BagBatch, step: StepContext | None) -> _FirstTier:
        order, lengths, counts = [], [], []
        for number, xy0 in enumerate(split_bags(bags.xy0, bags.cu_seqlens)):
            count, begin = len(xy0), sum(bags.lengths[:number])
            groups = min(self.pseudo_bags, count)
            order.append(begin + _deal(xy0, groups, step))
            lengths += [(count - group + groups - 1) // groups for group in range(groups)]
            counts.append(groups)
        rows = torch.cat(order)
        names = [
            f"{name}/{group}" for name, groups in zip(bags.slide_ids, counts, strict=True) for group in range(groups)
        ]
        pseudo = replace(
            bags,
            xy0=bags.xy0[rows],
            cu_seqlens=cu_seqlens_of(lengths, device=h.device),
            targets=None,
            slide_ids=tuple(names),
        )
        pooled = self.attention(h, pseudo, step, rows=rows)
        return _FirstTier(
            h=h,
            rows=rows,
            pseudo=pseudo,
            groups=cu_seqlens_of(counts, device=h.device),
            pooled=pooled,
            vectors=pooled.vectors[:, 0],
        )

    def _second_tier(self, first: _FirstTier) -> BagOutput:
        pooled, ends = first.pooled, first.groups
        if self.distill == "afs":
            second = self.second_attention.pool(first.vectors, ends)
            whole = pooled.weights * second.weights[first.pseudo.bag_ids]
        else:
            chosen, ends = self._choose(first)
            second = self.second_attention.pool(first.h[first.rows[chosen]], ends)
            whole = second.weights.new_zeros(pooled.scores.shape).index_add_(0, chosen, second.weights)
        embedding = second.vectors[:, 0]
        return BagOutput(
            logits=row_linear(embedding, self.second_classifier.weight, self.second_classifier.bias),
            embedding=embedding,
            attention_logits=first.as_given(pooled.scores),
            attention=first.as_given(whole),
            masked=None if pooled.masked is None else first.as_given(pooled.masked),
        )

    def _choose(self, first: _FirstTier) -> tuple[Int64[Tensor, " V"], CuSeqlens]:
        """Rows, in the order of the pseudo-bags, that maxs and maxmins hand on, and where those of each bag begin.

        None is masked, but where all of a pseudo-bag are.
        """
        pseudo, masked = first.pseudo, first.pooled.masked
        with torch.no_grad():
            weighed = first.pooled.weights.to(first.h.dtype) * first.h[first.rows]
            activation = packed_linear(weighed, self.classifier.weight, None, pseudo.cu_seqlens)
            last = activation.softmax(dim=1)[:, -1]
            seen = torch.ones_like(last, dtype=torch.bool) if masked is None else ~masked[:, 0]
        chosen, begin = [], 0
        for part, visible in zip(split_bags(last, pseudo.cu_seqlens), split_bags(seen, pseudo.cu_seqlens), strict=True):
            order = part.argsort(descending=True, stable=True)
            order = order[visible[order]] if bool(visible.any()) else order
            found = order[: self.share]
            chosen.append(begin + (found if self.distill == "maxs" else torch.cat([found, order[-self.share :]])))
            begin += len(part)
        counts = [len(rows) for rows in chosen]
        bounds = first.groups.tolist()
        per_bag = [sum(counts[begin:end]) for begin, end in pairwise(bounds)]
        return torch.cat(chosen), cu_seqlens_of(per_bag, device=last.device)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _FirstTier:
    """Instance i of `pseudo`, a pack of the G pseudo-bags of all bags, is `h[rows[i]]`; `groups` says whose they are.

    `pseudo` has places and names of its own alone: features are not read beyond the embedding.
    """

    h: Float[Tensor, "T L"]
    rows: Int64[Tensor, " T"]
    pseudo: BagBatch
    groups: CuSeqlens
    pooled: Pooled
    vectors: Float[Tensor, "G L"]

    def as_given(self, values: Tensor) -> Tensor:
        """Rows of the pseudo-bags in the order of the bags."""
        return torch.empty_like(values).index_copy_(0, self.rows, values)

    def detached(self) -> _FirstTier:
        """The same for a second tier whose loss ends here."""
        return replace(self, h=self.h.detach(), vectors=self.vectors.detach())


def _deal(xy0: Int64[Tensor, "N 2"], groups: int, step: StepContext | None) -> Int64[Tensor, " N"]:
    """Rows of one bag, pseudo-bag by pseudo-bag, the earlier ones larger by one where they cannot be equal."""
    if step is not None:
        return step.permutation(len(xy0), device=xy0.device)
    order = raster_order(xy0)
    if order is None:
        order = torch.arange(len(xy0), device=xy0.device)
    return torch.cat([order[group::groups] for group in range(groups)])
