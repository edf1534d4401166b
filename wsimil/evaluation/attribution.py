"""What a model's answer for a bag rests on, instance by instance."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from wsimil.errors import ModelError
from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput
from wsimil.ops.segment_softmax import segment_softmax


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """A model's output for a batch and K named scores of each instance.

    "attention" (or "attention:1" ... where there are several heads) is in [0, 1] and sums to 1 over a bag: how much the bag's
    vector is made of an instance, which is not what the instance speaks for; where a method's attention is no softmax
    (`BagOutput.attention`) it is as that method has it. "contribution:<output>" is what an instance adds
    to a logit, such as that of a class; over a bag it sums to the logit less `bias`, which is None without contributions.
    "score:<output>" is an instance's own logit.
    """

    output: BagOutput
    names: tuple[str, ...]
    values: Float[Tensor, "T K"]
    bias: Float[Tensor, " C"] | None
    lengths: tuple[int, ...]

    def per_bag(self) -> list[NDArray[np.float32]]:
        """The scores of each bag, [n, K], on the host."""
        return [part.numpy() for part in torch.split(self.values.to("cpu", torch.float32), list(self.lengths))]


@torch.no_grad()
def attribute(model: MILModel, bags: BagBatch, *, outputs: Sequence[str]) -> Attribution:
    """One forward pass, and every score that the method has; `outputs` name the logits in their order.

    Raises ModelError where the model has another number of logits.
    """
    if len(outputs) != model.num_classes:
        raise ModelError(f"the model has {model.num_classes} logits, got {len(outputs)} names: {', '.join(outputs)}")
    split = model.contributions(bags)
    output: BagOutput = model(bags) if split is None else split.output
    names: list[str] = []
    columns: list[Tensor] = []
    attention = output.attention
    if attention is None and output.attention_logits is not None:
        attention = segment_softmax(output.attention_logits, bags.cu_seqlens)
    if attention is not None:
        heads = attention.shape[1]
        names += ["attention"] if heads == 1 else [f"attention:{head}" for head in range(1, heads + 1)]
        columns.append(attention)
    if split is not None:
        names += [f"contribution:{name}" for name in outputs]
        columns.append(split.values)
    if output.instance_logits is not None:
        names += [f"score:{name}" for name in outputs]
        columns.append(output.instance_logits)
    values = torch.cat(columns, dim=1) if columns else bags.features.new_empty((len(bags.features), 0))
    bias = None if split is None else split.bias.detach()
    return Attribution(output=output, names=tuple(names), values=values, bias=bias, lengths=bags.lengths)
