"""CLAM: attention that also sorts its instances, the most and the least attended, by a classifier of their own.

Lu, Williamson, Chen, Chen, Barbieri & Mahmood 2021, "Data-efficient and weakly supervised computational pathology on whole-slide
images", Nature Biomedical Engineering, arXiv:2004.09666; https://github.com/mahmoodlab/CLAM.

Where a bag has fewer than `k_sample` instances the official code raises, and below 2 * `k_sample` one instance is labelled both
positive and negative. Here k is then n // 2, and a bag of one has no instance loss; `compat: official` does as the official code.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int32, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wsimil.config import FrozenConfig
from wsimil.errors import ModelError
from wsimil.mil.base import MILModel, refuse_task
from wsimil.mil.batch import BagBatch, BagOutput, Contributions, LeftOut, LossTerms, StepContext
from wsimil.mil.layers.embedding import InstanceEmbedding
from wsimil.mil.layers.gated_attention import GatedAttention
from wsimil.mil.layers.left_out import left_out_of_sums
from wsimil.mil.layers.pooled import Pooled
from wsimil.ops.packed_linear import packed_linear, row_linear
from wsimil.targets import Classification, Task


class CLAMConfig(FrozenConfig):
    """Hyperparameters of CLAM.

    `branches`: "single" (CLAM-SB) has one attention for all classes, "multi" (CLAM-MB) one for each. The official network is
    "small" with these widths and "big" with `attention_dim` 384; its attention drops 0.25 wherever its embedding drops anything.
    `k_sample`: how many of the most and of the least attended instances get a label. `subtyping`: the most attended instances of
    the other classes are negatives too. `instance_loss`: cross_entropy, the official default, or svm, the smooth top-1 SVM of
    Berrada, Zisserman & Kumar 2018, arXiv:1802.07595, of the official README. `bag_weight`: share of the bag's term in the loss.
    """

    branches: Literal["single", "multi"] = "single"
    hidden_dim: int = Field(512, ge=1)
    attention_dim: int = Field(256, ge=1)
    gated: bool = True
    embed_dropout: float = Field(0.25, ge=0, lt=1)
    attention_dropout: float = Field(0.25, ge=0, lt=1)
    k_sample: int = Field(8, ge=1)
    subtyping: bool = False
    instance_loss: Literal["cross_entropy", "svm"] = "cross_entropy"
    bag_weight: float = Field(0.7, ge=0, le=1)
    compat: Literal["wsimil", "official"] = "wsimil"


class CLAM(MILModel):
    """`h = embed(x); p_c = softmax(attention(h)_c); z_c = p_c h; logits_c = classifier_c(z_c)`, one p for all c where single.

    For the class c of the bag, the instances that p_c weighs most are to be 1, the least 0, by an instance classifier of c.
    `LossTerms.details`: `instance_labels` and `instance_logits` of those, bag by bag. State: `standardize.*`, `embed.linear.*`,
    `attention.{value,gate,score}.*`, `classifier.*` (single) or `classifiers.<c>.*` (multi), `instance_classifiers.<c>.*`.
    """

    Config = CLAMConfig
    in_training_only = frozenset({"compat", "instance_loss", "k_sample", "subtyping"})
    takes_masking = True
    without_gradient = frozenset({"attention.score.bias"})

    def __init__(self, config: CLAMConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        width, multi = config.hidden_dim, config.branches == "multi"
        self.embed = InstanceEmbedding(in_dim, width, bias=True, activation="relu", drop=config.embed_dropout)
        self.attention = GatedAttention(
            width,
            config.attention_dim,
            heads=num_classes if multi else 1,
            gated=config.gated,
            activation="tanh",
            bias=True,
            drop=config.attention_dropout,
        )
        self.classifier = None if multi else nn.Linear(width, num_classes)
        self.classifiers = nn.ModuleList(nn.Linear(width, 1) for _ in range(num_classes)) if multi else None
        self.instance_classifiers = nn.ModuleList(nn.Linear(width, 2) for _ in range(num_classes))
        self.embedding_parts = num_classes if multi else 1
        self.k_sample, self.subtyping, self.official = (
            config.k_sample,
            config.subtyping,
            config.compat == "official",
        )
        self.svm, self.bag_weight = config.instance_loss == "svm", config.bag_weight

    def check_task(self, task: Task) -> None:
        """See `MILModel.check_task`: the instance loss asks of which class a bag is."""
        if not isinstance(task, Classification):
            refuse_task("clam", task, "its instance loss asks each class which tiles are its own")

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions:
        """Instance i adds `p_ci * (w_c · h_i)` to logit c."""
        pooled = self.attention(h, bags, step)
        weight, bias = self._head()
        values = pooled.weights * packed_linear(h, weight, None, bags.cu_seqlens)
        return Contributions(output=self._answer(pooled), values=values, bias=bias)

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`."""
        return self._answer(self.attention(h, bags, step))

    def linearized(self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]) -> Float[Tensor, "B C"]:
        """See `MILModel.linearized`: with attention held."""
        with torch.no_grad():
            pooled = self.attention.pool(at, bags.cu_seqlens)
        return self._answer(pooled.over(x)).logits

    def left_out(self, h: Float[Tensor, "T L"], bags: BagBatch) -> LeftOut:
        """See `MILModel.left_out`; with a branch for each class a class reads its own."""
        pooled = self.attention.pool(h, bags.cu_seqlens)
        values = packed_linear(h, self._head()[0], None, bags.cu_seqlens)
        branches = values[:, None] if self.classifier is not None else torch.diag_embed(values)
        return left_out_of_sums(pooled.left, branches, bags)

    def loss_terms(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext) -> LossTerms:
        """See `MILModel.loss_terms`; "instance" is the mean over bags. Raises ModelError for a bag too small for `compat`."""
        pooled = self.attention(h, bags, step)
        output = self._answer(pooled)
        most, least = (pooled.ends(self.k_sample, largest=largest) for largest in (True, False))  # [B, H, k]
        labels, logits = [], []
        term = output.logits.new_zeros(())
        begins = bags.cu_seqlens[:-1].tolist()
        parts = zip(begins, bags.lengths, most, least, bags.known_targets.tolist(), strict=True)
        for number, (begin, length, highest, lowest, target) in enumerate(parts):
            k = self._k(length, bags.slide_ids[number])
            for label in range(self.num_classes) if self.subtyping else [target]:
                head = label if self.classifier is None else 0
                chosen, truth = _sample(highest[head, :k], lowest[head, :k], positive=label == target)
                if k == 0:
                    continue
                judge = self.instance_classifiers[label]
                logits.append(judge(_rows(h, begin + chosen)))
                labels.append(truth)
                term = term + self._judge(logits[-1], truth) / (self.num_classes if self.subtyping else 1)
        return LossTerms(
            output=output,
            terms={"bag": step.criterion(output.logits, bags.known_targets), "instance": term / len(bags)},
            weights={"bag": self.bag_weight, "instance": 1 - self.bag_weight},
            details={
                "instance_labels": torch.cat(labels) if labels else bags.known_targets[:0],
                "instance_logits": torch.cat(logits) if logits else h.new_zeros(0, 2),
            },
        )

    def _answer(self, pooled: Pooled) -> BagOutput:
        vectors = pooled.vectors  # [B, H, L]
        weight, bias = self._head()
        if self.classifier is not None:
            logits = row_linear(vectors[:, 0], weight, bias)
        else:
            columns = [row_linear(vectors[:, c], weight[c : c + 1], bias[c : c + 1]) for c in range(self.num_classes)]
            logits = torch.cat(columns, dim=1)
        return BagOutput(
            logits=logits,
            embedding=vectors.flatten(1),
            attention_logits=pooled.scores,
            attention_entropy=pooled.entropy,
            masked=pooled.masked,
        )

    def _head(self) -> tuple[Float[Tensor, "C L"], Float[Tensor, " C"]]:
        if self.classifier is not None:
            return self.classifier.weight, self.classifier.bias
        heads = [head for head in self.classifiers or () if isinstance(head, nn.Linear)]
        return torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])

    def _k(self, count: int, slide_id: str) -> int:
        if not self.official:
            return min(self.k_sample, count // 2)
        if count < self.k_sample:
            raise ModelError(
                f"slide {slide_id!r}: {count} instances, and the official CLAM needs {self.k_sample}; leave the slide out, lower"
                " method.k_sample, or set method.compat to wsimil"
            )
        return self.k_sample

    def _judge(self, logits: Float[Tensor, "S 2"], labels: Int64[Tensor, " S"]) -> Float[Tensor, ""]:
        if not self.svm:
            return F.cross_entropy(logits, labels)
        # The smooth top-1 SVM of two classes, at margin and temperature 1.
        margin = (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)
        return F.softplus(1 - margin).mean()


def _rows(h: Float[Tensor, "T L"], places: Int64[Tensor, " S"]) -> Float[Tensor, "S L"]:
    """`h[places]`; on CPU its gradient is added to that of h where it lies, not as another T x L numbers, most of them 0."""
    # Of float16 torch adds no sparse tensors on a CPU.
    sparse = h.device.type == "cpu" and h.dtype != torch.float16
    return F.embedding(places, h, sparse=True) if sparse else h[places]


def _sample(
    most: Int32[Tensor, " k"], least: Int32[Tensor, " k"], *, positive: bool
) -> tuple[Int64[Tensor, " S"], Int64[Tensor, " S"]]:
    """Rows of one bag that a class judges, and what it is to say of them: of the bag's own class, or of another."""
    if not positive:
        return most.long(), torch.zeros_like(most, dtype=torch.int64)
    truth = torch.cat([torch.ones_like(most), torch.zeros_like(least)])
    return torch.cat([most, least]).long(), truth.long()
