"""Several trained models that answer as one: the mean of their logits, and so of all that adds up to them."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor, nn

from wsimil.config import FrozenConfig
from wsimil.errors import ModelError
from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, Contributions, LossTerms, StepContext
from wsimil.ops.segment_softmax import segment_softmax

ENSEMBLE = "ensemble"


class MemberConfig(FrozenConfig):
    """One member: the name of its method, and the method's hyperparameters."""

    method: str
    config: dict[str, JsonValue]


class EnsembleConfig(FrozenConfig):
    """The members, in order."""

    members: tuple[MemberConfig, ...]


class Ensemble(MILModel):
    """logits = mean over members; each standardizes features as it was trained to.

    Attention is the mean over members and their heads; contributions, where every member splits exactly, are the mean, and so
    add up to the mean logit. It answers and does not learn. Raises ModelError for members of different D or C.
    """

    def __init__(self, members: Sequence[MILModel], methods: Sequence[str]) -> None:
        shapes = sorted({(member.in_dim, member.num_classes) for member in members})
        if len(shapes) != 1 or len(members) < 2:
            raise ModelError(
                f"an ensemble takes two or more models of one width and one number of logits, got {shapes}"
            )
        named = zip(methods, members, strict=True)
        config = EnsembleConfig(
            members=tuple(
                MemberConfig(method=name, config=member.config.model_dump(mode="json")) for name, member in named
            )
        )
        super().__init__(config, in_dim=shapes[0][0], num_classes=shapes[0][1])
        self.members, self.methods = nn.ModuleList(members), tuple(methods)
        self.picks_instances = any(member.picks_instances for member in members)
        self.mixes_instances = any(member.mixes_instances for member in members)
        self.shows_each_alone = all(member.shows_each_alone for member in members)

    def forward(self, bags: BagBatch) -> BagOutput:
        """See `MILModel.forward`."""
        return self.joined([member(bags) for member in self.each()], bags)

    def contributions(self, bags: BagBatch) -> Contributions | None:
        """See `MILModel.contributions`; None where one member does not split."""
        found = []
        for member in self.each():
            split = member.contributions(bags)
            if split is None:
                return None
            found.append(split)
        return Contributions(
            output=self.joined([one.output for one in found], bags),
            values=torch.stack([one.values for one in found]).mean(dim=0),
            bias=torch.stack([one.bias for one in found]).mean(dim=0),
            of_maximum=any(one.of_maximum for one in found),
        )

    def losses(self, bags: BagBatch, step: StepContext) -> LossTerms:
        """Raises ModelError: an ensemble does not learn."""
        raise ModelError("an ensemble does not learn; train its members")

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """Raises ModelError: members embed instances each in their own way."""
        raise ModelError("an ensemble has no embedded instances of its own; give it bags")

    def joined(self, outputs: Sequence[BagOutput], bags: BagBatch) -> BagOutput:
        """The members' outputs as one."""
        attention = [_attention(one, bags) for one in outputs]
        known = [one for one in attention if one is not None]
        return BagOutput(
            logits=torch.stack([one.logits for one in outputs]).mean(dim=0),
            embedding=torch.cat([one.embedding for one in outputs], dim=1),
            attention=torch.stack(known).mean(dim=0) if len(known) == len(outputs) else None,
        )

    def each(self) -> list[MILModel]:
        """The members, in order."""
        return [member for member in self.members if isinstance(member, MILModel)]


def build_saved(method: str, config: Mapping[str, Any], *, in_dim: int, num_classes: int, source: str) -> MILModel:
    """The model that saved facts describe, with weights to be loaded. Raises ConfigError, KeyError, TypeError, ModelError."""
    if method != ENSEMBLE:
        return registry.build(method, config, in_dim=in_dim, num_classes=num_classes, source=source)
    members, names = [], []
    for one in config["members"]:
        names.append(str(one["method"]))
        members.append(registry.build(names[-1], one["config"], in_dim=in_dim, num_classes=num_classes, source=source))
    return Ensemble(members, names)


def _attention(output: BagOutput, bags: BagBatch) -> Float[Tensor, "T 1"] | None:
    attention = output.attention
    if attention is None and output.attention_logits is not None:
        attention = segment_softmax(output.attention_logits, bags.cu_seqlens)
    return None if attention is None else attention.mean(dim=1, keepdim=True)
