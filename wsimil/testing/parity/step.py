"""The parts that replays of several sources share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, BagOutput, LossTerms
from wsimil.mil.checkpoints.base import OfficialModel
from wsimil.mil.layers.nystrom import NystromAttention
from wsimil.testing.parity.recording import RecordedStep, Recording
from wsimil.testing.parity.report import FLOAT32, FLOAT64, Bound, Report


@dataclass(frozen=True, slots=True)
class Precision:
    """A pass over the file: in which dtype, where its expectations lie, how close they must be."""

    dtype: torch.dtype
    prefix: str
    bound: Bound


def precisions(recording: Recording) -> list[Precision]:
    """float32, and float64 where the file has it."""
    found = [Precision(torch.float32, "", FLOAT32)]
    if recording.keys("f64."):
        found.append(Precision(torch.float64, "f64.", FLOAT64))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A report on one file in one precision; keys are those of the file behind the precision's prefix."""

    recording: Recording
    report: Report
    precision: Precision

    def has(self, key: str) -> bool:
        """Whether the file expects `key`."""
        return self.precision.prefix + key in self.recording

    def check(self, quantity: str, ours: Tensor | float, key: str, *, bound: Bound | None = None) -> None:
        """Compare with `key` where the file has it, as closely as the precision allows unless `bound` says otherwise."""
        if self.has(key):
            theirs = self.recording.array(self.precision.prefix + key)
            bound = bound or self.precision.bound
            self.report.compare(quantity, ours, theirs, bound=bound, detail=key, own_rounding=self._own_rounding(key))

    def answers(self, output: BagOutput, *, prefix: str = "out.", name: str = "") -> None:
        """Compare logits, and attention where scores are its logits: as they are and after softmax. `name` follows quantities."""
        self.check(f"logits{name}", output.logits, f"{prefix}logits")
        if output.attention_logits is not None:
            scores = output.attention_logits.T  # [H, N]
            self.check(f"attention{name}", scores, f"{prefix}attn_raw")
            self.check(f"attention{name}", scores.softmax(dim=1), f"{prefix}attn")

    def features_gradient(self, bags: BagBatch, key: str = "grad.x") -> None:
        """Compare the gradient of the features."""
        if bags.features.grad is None:
            self.report.fail(f"{key}: no gradient reaches the features")
        else:
            self.check("gradient of x", bags.features.grad, key)

    def _own_rounding(self, key: str) -> float:
        """How far the recorded float32 is from the recorded float64."""
        if self.precision.prefix or f"f64.{key}" not in self.recording:
            return 0.0
        narrow, wide = self.recording.array(key), self.recording.peek(f"f64.{key}")
        if narrow.shape != wide.shape:  # a norm
            return 0.0
        return float(np.linalg.norm(narrow.astype(np.float64) - wide))

    def gradients(self, model: MILModel, official: OfficialModel, *, prefix: str = "") -> None:
        """Gradients of all parameters that the file has, in full or as norms."""
        for kind in ("grad", "gradnorm"):
            self.gradients_below(f"{prefix}{kind}.state.", model, official)

    def gradients_below(self, start: str, model: MILModel, official: OfficialModel) -> None:
        """Gradients of the parameters whose official names follow `start`; where one number is recorded, it is the norm."""
        for key in self.recording.keys(self.precision.prefix + start):
            name = official.names.get(key)
            if name is None:
                self.report.fail(f"{start}{key}: no parameter of ours has this name")
                continue
            parameter = model.get_parameter(name)
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            theirs = self.recording.array(self.precision.prefix + start + key)
            self.report.compare(
                "gradients",
                gradient.double().norm() if theirs.ndim == 0 else gradient,
                theirs,
                bound=self.precision.bound,
                detail=name,
                zero_by_theory=name in model.without_gradient,
                own_rounding=self._own_rounding(start + key),
            )


def take_step(
    model: MILModel,
    bags: BagBatch,
    step: RecordedStep,
    *,
    report: Report,
    losses: Callable[[], LossTerms] | None = None,
    total: Callable[[LossTerms], Tensor] = lambda terms: terms.total,
) -> LossTerms:
    """Losses and their gradients; draws that are left over are a failure."""
    model.zero_grad(set_to_none=True)
    bags.features.grad = None
    terms = model.losses(bags, step) if losses is None else losses()
    total(terms).backward()  # type: ignore[no-untyped-call]  # torch does not type it
    if step.left():
        report.fail(f"draws that the official code consumed and ours did not: {step.left()}")
    return terms


def without_dropout(official: OfficialModel, keys: Mapping[str, float] | None = None) -> dict[str, float]:
    """Config that turns off every dropout of a method."""
    return dict.fromkeys(dropouts(official.method), 0.0) | dict(keys or {})


def dropouts(method: str) -> list[str]:
    """The hyperparameters of a method that are dropouts."""
    from wsimil.mil import registry

    return [name for name in registry.config_class(method).model_fields if name.endswith("dropout")]


def convolve_as_recorded(model: torch.nn.Module) -> None:
    """Let the convolution over values go through the two-dimensional kernel that the official code calls.

    Its gradient in float32 is wrong in torch 2.15 on CPU, and stands so in recordings; ours goes through one dimension, whose
    gradient is right. In float64 both are, and there ours is compared as it is.
    """
    for module in model.modules():
        if isinstance(module, NystromAttention):
            module.convolve = partial(_two_dimensional, module.conv)  # type: ignore[method-assign]
            module.learn = partial(_learn_by_parts, module)  # type: ignore[method-assign]


def _learn_by_parts(
    attention: NystromAttention, tokens: Tensor, norm: torch.nn.LayerNorm, keep: Tensor | None, *, count: int
) -> Tensor:
    """`NystromAttention.learn` in torch's own operations, the convolution among them."""
    mixed: Tensor = attention(norm(tokens), keep)
    return (tokens + mixed)[:count]


def _two_dimensional(conv: torch.nn.Conv1d, v: Tensor) -> Tensor:
    """`NystromAttention.convolve` by the other kernel."""
    kernel = conv.weight[..., None]
    return F.conv2d(v[None], kernel, padding=(kernel.shape[2] // 2, 0), groups=conv.groups)[0]
