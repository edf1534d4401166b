"""Attention pooling whose scores come from a small network, plain or gated.

Ilse, Tomczak & Welling 2018, ICML, arXiv:1802.04712; https://github.com/AMLab-Amsterdam/AttentionDeepMIL.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from wsimil.mil.batch import BagBatch, ScoreMasking, StepContext
from wsimil.mil.layers.dropout import dropout
from wsimil.mil.layers.pooled import Pooled, pool_by_scores
from wsimil.mil.masking import TopKMasking
from wsimil.ops.gated_attention_pool import GateDropout, IndexMask, TopKMask, gated_attention_pool
from wsimil.ops.packed_linear import packed_linear
from wsimil.ops.varlen import CuSeqlens, split_bags

ScoreActivation: TypeAlias = Literal["tanh", "relu", "gelu"]

_ACTIVATIONS = {"tanh": torch.tanh_, "relu": F.relu_, "gelu": F.gelu}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """What a step masks and drops, and the names of bags by which it draws."""

    mask: TopKMask | IndexMask | None = None
    dropout: GateDropout | None = None
    bag_ids: Int64[Tensor, " B"] | None = None


class GatedAttention(nn.Module):
    """`a = score(activation(value(h)) * sigmoid(gate(h)))`, or without the second factor where it is not gated; `softmax(a) h`.

    Heads share value and gate. State: `value.*` (V of the paper), `gate.*` (U), `score.*` (w).
    """

    def __init__(
        self,
        in_dim: int,
        attention_dim: int,
        *,
        gated: bool,
        activation: ScoreActivation,
        bias: bool,
        drop: float,
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.value = nn.Linear(in_dim, attention_dim, bias=bias)
        self.gate = nn.Linear(in_dim, attention_dim, bias=bias) if gated else None
        self.score = nn.Linear(attention_dim, heads, bias=bias)
        self.activation = activation
        self.drop = drop

    def forward(
        self,
        h: Float[Tensor, "K L"],
        bags: BagBatch,
        step: StepContext | None,
        *,
        rows: Int64[Tensor, " T"] | None = None,
        own: ScoreMasking | None = None,
        gram: bool = False,
    ) -> Pooled:
        """Pool embedded instances: instance i of `bags` is `h[rows[i]]`, no row twice, or `h[i]`.

        A training step drops on each factor of the gate, and masks by `own`, the masking of the method, or else `step.masking`.
        """
        masking = None if step is None else own or step.masking
        if step is None or (masking is None and self.drop == 0):
            return self.pool(h, bags.cu_seqlens, rows=rows, gram=gram)
        seed = step.seed(device=h.device)
        if seed is None and self.drop:
            return self._pool_drawn(h if rows is None else h[rows], bags, step, own=own, gram=gram)
        draws = Draws(
            dropout=None if seed is None or not self.drop else GateDropout(p=self.drop, seed=seed),
            bag_ids=bags.draw_ids,
        )
        if seed is not None and isinstance(masking, TopKMasking) and masking.drop < 1:
            draws = replace(draws, mask=TopKMask(k=masking.k, drop=masking.drop, seed=seed))
        elif masking is not None:
            with torch.no_grad():
                masked = masking(self.pool(h, bags.cu_seqlens, rows=rows, draws=draws).scores, bags, step)
            if any(bool(part.all(dim=0).any()) for part in split_bags(masked, bags.cu_seqlens)):
                # Attention is even then, which the operation does not have; it drops as it did for the scores that chose.
                scores = self.pool(h, bags.cu_seqlens, rows=rows, draws=draws).scores
                values = h if rows is None else h[rows]
                return pool_by_scores(scores, values, bags, step, own=_Masked(masked), gram=gram)
            draws = replace(draws, mask=_named(masked, bags))
        return self.pool(h, bags.cu_seqlens, rows=rows, draws=draws, gram=gram)

    def pool(
        self,
        h: Float[Tensor, "K L"],
        cu_seqlens: CuSeqlens,
        *,
        rows: Int64[Tensor, " T"] | None = None,
        draws: Draws | None = None,
        gram: bool = False,
    ) -> Pooled:
        """Pool bags with nothing masked or dropped but by `draws`."""
        draws, gate = draws or Draws(), self.gate
        found = gated_attention_pool(
            h,
            self.value.weight,
            self.value.bias,
            None if gate is None else gate.weight,
            None if gate is None else gate.bias,
            self.score.weight,
            self.score.bias,
            cu_seqlens=cu_seqlens,
            rows=None if rows is None else rows.to(torch.int32),
            mask=draws.mask,
            bag_ids=draws.bag_ids,
            dropout=draws.dropout,
            activation=self.activation,
            entropy=True,
            gram=gram,
            scores=True,
            raw_scores=True,
        )
        if found.scores is None or found.raw_scores is None:
            raise TypeError("scores are always asked for")
        left = found.scores.t()
        return Pooled(
            vectors=found.z.to(h.dtype),
            scores=found.raw_scores.t(),
            left=left,
            entropy=found.entropy if draws.mask is None else None,
            gram=found.gram,
            masked=None if draws.mask is None else left.detach() == -torch.inf,
            cu_seqlens=cu_seqlens,
        )

    def _pool_drawn(
        self, h: Tensor, bags: BagBatch, step: StepContext, *, own: ScoreMasking | None, gram: bool
    ) -> Pooled:
        """The same with dropout whose every draw the step gives."""
        ends = bags.cu_seqlens
        hidden = _ACTIVATIONS[self.activation](packed_linear(h, self.value.weight, self.value.bias, ends))
        hidden = dropout(hidden, self.drop, step)
        if self.gate is not None:
            gate = torch.sigmoid_(packed_linear(h, self.gate.weight, self.gate.bias, ends))
            hidden = hidden * dropout(gate, self.drop, step)
        scores = packed_linear(hidden, self.score.weight, self.score.bias, ends)
        return pool_by_scores(scores, h, bags, step, own=own, gram=gram)


@dataclass(frozen=True, slots=True, eq=False)
class _Masked:
    """A masking that has been chosen."""

    masked: Bool[Tensor, "T H"]

    def __call__(self, scores: Float[Tensor, "T H"], bags: BagBatch, step: StepContext) -> Bool[Tensor, "T H"]:
        return self.masked


def _named(masked: Bool[Tensor, "T H"], bags: BagBatch) -> IndexMask:
    """The places in their bags of instances that are masked."""
    parts = [[column.nonzero()[:, 0] for column in part.t()] for part in split_bags(masked, bags.cu_seqlens)]
    most = max(len(places) for part in parts for places in part)
    idx = torch.full((len(parts), masked.shape[1], most), -1, dtype=torch.int32, device=masked.device)
    for bag, part in enumerate(parts):
        for head, places in enumerate(part):
            idx[bag, head, : len(places)] = places
    return IndexMask(idx=idx)
